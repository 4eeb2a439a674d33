"""Reference, control and tuned captioner side by side: the rows of one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedModel, PrinterCallback

from hf_contrastive_caption.config import ContrastiveCaptionConfig
from hf_contrastive_caption.evaluation.evaluator import evaluate_captioner
from hf_contrastive_caption.evaluation.images import evaluation_images
from hf_contrastive_caption.evaluation.report import CaptionerReport, report_rows
from hf_contrastive_caption.processing import CaptionProcessor
from hf_contrastive_caption.trainer import ContrastiveCaptionTrainer

LEARNING = ("model", "validation loss", "margin", "ranked first", "ranked first by log-prob")
"""Headings of the table of what was learned."""

TWO_SIDES = ("recall_at_1", "recall_at_5", "recall_at_10", "cider_d", "invented", "distinct_share")
"""Measures of the table of both sides."""


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
        report: What its own captions of the test images are worth.
    """

    name: str
    validation_loss: float
    margin: float
    ranked_first: float
    ranked_first_by_log_prob: float
    report: CaptionerReport

    @property
    def captions(self) -> tuple[str, ...]:
        """What the captioner says of the test images."""
        return self.report.captions

    def cells(self) -> tuple[str, ...]:
        """The row of the table of what was learned, in the order of :data:`LEARNING`."""
        return (
            self.name,
            f"{self.validation_loss:.3f}",
            f"{self.margin:.2f}",
            f"{self.ranked_first:.1%}",
            f"{self.ranked_first_by_log_prob:.1%}",
        )

    def numbers(self) -> dict[str, Any]:
        """The numbers by name, as JSON takes them; measures of the captions as [value, low, high] where they can."""
        measures = {name: measure.numbers() for name, measure in self.report.measures.items()}
        return {
            "validation_loss": self.validation_loss,
            "margin": self.margin,
            "ranked_first": self.ranked_first,
            "ranked_first_by_log_prob": self.ranked_first_by_log_prob,
            **measures,
            "test_images": len(self.captions),
        }


def learning_rows(rows: Sequence[ModelScores]) -> list[Sequence[str]]:
    """The table of what was learned, its heading first."""
    return [LEARNING, *(row.cells() for row in rows)]


def two_sides_rows(rows: Sequence[ModelScores]) -> list[Sequence[str]]:
    """The table of both sides of the captions, its heading first."""
    return report_rows([row.report for row in rows], TWO_SIDES)


def score_models(
    models: Mapping[str, PreTrainedModel],
    processor: CaptionProcessor,
    validation: datasets.Dataset,
    test: datasets.Dataset,
    args: ContrastiveCaptionConfig,
    metrics: Sequence[str] = ("cider_d",),
    cache_dir: Path | None = None,
    advance: Callable[[int], Any] = lambda done: None,
) -> list[ModelScores]:
    """Score captioners against the first of them on the same images, captions and negatives.

    Args:
        models: The captioners by name, the reference first. They are frozen afterwards.
        processor: Tokenizer and image processor of all of them.
        validation: Split for the validation loss.
        test: Split for all other numbers.
        args: Arguments of the evaluation, with ``objective="contrastive"``.
        metrics: Caption metrics, see :func:`evaluate_captioner`.
        cache_dir: Folder that keeps captions and scores, so that an interrupted comparison goes on.
        advance: Called with the number of captioners that are done.

    Returns:
        A row for each captioner, in their order.
    """
    reference = next(iter(models.values()))
    images = evaluation_images(test)
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
        report = evaluate_captioner(
            trainer.captioner,
            images,
            name=name,
            k=(1, 5, 10, 50),
            metrics=metrics,
            batch_size=args.per_device_eval_batch_size,
            cache_dir=cache_dir,
            progress=False,
        )
        rows.append(
            ModelScores(
                name=name,
                validation_loss=on_validation["eval_loss"],
                margin=on_test["test_margin"],
                ranked_first=on_test["test_ranked_first"],
                ranked_first_by_log_prob=on_test["test_ranked_first_by_log_prob"],
                report=report,
            )
        )
        advance(done)
    return rows
