"""Train a captioner on your own images, tune it contrastively, and compare.

    python examples/train_captioner.py --data DIR --output runs/photographs

DIR holds parquet files with a column of images and one or several of captions, or images with a ``metadata.jsonl`` or
``metadata.csv`` beside them ("imagefolder" of the library datasets: a column ``file_name`` and one of captions).
Parquet files named train, validation and test become the splits, and so do folders of images with these names that
have a metadata file each; a missing validation or test split is cut from the training split.

With these two arguments, a small ViT and GPT-2 are trained from scratch by maximum likelihood (MLE). Start from a
pretrained captioner instead, a folder or a repository on the Hub, with

    python examples/train_captioner.py --data DIR --model nlpconnect/vit-gpt2-image-captioning --output runs/tuned

Either is the *reference*. It is tuned contrastively, and as a control goes on with MLE for as many steps. The table at
the end compares the three on the test images. In the output folder stand ``reference`` (from scratch only),
``control``, ``contrastive`` (the result; load it with ``VisionEncoderDecoderModel.from_pretrained``), ``results.json``
and a report of each with its captions, ``contrastive.json`` and so on. A run that was stopped goes on where it was, at
the last checkpoint of its stage.

It runs on the processor or on one GPU; where there are several, choose one with CUDA_VISIBLE_DEVICES=0.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from transformers.trainer_utils import get_last_checkpoint

from hf_contrastive_caption import ContrastiveCaptionConfig, ContrastiveCaptionTrainer, captioner_for
from hf_contrastive_caption.data import CaptionColumns, captions_of, find_columns
from hf_contrastive_caption.data.by_image import same_images
from hf_contrastive_caption.data.files import load_splits
from hf_contrastive_caption.data.identity import bytes_key
from hf_contrastive_caption.data.table import undecoded
from hf_contrastive_caption.demo.comparison import ModelScores, learning_rows, score_models, two_sides_rows
from hf_contrastive_caption.evaluation.measures import aligned_table
from hf_contrastive_caption.loading import load_model, load_processing
from hf_contrastive_caption.models import small_captioner, small_image_processor, word_level_tokenizer

STAGE = "stage.json"
SPLITS = ("train", "validation", "test")


def main(arguments: list[str] | None = None) -> list[ModelScores]:
    options = parse(arguments)
    start = perf_counter()
    data = three_splits(options.data, options.held_out, options.seed)
    columns = find_columns(data["train"].features)
    print(", ".join(f"{name}: {len(data[name])} rows" for name in SPLITS), flush=True)

    reference = train_reference(options, data["train"], columns)
    folders = {"reference": reference, **tune(options, data["train"], reference)}
    models = {name: load_model(str(folder)) for name, folder in folders.items()}
    processor = captioner_for(models["reference"], load_processing(str(reference))).processor
    rows = score_models(
        models,
        processor,
        data["validation"],
        data["test"],
        training_arguments(options, options.output / "scores", objective="contrastive"),
        metrics=("cider_d", "bleu", "rouge_l"),
        cache_dir=options.output / "cache",
    )
    print(aligned_table(learning_rows(rows)), end="\n\n")
    print(aligned_table(two_sides_rows(rows)))
    write_results(options, data, rows, perf_counter() - start)
    contrastive, control = rows[2].report, rows[1].report
    print(f"\n{contrastive.compare(control).to_markdown()}\n")
    print(f"The contrastively tuned captioner is in {folders['contrastive']}")
    return rows


# --- data ------------------------------------------------------------------------------------------------------------


def three_splits(source: Path, held_out: float, seed: int) -> DatasetDict:
    """Load the data; missing splits are cut from the training split, never within an image."""
    try:
        data = load_splits(source)
    except ValueError as error:
        raise SystemExit(f"--data: {error}") from error
    if "train" not in data:
        raise SystemExit(f"--data {source} has the splits {', '.join(data)}, but there must be one called train.")
    for name in SPLITS[1:]:
        if name not in data:
            data["train"], data[name] = cut(data["train"], held_out, seed)
    return DatasetDict({name: data[name] for name in SPLITS})


def cut(dataset: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Cut a share of the images off a split, with all of their rows."""
    columns = find_columns(dataset.features)
    if columns.image_id is not None:
        ids = np.unique(dataset[columns.image_id][:], return_inverse=True)[1]
    else:  # rows with the same file show the same image
        files = undecoded(dataset, [columns.image])[columns.image]
        ids, _ = same_images(np.array([bytes_key(file, row) for row, file in enumerate(files)], np.uint64))
    images = np.random.default_rng(seed).permutation(ids.max() + 1)
    off = np.isin(ids, images[: max(2, round(share * len(images)))])
    return dataset.select(np.flatnonzero(~off)), dataset.select(np.flatnonzero(off))


