"""Contrastive tuning on real photographs, several seeds: are captions more distinctive, and are they still true?

    python benchmarks/flickr8k.py --data DIR --output runs/flickr8k

DIR holds the parquet files of Flickr8k (or of any photographs with several captions each) named train, validation and
test. Each seed is one run of ``examples/train_captioner.py``: a captioner from scratch by maximum likelihood (the
reference), then the contrastive tuning and the control, as many further steps of maximum likelihood. A run that was
stopped goes on at its last checkpoint, a finished one is not run again. ``--jobs 2`` runs two seeds at once, each on
half of the cores.

After each run the numbers of all finished ones are written to ``benchmarks/results/flickr8k.json``, from which the
tables are drawn; ``--table`` draws them and runs nothing. Intervals are percentile intervals of a bootstrap over the
test images, each image with its mean over the seeds.

A captioner that shifts its own scores can find its images more often without saying more. So the captions of control
and contrastive captioner are also ranked by the reference, which was trained with neither ("judged").
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import common
import numpy as np

from hf_contrastive_caption.data.files import load_splits
from hf_contrastive_caption.evaluation.bootstrap import Bootstrap, Difference
from hf_contrastive_caption.evaluation.evaluator import as_captioner
from hf_contrastive_caption.evaluation.images import evaluation_images
from hf_contrastive_caption.evaluation.measures import Measure, aligned_table
from hf_contrastive_caption.evaluation.report import CaptionerReport
from hf_contrastive_caption.evaluation.retrieval.self_retrieval import self_retrieval

EXAMPLE = Path(__file__).parents[1] / "examples" / "train_captioner.py"
JUDGED_FILE = "judged.json"
MODELS = ("reference", "control", "contrastive")
MEASURES = {
    "recall_at_1": "R@1 (%)",
    "recall_at_5": "R@5 (%)",
    "recall_at_10": "R@10 (%)",
    "median_rank": "median rank",
    "mean_reciprocal_rank": "mean reciprocal rank",
    "cider_d": "CIDEr-D",
    "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "invented": "invented (%)",
    "cider_btw": "CIDErBtw",
    "distinct_captions": "distinct",
}
TABLE = ("recall_at_1", "recall_at_5", "recall_at_10", "cider_d", "rouge_l", "invented", "distinct_captions")
JUDGED = ("recall_at_1", "recall_at_5", "recall_at_10", "median_rank")
PERCENT = ("recall_at_1", "recall_at_5", "recall_at_10", "invented")


def main(arguments: list[str] | None = None) -> None:
    options, others = parse(arguments)
    if not options.table:
        with ThreadPoolExecutor(options.jobs) as pool:
            runs = {pool.submit(run_seed, options, seed, others): seed for seed in options.seeds}
            for run in as_completed(runs):
                run.result()
                judge(options, runs[run])
                summarize(options)
    print("\n\n".join(tables(json.loads(options.out.read_text(encoding="utf-8"))["measurements"])))


def run_seed(options: argparse.Namespace, seed: int, others: Sequence[str]) -> None:
    """One run of the example, in a process of its own, its output in a file beside its folder."""
    folder = options.output / f"seed-{seed}"
    if (folder / "results.json").exists():
        print(f"seed {seed}: finished before", flush=True)
        return
    folder.mkdir(parents=True, exist_ok=True)
    threads = max(1, len(os.sched_getaffinity(0)) // options.jobs)
    command = [sys.executable, EXAMPLE, "--data", options.data, "--output", folder, "--seed", str(seed), *others]
    log = options.output / f"seed-{seed}.log"
    print(f"seed {seed}: running, {threads} threads; see {log}", flush=True)
    with log.open("a") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(list(map(str, command)), stdout=file, stderr=subprocess.STDOUT, env=environment)
    if done.returncode:
        raise SystemExit(f"seed {seed} failed with {done.returncode}; see {log}")


def judge(options: argparse.Namespace, seed: int) -> None:
    """Rank the captions of all three captioners by the reference."""
    folder = options.output / f"seed-{seed}"
    if (folder / JUDGED_FILE).exists():
        return
    images = evaluation_images(load_splits(options.data)["test"])
    captioner = as_captioner(folder / "reference")
    found = {}
    for model in MODELS:
        report = CaptionerReport.load(folder / f"{model}.json")
        measures = report.measures  # the reference has judged its own captions already
        if model != "reference":
            cache = folder / "cache"
            measures = self_retrieval(captioner, images.pool, report.captions, (1, 5, 10), cache_dir=cache).measures
        found[model] = {name: measures[name].to_dict(per_image=True) for name in JUDGED}
    (folder / JUDGED_FILE).write_text(json.dumps(found) + "\n", encoding="utf-8")


def summarize(options: argparse.Namespace) -> None:
    """Write what all finished runs found."""
    seeds = [seed for seed in options.seeds if (options.output / f"seed-{seed}" / JUDGED_FILE).exists()]
    folders = [options.output / f"seed-{seed}" for seed in seeds]
    reports = {model: [CaptionerReport.load(folder / f"{model}.json") for folder in folders] for model in MODELS}
    made_with = [json.loads((folder / "results.json").read_text(encoding="utf-8")) for folder in folders]
    found: dict[str, Any] = {
        "seeds": len(seeds),
        "test_images": reports["reference"][0].num_images,
        "reference_steps": made_with[0]["options"]["reference_steps"],
        "steps": made_with[0]["options"]["steps"],
    }
    ratios: dict[str, float] = {}
    for name in MEASURES:
        merged = {model: merge([report.measures[name] for report in reports[model]]) for model in MODELS}
        for model, measure in merged.items():
            found |= entries(f"{model}_{name}", measure)
            for seed, report in zip(seeds, reports[model], strict=True):
                found[f"{model}_{name}_seed{seed}"] = report[name]
        if merged["control"].value > 0:
            ratios[f"{name}_over_control"] = float(merged["contrastive"].value / merged["control"].value)
        for model, other in (("contrastive", "control"), ("contrastive", "reference"), ("control", "reference")):
            values = merged[model].per_image
            difference = merged[model].minus(merged[other], Bootstrap(len(values[0]))) if values else None
            if difference is not None:
                found |= difference_entries(f"{model}_minus_{other}_{name}", difference)
    judged = [json.loads((folder / JUDGED_FILE).read_text(encoding="utf-8")) for folder in folders]
    for name in JUDGED:
        merged = {model: merge([Measure.from_dict(run[model][name]) for run in judged]) for model in MODELS}
        for model, measure in merged.items():
            found |= entries(f"{model}_judged_{name}", measure)
        difference = merged["contrastive"].minus(merged["control"], Bootstrap(found["test_images"]))
        assert difference is not None
        found |= difference_entries(f"contrastive_minus_control_judged_{name}", difference)
    common.write_results(__file__, ratios, found, options.out)


def merge(measures: Sequence[Measure]) -> Measure:
    """One measure of several seeds: of each image the mean over the seeds; a median is that of mean ranks."""
    first = measures[0]
    if first.statistic is None:
        return Measure(first.label, float(np.mean([measure.value for measure in measures])), percent=first.percent)
    columns = zip(*(measure.per_image for measure in measures), strict=True)
    per_image = [np.mean(column, axis=0) for column in columns]
    return Measure.of(Bootstrap(len(per_image[0])), first.label, first.statistic, *per_image, percent=first.percent)


def entries(key: str, measure: Measure) -> dict[str, float]:
    found = {key: measure.value}
    if measure.interval is not None:
        found |= {f"{key}_low": measure.interval.low, f"{key}_high": measure.interval.high}
    return found


def difference_entries(key: str, difference: Difference) -> dict[str, float]:
    names = {"": difference.value, "_low": difference.low, "_high": difference.high, "_p": difference.p_value}
    return {f"{key}{name}": value for name, value in names.items()}


def tables(found: dict[str, Any]) -> list[str]:
    """The tables of the documentation: means over seeds, each seed, and the differences."""
    rows: list[Sequence[str]] = [["", *(MEASURES[name] for name in TABLE)]]
    rows += [[model, *(cell(found, f"{model}_{name}", name) for name in TABLE)] for model in MODELS]
    seeds = sorted(int(key[len("control_cider_d_seed") :]) for key in found if key.startswith("control_cider_d_seed"))
    of_seeds: list[Sequence[str]] = [["seed", "", *(MEASURES[name] for name in TABLE)]]
    of_seeds += [
        [str(seed), model, *(shown(found[f"{model}_{name}_seed{seed}"], name) for name in TABLE)]
        for seed in seeds
        for model in MODELS
    ]
    differences: list[Sequence[str]] = [["contrastive minus", *(MEASURES[name] for name in TABLE[:-1])]]
    differences += [
        [other, *(cell(found, f"contrastive_minus_{other}_{name}", name, sign="+") for name in TABLE[:-1])]
        for other in ("control", "reference")
    ]
    judged: list[Sequence[str]] = [["judged by the reference", *(MEASURES[name] for name in JUDGED)]]
    keys = {
        **{model: f"{model}_judged" for model in MODELS},
        "contrastive - control": "contrastive_minus_control_judged",
    }
    for row, key in keys.items():
        sign = "+" if "minus" in key else ""
        judged.append([row, *(cell(found, f"{key}_{name}", name, sign) for name in JUDGED)])
    return [aligned_table(table) for table in (rows, differences, judged, of_seeds)]


def cell(found: dict[str, Any], key: str, name: str, sign: str = "") -> str:
    text = shown(found[key], name, sign)
    if f"{key}_low" not in found:
        return text
    return f"{text} ({shown(found[f'{key}_low'], name, sign)} to {shown(found[f'{key}_high'], name, sign)})"


def shown(value: float, name: str, sign: str = "") -> str:
    if name in PERCENT:
        return f"{100 * value:{sign}.1f}"
    decimals = {"distinct_captions": 0, "median_rank": 1}.get(name, 3)
    return f"{value:{sign}.{decimals}f}"


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Other options go to examples/train_captioner.py as they are, such as --reference-bf16.",
    )
    parser.add_argument("--data", type=Path, help="folder with parquet files named train, validation and test")
    parser.add_argument("--output", type=Path, default=Path("runs/flickr8k"), help="folder for models and reports")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="seeds that run at once")
    parser.add_argument("--table", action="store_true", help="draw the tables from the stored results, run nothing")
    common.out_argument(parser, __file__)
    options, others = parser.parse_known_args(arguments)
    if not options.table and options.data is None:
        parser.error("--data is needed to run anything; --table draws what is stored")
    return options, others


if __name__ == "__main__":
    main()
