"""Captions at every evaluation of a training: are they still right, and do they find their image by now?"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import datasets

from hf_contrastive_caption.captioners import Captioner
from hf_contrastive_caption.evaluation.captioning import captions_for
from hf_contrastive_caption.evaluation.evaluator import caption_quality, diversity_measures
from hf_contrastive_caption.evaluation.images import EvaluationImages, evaluation_images
from hf_contrastive_caption.evaluation.metrics.document_frequencies import DocumentFrequencies
from hf_contrastive_caption.evaluation.retrieval.self_retrieval import self_retrieval
from hf_contrastive_caption.evaluation.score import MEASURES, recall_number, weighted_sum
from hf_contrastive_caption.processing import CaptionProcessor

logger = logging.getLogger(__name__)

RECALL_AT = (1, 5, 10)
COLLAPSE = 0.5
"""Distinct captions below this share of the most that there were are called a collapse."""


@dataclass(frozen=True)
class CaptionedPool:
    """What one evaluation found.

    Attributes:
        metrics: By name, without a prefix.
        images: The images.
        captions: What the captioner says of them, (n_images,).
    """

    metrics: dict[str, float]
    images: EvaluationImages
    captions: tuple[str, ...]


class EvaluationPool:
    """A seeded choice of a data set's images, the same at every evaluation.

    Args:
        dataset: The data set that is evaluated on.
        columns: Names of the image, caption and image-id columns, as :func:`evaluation_images` takes them.
        num_images: How many images are captioned; all where there are fewer.
        retrieval_pool: How many of them take part in self-retrieval; 0 for none.
        seed: Seed of the choice.
        score: Weights of the measures that make the score; none for no score.
        on_bad_image: ``"skip"`` leaves those out of the chosen images that do not open.
        processor: The captioner's, which may not take some of them.

    Raises:
        ValueError: If there are fewer than 2 images, or the score takes a measure that they cannot give.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        columns: tuple[str, Sequence[str], str | None],
        *,
        num_images: int,
        retrieval_pool: int,
        seed: int,
        score: dict[str, float],
        on_bad_image: str = "raise",
        processor: CaptionProcessor,
    ) -> None:
        self.dataset = dataset
        everything = evaluation_images(dataset, *columns, on_bad_image=on_bad_image)
        self.images = everything.sample(num_images, seed)
        if on_bad_image == "skip":
            self.images = self.images.that_open(processor.process_images)
        self.retrieval = self.images.sample(retrieval_pool, seed) if retrieval_pool else None
        self.score = score
        if self.retrieval is not None:
            self._k = sorted({*RECALL_AT, *(k for name in score if (k := recall_number(name)))})
            self._k = [k for k in self._k if k < len(self.retrieval)]  # the recall of all images says nothing
        self._check_score()
        # Of all images, not of the chosen ones alone: CIDEr-D is too high where few references are counted.
        self._frequencies = (
            DocumentFrequencies.from_references(everything.prepared_references) if everything.referenced else None
        )

    def _check_score(self) -> None:
        if len(self.images) < 2 or (self.retrieval is not None and len(self.retrieval) < 2):
            raise ValueError(
                "eval_captions needs an evaluation data set of at least 2 images, as captions are compared"
            )
        for name in self.score:
            k = recall_number(name)
            if k is not None and (self.retrieval is None or k not in self._k):
                raise ValueError(
                    f"eval_score takes {name}, but self-retrieval has only {len(self.retrieval or ())} images; take a "
                    "smaller number, or more evaluation images"
                )
            if name in ("cider_d", "rouge_l", "invented") and not self.images.referenced:
                raise ValueError(f"eval_score takes {name}, but none of the images has a reference caption")

    def evaluate(self, captioner: Captioner, batch_size: int, **generate_kwargs: Any) -> CaptionedPool:
        """Caption the images and measure the captions.

        Args:
            captioner: The captioner.
            batch_size: Images that are captioned at once.
            **generate_kwargs: Arguments of ``model.generate``, see :func:`caption_images`.
        """
        start = perf_counter()
        captions = captions_for(captioner, self.images.pool, batch_size=batch_size, **generate_kwargs).texts
        quality = caption_quality(
            captions, self.images, ("cider_d", "rouge_l"), self._frequencies, resamples=1, similar_images=0
        )
        measures = {**quality.measures, **diversity_measures(captions)}
        if self.retrieval is not None:
            of_row = dict(zip(self.images.rows, captions, strict=True))
            texts = [of_row[row] for row in self.retrieval.rows]
            found = self_retrieval(captioner, self.retrieval.pool, texts, self._k, resamples=1, progress=False)
            measures |= found.measures
        metrics = {
            name: measure.value for name, measure in measures.items() if name in MEASURES or recall_number(name)
        }
        if self.score:
            metrics["score"] = weighted_sum(self.score, metrics)
        metrics["captions_runtime"] = round(perf_counter() - start, 2)
        return CaptionedPool(metrics, self.images, captions)


def warn_of_collapse(distinct_share: float, before: Sequence[float]) -> None:
    """Warn when there are far fewer distinct captions than at an earlier evaluation."""
    if before and distinct_share < COLLAPSE * max(before):
        logger.warning(
            "the captions collapse: %.1f %% of them are distinct, after %.1f %% at an earlier evaluation. A lower "
            "learning rate, fewer steps, or objective='contrastive' with loss_terms='both' are the usual ways out",
            100 * distinct_share,
            100 * max(before),
        )
