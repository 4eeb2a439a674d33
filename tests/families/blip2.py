"""A tiny BLIP-2."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    OPTConfig,
    PreTrainedConfig,
    T5Config,
)

from tests import tiny
from tests.families.chat import CHAT_TOKENS, CHAT_WORDS, LLAVA
from tests.families.common import LAYERS, VISION, Inputs


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
    before_states=("vision_model.", "qformer.", "query_tokens"),
    adapt=r".*(q_proj|v_proj)",
)


def blip2_t5_model(dropout: float = 0.0, seed: int = 0, **text: Any) -> Blip2ForConditionalGeneration:
    """A tiny BLIP-2 in training mode around T5: two layers on either side, and a bias for near and far tokens."""
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "initializer_factor": 1.0}
    tokens = {**CHAT_TOKENS, "decoder_start_token_id": tiny.PAD}
    distances = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12}
    config = T5Config(**{**tokens, **sizes, **distances, "dropout_rate": dropout, **text})
    model = blip2_model(dropout, seed, config, use_decoder_only_language_model=False)
    generator = torch.Generator().manual_seed(seed)
    for stack in (model.language_model.encoder, model.language_model.decoder):
        bias = stack.get_submodule("block.0.layer.0.SelfAttention.relative_attention_bias")
        torch.nn.init.normal_(bias.weight, generator=generator)  # nearly 0 in a new model
    return model


def _t5_logits(model: Any, inputs: Inputs, ids: Tensor) -> Tensor:
    before = torch.cat([torch.tensor([tiny.PAD]), ids[:-1]])[None]
    return model(**inputs, decoder_input_ids=before).logits[0]


def _t5_loss(model: Any, inputs: Inputs, ids: Tensor) -> Tensor:
    return model(**inputs, labels=ids[None]).loss


BLIP2_T5 = replace(
    BLIP2,
    name="blip2_t5",
    model=blip2_t5_model,
    logits=_t5_logits,
    loss=_t5_loss,
    before_states=(*BLIP2.before_states, "language_projection.", "language_model.encoder.", "language_model.shared."),
    adapt=r".*(q|v)",
)