# --- stages ----------------------------------------------------------------------------------------------------------


def train_reference(options: argparse.Namespace, train: Dataset, columns: CaptionColumns) -> Path | str:
    """The reference: trained from scratch, or the model that was given."""
    if options.model is not None:
        return options.model

    def trainer(folder: Path) -> ContrastiveCaptionTrainer:
        texts = train.select_columns(list(columns.captions))
        tokenizer = word_level_tokenizer(
            (caption for row in texts for caption in captions_of(row, columns)), options.min_frequency
        )
        model = small_captioner(
            tokenizer,
            image_size=options.image_size,
            patch_size=options.patch_size,
            width=options.width,
            encoder_layers=options.encoder_layers,
            decoder_layers=options.decoder_layers,
            heads=options.heads,
            mlp=options.mlp,
            dropout=options.dropout,
            num_positions=256,  # room for 1 + K captions in one row
            seed=options.seed,
        )
        print(f"{model.num_parameters():,} parameters, {len(tokenizer):,} words", flush=True)
        args = training_arguments(
            options,
            folder,
            objective="mle",
            captions_per_image=options.reference_captions,
            max_steps=options.reference_steps,
            per_device_train_batch_size=options.reference_batch_size,
            learning_rate=options.reference_learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=min(200, options.reference_steps // 10),
            bf16=options.reference_bf16,
        )
        processing = (tokenizer, small_image_processor(options.image_size))
        return ContrastiveCaptionTrainer(model=model, args=args, train_dataset=train, processing_class=processing)

    sizes = ("image_size", "patch_size", "width", "encoder_layers", "decoder_layers", "heads", "mlp", "dropout")
    training = ("reference_steps", "reference_captions", "reference_batch_size", "reference_learning_rate")
    others = ("reference_bf16", "min_frequency")
    return stage(options, "reference", trainer, (*sizes, *training, *others))


def tune(options: argparse.Namespace, train: Dataset, reference: Path | str) -> dict[str, Path]:
    """The control and the contrastively tuned captioner, both from the reference."""
    recipes: dict[str, dict[str, Any]] = {
        "control": {"objective": "mle", "captions_per_image": options.control_captions},
        "contrastive": {"objective": "contrastive", "captions_per_image": 1},
    }
    folders = {}
    for name, recipe in recipes.items():

        def trainer(folder: Path, recipe: dict[str, Any] = recipe) -> ContrastiveCaptionTrainer:
            args = training_arguments(
                options,
                folder,
                **recipe,
                max_steps=options.steps,
                per_device_train_batch_size=options.batch_size,
                learning_rate=options.learning_rate,
                lr_scheduler_type="linear",
                warmup_steps=options.steps // 10,
            )
            return ContrastiveCaptionTrainer(model=str(reference), args=args, train_dataset=train)

        made_with = ("model", "steps", "batch_size", "learning_rate")
        own = ("num_negatives",) if name == "contrastive" else ("control_captions",)
        folders[name] = stage(options, name, trainer, (*made_with, *own))
    return folders


def stage(
    options: argparse.Namespace,
    name: str,
    trainer: Callable[[Path], ContrastiveCaptionTrainer],
    made_with: tuple[str, ...],
) -> Path:
    """Train and save, or reuse what an earlier run finished with the same options."""
    folder = options.output / name
    wanted = {key: getattr(options, key) for key in ("data", "seed", "held_out", "max_caption_tokens", *made_with)}
    wanted = json.loads(json.dumps(wanted, default=str))
    record = folder / STAGE
    finished = False
    if record.exists():
        found = json.loads(record.read_text(encoding="utf-8"))
        finished, made = found["finished"], found["made_with"]
        if made != wanted:
            other = ", ".join(f"{key} {made.get(key)!r}" for key in wanted if made.get(key) != wanted[key])
            raise SystemExit(f"{folder} was made with {other}. Delete it or choose another --output.")
    if finished:
        print(f"--- {name}: reused from {folder}", flush=True)
        return folder
    print(f"--- {name}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(record, {"finished": False, "made_with": wanted})
    running = trainer(folder)
    running.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))
    running.save_model(str(folder))
    write_json(record, {"finished": True, "made_with": wanted})
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    return folder


