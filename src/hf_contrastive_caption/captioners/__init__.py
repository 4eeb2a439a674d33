"""ln p(caption | image) for many captions per image, one subclass of :class:`Captioner` for each family of models."""

from hf_contrastive_caption.captioners.base import Captioner
from hf_contrastive_caption.captioners.batch import CaptionBatch, Images, caption_batch
from hf_contrastive_caption.captioners.blip import BlipCaptioner
from hf_contrastive_caption.captioners.blip2 import Blip2Captioner
from hf_contrastive_caption.captioners.chat import ChatCaptioner, Gemma3Captioner, LlavaCaptioner, PaliGemmaCaptioner
from hf_contrastive_caption.captioners.cross_attention import CrossAttentionCaptioner
from hf_contrastive_caption.captioners.encoder_decoder import EncoderDecoderCaptioner
from hf_contrastive_caption.captioners.git import GitCaptioner
from hf_contrastive_caption.captioners.idefics3 import Idefics3Captioner
from hf_contrastive_caption.captioners.llava_next import LlavaNextCaptioner
from hf_contrastive_caption.captioners.prefix import PrefixCaptioner
from hf_contrastive_caption.captioners.qwen_vl import Qwen2VLCaptioner, Qwen3VLCaptioner
from hf_contrastive_caption.captioners.registry import captioner_for, register_captioner
from hf_contrastive_caption.captioners.simple import SimpleCaptioner

__all__ = [
    "Blip2Captioner",
    "BlipCaptioner",
    "CaptionBatch",
    "Captioner",
    "ChatCaptioner",
    "CrossAttentionCaptioner",
    "EncoderDecoderCaptioner",
    "Gemma3Captioner",
    "GitCaptioner",
    "Idefics3Captioner",
    "Images",
    "LlavaCaptioner",
    "LlavaNextCaptioner",
    "PaliGemmaCaptioner",
    "PrefixCaptioner",
    "Qwen2VLCaptioner",
    "Qwen3VLCaptioner",
    "SimpleCaptioner",
    "caption_batch",
    "captioner_for",
    "register_captioner",
]
