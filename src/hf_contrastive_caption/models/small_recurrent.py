"""The paper's captioners from scratch, as small as :func:`small_captioner`: a few million operations an image."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ResNetConfig

from hf_contrastive_caption.models.adaptive_attention import AdaptiveAttention, AdaptiveAttentionConfig
from hf_contrastive_caption.models.recurrent import RecurrentCaptionerModel
from hf_contrastive_caption.models.show_and_tell import ShowAndTell, ShowAndTellConfig
from hf_contrastive_caption.models.small import token_id

KINDS = ("adaptive-attention", "show-and-tell")


def small_recurrent_captioner(
    kind: str,
    tokenizer: PreTrainedTokenizerBase,
    vision: PreTrainedModel | None = None,
    *,
    width: int = 128,
    initializer_range: float = 0.1,
    seed: int = 0,
) -> RecurrentCaptionerModel:
    """Make a captioner of the paper with random weights around a small ResNet.

    Args:
        kind: ``"adaptive-attention"`` or ``"show-and-tell"``.
        tokenizer: Says the size of the vocabulary and the start, end and padding token.
        vision: A trained vision model to use a copy of, frozen, in place of a new ResNet. Show and Tell, whose
            authors begin with a trained one too, hardly learns without.
        width: Width of the LSTM and of the word embeddings.
        initializer_range: Standard deviation of the random weights.
        seed: Seed of the random weights. The state of torch's global generator is left as it was.

    Returns:
        The captioner in float32 and training mode. Show and Tell has ``normalize_image``.

    Raises:
        ValueError: If there is no such kind, or the tokenizer lacks a start, end or padding token.
    """
    if kind not in KINDS:
        raise ValueError(f"Got kind={kind!r}. Accepted: {' and '.join(map(repr, KINDS))}.")
    new_vision = ResNetConfig(embedding_size=16, hidden_sizes=[32, 64, 128], depths=[1, 1, 1], layer_type="basic")
    settings: dict[str, Any] = {
        "vision_config": new_vision if vision is None else vision.config,
        "freeze_vision": vision is not None,
        "vocab_size": len(tokenizer),
        "embedding_size": width,
        "hidden_size": width,
        "initializer_range": initializer_range,
        "decoder_start_token_id": token_id(tokenizer, "bos_token"),
        "eos_token_id": token_id(tokenizer, "eos_token"),
        "pad_token_id": token_id(tokenizer, "pad_token"),
    }
    given = copy.deepcopy(vision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: RecurrentCaptionerModel
        if kind == "adaptive-attention":
            model = AdaptiveAttention(AdaptiveAttentionConfig(**settings), given)
        else:
            model = ShowAndTell(ShowAndTellConfig(**settings, normalize_image=True), given)
    model.train()
    return model