def training_arguments(options: argparse.Namespace, folder: Path, **others: Any) -> ContrastiveCaptionConfig:
    """The arguments that all stages share."""
    return ContrastiveCaptionConfig(
        output_dir=str(folder),
        num_negatives=options.num_negatives,
        max_caption_tokens=options.max_caption_tokens,
        per_device_eval_batch_size=options.eval_batch_size,
        seed=options.seed,
        logging_steps=50,
        save_steps=options.save_steps,
        save_total_limit=1,
        report_to="none",
        use_cpu=options.cpu,
        dataloader_num_workers=options.num_workers,
        dataloader_pin_memory=torch.cuda.is_available() and not options.cpu,
        **others,
    )


# --- results ---------------------------------------------------------------------------------------------------------


def write_results(options: argparse.Namespace, data: DatasetDict, rows: list[ModelScores], seconds: float) -> None:
    """Write ``results.json``: the numbers and what made them; and the report of each captioner."""
    packages = ("torch", "transformers", "datasets", "accelerate")
    results = {
        "command": shlex.join(["python", *sys.argv]),
        "options": {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()},
        "versions": {"python": sys.version.split()[0], **{package: version(package) for package in packages}},
        "device": "cpu" if options.cpu or not torch.cuda.is_available() else torch.cuda.get_device_name(),
        "rows": {name: len(data[name]) for name in SPLITS},
        "seconds": round(seconds, 1),
        "models": {row.name: row.numbers() for row in rows},
    }
    write_json(options.output / "results.json", results)
    for row in rows:
        row.report.save(options.output / f"{row.name}.json")


def write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def add(name: str, default: Any, help_text: str, kind: Callable[[str], Any] = int) -> None:
        parser.add_argument(name, type=kind, default=default, help=f"{help_text} (default: {default})")

    parser.add_argument("--data", type=Path, required=True, help="folder with parquet files or images, or one file")
    parser.add_argument("--output", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--model", default=None, help="pretrained captioner to start from: folder or repository")
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")
    add("--seed", 0, "seed of weights, order, negatives and of the cut splits")
    add("--held-out", 0.1, "share of the images for a split that is missing", float)
    add("--num-workers", 0, "processes that open images")
    add("--max-caption-tokens", 40, "longer captions are cut")
    add("--save-steps", 200, "steps between checkpoints, from which a stopped run goes on")
    add("--eval-batch-size", 50, "images scored or captioned at once")

    add("--steps", 300, "steps of contrastive tuning, and of the control")
    add("--batch-size", 32, "images in such a step")
    add("--num-negatives", 5, "captions of other images for each caption (K)")
    parser.add_argument(
        "--learning-rate", type=float, default=None, help="highest (default: 2e-4 from scratch, 1e-5 with --model)"
    )
    add("--control-captions", 3, "captions of an image in a step of the control; contrastive tuning scores 1 + K")

    add("--reference-steps", 2000, "steps of MLE from scratch")
    add("--reference-batch-size", 64, "images in such a step")
    add("--reference-captions", 2, "captions of an image in such a step")
    add("--reference-learning-rate", 1e-3, "highest", float)
    parser.add_argument("--reference-bf16", action="store_true", help="train it in mixed precision: faster")
    add("--min-frequency", 5, "rarer words are unknown")
    add("--image-size", 96, "pixels")
    add("--patch-size", 12, "pixels")
    add("--width", 192, "of encoder and decoder")
    add("--encoder-layers", 5, "of the ViT")
    add("--decoder-layers", 3, "of the GPT-2")
    add("--heads", 6, "of attention")
    add("--mlp", 768, "hidden width of the MLPs")
    add("--dropout", 0.0, "while the reference and the control are trained", float)
    options = parser.parse_args(arguments)
    if options.learning_rate is None:
        options.learning_rate = 2e-4 if options.model is None else 1e-5
    options.output.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    main()
