"""What a batch is trained for: from scores to a loss that can be summed over batches, and the numbers beside it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_contrastive_caption.captioners import Captioner
from hf_contrastive_caption.captioners.packing import sum_by_caption
from hf_contrastive_caption.data.collator import Batch
from hf_contrastive_caption.losses import LossTerms, contrastive_caption_loss, mle_loss, ranked_first
from hf_contrastive_caption.reference import Reference
from hf_contrastive_caption.statistics import Statistics


@dataclass(frozen=True)
class ObjectiveOutput:
    """A loss that is not yet normalised.

    Attributes:
        loss: Sum of the loss over the items of the batch, a scalar.
        items: Number of items, a scalar; rows of weight 0 do not count.
        log_probs: Scores of the target, (n_captions,).
        statistics: Sums and weights of the numbers to report.
        reference_log_probs: Scores of the reference, (n_captions,), if there is one.
    """

    loss: Tensor
    items: Tensor
    log_probs: Tensor
    statistics: Statistics
    reference_log_probs: Tensor | None = None


class Objective(ABC):
    """A loss over batches of images with captions."""

    @abstractmethod
    def count(self, batch: Batch) -> Tensor:
        """Number of items that the loss of the batch is a sum over, a scalar."""

    @abstractmethod
    def __call__(self, captioner: Captioner, model: nn.Module, batch: Batch) -> ObjectiveOutput:
        """Score a batch with ``model``, the captioner's model as Accelerate wrapped it."""


class ContrastiveObjective(Objective):
    """The contrastive caption loss of a target against a frozen reference; its items are positives.

    Args:
        reference: The frozen side.
        num_negatives: How many negatives follow each positive in the batch.
        noise_ratio: See :func:`contrastive_caption_loss`.
        beta: See :func:`contrastive_caption_loss`.
        terms: See :func:`contrastive_caption_loss`.
        encode_once: Whether to run the vision encoder, which then must be frozen, once for target and reference.
    """

    def __init__(
        self,
        reference: Reference,
        num_negatives: int,
        noise_ratio: float,
        beta: float,
        terms: LossTerms,
        *,
        encode_once: bool = False,
    ) -> None:
        self.reference = reference
        self.encode_once = encode_once
        self.num_negatives = num_negatives
        self.noise_ratio = noise_ratio
        self.beta = beta
        self.terms = terms

    def count(self, batch: Batch) -> Tensor:
        """See :meth:`Objective.count`."""
        return self._weights(batch).sum()

    def __call__(self, captioner: Captioner, model: nn.Module, batch: Batch) -> ObjectiveOutput:
        """See :meth:`Objective.__call__`."""
        images = batch["images"]
        if self.encode_once:
            images = captioner.encode(images)
        # The reference first: nothing of the target's graph is in memory yet.
        reference = self.reference.score(batch, images)  # (n_captions,)
        log_probs = captioner.log_probs(model, images, batch["captions"])  # (n_captions,)
        log_ratio = self._by_positive(log_probs - reference)  # (n_positives, 1 + num_negatives)
        weights = self._weights(batch)  # (n_positives,)
        loss = contrastive_caption_loss(
            log_ratio[:, 0],
            log_ratio[:, 1:],
            self.noise_ratio,
            self.beta,
            terms=self.terms,
            weights=weights,
            reduction="sum",
        )
        statistics = self._statistics(loss, log_ratio.detach(), self._by_positive(log_probs.detach()), weights)
        return ObjectiveOutput(loss, weights.sum(), log_probs, statistics, reference)

    def _by_positive(self, values: Tensor) -> Tensor:
        """(n_positives, 1 + num_negatives): a positive and its negatives are neighbours in the batch."""
        return values.view(-1, 1 + self.num_negatives)

    def _weights(self, batch: Batch) -> Tensor:
        weights: Tensor = batch["weights"][self._by_positive(batch["captions"]["image_index"])[:, 0]]
        return weights

    @staticmethod
    def _statistics(loss: Tensor, log_ratio: Tensor, log_probs: Tensor, weights: Tensor) -> Statistics:
        positive, negative = log_ratio[:, 0], log_ratio[:, 1:]
        by_positive = {
            "positive_log_ratio": positive,
            "negative_log_ratio": negative.mean(dim=1),
            "margin": positive - negative.mean(dim=1),
            "ranked_first": ranked_first(positive, negative),
            "ranked_first_by_log_prob": ranked_first(log_probs[:, 0], log_probs[:, 1:]),
            "positive_log_prob": log_probs[:, 0],
            "negative_log_prob": log_probs[:, 1:].mean(dim=1),
        }
        items = weights.sum()
        means: Statistics = {name: ((values * weights).sum(), items) for name, values in by_positive.items()}
        return {"loss": (loss, items), **means}


class MLEObjective(Objective):
    """Maximum likelihood; its items are caption tokens."""

    def count(self, batch: Batch) -> Tensor:
        """See :meth:`Objective.count`."""
        lengths: Tensor = batch["captions"]["lengths"]
        return (lengths * self._weights(batch)).sum()

    def __call__(self, captioner: Captioner, model: nn.Module, batch: Batch) -> ObjectiveOutput:
        """See :meth:`Objective.__call__`."""
        captions = batch["captions"]
        tokens = captioner.token_log_probs(model, batch["images"], captions)  # (n_tokens,)
        weights = self._weights(batch)  # (n_captions,)
        token_weights = torch.repeat_interleave(weights, captions["lengths"], output_size=tokens.shape[0])
        loss = mle_loss(tokens, token_weights, reduction="sum")
        items = token_weights.sum()
        log_probs = sum_by_caption(tokens, captions["lengths"])
        statistics: Statistics = {
            "loss": (loss, items),
            "positive_log_prob": ((log_probs.detach() * weights).sum(), weights.sum()),
        }
        return ObjectiveOutput(loss, items, log_probs, statistics)

    @staticmethod
    def _weights(batch: Batch) -> Tensor:
        weights: Tensor = batch["weights"][batch["captions"]["image_index"]]
        return weights
