"""A reference whose scores were computed ahead, and that has left memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from hf_contrastive_caption.captioners import CaptionBatch, Captioner, Images
from hf_contrastive_caption.data.collator import REFERENCE_LOG_PROBS, Batch
from hf_contrastive_caption.reference.base import LEFT_MEMORY, Reference


class PrecomputedReference(Reference):
    """Takes scores out of the batch, where the data set has put them.

    Args:
        scorer: The reference that computes them, until it is released.
    """

    def __init__(self, scorer: Reference) -> None:
        super().__init__(scorer.captioner, equals_target=scorer.equals_target)
        self.shares_vision = scorer.shares_vision
        self._scorer: Reference | None = scorer
        self._described = scorer.description
        self._digest: str | None = None

    @property
    def description(self) -> str:
        """See :attr:`Reference.description`."""
        return f"scores computed ahead ({self._described})"

    @property
    def scorer(self) -> Reference:
        """The reference that computes scores.

        Raises:
            ValueError: It has left memory.
        """
        if self._scorer is None:
            raise ValueError(LEFT_MEMORY)
        return self._scorer

    def log_probs(self, images: Images, captions: CaptionBatch) -> Tensor:
        """See :meth:`Reference.log_probs`."""
        return self.scorer.log_probs(images, captions)

    def place(self, device: torch.device) -> None:
        """See :meth:`Reference.place`; until it is released."""
        self.scorer.place(device)

    @contextmanager
    def in_place(self) -> Iterator[Captioner]:
        """See :meth:`Reference.in_place`; until it is released."""
        with self.scorer.in_place() as captioner:
            yield captioner

    def encode(self, images: Images) -> Images:
        """See :meth:`Reference.encode`."""
        return self.scorer.encode(images)

    def score(self, batch: Batch, images: Images) -> Tensor:
        """See :meth:`Reference.score`."""
        if REFERENCE_LOG_PROBS not in batch:
            raise ValueError(
                "the batch has no scores of the reference, which should have been computed ahead "
                "(precompute_reference=True); take batches from the trainer's own data loaders"
            )
        scores: Tensor = batch[REFERENCE_LOG_PROBS]
        return scores

    def digest(self) -> str:
        """See :meth:`Reference.digest`; of what has left memory, that of then."""
        return self.scorer.digest() if self._digest is None else self._digest

    def weights(self) -> dict[str, Tensor]:
        """See :meth:`Reference.weights`."""
        return {} if self._scorer is None else self._scorer.weights()

    @property
    def released(self) -> bool:
        """Whether the reference has left memory."""
        return self._scorer is None

    def release(self) -> None:
        """Let go of the model that computed the scores."""
        self._digest = self.digest()
        self._scorer = self._captioner = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
