"""Hashes of what a stored number depends on."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


def weights_digest(model: nn.Module) -> str:
    """A hash of all weights and buffers of a model by name, their values bit for bit."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(model.state_dict(keep_vars=True).items()):
        if isinstance(value, torch.Tensor):
            content = value.detach().cpu().contiguous().view(-1)
            digest.update(f"{name} {content.dtype} {tuple(value.shape)}".encode())
            digest.update(content.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def model_digest(model: nn.Module) -> str:
    """A hash of what a transformers model computes with: its class, config, weights, and the adapters of PEFT.

    Weights are not all: the number of attention heads, the start token, the scale of an adapter and whether it is in
    use are none.
    """
    adapters: dict[str, Any] = {}
    base: Any = model
    if isinstance(model, PeftModel):
        adapters = {name: config.to_dict() for name, config in model.peft_config.items()}
        adapters["in use"] = [
            [name, layer.active_adapters, layer.disable_adapters, layer.merged_adapters]
            for name, layer in model.named_modules()
            if isinstance(layer, BaseTunerLayer)
        ]
        base = model.get_base_model()
    return json_digest(
        [type(base).__qualname__, base.config.to_json_string(use_diff=False), weights_digest(model), adapters]
    )


def json_digest(value: Any) -> str:
    """A hash of anything that JSON can hold, and of sets."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=sorted).encode(), digest_size=16).hexdigest()
