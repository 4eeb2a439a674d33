"""From the stored results of single seeds to the numbers of a row: means over seeds, intervals over images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hf_contrastive_caption.evaluation.bootstrap import Bootstrap, Difference
from hf_contrastive_caption.evaluation.measures import Measure
from hf_contrastive_caption.evaluation.retrieval.ranking import Ranks
from studies.files import read_json
from studies.plan import ROWS, Row, Split, Unit, control_row, own_rows

RECALLS = (1, 5, 10, 50)
LABELS = {
    **{f"recall_at_{k}": f"R@{k} (%)" for k in RECALLS},
    **{f"judged_recall_at_{k}": f"R@{k} by reference (%)" for k in RECALLS},
    "median_rank": "median rank",
    "cider_d": "CIDEr-D",
    "rouge_l": "ROUGE-L",
    "meteor": "METEOR",
    "bleu_4": "BLEU-4",
    "cider_btw": "CIDErBtw",
    "invented": "invented (%)",
    "distinct_share": "distinct (%)",
    "vocabulary": "vocabulary",
    "mean_length": "words",
    "loss": "loss",
    "margin": "margin",
    "ranked_first": "ranked first (%)",
    "ranked_first_by_log_prob": "by log-prob (%)",
    "positive_log_prob": "ln p, right",
    "negative_log_prob": "ln p, wrong",
}
PERCENT = {name for name, label in LABELS.items() if label.endswith("(%)")}
DECIMALS = {
    "median_rank": 1,
    "vocabulary": 0,
    "mean_length": 1,
    "margin": 2,
    "positive_log_prob": 2,
    "negative_log_prob": 2,
}


@dataclass(frozen=True)
class Summary:
    """A row of a table, from all of its seeds.

    Attributes:
        row: Which way.
        results: What was stored, by seed.
    """

    row: Row
    results: dict[int, dict[str, Any]]

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that were run."""
        return tuple(sorted(self.results))

    def among(self, seeds: Iterable[int]) -> Summary:
        """The same row with those of the seeds that it has."""
        return Summary(self.row, {seed: self.results[seed] for seed in self.seeds if seed in set(seeds)})

    def of_seed(self, name: str, seed: int) -> float:
        """A measure of one seed, on its natural scale."""
        found = self.results[seed]
        if name in found["corpus"] or name in found["learned"]:
            return float({**found["corpus"], **found["learned"]}[name])
        columns = per_image(found, name)
        if columns is None:
            return float("nan")
        if name == "median_rank":
            return float(np.median(columns[0]))
        return float(np.sum(columns[0]) / (len(columns[0]) if len(columns) == 1 else np.sum(columns[1])))

    def mean(self, name: str) -> float:
        """The mean over seeds."""
        return float(np.mean([self.of_seed(name, seed) for seed in self.seeds]))

    def spread(self, name: str) -> float | None:
        """The standard deviation over seeds, ``None`` for a single one."""
        values = [self.of_seed(name, seed) for seed in self.seeds]
        return float(np.std(values, ddof=1)) if len(values) > 1 else None

    def measure(self, name: str, seeds: Sequence[int]) -> Measure | None:
        """A measure with an interval over images, of each image the mean over seeds."""
        columns = [per_image(self.results[seed], name) for seed in seeds]
        if any(column is None for column in columns):
            return None
        means = [np.mean(column, axis=0) for column in zip(*columns, strict=True)]
        statistic = "ratio" if len(means) == 2 else "median" if name == "median_rank" else "mean"
        return Measure.of(resamples(len(means[0])), LABELS[name], statistic, *means, percent=name in PERCENT)

    def minus(self, other: Summary, name: str) -> Difference | None:
        """The paired difference to another row on the seeds that both have."""
        seeds = shared_seeds([self, other])
        if not seeds:
            return None
        ours, theirs = self.measure(name, seeds), other.measure(name, seeds)
        if ours is None or theirs is None:
            return None
        return ours.minus(theirs, resamples(len(ours.per_image[0])))


@cache
def resamples(images: int) -> Bootstrap:
    """The resamples of a number of images."""
    return Bootstrap(images)


def per_image(found: dict[str, Any], name: str) -> list[Any] | None:
    """What a measure is made of for every image, ``None`` if it is not."""
    judge, recall, number = name.partition("recall_at_")
    if recall or name == "median_rank":
        # The reference is its own judge.
        stored = found["ranks"].get("reference" if judge == "judged_" else "own", found["ranks"]["own"])
        equal = np.zeros(found["images"], dtype=np.int64)
        equal[[int(image) for image in stored["equal"]]] = list(stored["equal"].values())
        ranks = Ranks.of(stored["better"], equal, found["images"])
        return [ranks.expected_rank() if name == "median_rank" else ranks.recall(int(number))]
    return found["per_image"].get(name)


def data_sets(results: Path) -> list[str]:
    """The data sets that have a folder of results, by name."""
    return sorted(path.name for path in results.glob("*") if path.is_dir())


def summaries(results: Path, data: str, split: Split = "test", seed: int | None = None) -> dict[str, Summary]:
    """All rows of a data set that have a result, or one of a seed, by name.

    Raises:
        ValueError: If rows of one seed began with different references, or were measured on different images; or if a
            result is damaged.
    """
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for row in ROWS.values():
        for file in (results / data).glob(f"{row.name}-seed*.json"):
            content = read_json(file)
            unit = Unit(data, row, content["settings"]["seed"], content["settings"]["split"])
            if file.stem == unit.key and unit.split == split:
                found.setdefault(row.name, {})[unit.seed] = content
    _check_comparable(found)
    rows = {name: Summary(ROWS[name], by_seed) for name, by_seed in found.items()}
    return rows if seed is None else {name: row.among([seed]) for name, row in rows.items() if seed in row.seeds}


def _check_comparable(found: dict[str, dict[int, dict[str, Any]]]) -> None:
    pools = {content["pool"] for by_seed in found.values() for content in by_seed.values()}
    if len(pools) > 1:
        raise ValueError("the results are of different images; keep those of each data set in a folder of its own")
    for name, by_seed in found.items():
        for seed, content in by_seed.items():
            for needed, weights in content["made_of"].items():
                stored = found.get(needed, {}).get(seed)
                if stored is not None and stored["weights"] != weights:
                    raise ValueError(f"{name}, seed {seed}, was made of another {needed} than the one that is stored")


def shared_seeds(among: Iterable[Summary]) -> tuple[int, ...]:
    """The seeds that all of the rows have."""
    return tuple(sorted(set.intersection(*(set(summary.seeds) for summary in among))))


def seeds_of_study(study: str, rows: dict[str, Summary]) -> set[int]:
    """The seeds that a study shows: those of its own tunings, the rows that no earlier study has; none without any.

    Reference and control have been run with the seeds of every study, and seeds differ more than ways do. They count
    where nothing was tuned.
    """
    own = [rows[name] for name in own_rows(study) & set(rows)]
    tuned = [summary for summary in own if summary.row.is_tuning]
    return {seed for summary in tuned or own for seed in summary.seeds}


def control_of(row: Row, among: dict[str, Summary]) -> Summary | None:
    """The control of a row's model."""
    return among.get(control_row(row.model).name)


def shown(name: str, value: float, sign: str = "") -> str:
    """A number as tables show it."""
    if np.isnan(value):
        return "-"
    if name in PERCENT:
        return f"{100 * value:{sign}.1f}"
    return f"{value:{sign}.{DECIMALS.get(name, 3)}f}"
