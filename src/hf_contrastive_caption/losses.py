r"""The contrastive caption loss, its relatives and the quantities reported with them: pure functions of log-ratios.

Everything here takes tensors and knows no model. With :math:`G = \ln p_m(c|I) - \ln p_n(c|I)`, the *log-ratio* of the
target :math:`p_m` over the frozen reference :math:`p_n`, summed over the tokens of the caption, a positive pair has
one :math:`G^+` and :math:`K` negatives :math:`G^-_k`.

Source: Bo Dai and Dahua Lin, "Contrastive Learning for Image Captioning", NIPS 2017, arXiv 1710.02534, section 3. The
relatives name their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

LossType = Literal["contrastive", "dpo", "infonce", "nca"]
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
    With :math:`K = \nu = 1` it is the pairwise form of binary classifier optimisation, known as ``bco_pair``, without
    the mean of rewards that is taken off there.

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
    _check_shapes("contrastive_caption_loss", positive, negative)
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


def dpo_loss(
    positive: Tensor,
    negative: Tensor,
    beta: float = 1.0,
    *,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Direct preference optimisation: each negative must stand below the positive, however high both are.

    .. math:: \frac{1}{K} \sum_k \mathrm{softplus}(-\beta (G^+ - G^-_k))

    :math:`\ln 2` when target and reference are equal. It depends on differences alone, so it does not hold a caption's
    own log-ratio up: that of the positive may fall as long as those of the negatives fall faster.

    Source: Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward Model", NeurIPS
    2023, arXiv 2305.18290, equation 7, which has one negative; here it is the mean over :math:`K` pairs. For
    :math:`K = 1` it is TRL's ``loss_type="sigmoid"``.

    Args:
        positive: Log-ratios of the positive pairs in nats, (n_positives,).
        negative: Log-ratios of the negative pairs in nats, (n_positives, num_negatives), at least one each.
        beta: Scale of the log-ratio.
        weights: Weight of each positive with its negatives, (n_positives,).
        reduction: As in :func:`contrastive_caption_loss`.

    Returns:
        A scalar, or (n_positives,) for ``reduction="none"``; at least float32.

    Raises:
        ValueError: If the shapes do not fit or there is no negative.
    """
    _check_shapes("dpo_loss", positive, negative, at_least=1)
    return _reduce(_preferred(positive, negative, beta), weights, reduction)


