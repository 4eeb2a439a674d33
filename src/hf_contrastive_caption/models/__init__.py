"""Captioners that are made here: the two of the paper, and a small one from scratch.

Importing this registers the paper's two with the Auto classes of transformers.
"""

from typing import TYPE_CHECKING

from hf_contrastive_caption.lazy import lazy_names
from hf_contrastive_caption.models.adaptive_attention import AdaptiveAttention, AdaptiveAttentionConfig
from hf_contrastive_caption.models.show_and_tell import ShowAndTell, ShowAndTellConfig

if TYPE_CHECKING:
    from hf_contrastive_caption.models.small import small_captioner, small_image_processor, word_level_tokenizer
    from hf_contrastive_caption.models.small_recurrent import small_recurrent_captioner

__all__ = [
    "AdaptiveAttention",
    "AdaptiveAttentionConfig",
    "ShowAndTell",
    "ShowAndTellConfig",
    "small_captioner",
    "small_image_processor",
    "small_recurrent_captioner",
    "word_level_tokenizer",
]

# Not at once: the small captioner is made with what the captioners' room offers, which knows the models of the paper.
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "small": ("small_captioner", "small_image_processor", "word_level_tokenizer"),
        "small_recurrent": ("small_recurrent_captioner",),
    },
)
