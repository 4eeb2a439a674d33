"""The tables of the documentation, from what is stored and nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from hf_contrastive_caption.evaluation.measures import aligned_table
from studies.plan import OVERVIEW, ROWS, STUDIES
from studies.summary import LABELS, Summary, control_of, data_sets, seeds_of_study, shared_seeds, shown, summaries

TWO_SIDES = ("recall_at_1", "recall_at_5", "recall_at_10", "recall_at_50", "cider_d", "invented", "distinct_share")
AT_A_GLANCE = ("recall_at_1", "judged_recall_at_1", "cider_d", "invented")
DIFFERENCES = ("recall_at_1", "recall_at_10", "judged_recall_at_1", "judged_recall_at_10", "cider_d", "invented")
OTHERS = ("mean_length", "bleu_4", "rouge_l", "meteor", "ranked_first", "positive_log_prob", "negative_log_prob")
_PLACE = re.compile(r"<!-- study: (?P<name>[^\n>]+?) -->\n.*?<!-- end of study -->", re.DOTALL)


def render(results: Path, seed: int | None = None, against: str | None = None) -> dict[str, str]:
    """Every study that has results, by data set and name: three tables each; and one of all ways.

    Args:
        results: Folder of the results.
        seed: Show one seed alone.
        against: Name of the row that differences are to; if ``None``, to the control of the same model.

    Raises:
        ValueError: If the results of a data set cannot be compared with each other.
    """
    found: dict[str, str] = {}
    for data in data_sets(results):
        for split in ("test", "validation"):
            for study, text in _studies(summaries(results, data, split, seed), against).items():
                found[" ".join([data, study, *([split] if split != "test" else [])])] = text
    return found


def _studies(rows: dict[str, Summary], against: str | None) -> dict[str, str]:
    """The tables of every study that these rows belong to, and the one of all ways, called overview."""
    found: dict[str, str] = {}
    for study, names in STUDIES.items():
        if seeds := seeds_of_study(study, rows):
            there = [some for name in names if name in rows if (some := rows[name].among(seeds)).seeds]
            found[study] = _tables(there, rows, against)
    if text := _differences([rows[name] for name in OVERVIEW if name in rows], rows, AT_A_GLANCE, False, against):
        found["overview"] = text
    return found


def write_into(page: Path, results: Path) -> None:
    """Put the tables between ``<!-- study: NAME -->`` and ``<!-- end of study -->`` of a page.

    Raises:
        ValueError: If the page asks for a study that has no results, or for none.
    """
    found = render(results)

    def put(place: re.Match[str]) -> str:
        name = place["name"]
        if name not in found:
            raise ValueError(f"{page} asks for the study {name!r}; there are results of {', '.join(found) or 'none'}")
        return f"<!-- study: {name} -->\n\n{found[name]}\n\n<!-- end of study -->"

    written, places = _PLACE.subn(put, page.read_text(encoding="utf-8"))
    if not places:
        raise ValueError(f"{page} has no place for a table: <!-- study: NAME --> and <!-- end of study --> around it")
    page.write_text(written, encoding="utf-8")


def _tables(there: Sequence[Summary], rows: dict[str, Summary], against: str | None) -> str:
    several = len({summary.row.model for summary in there}) > 1
    parts = [
        _values(there, TWO_SIDES, several),
        _differences(there, rows, DIFFERENCES, several, against),
        _values(there, OTHERS, several),
    ]
    return "\n\n".join(part for part in parts if part)


def _label(summary: Summary, several_models: bool) -> str:
    row = summary.row
    if not several_models:
        return row.label
    return f"{row.model}: {row.label}"


def _values(there: Sequence[Summary], names: Sequence[str], several: bool) -> str:
    """Means over the seeds, and their standard deviation behind them."""
    table: list[Sequence[str]] = [["", "seeds", *(LABELS[name] for name in names)]]
    for summary in there:
        cells = []
        for name in names:
            spread = summary.spread(name)
            text = shown(name, summary.mean(name))
            cells.append(text if spread is None or text == "-" else f"{text} ± {shown(name, spread)}")
        table.append([_label(summary, several), _seeds(summary.seeds), *cells])
    return aligned_table(table)


def _differences(
    there: Sequence[Summary], rows: dict[str, Summary], names: Sequence[str], several: bool, against: str | None
) -> str:
    """What is gained over the control of the same model on the seeds of both, with intervals over images."""
    minus = "control" if against is None else ROWS[against].label
    table: list[Sequence[str]] = [
        [f"minus {minus}", "seeds", "R@1 ×", "by reference ×", *(LABELS[name] for name in names)]
    ]
    for summary in there:
        control = control_of(summary.row, rows) if against is None else rows.get(against)
        if control is None or not summary.row.is_tuning or summary.row == control.row:
            continue
        cells = []
        for name in names:
            difference = summary.minus(control, name)
            cells.append("-" if difference is None else _interval(name, *difference[:3]))
        seeds = shared_seeds([summary, control])
        times = [_times(summary, control, seeds, name) for name in ("recall_at_1", "judged_recall_at_1")]
        table.append([_label(summary, several), _seeds(seeds), *times, *cells])
    return aligned_table(table) if len(table) > 1 else ""


def _seeds(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds)) or "-"


def _interval(name: str, value: float, low: float, high: float) -> str:
    return f"{shown(name, value, '+')} ({shown(name, low, '+')} to {shown(name, high, '+')})"


def _times(summary: Summary, control: Summary, seeds: Sequence[int], name: str) -> str:
    ours = sum(summary.of_seed(name, seed) for seed in seeds)
    theirs = sum(control.of_seed(name, seed) for seed in seeds)
    return f"{ours / theirs:.2f}" if theirs else "-"
