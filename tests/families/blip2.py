"""A tiny BLIP-2."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    OPTConfig,
    PreTrainedConfig,
)

from tests import tiny
from tests.families.chat import CHAT_TOKENS, CHAT_WORDS, LLAVA
from tests.families.common import LAYERS, VISION


def blip2_processing() -> Blip2Processor:
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(list(CHAT_WORDS))
    return Blip2Processor(tiny.image_processor(), tokenizer, num_query_tokens=4)


def blip2_model(
    dropout: float = 0.0, seed: int = 0, text: PreTrainedConfig | None = None, **options: Any
) -> Blip2ForConditionalGeneration:
    """A tiny BLIP-2 in training mode: four queries, and OPT."""
    torch.manual_seed(seed)
    sizes = {**CHAT_TOKENS, "ffn_dim": 64, "max_position_embeddings": 96, "word_embed_proj_dim": 32, "init_std": 0.3}
    layers = {name: value for name, value in LAYERS.items() if name not in ("intermediate_size", "initializer_range")}
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**VISION, attention_dropout=dropout).to_dict(),
        qformer_config=Blip2QFormerConfig(**LAYERS, **rates, vocab_size=8, encoder_hidden_size=32).to_dict(),
        text_config=(text or OPTConfig(**{**sizes, **layers, "dropout": dropout})).to_dict(),
        num_query_tokens=4,
        image_token_index=len(blip2_processing().tokenizer) - 1,
        **options,
    )
    model = Blip2ForConditionalGeneration(config).train()
    torch.nn.init.normal_(model.query_tokens)  # 0 in a new model
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = tiny.EOS, tiny.PAD
    return model


BLIP2 = replace(
    LLAVA,
    name="blip2",
    model=blip2_model,
    processing=blip2_processing,
    tokenizer=lambda: blip2_processing().tokenizer,
    vision=False,
    adapt=r".*(q_proj|v_proj)",
)
