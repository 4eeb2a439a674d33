"""What people look at rather than read: the page that compares two captioners, its charts, and its pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_contrastive_caption.lazy import lazy_names

if TYPE_CHECKING:
    from hf_contrastive_caption.report.comparison import CaptionerComparison, compare_captioners

_MODULES = {"comparison": ("CaptionerComparison", "compare_captioners")}

__all__ = ["CaptionerComparison", "compare_captioners"]

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
