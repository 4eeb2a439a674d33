"""ln p(caption | image) for many captions per image, one subclass of :class:`Captioner` for each family of models."""

from hf_contrastive_caption.captioners.base import Captioner
from hf_contrastive_caption.captioners.batch import CaptionBatch, Images, caption_batch
from hf_contrastive_caption.captioners.cross_attention import CrossAttentionCaptioner
from hf_contrastive_caption.captioners.registry import captioner_for, register_captioner

__all__ = [
    "CaptionBatch",
    "Captioner",
    "CrossAttentionCaptioner",
    "Images",
    "caption_batch",
    "captioner_for",
    "register_captioner",
]
