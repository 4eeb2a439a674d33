"""Try several K (num_negatives) and nu (noise_ratio), and see which of them are worth having.

    python examples/sweep.py --data photographs --output runs/sweep-photos --num-negatives 1 5 10 --noise-ratio 0.5 1 2
    python examples/sweep.py --output runs/sweep

``--data`` is a folder with parquet files or images (see docs/cli.md) that has the splits train and validation. The
second command needs no download: it draws scenes, and trains a small captioner on them first.

The reference scores ahead, once for each K, the captions that the training will draw, since the draws do not depend on
nu; while training it is not in memory. Each run leaves its report in ``runs/``; a sweep that was stopped goes on at
the run that it had not finished. The table has both sides of all runs, as has ``sweep.csv``. A setting is *on the
edge* if no other one is at least as good on both sides, R@1 and CIDEr-D, and better on one: choose among these.
Settings that differ by less than their intervals should be run again with other seeds before anything is made of it.
"""

from __future__ import annotations

import argparse
import csv
import json
from itertools import product
from pathlib import Path

from datasets import Dataset

from hf_contrastive_caption import (
    CaptionerReport,
    ContrastiveCaptionConfig,
    ContrastiveCaptionTrainer,
    evaluate_captioner,
    scenes,
)
from hf_contrastive_caption.data.files import choose_split, load_splits
from hf_contrastive_caption.demo.start import start_captioner
from hf_contrastive_caption.evaluation.measures import aligned_table
from hf_contrastive_caption.evaluation.report import report_rows

CHECKPOINT = "nlpconnect/vit-gpt2-image-captioning"
MEASURES = ("recall_at_1", "recall_at_5", "cider_d", "rouge_l", "invented", "distinct_share")
SIDES = ("recall_at_1", "cider_d")


def main(arguments: list[str] | None = None) -> list[CaptionerReport]:
    options = parse(arguments)
    if options.data is None:
        data = scenes(options.images, max(options.images // 10, 10), 2)
        model = options.model or start_captioner(options.output / "start", data["train"], steps=options.start_steps)
    else:
        data, model = load_splits(options.data), options.model or CHECKPOINT
    train, validation = choose_split(data, "train")[1], choose_split(data, "validation")[1]

    (options.output / "runs").mkdir(parents=True, exist_ok=True)
    refuse_other_settings(options)
    reports = []
    settings = [None, *product(options.num_negatives, options.noise_ratio)]
    for number, setting in enumerate(settings, start=1):
        name = "reference" if setting is None else "K={}, nu={:g}".format(*setting)
        file = options.output / "runs" / f"{name.replace('=', '').replace(', ', '_')}.json"
        if not file.exists():
            print(f"{number} of {len(settings)}: {name}", flush=True)
            captioner = model if setting is None else tuned(options, model, train, *setting).captioner
            report = evaluate_captioner(captioner, validation, name=name, metrics=("cider_d", "rouge_l"))
            report.save(file)
        reports.append(CaptionerReport.load(file))

    best = edge(reports)
    rows = report_rows(reports, MEASURES)
    print(aligned_table([[*rows[0], "edge"], *([*row, "*" if row[0] in best else ""] for row in rows[1:])]))
    print(f"\nOn the edge between R@1 and CIDEr-D: {', '.join(best)}")
    with (options.output / "sweep.csv").open("w", newline="", encoding="utf-8") as table:
        writer = csv.writer(table)
        writer.writerow(["setting", *MEASURES, "edge"])
        for report in reports:
            writer.writerow([report.name, *(report[measure] for measure in MEASURES), report.name in best])
    return reports


def tuned(
    options: argparse.Namespace, model: str, train: Dataset, num_negatives: int, noise_ratio: float
) -> ContrastiveCaptionTrainer:
    """The captioner, tuned with one setting."""
    args = ContrastiveCaptionConfig(
        output_dir=str(options.output / "tuned"),
        num_negatives=num_negatives,
        noise_ratio=noise_ratio,
        precompute_reference=True,
        precomputed_dir=str(options.output / "scores"),
        num_train_epochs=1,
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        warmup_steps=0.1,
        seed=options.seed,
        save_strategy="no",
        report_to="none",
    )
    trainer = ContrastiveCaptionTrainer(model=model, args=args, train_dataset=train)
    trainer.train()
    return trainer


def edge(reports: list[CaptionerReport]) -> list[str]:
    """Names of the settings that none of the others beats on one side without losing on the other."""
    points = {report.name: [report[side] for side in SIDES] for report in reports}

    def beaten(name: str) -> bool:
        own = points[name]
        return any(
            other != own and all(theirs >= ours for theirs, ours in zip(other, own, strict=True))
            for other in points.values()
        )

    return [name for name in points if not beaten(name)]


def refuse_other_settings(options: argparse.Namespace) -> None:
    """Reports of runs with other steps, data or seeds must not stand in one table with these."""
    free = ("num_negatives", "noise_ratio", "output")  # there may be more of them the next time, and another place
    fixed = {name: value for name, value in vars(options).items() if name not in free}
    file = options.output / "settings.json"
    if file.exists() and json.loads(file.read_text(encoding="utf-8")) != fixed:
        raise SystemExit(f"{options.output} has runs with other settings, see {file}; choose another --output")
    file.write_text(json.dumps(fixed, indent=2) + "\n", encoding="utf-8")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", help=f"folder or repository (default: {CHECKPOINT}; without --data a small one from scratch)")
    add("--data", help="folder, parquet file, or name of a data set (default: drawn scenes)")
    add("--output", type=Path, required=True, help="folder for scores, reports and the table")
    add("--num-negatives", type=int, nargs="+", default=[1, 5], help="values of K (default: 1 5)")
    add("--noise-ratio", type=float, nargs="+", default=[0.5, 1.0, 2.0], help="values of nu (default: 0.5 1 2)")
    add("--steps", type=int, default=300, help="of each run (default: %(default)s; -1 for one epoch)")
    add("--batch-size", type=int, default=32, help="images in a step (default: %(default)s)")
    add("--learning-rate", type=float, help="highest (default: 1e-5, and 2e-4 for the small captioner)")
    add("--seed", type=int, default=0, help="of order and draws")
    add("--images", type=int, default=6000, help="scenes to draw (default: %(default)s)")
    add("--start-steps", type=int, default=1200, help="that train the small captioner (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.learning_rate is None:
        options.learning_rate = 1e-5 if options.model or options.data else 2e-4
    return options


if __name__ == "__main__":
    main()
