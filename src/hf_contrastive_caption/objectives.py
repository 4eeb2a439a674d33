"""What a batch is trained for: from scores to a loss that can be summed over batches, and the numbers beside it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from hf_contrastive_caption.captioners import Captioner
from hf_contrastive_caption.captioners.packing import sum_by_caption
from hf_contrastive_caption.data.collator import Batch
from hf_contrastive_caption.losses import introspective_loss, mle_loss, ranked_first
from hf_contrastive_caption.reference import Reference
from hf_contrastive_caption.statistics import Statistics

LogRatioLoss = Callable[..., Tensor]
"""A loss of ``losses`` with its settings: positives (n_positives,) and negatives (n_positives, num_negatives) in,
``weights`` (n_positives,) and ``reduction`` as keywords."""


LOG_RATIO_LOSS = "log_ratio_loss"
"""The name of a loss without its likelihood term, where it has one."""


@dataclass(frozen=True)
class ObjectiveOutput:
    """A loss that is not yet normalised.

    A loss may have terms over items of different kinds, such as positives and tokens. Its value is the sum of its
    terms, each divided by its own number of items.

    Attributes:
        loss: Sum of each term over the items of the batch, (n_terms,).
        items: Number of items of each term, (n_terms,); rows of weight 0 do not count.
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
    """A loss over batches of images with captions.

    Attributes:
        noise_free: Whether scores are compared with each other, so that noise in them (dropout) must be off.
        reported: Names of what is reported of a batch beside the loss and its terms.
    """

    noise_free: ClassVar[bool]
    reported: ClassVar[tuple[str, ...]]

    def metrics(self) -> tuple[str, ...]:
        """Names of all that is reported of a batch."""
        return ("loss", *self.reported)

    @abstractmethod
    def count(self, batch: Batch) -> Tensor:
        """Number of items that each term of the batch's loss is a sum over, (n_terms,)."""

    @abstractmethod
    def __call__(self, captioner: Captioner, model: nn.Module, batch: Batch) -> ObjectiveOutput:
        """Score a batch with ``model``, the captioner's model as Accelerate wrapped it."""


class ComparingObjective(Objective):
    """Compares each positive with K others that follow it in the batch; its items are positives.

    With ``mle_weight`` there is a second term, the negative log-likelihood of the positives, whose items are their
    tokens: that of :class:`MLEObjective` times the weight, without dropout. It needs no further forward.

    Args:
        num_negatives: K.
        mle_weight: Weight of the second term; 0 for none.
    """

    noise_free = True

    def __init__(self, num_negatives: int, mle_weight: float = 0.0) -> None:
        self.num_negatives = num_negatives
        self.mle_weight = mle_weight

    def count(self, batch: Batch) -> Tensor:
        """See :meth:`Objective.count`."""
        weights = self._weights(batch)
        items = [weights.sum()]
        if self.mle_weight:
            items.append((weights * self._by_positive(batch["captions"]["lengths"])[:, 0]).sum())
        return torch.stack(items)

    def metrics(self) -> tuple[str, ...]:
        """See :meth:`Objective.metrics`."""
        return (*super().metrics(), *((LOG_RATIO_LOSS,) if self.mle_weight else ()))

    def _by_positive(self, values: Tensor) -> Tensor:
        """(n_positives, 1 + num_negatives): a positive and what it is compared with are neighbours in the batch."""
        return values.view(-1, 1 + self.num_negatives)

    def _weights(self, batch: Batch) -> Tensor:
        weights: Tensor = batch["weights"][self._by_positive(batch["captions"]["image_index"])[:, 0]]
        return weights

    def _output(
        self,
        batch: Batch,
        compared: Tensor,
        log_probs: Tensor,
        by_positive: dict[str, Tensor],
        reference_log_probs: Tensor | None = None,
    ) -> ObjectiveOutput:
        """Put the terms together.

        Args:
            batch: The batch.
            compared: The loss of the comparison, summed over positives, a scalar.
            log_probs: Scores of the target, (n_captions,).
            by_positive: Numbers to report, (n_positives,) each.
            reference_log_probs: Scores of the reference, (n_captions,).
        """
        weights, items = self._weights(batch), self.count(batch)
        means: Statistics = {name: ((values * weights).sum(), items[0]) for name, values in by_positive.items()}
        if self.mle_weight:
            likelihood = mle_loss(self._by_positive(log_probs)[:, 0], weights, reduction="sum")
            loss = torch.stack([compared, self.mle_weight * likelihood])
            means[LOG_RATIO_LOSS] = (compared, items[0])
        else:
            loss = compared[None]
        return ObjectiveOutput(loss, items, log_probs, {"loss": (loss, items), **means}, reference_log_probs)


