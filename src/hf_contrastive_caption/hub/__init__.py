"""What goes to the Hub: the model card with its pictures, and uploads that wait for each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_contrastive_caption.lazy import lazy_names

if TYPE_CHECKING:
    from hf_contrastive_caption.hub.content import CardContent, CardExample

_MODULES = {"content": ("CardContent", "CardExample")}

__all__ = ["CardContent", "CardExample"]

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
