"""Tiny LLaVA-NeXT and LLaVA-OneVision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers import (
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    SiglipVisionConfig,
)

from tests import tiny
from tests.families.chat import CHAT_TEMPLATE, CHAT_TOKENS, IMAGE, LLAVA, chat_tokenizer
from tests.families.common import LAYERS, VISION

PINPOINTS = [[32, 64], [64, 32], [64, 64]]
SIZES: dict[str, Any] = {**VISION, "patch_size": 16}


class OnevisionImagesProcessor(LlavaOnevisionProcessor):
    """Without its video processor, which needs torchvision."""

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        num_image_tokens: int | None = None,
        vision_feature_select_strategy: str | None = None,
        chat_template: str | None = None,
        vision_aspect_ratio: str = "anyres_max_9",
        **options: Any,
    ) -> None:
        super().__init__(
            image_processor,
            tokenizer,
            num_image_tokens=num_image_tokens,
            vision_feature_select_strategy=vision_feature_select_strategy,
            chat_template=chat_template,
            vision_aspect_ratio=vision_aspect_ratio,
            **options,
        )


AutoProcessor.register(LlavaOnevisionConfig, OnevisionImagesProcessor, exist_ok=True)


def llava_next_processing() -> LlavaNextProcessor:
    """Images as a whole, and in pieces of 32 pixels of the one size of :data:`PINPOINTS` that fits best."""
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=PINPOINTS
    )
    return LlavaNextProcessor(
        images,
        chat_tokenizer(),
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def onevision_processing() -> LlavaOnevisionProcessor:
    images = LlavaOnevisionImageProcessorPil(size={"height": 32, "width": 32}, image_grid_pinpoints=PINPOINTS)
    return OnevisionImagesProcessor(
        images,
        chat_tokenizer(),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        vision_aspect_ratio="anyres_max_2",
    )


def _text(dropout: float) -> LlamaConfig:
    return LlamaConfig(**{**LAYERS, **CHAT_TOKENS, "attention_dropout": dropout, "max_position_embeddings": 96})


def llava_next_model(dropout: float = 0.0, seed: int = 5) -> LlavaNextForConditionalGeneration:
    """A tiny LLaVA-NeXT in training mode."""
    torch.manual_seed(seed)
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**{**SIZES, "num_hidden_layers": 3}, attention_dropout=dropout),
        text_config=_text(dropout),
        image_token_index=IMAGE,
        image_grid_pinpoints=PINPOINTS,
    )
    model = LlavaNextForConditionalGeneration(config).train()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = tiny.EOS, tiny.PAD
    return model


def onevision_model(dropout: float = 0.0, seed: int = 0) -> LlavaOnevisionForConditionalGeneration:
    """A tiny LLaVA-OneVision in training mode, which shrinks images of more than two pieces."""
    torch.manual_seed(seed)
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**SIZES, attention_dropout=dropout, vision_use_head=False),
        text_config=_text(dropout),
        image_token_index=IMAGE,
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_2",
    )
    model = LlavaOnevisionForConditionalGeneration(config).train()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = tiny.EOS, tiny.PAD
    return model


LLAVA_NEXT = replace(LLAVA, name="llava_next", model=llava_next_model, processing=llava_next_processing)
LLAVA_ONEVISION = replace(LLAVA, name="llava_onevision", model=onevision_model, processing=onevision_processing)
