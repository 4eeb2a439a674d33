"""Tiny Idefics3 and SmolVLM."""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlamaConfig,
    PreTrainedModel,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from tests import tiny
from tests.families.chat import CHAT_TEMPLATE, CHAT_TOKENS, IMAGE, LLAVA, chat_tokenizer
from tests.families.common import LAYERS, VISION


def idefics3_processing(*, pieces: bool = False) -> Idefics3Processor:
    """``pieces``: cut images of 64 pixels into pieces of 32, and show the whole image once more."""
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 64 if pieces else 32}, max_image_size={"longest_edge": 32}, do_image_splitting=pieces
    )
    return Idefics3Processor(images, chat_tokenizer(), image_seq_len=4, chat_template=CHAT_TEMPLATE)


def idefics3_model(dropout: float = 0.0, seed: int = 1, kind: str = "idefics3") -> PreTrainedModel:
    """A tiny Idefics3 or SmolVLM in training mode."""
    torch.manual_seed(seed)
    size = len(idefics3_processing().tokenizer)
    text = {**LAYERS, **CHAT_TOKENS, "vocab_size": size, "attention_dropout": dropout, "max_position_embeddings": 192}
    vision = {**VISION, "attention_dropout": dropout}
    common = {"text_config": LlamaConfig(**text).to_dict(), "image_token_id": IMAGE, "scale_factor": 2}
    if kind == "idefics3":
        model = Idefics3ForConditionalGeneration(Idefics3Config(vision_config=vision, pad_token_id=tiny.PAD, **common))
    else:
        model = SmolVLMForConditionalGeneration(SmolVLMConfig(vision_config=vision, pad_token_id=tiny.PAD, **common))
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = tiny.EOS, tiny.PAD
    return model.train()


IDEFICS3 = replace(
    LLAVA,
    name="idefics3",
    model=idefics3_model,
    processing=idefics3_processing,
    tokenizer=lambda: idefics3_processing().tokenizer,
)
SMOLVLM = replace(IDEFICS3, name="smolvlm", model=lambda dropout: idefics3_model(dropout, kind="smolvlm"))
