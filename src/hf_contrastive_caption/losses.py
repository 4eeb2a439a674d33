r"""The contrastive caption loss and the quantities reported with it: pure functions of log-ratios.

Everything here takes tensors and knows no model. With :math:`G = \ln p_m(c|I) - \ln p_n(c|I)`, the *log-ratio* of the
target :math:`p_m` over the frozen reference :math:`p_n`, summed over the tokens of the caption, a positive pair has
one :math:`G^+` and :math:`K` negatives :math:`G^-_k`.

Source: Bo Dai and Dahua Lin, "Contrastive Learning for Image Captioning", NIPS 2017, arXiv 1710.02534, section 3.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

LossTerms = Literal["both", "positives", "negatives"]
Reduction = Literal["mean", "sum", "none"]


def contrastive_caption_loss(
    positive: Tensor,
    negative: Tensor,
    noise_ratio: float = 1.0,
    beta: float = 1.0,
    *,
    terms: LossTerms = "both",
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""The contrastive caption loss of Dai and Lin (2017), to be minimised.

    .. math:: \mathrm{softplus}(-(\beta G^+ - \ln\nu)) + \frac{1}{K} \sum_k \mathrm{softplus}(\beta G^-_k - \ln\nu)

    With :math:`h = 1 / (1 + \nu e^{-G})` this is :math:`-\ln h(G^+) - \frac{1}{K}\sum_k \ln(1 - h(G^-_k))`, written so
    that neither the value nor the gradient is lost for any :math:`G`: a badly wrong negative keeps its gradient of 1
    where a clipped ``log(1 - h)`` in float32 has none beyond :math:`G > 16.6`.

    When target and reference are equal the loss is :math:`\ln(1+\nu) + \ln(1+1/\nu)`, 1.386294 for :math:`\nu = 1`.
    With :math:`K = \nu = 1` it is the pairwise form of binary classifier optimisation, known as ``bco_pair``.

    Args:
        positive: Log-ratios of the positive pairs in nats, (n_positives,).
        negative: Log-ratios of the negative pairs in nats, (n_positives, num_negatives).
        noise_ratio: :math:`\nu`, how many negatives the loss takes for one positive when it weighs them. It is not
            the number of negatives that are averaged. Must be positive.
        beta: Scale of the log-ratio; 1 in the paper.
        terms: ``"both"``, or one of ``"positives"`` and ``"negatives"`` for the paper's ablation.
        weights: Weight of each positive with its negatives, (n_positives,). A row of weight 0 counts for nothing.
        reduction: ``"mean"`` is the weighted mean over positives, ``"sum"`` the weighted sum, ``"none"`` keeps
            (n_positives,).

    Returns:
        A scalar, or (n_positives,) for ``reduction="none"``. It is computed in float32, or float64 for float64 input,
        whatever the autocast.

    Raises:
        ValueError: If the shapes do not fit, there is no negative although they are asked for, ``noise_ratio`` is not
            positive, or ``terms`` or ``reduction`` is none of the above.
    """
    if positive.dim() != 1 or negative.dim() != 2 or negative.shape[0] != positive.shape[0]:
        raise ValueError(
            "contrastive_caption_loss takes positive of shape (n_positives,) and negative of shape (n_positives, "
            f"num_negatives), but was given {tuple(positive.shape)} and {tuple(negative.shape)}"
        )
    if not noise_ratio > 0:
        raise ValueError(f"noise_ratio must be above 0, but is {noise_ratio}; the paper uses 1.0")
    if terms not in get_args(LossTerms):
        raise ValueError(f"terms must be one of {get_args(LossTerms)}, but is {terms!r}")
    if terms != "positives" and negative.shape[1] == 0:
        raise ValueError("there are no negatives to average over; give at least one or use terms='positives'")
    offset = math.log(noise_ratio)
    loss = positive.new_zeros(positive.shape, dtype=_at_least_float32(positive))  # (n_positives,)
    if terms in ("both", "positives"):
        loss = loss - F.logsigmoid(beta * _upcast(positive) - offset)
    if terms in ("both", "negatives"):
        loss = loss - F.logsigmoid(offset - beta * _upcast(negative)).mean(dim=1)
    return _reduce(loss, weights, reduction)


def mle_loss(
    token_log_probs: Tensor,
    token_weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Negative log-likelihood per token, the usual maximum likelihood objective of a captioner.

    Args:
        token_log_probs: Log-probabilities of the caption tokens in nats, (n_tokens,).
        token_weights: Weight of each token, (n_tokens,); 0 for tokens that count for nothing.
        reduction: ``"mean"`` is the weighted mean over tokens, ``"sum"`` the weighted sum.

    Returns:
        A scalar in nats, or (n_tokens,) for ``reduction="none"``.
    """
    return _reduce(-_upcast(token_log_probs), token_weights, reduction)


def ranked_first(positive: Tensor, negative: Tensor) -> Tensor:
    """For each positive the probability that it ranks above all its negatives, ties broken at random.

    Args:
        positive: Scores of the positives, (n_positives,).
        negative: Scores of their negatives, (n_positives, num_negatives).

    Returns:
        Values in [0, 1], (n_positives,): 1 where the positive is strictly the best, 0 where a negative is better, and
        1 / (1 + t) where it is tied with t negatives. A scorer that cannot tell captions apart therefore gets
        1 / (1 + num_negatives), and not 1. A score that is not a number beats nothing and is beaten by everything.
    """
    best = positive[:, None]
    tied = (negative == best).sum(dim=1).to(_at_least_float32(positive))
    return torch.where((negative <= best).all(dim=1), 1 / (1 + tied), 0.0)


def _at_least_float32(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)


def _upcast(values: Tensor) -> Tensor:
    return values.to(_at_least_float32(values))


def _reduce(loss: Tensor, weights: Tensor | None, reduction: str) -> Tensor:
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be one of {get_args(Reduction)}, but is {reduction!r}")
    if weights is not None:
        if weights.shape != loss.shape:
            raise ValueError(f"weights must be of shape {tuple(loss.shape)}, but are {tuple(weights.shape)}")
        loss = loss * weights.to(loss.dtype)
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    total = loss.new_tensor(loss.numel()) if weights is None else weights.to(loss.dtype).sum()
    return loss.sum() / total.clamp_min(torch.finfo(loss.dtype).tiny)
