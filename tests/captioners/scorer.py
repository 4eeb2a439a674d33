"""Captioners that are checked and free from noise, as a trainer makes them."""

from __future__ import annotations

from typing import Any

from torch import nn

from hf_contrastive_caption.captioners import Captioner, captioner_for
from tests import tiny


def scorer(model: nn.Module, **options: Any) -> Captioner:
    captioner = captioner_for(model, tiny.processing(), **options)
    captioner.make_deterministic()
    captioner.verify()
    return captioner
