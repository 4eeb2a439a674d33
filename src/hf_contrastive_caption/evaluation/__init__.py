"""Is a captioner more distinctive, and still right? Self-retrieval, caption metrics and one report of both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_contrastive_caption.lazy import lazy_names

if TYPE_CHECKING:
    from hf_contrastive_caption.evaluation.evaluator import evaluate_captioner
    from hf_contrastive_caption.evaluation.images import EvaluationImages, evaluation_images
    from hf_contrastive_caption.evaluation.metrics.caption_metrics import caption_metrics, prepare_references
    from hf_contrastive_caption.evaluation.metrics.document_frequencies import DocumentFrequencies
    from hf_contrastive_caption.evaluation.metrics.tokenization import ptb_tokenize
    from hf_contrastive_caption.evaluation.modules import module_path
    from hf_contrastive_caption.evaluation.report import CaptionerReport, ReportComparison, report_table
    from hf_contrastive_caption.evaluation.retrieval.retrievers import CaptionerRetriever, DualEncoderRetriever
    from hf_contrastive_caption.evaluation.retrieval.self_retrieval import SelfRetrieval, self_retrieval

_MODULES = {
    "evaluator": ("evaluate_captioner",),
    "images": ("EvaluationImages", "evaluation_images"),
    "metrics.caption_metrics": ("caption_metrics", "prepare_references"),
    "metrics.document_frequencies": ("DocumentFrequencies",),
    "metrics.tokenization": ("ptb_tokenize",),
    "modules": ("module_path",),
    "report": ("CaptionerReport", "ReportComparison", "report_table"),
    "retrieval.retrievers": ("CaptionerRetriever", "DualEncoderRetriever"),
    "retrieval.self_retrieval": ("SelfRetrieval", "self_retrieval"),
}

__all__ = [
    "CaptionerReport",
    "CaptionerRetriever",
    "DocumentFrequencies",
    "DualEncoderRetriever",
    "EvaluationImages",
    "ReportComparison",
    "SelfRetrieval",
    "caption_metrics",
    "evaluate_captioner",
    "evaluation_images",
    "module_path",
    "prepare_references",
    "ptb_tokenize",
    "report_table",
    "self_retrieval",
]

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