def infonce_loss(
    positive: Tensor,
    negative: Tensor,
    beta: float = 1.0,
    *,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""InfoNCE: which of the :math:`1 + K` captions is the image's own, with log-ratios as scores.

    .. math:: -\beta G^+ + \ln \Big(e^{\beta G^+} + \sum_k e^{\beta G^-_k}\Big)

    :math:`\ln(1 + K)` when target and reference are equal. Like :func:`dpo_loss`, with which it agrees for
    :math:`K = 1`, it depends on differences alone; the worst negatives have most of the gradient.

    Source: Chen et al., "Noise Contrastive Alignment of Language Models with Explicit Rewards", NeurIPS 2024, arXiv
    2402.05369, where it is called InfoNCA and has :math:`1 + K` answers with rewards; here the whole reward is the
    positive's. After van den Oord, Li and Vinyals, "Representation Learning with Contrastive Predictive Coding",
    2018, arXiv 1807.03748.

    Args:
        positive: Log-ratios of the positive pairs in nats, (n_positives,).
        negative: Log-ratios of the negative pairs in nats, (n_positives, num_negatives), at least one each.
        beta: Scale of the log-ratio, the inverse of a temperature.
        weights: Weight of each positive with its negatives, (n_positives,).
        reduction: As in :func:`contrastive_caption_loss`.

    Returns:
        A scalar, or (n_positives,) for ``reduction="none"``; at least float32.

    Raises:
        ValueError: If the shapes do not fit or there is no negative.
    """
    _check_shapes("infonce_loss", positive, negative, at_least=1)
    scores = beta * torch.cat([_upcast(positive)[:, None], _upcast(negative)], dim=1)  # (n_positives, 1 + K)
    return _reduce(-F.log_softmax(scores, dim=1)[:, 0], weights, reduction)


def nca_loss(
    positive: Tensor,
    negative: Tensor,
    beta: float = 1.0,
    *,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Noise contrastive alignment: the positive up, and all :math:`1 + K` captions, itself among them, held down.

    .. math:: \mathrm{softplus}(-\beta G^+) + \frac{1}{1 + K}
        \Big(\mathrm{softplus}(\beta G^+) + \sum_k \mathrm{softplus}(\beta G^-_k)\Big)

    :math:`2 \ln 2` when target and reference are equal. It is absolute, as :func:`contrastive_caption_loss` is: the
    positive counts among the noise as well, so that its log-ratio has an optimum, :math:`\ln(1 + K) / \beta`, and
    does not grow for ever.

    Source: Chen et al., "Noise Contrastive Alignment of Language Models with Explicit Rewards", NeurIPS 2024, arXiv
    2402.05369, where :math:`1 + K` answers have rewards; here the whole reward is the positive's. For :math:`K = 1` it
    is TRL's ``loss_type="nca_pair"``.

    Args:
        positive: Log-ratios of the positive pairs in nats, (n_positives,).
        negative: Log-ratios of the negative pairs in nats, (n_positives, num_negatives), at least one each.
        beta: Scale of the log-ratio.
        weights: Weight of each positive with its negatives, (n_positives,).
        reduction: As in :func:`contrastive_caption_loss`.

    Returns:
        A scalar, or (n_positives,) for ``reduction="none"``; at least float32.

    Raises:
        ValueError: If the shapes do not fit or there is no negative.
    """
    _check_shapes("nca_loss", positive, negative, at_least=1)
    chosen = beta * _upcast(positive)  # (n_positives,)
    noise = torch.cat([chosen[:, None], beta * _upcast(negative)], dim=1)  # (n_positives, 1 + K)
    return _reduce(-F.logsigmoid(chosen) - F.logsigmoid(-noise).mean(dim=1), weights, reduction)


RELATIVES: dict[str, Callable[..., Tensor]] = {"dpo": dpo_loss, "infonce": infonce_loss, "nca": nca_loss}
"""The other losses of ``loss_type``. They take ``beta`` and have no ``noise_ratio`` and no terms to leave out."""


def introspective_loss(
    own: Tensor,
    distractors: Tensor,
    beta: float = 1.0,
    *,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Introspective learning: a caption must be likelier for its own image than for distractor images.

    .. math:: \frac{1}{K} \sum_k \mathrm{softplus}\big(-\beta (\ln p(c|I) - \ln p(c|I'_k))\big)

    There is no reference: the captioner's own :math:`\ln p` of the same caption for another image stands in its place.
    :math:`\ln 2` for a captioner that does not look at the image.

    Source: Vedantam et al., "Context-aware Captions from Context-agnostic Supervision", CVPR 2017, arXiv 1701.02870,
    who write captions by :math:`\lambda \ln p(c|I) + (1 - \lambda) \ln [p(c|I) / p(c|I')]` and train nothing by it.
    Dai and Lin (2017) compare with it as a way to learn. As a loss the ratio alone has no lower bound; here it goes
    through the logistic function of their loss, in which :math:`(I', c)` as a negative pair, with the score for
    :math:`I` as its reference, would give the same term once more. The likelihood itself, the part of
    :math:`\lambda`, is ``mle_weight``.

    Args:
        own: Log-probabilities of captions for their own image in nats, (n_positives,).
        distractors: Log-probabilities of the same captions for other images in nats, (n_positives, K), K at least 1.
        beta: Scale of the log-ratio.
        weights: Weight of each caption with its distractors, (n_positives,).
        reduction: As in :func:`contrastive_caption_loss`.

    Returns:
        A scalar, or (n_positives,) for ``reduction="none"``; at least float32.

    Raises:
        ValueError: If the shapes do not fit or there is no distractor.
    """
    _check_shapes("introspective_loss", own, distractors, ("own", "distractors"), at_least=1)
    return _reduce(_preferred(own, distractors, beta), weights, reduction)


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
        1 / (1 + num_negatives), and not 1. Where one of the scores is not a number it is 0.
    """
    best = positive[:, None]
    tied = (negative == best).sum(dim=1).to(_at_least_float32(positive))
    return torch.where((negative <= best).all(dim=1), 1 / (1 + tied), 0.0)


def _preferred(one: Tensor, others: Tensor, beta: float) -> Tensor:
    """How far each of one is from standing above its others, the mean over these, (n_positives,)."""
    difference = beta * (_upcast(one)[:, None] - _upcast(others))  # (n_positives, K)
    return -F.logsigmoid(difference).mean(dim=1)


def _check_shapes(
    name: str, one: Tensor, others: Tensor, names: tuple[str, str] = ("positive", "negative"), *, at_least: int = 0
) -> None:
    if one.dim() != 1 or others.dim() != 2 or others.shape[0] != one.shape[0]:
        raise ValueError(
            f"{name} takes {names[0]} of shape (n_positives,) and {names[1]} of shape (n_positives, K), but was given "
            f"{tuple(one.shape)} and {tuple(others.shape)}"
        )
    if others.shape[1] < at_least:
        raise ValueError(f"{name} needs at least {at_least} of {names[1]}, K, but was given {tuple(others.shape)}")


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
