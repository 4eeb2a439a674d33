"""Contrastive captioning for Hugging Face Transformers: captions that tell images apart.

The method is that of Bo Dai and Dahua Lin, "Contrastive Learning for Image Captioning", NIPS 2017, arXiv 1710.02534.

Public names are imported when they are first used (PEP 562), so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_contrastive_caption.captioners import (
        CaptionBatch,
        Captioner,
        caption_batch,
        captioner_for,
        register_captioner,
    )
    from hf_contrastive_caption.config import ContrastiveCaptionConfig
    from hf_contrastive_caption.data import CaptionCollator, ContrastiveCaptionDataset, ContrastiveCaptionStream
    from hf_contrastive_caption.data.scenes import scenes
    from hf_contrastive_caption.generation import caption_images
    from hf_contrastive_caption.losses import contrastive_caption_loss
    from hf_contrastive_caption.processing import CaptionProcessor
    from hf_contrastive_caption.trainer import ContrastiveCaptionTrainer

_MODULES = {
    "captioners": ("CaptionBatch", "Captioner", "caption_batch", "captioner_for", "register_captioner"),
    "config": ("ContrastiveCaptionConfig",),
    "data": ("CaptionCollator", "ContrastiveCaptionDataset", "ContrastiveCaptionStream"),
    "data.scenes": ("scenes",),
    "generation": ("caption_images",),
    "losses": ("contrastive_caption_loss",),
    "processing": ("CaptionProcessor",),
    "trainer": ("ContrastiveCaptionTrainer",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

try:
    __version__ = version("hf-contrastive-caption")
except PackageNotFoundError:  # used from a source tree that is not installed
    __version__ = "0+unknown"

__all__ = [
    "CaptionBatch",
    "CaptionCollator",
    "CaptionProcessor",
    "Captioner",
    "ContrastiveCaptionConfig",
    "ContrastiveCaptionDataset",
    "ContrastiveCaptionStream",
    "ContrastiveCaptionTrainer",
    "__version__",
    "caption_batch",
    "caption_images",
    "captioner_for",
    "contrastive_caption_loss",
    "register_captioner",
    "scenes",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
