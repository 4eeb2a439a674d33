"""Captioners that are made here and not loaded."""

from hf_contrastive_caption.models.small import small_captioner, small_image_processor, word_level_tokenizer

__all__ = ["small_captioner", "small_image_processor", "word_level_tokenizer"]
