"""The demo itself: a reference by maximum likelihood, contrastive tuning, a control, and one table."""

from __future__ import annotations

import copy
import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import datasets
import torch
from transformers import PrinterCallback, VisionEncoderDecoderModel

from hf_contrastive_caption.captioners import captioner_for
from hf_contrastive_caption.config import ContrastiveCaptionConfig
from hf_contrastive_caption.console import CommandConsole, StepProgress, no_other_progress_bars
from hf_contrastive_caption.data.scenes import scenes
from hf_contrastive_caption.demo.comparison import ModelScores, learning_rows, score_models, two_sides_rows
from hf_contrastive_caption.demo.settings import DemoSettings
from hf_contrastive_caption.evaluation.images import evaluation_images
from hf_contrastive_caption.models import small_captioner, small_image_processor, word_level_tokenizer
from hf_contrastive_caption.processing import CaptionProcessor
from hf_contrastive_caption.report.comparison import compare_reports
from hf_contrastive_caption.trainer import ContrastiveCaptionTrainer

SHOWN_IMAGES = 3
EVAL_BATCH_SIZE = 100


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        rows: Reference, control and contrastive captioner, in this order.
        model_dir: Folder of the contrastively tuned captioner.
        picture: File of a test image.
        page: The comparison of the contrastive captioner with the reference, to be opened in a browser.
        seconds: How long all of it took.
    """

    rows: tuple[ModelScores, ...]
    model_dir: Path
    picture: Path
    page: Path
    seconds: float


def run_demo(settings: DemoSettings | None = None, console: CommandConsole | None = None) -> DemoResult:
    """Train, tune and compare small captioners on drawn scenes.

    A reference is trained by maximum likelihood (MLE) from scratch. Two copies of it train for the same number of
    steps on the same images at the same learning rates: the control with MLE, the other with the contrastive caption
    loss. The table is printed, and the contrastive captioner saved.

    Args:
        settings: Sizes; the defaults take less than six minutes on two processor cores.
        console: Where to print.

    Returns:
        The rows of the table and the saved files.
    """
    settings = DemoSettings() if settings is None else settings
    console = CommandConsole() if console is None else console
    start = perf_counter()
    with no_other_progress_bars():
        settings.output_dir.mkdir(parents=True, exist_ok=True)
        console.say("Contrastive captioning (Dai and Lin 2017) on drawn scenes", style="bold")
        console.say()
        data = _draw(settings, console)
        models, processor, log_history = _train(settings, data["train"], console)
        with console.stage("Comparing on test images", len(models)) as advance:
            args = _arguments(settings, "contrastive", settings.steps)
            rows = score_models(
                models, processor, data["validation"], data["test"], args, advance=lambda n: advance(n, "")
            )
        with console.stage("Writing the page", 1) as advance:
            page = _write_page(settings, models, processor, data["test"], rows, log_history)
            advance(1, "")
        result = _save(settings, models["contrastive"], processor, data["test"], rows, page, start)
    _show(settings, data["test"], result, console)
    return result


def _draw(settings: DemoSettings, console: CommandConsole) -> datasets.DatasetDict:
    with console.stage("Drawing scenes", 1) as advance:
        data = scenes(settings.train_images, settings.validation_images, settings.test_images, seed=settings.seed)
        advance(1, f"{sum(data.num_rows.values())} pictures with five captions each")
    return data


def _train(
    settings: DemoSettings, train: datasets.Dataset, console: CommandConsole
) -> tuple[dict[str, VisionEncoderDecoderModel], CaptionProcessor, list[dict[str, float]]]:
    """The three captioners, the reference first, what goes with all of them, and the log of the last training."""
    tokenizer = word_level_tokenizer(caption for captions in train["captions"] for caption in captions)
    reference = small_captioner(tokenizer, seed=settings.seed)
    processor = captioner_for(reference, (tokenizer, small_image_processor())).processor
    stages = {
        "reference": ("Reference: MLE from scratch", "mle", settings.reference_steps),
        "control": ("Control: MLE goes on", "mle", settings.steps),
        "contrastive": ("Contrastive tuning", "contrastive", settings.steps),
    }
    models: dict[str, VisionEncoderDecoderModel] = {}
    for name, (title, objective, steps) in stages.items():
        model = copy.deepcopy(models.get("reference", reference))
        with console.stage(title, steps) as advance:
            trainer = ContrastiveCaptionTrainer(
                model=model,
                args=_arguments(settings, objective, steps, from_scratch=name == "reference"),
                train_dataset=train,
                processing_class=processor,
                callbacks=[StepProgress(advance)],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        models[name] = model
    return models, processor, trainer.state.log_history


def _arguments(
    settings: DemoSettings, objective: str, steps: int, *, from_scratch: bool = False
) -> ContrastiveCaptionConfig:
    peak, warmup = (settings.reference_learning_rate, 100) if from_scratch else (settings.learning_rate, 50)
    return ContrastiveCaptionConfig(
        output_dir=str(settings.output_dir),
        objective=objective,
        num_negatives=settings.num_negatives,
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=EVAL_BATCH_SIZE,
        learning_rate=peak,
        lr_scheduler_type="cosine" if from_scratch else "linear",
        warmup_steps=min(warmup, steps // 5),
        weight_decay=0.0,
        seed=settings.seed,
        logging_steps=min(25, steps),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=torch.cuda.device_count() > 1,  # the trainer wants one process per GPU, and this is one process
    )


def _write_page(
    settings: DemoSettings,
    models: dict[str, VisionEncoderDecoderModel],
    processor: CaptionProcessor,
    test: datasets.Dataset,
    rows: list[ModelScores],
    log_history: list[dict[str, float]],
) -> Path:
    """The comparison of the contrastive captioner with the reference, as a page."""
    sides = [captioner_for(models[name], processor) for name in ("reference", "contrastive")]
    comparison = compare_reports(
        rows[0].report,
        rows[2].report,
        lambda: nullcontext(sides[0]),
        lambda: nullcontext(sides[1]),
        evaluation_images(test),
        log_history=log_history,
        batch_size=EVAL_BATCH_SIZE,
        seed=settings.seed,
    )
    return comparison.save(settings.output_dir / "report")


def _save(
    settings: DemoSettings,
    model: VisionEncoderDecoderModel,
    processor: CaptionProcessor,
    test: datasets.Dataset,
    rows: list[ModelScores],
    page: Path,
    start: float,
) -> DemoResult:
    model_dir = settings.output_dir / "model"
    model.save_pretrained(model_dir)
    processor.save_pretrained(model_dir)
    picture = settings.output_dir / f"{test[0]['image_id']}.png"
    test[0]["image"].save(picture)
    result = DemoResult(tuple(rows), model_dir, picture, page, perf_counter() - start)
    record: dict[str, Any] = {
        "settings": settings.as_dict(),
        "seconds": round(result.seconds, 1),
        "models": {row.name: row.numbers() for row in rows},
    }
    (settings.output_dir / "results.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return result


def _show(settings: DemoSettings, test: datasets.Dataset, result: DemoResult, console: CommandConsole) -> None:
    reference, _, contrastive = result.rows
    console.say()
    console.say("What was learned: captions of people against those of other images", style="bold")
    console.table(learning_rows(result.rows), last_stands_out=True)
    console.say(
        f"{len(test)} test images, each caption against {settings.num_negatives} of other images; ranked first: by "
        "the log-ratio to the reference, and by the model's own log-probability. A validation loss of 1.386 means: no "
        "different from the reference.",
        style="dim",
    )
    console.say()
    console.say("Both sides: does its own caption find the image, and is it still right?", style="bold")
    console.table(two_sides_rows(result.rows), last_stands_out=True)
    chance = ", ".join(f"{100 * value:.1f}" for name, value in reference.report.chance.items() if "recall" in name)
    console.say(
        f"R@k: share of captions whose own image is among the first k of {len(test)} by ln p(caption | image); chance "
        f"{chance}. Invented: words of content that none of the image's five annotators used. In parentheses 95 % "
        "bootstrap intervals over the test images.",
        style="dim",
    )
    changed = [number for number in range(len(test)) if reference.captions[number] != contrastive.captions[number]]
    if changed:
        console.say()
        console.say("The first test images whose caption changed:", style="bold")
    for number in changed[:SHOWN_IMAGES]:
        row = test[number]
        lines = [("image", row["image_id"]), ("a person", max(row["captions"], key=len))]
        lines += [(scores.name, scores.captions[number]) for scores in result.rows]
        console.say()
        console.picture(row["image"], lines)
    console.say()
    console.say(f"Every image with both captions, word by word: open {result.page} in a browser.")
    console.say()
    console.say(f"Done in {result.seconds:.0f} s. The contrastive captioner is in {result.model_dir}; to use it:")
    console.say()
    console.code(loading_lines(result))


def loading_lines(result: DemoResult) -> str:
    """Lines of Python that load the tuned captioner and caption a picture with it."""
    folder, picture = result.model_dir.as_posix(), result.picture.as_posix()
    return "\n".join(
        (
            "from transformers import AutoImageProcessor, AutoTokenizer, VisionEncoderDecoderModel",
            "from hf_contrastive_caption import caption_images",
            "",
            f"model = VisionEncoderDecoderModel.from_pretrained({folder!r})",
            f"processing = AutoTokenizer.from_pretrained({folder!r}), AutoImageProcessor.from_pretrained({folder!r})",
            f"print(caption_images(model, processing, {picture!r}))",
        )
    )
