"""Contrastive captioning for Hugging Face Transformers: captions that tell images apart.

The method is that of Bo Dai and Dahua Lin, "Contrastive Learning for Image Captioning", NIPS 2017, arXiv 1710.02534.

Public names are imported when they are first used (PEP 562), so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from hf_contrastive_caption.lazy import lazy_names

if TYPE_CHECKING:
    from hf_contrastive_caption.captioners import (
        CaptionBatch,
        Captioner,
        SimpleCaptioner,
        caption_batch,
        captioner_for,
        register_captioner,
    )
    from hf_contrastive_caption.config import ContrastiveCaptionConfig
    from hf_contrastive_caption.data import CaptionCollator, ContrastiveCaptionDataset, ContrastiveCaptionStream
    from hf_contrastive_caption.data.scenes import scenes
    from hf_contrastive_caption.evaluation.evaluator import evaluate_captioner
    from hf_contrastive_caption.evaluation.metrics.caption_metrics import caption_metrics
    from hf_contrastive_caption.evaluation.report import CaptionerReport
    from hf_contrastive_caption.evaluation.retrieval.retrievers import DualEncoderRetriever
    from hf_contrastive_caption.evaluation.retrieval.self_retrieval import SelfRetrieval, self_retrieval
    from hf_contrastive_caption.generation import caption_images
    from hf_contrastive_caption.interpolation import interpolate_captioners
    from hf_contrastive_caption.losses import contrastive_caption_loss
    from hf_contrastive_caption.processing import CaptionProcessor
    from hf_contrastive_caption.report.comparison import CaptionerComparison, compare_captioners
    from hf_contrastive_caption.trainer import ContrastiveCaptionTrainer

_MODULES = {
    "captioners": (
        "CaptionBatch",
        "Captioner",
        "SimpleCaptioner",
        "caption_batch",
        "captioner_for",
        "register_captioner",
    ),
    "config": ("ContrastiveCaptionConfig",),
    "data": ("CaptionCollator", "ContrastiveCaptionDataset", "ContrastiveCaptionStream"),
    "data.scenes": ("scenes",),
    "evaluation.evaluator": ("evaluate_captioner",),
    "evaluation.metrics.caption_metrics": ("caption_metrics",),
    "evaluation.report": ("CaptionerReport",),
    "evaluation.retrieval.retrievers": ("DualEncoderRetriever",),
    "evaluation.retrieval.self_retrieval": ("SelfRetrieval", "self_retrieval"),
    "generation": ("caption_images",),
    "interpolation": ("interpolate_captioners",),
    "losses": ("contrastive_caption_loss",),
    "processing": ("CaptionProcessor",),
    "report.comparison": ("CaptionerComparison", "compare_captioners"),
    "trainer": ("ContrastiveCaptionTrainer",),
}
try:
    __version__ = version("hf-contrastive-caption")
except PackageNotFoundError:  # used from a source tree that is not installed
    __version__ = "0+unknown"

__all__ = [
    "CaptionBatch",
    "CaptionCollator",
    "CaptionProcessor",
    "Captioner",
    "CaptionerComparison",
    "CaptionerReport",
    "ContrastiveCaptionConfig",
    "ContrastiveCaptionDataset",
    "ContrastiveCaptionStream",
    "ContrastiveCaptionTrainer",
    "DualEncoderRetriever",
    "SelfRetrieval",
    "SimpleCaptioner",
    "__version__",
    "caption_batch",
    "caption_images",
    "caption_metrics",
    "captioner_for",
    "compare_captioners",
    "contrastive_caption_loss",
    "evaluate_captioner",
    "interpolate_captioners",
    "register_captioner",
    "scenes",
    "self_retrieval",
]


__getattr__, __dir__ = lazy_names(__name__, _MODULES)
