"""Tune all weights of a captioner on your own images, with a control beside it, and look at both sides.

    python examples/full_finetuning.py --data photographs --output runs/full
    python examples/full_finetuning.py --data photographs --output runs/full --push-to-hub me/vit-gpt2-contrastive
    python examples/full_finetuning.py --output runs/full

``--data`` is a folder with parquet files or images (see docs/cli.md) that has the splits train and test. The third
command needs no download: it draws scenes, and trains a small captioner on them first.

The captioner is tuned contrastively against a frozen copy of itself. The control, another copy, goes on with maximum
likelihood for as many steps. The table has both sides of all three on the test images: does a caption find its image,
and is it still a good caption? The page ``report/index.html`` shows every image with the captions before and after.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from datasets import Dataset

from hf_contrastive_caption import (
    CaptionerComparison,
    ContrastiveCaptionConfig,
    ContrastiveCaptionTrainer,
    evaluate_captioner,
    scenes,
)
from hf_contrastive_caption.data.files import choose_split, load_splits
from hf_contrastive_caption.demo.start import start_captioner
from hf_contrastive_caption.evaluation.report import report_table
from hf_contrastive_caption.hub import CardContent

CHECKPOINT = "nlpconnect/vit-gpt2-image-captioning"


def main(arguments: list[str] | None = None) -> CaptionerComparison:
    options = parse(arguments)
    if options.data is None:
        data = scenes(options.images, 2, max(options.images // 10, 10))
        model = options.model or start_captioner(options.output / "start", data["train"], steps=options.start_steps)
    else:
        data, model = load_splits(options.data), options.model or CHECKPOINT
    train, test = choose_split(data, "train")[1], choose_split(data, "test")[1]

    control = tune(options, "control", "mle", model, train)
    trainer = tune(options, "contrastive", "contrastive", model, train)

    comparison = trainer.compare_with_reference(test, folder=options.output / "report")
    control_report = evaluate_captioner(
        control.captioner, test, name="control", batch_size=options.batch_size, seed=options.seed
    )
    print(report_table([comparison.reference, control_report, comparison.target]))
    print("\nWhat contrastive tuning does beyond as many steps of maximum likelihood:\n")
    print(comparison.target.compare(control_report).to_markdown())
    print(f"\nThe captioner is in {options.output / 'contrastive'}. Open {options.output / 'report' / 'index.html'}.")

    if options.push_to_hub:
        # The card shows numbers before and after, and no images: examples=12 would publish twelve of the test images.
        trainer.card_content = CardContent.of(comparison, examples=0)
        trainer.push_to_hub()
    return comparison


def tune(
    options: argparse.Namespace, name: str, objective: str, model: str, train: Dataset
) -> ContrastiveCaptionTrainer:
    """Tune the captioner for the same steps on the same images, by one of the two objectives."""
    args = ContrastiveCaptionConfig(
        output_dir=str(options.output / name),
        objective=objective,
        num_negatives=5,
        noise_ratio=1.0,
        num_train_epochs=1,
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        warmup_steps=0.1,
        seed=options.seed,
        logging_first_step=True,
        save_strategy="no",
        report_to="none",
        hub_model_id=options.push_to_hub,
    )
    trainer = ContrastiveCaptionTrainer(model=model, args=args, train_dataset=train)
    trainer.train()
    trainer.save_model()
    return trainer


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", help=f"folder or repository (default: {CHECKPOINT}; without --data a small one from scratch)")
    add("--data", help="folder, parquet file, or name of a data set (default: drawn scenes)")
    add("--output", type=Path, required=True, help="folder for models and report")
    add("--steps", type=int, default=-1, help="of tuning and control (default: one epoch)")
    add("--batch-size", type=int, default=32, help="images in a step (default: %(default)s)")
    add("--learning-rate", type=float, help="highest (default: 1e-5, and 2e-4 for the small captioner)")
    add("--seed", type=int, default=0)
    add("--push-to-hub", metavar="REPOSITORY", help="publish the tuned captioner here, with a model card")
    add("--images", type=int, default=6000, help="scenes to draw (default: %(default)s)")
    add("--start-steps", type=int, default=1200, help="that train the small captioner (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.learning_rate is None:
        options.learning_rate = 1e-5 if options.model or options.data else 2e-4
    return options


if __name__ == "__main__":
    main()
