"""Scores and gradients the plain way: one forward per (image, caption), nothing of the package in it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hf_contrastive_caption.captioners import CaptionBatch
from tests import tiny


def token_log_probs(model: nn.Module, images: dict[str, Tensor], captions: CaptionBatch) -> list[Tensor]:
    """Log-probabilities of the tokens of each caption, n_captions tensors of (length,)."""
    scores = []
    sentences = captions["input_ids"].split(captions["lengths"].tolist())
    for ids, image in zip(sentences, captions["image_index"].tolist(), strict=True):
        one = {name: value[image : image + 1] for name, value in images.items()}
        inputs = torch.cat([torch.tensor([tiny.BOS]), ids[:-1]])[None]
        logits = model(**one, decoder_input_ids=inputs, use_cache=False).logits[0]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        scores.append(logits.log_softmax(-1)[torch.arange(len(ids)), ids])
    return scores


def log_probs(model: nn.Module, images: dict[str, Tensor], captions: CaptionBatch) -> Tensor:
    """ln p(caption | image), (n_captions,)."""
    return torch.stack([tokens.sum() for tokens in token_log_probs(model, images, captions)])


def log_probs_of(model: nn.Module, images: dict[str, Tensor], captions: CaptionBatch) -> Tensor:
    """ln p(caption | image) of a model with ``config.decoder_start_token_id``, whatever its tokens, (n_captions,)."""
    scores = []
    sentences = captions["input_ids"].split(captions["lengths"].tolist())
    for ids, image in zip(sentences, captions["image_index"].tolist(), strict=True):
        one = {name: value[image : image + 1] for name, value in images.items()}
        inputs = torch.tensor([[model.config.decoder_start_token_id, *ids[:-1].tolist()]])
        logits = model(**one, decoder_input_ids=inputs, use_cache=False).logits[0]
        scores.append(logits.log_softmax(-1)[torch.arange(len(ids)), ids].sum())
    return torch.stack(scores)


def gradients(model: nn.Module, scores: Tensor) -> dict[str, Tensor]:
    """Gradients of a fixed weighted sum of the scores with respect to all parameters that have one."""
    weights = torch.linspace(-1.0, 1.5, scores.shape[0], dtype=scores.dtype)
    model.zero_grad(set_to_none=True)
    (scores * weights).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def relative_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Relative L2 distance of two sets of gradients, taken over all parameters together."""
    assert ours.keys() == theirs.keys()
    difference = sum(float((ours[name] - theirs[name]).double().square().sum()) for name in ours)
    size = sum(float(value.double().square().sum()) for value in theirs.values())
    return (difference / size) ** 0.5
