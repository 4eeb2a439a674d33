"""Reference, control and tuned captioner side by side: the rows of one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
from transformers import PreTrainedModel, PrinterCallback

from hf_contrastive_caption.config import ContrastiveCaptionConfig
from hf_contrastive_caption.generation import caption_images
from hf_contrastive_caption.processing import CaptionProcessor
from hf_contrastive_caption.trainer import ContrastiveCaptionTrainer

COLUMNS = (
    "model",
    "validation loss",
    "margin",
    "ranked first",
    "ranked first by log-prob",
    "distinct captions",
)
"""Headings of the table; the cells come from :meth:`ModelScores.cells`."""


@dataclass(frozen=True)
class ModelScores:
    """How a captioner compares with the reference.

    Attributes:
        name: Which captioner.
        validation_loss: Contrastive caption loss against the reference on the validation images; 2 ln 2 = 1.386 for
            the reference itself.
        margin: Log-ratio of right captions minus that of wrong ones on the test images, in nats.
        ranked_first: Share of test images whose own caption has a higher log-ratio than all K wrong ones; 1 / (1 + K)
            for the reference itself, whose log-ratios are all 0.
        ranked_first_by_log_prob: The same by the captioner's own ln p(caption | image), which needs no reference.
        distinct_captions: Different captions among those that the captioner writes for the test images.
        captions: Those captions, one for each test image.
    """

    name: str
    validation_loss: float
    margin: float
    ranked_first: float
    ranked_first_by_log_prob: float
    distinct_captions: int
    captions: tuple[str, ...]

    def cells(self) -> tuple[str, ...]:
        """The row of the table, in the order of :data:`COLUMNS`."""
        return (
            self.name,
            f"{self.validation_loss:.3f}",
            f"{self.margin:.2f}",
            f"{self.ranked_first:.1%}",
            f"{self.ranked_first_by_log_prob:.1%}",
            f"{self.distinct_captions} of {len(self.captions)}",
        )

    def numbers(self) -> dict[str, float]:
        """The numbers of the row by name, as JSON takes them."""
        return {
            "validation_loss": self.validation_loss,
            "margin": self.margin,
            "ranked_first": self.ranked_first,
            "ranked_first_by_log_prob": self.ranked_first_by_log_prob,
            "distinct_captions": self.distinct_captions,
            "test_images": len(self.captions),
        }


def score_models(
    models: Mapping[str, PreTrainedModel],
    processor: CaptionProcessor,
    validation: datasets.Dataset,
    test: datasets.Dataset,
    args: ContrastiveCaptionConfig,
    image_column: str = "image",
    advance: Callable[[int], Any] = lambda done: None,
) -> list[ModelScores]:
    """Score captioners against the first of them on the same images, captions and negatives.

    Args:
        models: The captioners by name, the reference first. They are frozen afterwards.
        processor: Tokenizer and image processor of all of them.
        validation: Split for the validation loss.
        test: Split for all other numbers.
        args: Arguments of the evaluation, with ``objective="contrastive"``.
        image_column: The column with images in ``test``.
        advance: Called with the number of captioners that are done.

    Returns:
        A row for each captioner, in their order.
    """
    reference = next(iter(models.values()))
    rows = []
    for done, (name, model) in enumerate(models.items(), start=1):
        trainer = ContrastiveCaptionTrainer(
            model=model,
            args=args,
            reference_model=None if model is reference else reference,
            processing_class=processor,
        )
        trainer.remove_callback(PrinterCallback)
        on_validation = trainer.evaluate(validation)
        on_test = trainer.evaluate(test, metric_key_prefix="test")
        captions = caption_images(model, processor, test[image_column], batch_size=args.per_device_eval_batch_size)
        rows.append(
            ModelScores(
                name=name,
                validation_loss=on_validation["eval_loss"],
                margin=on_test["test_margin"],
                ranked_first=on_test["test_ranked_first"],
                ranked_first_by_log_prob=on_test["test_ranked_first_by_log_prob"],
                distinct_captions=len(set(captions)),
                captions=tuple(captions),
            )
        )
        advance(done)
    return rows


def markdown_table(rows: Sequence[ModelScores]) -> str:
    """The comparison as a Markdown table with aligned columns."""
    cells = [COLUMNS, *(row.cells() for row in rows)]
    widths = [max(len(line[number]) for line in cells) for number in range(len(COLUMNS))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in cells
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))
