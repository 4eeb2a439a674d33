"""A page to drop images on: what two captioners say of them, word by word, and which images their captions find."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_contrastive_caption.lazy import lazy_names

if TYPE_CHECKING:
    from hf_contrastive_caption.app.layout import build_app
    from hf_contrastive_caption.app.limits import AppLimits
    from hf_contrastive_caption.app.serving import serve_app

_MODULES = {"layout": ("build_app",), "limits": ("AppLimits",), "serving": ("serve_app",)}

__all__ = ["AppLimits", "build_app", "serve_app"]

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
