"""Hashes of what a stored number depends on."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
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


def json_digest(value: Any) -> str:
    """A hash of anything that JSON can hold."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()
