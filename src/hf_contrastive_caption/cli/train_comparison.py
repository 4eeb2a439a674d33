"""What ``contrastive-caption train`` compares at its end: the captioner with the one that the training began from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import datasets

from hf_contrastive_caption.captioners import Captioner
from hf_contrastive_caption.cli.train_options import RunOptions
from hf_contrastive_caption.config import ContrastiveCaptionConfig
from hf_contrastive_caption.console import CommandConsole
from hf_contrastive_caption.construction import generation_arguments, make_captioner
from hf_contrastive_caption.evaluation.evaluator import prompt_of
from hf_contrastive_caption.evaluation.images import EvaluationImages, evaluation_images
from hf_contrastive_caption.evaluation.report import report_rows
from hf_contrastive_caption.hub import CardContent
from hf_contrastive_caption.loading import load_parts
from hf_contrastive_caption.reference.adapters import adapters_off
from hf_contrastive_caption.report.comparison import SHOWN, CaptionerComparison, CaptionerInPlace, compare_in_place
from hf_contrastive_caption.trainer import ContrastiveCaptionTrainer


def compares(run: RunOptions, config: ContrastiveCaptionConfig) -> bool:
    """Whether there is a comparison at the end; it is made in one process."""
    return bool(run.report_images) and config.world_size == 1


def compare_at_the_end(
    trainer: ContrastiveCaptionTrainer, run: RunOptions, evaluation: datasets.Dataset, console: CommandConsole
) -> Path | None:
    """Compare on some images of the evaluation split, print the table, and give the model card what was measured.

    Returns:
        The page; ``None`` if there are fewer than two images, or they cannot be compared, which is said: the captioner
        is there all the same, and may still be published.
    """
    folder = Path(str(trainer.args.output_dir)) / "_report"  # what begins with _ is not published
    other = "what it was" if trainer.reference is None else "the reference"
    try:
        images = _images(trainer, run, evaluation)
        if len(images) < 2:
            return None
        with console.stage(f"Comparing with {other}", 1) as advance:
            comparison = _comparison(trainer, run, images)
            comparison.save(folder)
            advance(1, f"{len(images)} images")
    except (ValueError, OSError, RuntimeError) as error:
        console.say(f"It could not be compared with {other}: {error}")
        return None
    trainer.card_content = CardContent.of(comparison, examples=run.card_images)
    console.table(report_rows([comparison.reference, comparison.target]))
    return folder / "index.html"


def _images(trainer: ContrastiveCaptionTrainer, run: RunOptions, evaluation: datasets.Dataset) -> EvaluationImages:
    args = trainer.args
    columns = (args.image_column, args.caption_columns, args.image_id_column)
    images = evaluation_images(evaluation, *columns, on_bad_image=args.on_bad_image)
    chosen = images.sample(run.report_images, args.draw_seed)
    return chosen.that_open(*trainer.readers()) if args.on_bad_image == "skip" else chosen


def _comparison(trainer: ContrastiveCaptionTrainer, run: RunOptions, images: EvaluationImages) -> CaptionerComparison:
    """With the reference if it is in memory and still what it was, and else with what the training began from."""
    args, reference = trainer.args, trainer.reference
    if reference is not None and reference.in_memory and not reference.version:
        return trainer.compare_with_reference(images, progress=False)
    options = {"batch_size": args.per_device_eval_batch_size, "seed": args.draw_seed, "progress": False}
    return compare_in_place(
        _before(trainer, run),
        lambda: nullcontext(trainer.captioner),
        images,
        ("before" if reference is None else "reference", "tuned"),
        SHOWN,
        tuple(trainer.state.log_history),
        {**options, **generation_arguments(args)},
    )


def _before(trainer: ContrastiveCaptionTrainer, run: RunOptions) -> CaptionerInPlace:
    """The captioner that the training began from: without its new adapter, or loaded again."""
    args, target = trainer.args, trainer.captioner
    if run.reference_model is None and run.lora_r is not None:

        @contextmanager
        def without_adapter() -> Iterator[Captioner]:
            with adapters_off(target.model):
                yield target

        return without_adapter
    name, kwargs = run.reference_model, {}
    if name is None:
        name, kwargs = str(run.model), args.model_init_kwargs if isinstance(args.model_init_kwargs, dict) else {}
        if os.path.isdir(name) and os.path.samefile(name, str(args.output_dir)):
            raise ValueError(f"--model and --output-dir are one folder, {name}, in which the tuned captioner is now")
    model, processing_class = load_parts(name, **kwargs)
    # The model before its training is asked what it is asked after it, whatever prompt was saved with it.
    as_what = "model" if run.reference_model is None else "reference_model"
    captioner = make_captioner(model, processing_class, args, as_what, prompt_of(target))
    captioner.model.to(args.device).eval()
    return lambda: nullcontext(captioner)
