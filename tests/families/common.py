"""What the families share: what a test has to know of one, sizes, and naive twins that several have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests import tiny

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        name: What tests call it.
        model: Makes the captioner from a dropout rate.
        processing: Makes its processing class.
        logits: The model's logits that predict the tokens of one caption, (n_tokens, vocabulary), from the inputs of
            one image and the caption's tokens, (n_tokens,).
        loss: The model's own loss of one caption.
        layout: How captions are laid out with ``packing="auto"``.
        tries: Whether tries are exact.
        options: Of ``captioner_for``.
        tokenizer: Makes its tokenizer.
        vision: Whether it has a vision encoder that can be frozen by itself.
        before_states: How the names of the weights begin that make the states of ``encode``, for a family that has
            no such encoder.
        adapt: Names of the modules that get adapters.
    """

    name: str
    model: Callable[[float], PreTrainedModel]
    processing: Callable[[], Any]
    logits: Callable[[Any, Inputs, Tensor], Tensor]
    loss: Callable[[Any, Inputs, Tensor], Tensor]
    layout: str = "packed"
    tries: bool = True
    options: tuple[tuple[str, Any], ...] = ()
    tokenizer: Callable[[], Any] = tiny.tokenizer
    vision: bool = True
    before_states: tuple[str, ...] = ()
    adapt: str = r".*(query|value|q_proj|v_proj|c_attn)"

    def __str__(self) -> str:
        return self.name


LAYERS: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.3,
}
TOKENS = {
    "vocab_size": tiny.VOCABULARY_SIZE,
    "bos_token_id": tiny.BOS,
    "eos_token_id": tiny.EOS,
    "pad_token_id": tiny.PAD,
}
VISION: dict[str, Any] = {**LAYERS, "image_size": 32, "patch_size": 8}


def with_start(ids: Tensor) -> Tensor:
    """A caption behind the start token, (1, 1 + n_tokens)."""
    return torch.cat([torch.tensor([tiny.BOS]), ids])[None]


def shifted_loss(model: Any, inputs: Inputs, ids: Tensor) -> Tensor:
    labels = with_start(ids)  # shifted by the model, so that the start token is not among the targets
    return model(**inputs, input_ids=labels, labels=labels).loss
