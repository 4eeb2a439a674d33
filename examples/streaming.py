"""Tune a captioner on a stream: data that are never read as a whole, such as many parquet files on a disk or the Hub.

    python examples/streaming.py --data "shards/*.parquet" --output runs/stream --steps 1000
    python examples/streaming.py --data "shards/*.parquet" --output runs/stream --steps 1000 --resume
    python examples/streaming.py --output runs/stream

``--data`` is a pattern of parquet files or of their addresses. The third command needs no download: it draws scenes,
writes them to parquet files, and trains a small captioner on them first.

A stream has no length, so the number of steps is given; when it has been read it begins anew. It cannot be shuffled as
a whole either, so wrong captions are drawn from a reservoir of those that were read last. The second command goes on
with a run that was stopped, at its newest checkpoint, and gives the very weights that it would have given.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from datasets import IterableDataset, load_dataset

from hf_contrastive_caption import ContrastiveCaptionConfig, ContrastiveCaptionTrainer, scenes
from hf_contrastive_caption.demo.start import start_captioner

CHECKPOINT = "nlpconnect/vit-gpt2-image-captioning"
NUM_SHARDS = 4


def main(arguments: list[str] | None = None) -> ContrastiveCaptionTrainer:
    options = parse(arguments)
    if options.data is None:
        pattern, model = draw_shards(options), options.model or str(options.output / "start")
    else:
        pattern, model = options.data, options.model or CHECKPOINT

    stream: IterableDataset = load_dataset("parquet", data_files=pattern, split="train", streaming=True)
    # Rows that stand together in a file may be of one kind, and rows are read in their order: so they are shuffled
    # within a buffer. The seed must be given, so that a resume shuffles in the same way.
    stream = stream.shuffle(seed=0, buffer_size=options.shuffle_buffer)

    trainer = ContrastiveCaptionTrainer(
        model=model,  # also for a resume: it is what the reference is made of
        args=ContrastiveCaptionConfig(
            output_dir=str(options.output / "tuned"),
            max_steps=options.steps,
            reservoir_size=options.reservoir_size,
            per_device_train_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            warmup_steps=0.1,
            logging_first_step=True,
            save_steps=options.save_steps,
            save_total_limit=2,
            report_to="none",
        ),
        train_dataset=stream,
    )
    trainer.train(resume_from_checkpoint=options.resume or None)
    trainer.save_model()
    print(f"The captioner is in {options.output / 'tuned'}.")
    return trainer


def draw_shards(options: argparse.Namespace) -> str:
    """Write drawn scenes to a few parquet files, train a captioner on them, and say where the files are."""
    train = scenes(options.images, 2, 2)["train"]
    if options.model is None:
        start_captioner(options.output / "start", train, steps=options.start_steps)
    folder = options.output / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(NUM_SHARDS):
        train.shard(NUM_SHARDS, number).to_parquet(folder / f"train-{number}.parquet")
    return str(folder / "*.parquet")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", help=f"folder or repository (default: {CHECKPOINT}; without --data a small one from scratch)")
    add("--data", help="pattern of parquet files, or of their addresses (default: drawn scenes)")
    add("--output", type=Path, required=True, help="folder for checkpoints and the tuned captioner")
    add("--resume", action="store_true", help="go on with the run in the output folder")
    add("--steps", type=int, default=300, help="of tuning (default: %(default)s)")
    add("--save-steps", type=int, default=100, help="steps between checkpoints (default: %(default)s)")
    add("--reservoir-size", type=int, default=5000, help="captions kept for negatives (default: %(default)s)")
    add("--shuffle-buffer", type=int, default=1000, help="rows that are shuffled at once (default: %(default)s)")
    add("--batch-size", type=int, default=32, help="images in a step (default: %(default)s)")
    add("--learning-rate", type=float, help="highest (default: 1e-5, and 2e-4 for the small captioner)")
    add("--images", type=int, default=6000, help="scenes to draw (default: %(default)s)")
    add("--start-steps", type=int, default=1200, help="that train the small captioner (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.learning_rate is None:
        options.learning_rate = 1e-5 if options.model or options.data else 2e-4
    return options


if __name__ == "__main__":
    main()