class ContrastiveObjective(ComparingObjective):
    """A loss of the log-ratios of a target against a frozen reference.

    Args:
        reference: The frozen side.
        num_negatives: How many negatives follow each positive in the batch.
        loss: The loss.
        mle_weight: See :class:`ComparingObjective`.
        encode_once: Whether to run the vision encoder, which then must be frozen, once for target and reference.
    """

    reported = (
        "positive_log_ratio",
        "negative_log_ratio",
        "margin",
        "ranked_first",
        "ranked_first_by_log_prob",
        "positive_log_prob",
        "negative_log_prob",
    )

    def __init__(
        self,
        reference: Reference,
        num_negatives: int,
        loss: LogRatioLoss,
        mle_weight: float = 0.0,
        *,
        encode_once: bool = False,
    ) -> None:
        super().__init__(num_negatives, mle_weight)
        self.reference = reference
        self.loss = loss
        self.encode_once = encode_once

    def __call__(self, captioner: Captioner, model: nn.Module, batch: Batch) -> ObjectiveOutput:
        """See :meth:`Objective.__call__`."""
        images = batch["images"]
        if self.encode_once:
            images = captioner.encode(images)
        # The reference first: nothing of the target's graph is in memory yet.
        reference = self.reference.score(batch, images)  # (n_captions,)
        log_probs = captioner.log_probs(model, images, batch["captions"])  # (n_captions,)
        log_ratio = self._by_positive(log_probs - reference)  # (n_positives, 1 + num_negatives)
        loss = self.loss(log_ratio[:, 0], log_ratio[:, 1:], weights=self._weights(batch), reduction="sum")
        reported = self._reported(log_ratio.detach(), self._by_positive(log_probs.detach()))
        return self._output(batch, loss, log_probs, reported, reference)

    @staticmethod
    def _reported(log_ratio: Tensor, log_probs: Tensor) -> dict[str, Tensor]:
        positive, negative = log_ratio[:, 0], log_ratio[:, 1:]
        return {
            "positive_log_ratio": positive,
            "negative_log_ratio": negative.mean(dim=1),
            "margin": positive - negative.mean(dim=1),
            "ranked_first": ranked_first(positive, negative),
            "ranked_first_by_log_prob": ranked_first(log_probs[:, 0], log_probs[:, 1:]),
            "positive_log_prob": log_probs[:, 0],
            "negative_log_prob": log_probs[:, 1:].mean(dim=1),
        }


class IntrospectiveObjective(ComparingObjective):
    """Introspective learning: each caption is scored for its own image and for K distractor images, and no reference.

    Args:
        num_negatives: How many distractors follow each positive in the batch.
        beta: See :func:`introspective_loss`.
        mle_weight: See :class:`ComparingObjective`.
    """

    reported = ("image_margin", "own_image_first", "positive_log_prob", "distractor_log_prob")

    def __init__(self, num_negatives: int, beta: float, mle_weight: float = 0.0) -> None:
        super().__init__(num_negatives, mle_weight)
        self.beta = beta

    def __call__(self, captioner: Captioner, model: nn.Module, batch: Batch) -> ObjectiveOutput:
        """See :meth:`Objective.__call__`; own images and distractors go through one call of the model."""
        log_probs = captioner.log_probs(model, batch["images"], batch["captions"])  # (n_captions,)
        scores = self._by_positive(log_probs)  # (n_positives, 1 + num_negatives)
        loss = introspective_loss(
            scores[:, 0], scores[:, 1:], self.beta, weights=self._weights(batch), reduction="sum"
        )
        own, distractors = scores.detach()[:, 0], scores.detach()[:, 1:]
        reported = {
            "image_margin": own - distractors.mean(dim=1),
            "own_image_first": ranked_first(own, distractors),
            "positive_log_prob": own,
            "distractor_log_prob": distractors.mean(dim=1),
        }
        return self._output(batch, loss, log_probs, reported)


class MLEObjective(Objective):
    """Maximum likelihood; its items are caption tokens."""

    noise_free = False
    reported = ("positive_log_prob",)

    def count(self, batch: Batch) -> Tensor:
        """See :meth:`Objective.count`."""
        lengths: Tensor = batch["captions"]["lengths"]
        return (lengths * self._weights(batch)).sum()[None]

    def __call__(self, captioner: Captioner, model: nn.Module, batch: Batch) -> ObjectiveOutput:
        """See :meth:`Objective.__call__`."""
        captions = batch["captions"]
        tokens = captioner.token_log_probs(model, batch["images"], captions)  # (n_tokens,)
        weights = self._weights(batch)  # (n_captions,)
        token_weights = torch.repeat_interleave(weights, captions["lengths"], output_size=tokens.shape[0])
        loss = mle_loss(tokens, token_weights, reduction="sum")[None]
        items = token_weights.sum()[None]
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
