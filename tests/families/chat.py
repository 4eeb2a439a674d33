"""Tiny chat models: LLaVA, Gemma 3, PaliGemma."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    SiglipVisionConfig,
)

from tests import tiny
from tests.families.common import LAYERS, TOKENS, VISION, Family, Inputs

IMAGE_TOKEN = "<image>"
CHAT_WORDS = ("USER", "ASSISTANT", ":", "Describe", "picture", ".")
IMAGE = tiny.VOCABULARY_SIZE
CHAT_TOKENS = {**TOKENS, "vocab_size": tiny.VOCABULARY_SIZE + 1 + len(CHAT_WORDS)}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }} : {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}" + IMAGE_TOKEN + " {% else %}{{ part['text'] }} {% endif %}{% endfor %}"
    "{% if message['role'] == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT :{% endif %}"
)
PROMPT = "Describe the picture ."


def chat_tokenizer(**options: Any) -> Any:
    """The tiny tokenizer with the words of a chat and an image token."""
    tokenizer = tiny.tokenizer(**options)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    tokenizer.add_tokens(list(CHAT_WORDS))
    return tokenizer


def llava_processing() -> LlavaProcessor:
    return LlavaProcessor(
        image_processor=tiny.image_processor(),
        tokenizer=chat_tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which "default" leaves out again
        chat_template=CHAT_TEMPLATE,
    )


def llava_model(dropout: float = 0.0, seed: int = 0, **text: Any) -> LlavaForConditionalGeneration:
    """A tiny LLaVA in training mode: CLIP's encoder without its last layer, and Llama."""
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**{**VISION, "num_hidden_layers": 3}, attention_dropout=dropout),
        text_config=LlamaConfig(
            **{**LAYERS, **CHAT_TOKENS, "attention_dropout": dropout, "max_position_embeddings": 96, **text}
        ),
        image_token_id=IMAGE,
    )
    model = LlavaForConditionalGeneration(config).train()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = tiny.EOS, tiny.PAD
    return model


def gemma3_processing() -> Gemma3Processor:
    names = {"boi_token": "<boi>", "image_token": "<soft>", "eoi_token": "<eoi>"}
    tokenizer = chat_tokenizer(extra_special_tokens=names)
    template = CHAT_TEMPLATE.replace(IMAGE_TOKEN, "<boi>")
    return Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": 32, "width": 32}),
        tokenizer,
        chat_template=template,
        image_seq_length=4,
    )


def gemma3_model(dropout: float = 0.0, seed: int = 0, **text: Any) -> Gemma3ForConditionalGeneration:
    """A tiny Gemma 3 in training mode: a layer with a window that is shorter than the prompt, and one without."""
    torch.manual_seed(seed)
    tokens = gemma3_processing().tokenizer
    layers = {"num_key_value_heads": 1, "head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]}
    sizes = {**CHAT_TOKENS, "vocab_size": len(tokens), "attention_dropout": dropout, "max_position_embeddings": 96}
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(**VISION, attention_dropout=dropout),
        text_config=Gemma3TextConfig(**{**LAYERS, **sizes, **layers, "sliding_window": 7, **text}),
        mm_tokens_per_image=4,
        image_token_index=tokens.image_token_id,
        boi_token_index=tokens.boi_token_id,
        eoi_token_index=tokens.eoi_token_id,
    )
    model = Gemma3ForConditionalGeneration(config).train()
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.5)  # 0 in a new model
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = tiny.EOS, tiny.PAD
    return model


@cache  # it adds 1,152 tokens to the tokenizer, one by one
def paligemma_processing() -> PaliGemmaProcessor:
    images = tiny.image_processor()
    images.image_seq_length = 16
    return PaliGemmaProcessor(images, chat_tokenizer())


def paligemma_model(dropout: float = 0.0, seed: int = 0, **text: Any) -> PaliGemmaForConditionalGeneration:
    """A tiny PaliGemma in training mode."""
    torch.manual_seed(seed)
    tokens = paligemma_processing().tokenizer
    heads = {"num_key_value_heads": 1, "head_dim": 16}
    sizes = {**CHAT_TOKENS, "vocab_size": len(tokens), "attention_dropout": dropout, "max_position_embeddings": 96}
    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(**VISION, attention_dropout=dropout, vision_use_head=False),
        text_config=GemmaConfig(**{**LAYERS, **sizes, **heads, **text}),
        projection_dim=32,
        image_token_index=IMAGE,
    )
    model = PaliGemmaForConditionalGeneration(config).train()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = tiny.EOS, tiny.PAD
    return model


def chat_inputs(inputs: Inputs, ids: Tensor, kind: int = 0) -> Inputs:
    """Image and prompt of one image with a caption of a kind of tokens behind them."""
    behind = {
        "input_ids": torch.cat([inputs["input_ids"], ids[None]], dim=1),
        "attention_mask": torch.cat([inputs["attention_mask"], torch.ones_like(ids)[None]], dim=1),
    }
    if "token_type_ids" in inputs:
        behind["token_type_ids"] = torch.cat([inputs["token_type_ids"], torch.full_like(ids, kind)[None]], dim=1)
    return {**inputs, **behind}


def _chat_logits(model: Any, inputs: Inputs, ids: Tensor) -> Tensor:
    return model(**chat_inputs(inputs, ids)).logits[0, -len(ids) - 1 : -1]


def _chat_loss(model: Any, inputs: Inputs, ids: Tensor) -> Tensor:
    labels = torch.cat([torch.full_like(inputs["input_ids"], -100), ids[None]], dim=1)
    return model(**chat_inputs(inputs, ids), labels=labels).loss


LLAVA = Family(
    "llava",
    llava_model,
    llava_processing,
    _chat_logits,
    _chat_loss,
    options=(("prompt", PROMPT),),
    tokenizer=chat_tokenizer,
)

GEMMA3 = replace(
    LLAVA,
    name="gemma3",
    model=gemma3_model,
    processing=gemma3_processing,
    tokenizer=lambda: gemma3_processing().tokenizer,
)


def _paligemma_logits(model: Any, inputs: Inputs, ids: Tensor) -> Tensor:
    return model(**chat_inputs(inputs, ids, kind=1)).logits[0, -len(ids) - 1 : -1]


def _paligemma_loss(model: Any, inputs: Inputs, ids: Tensor) -> Tensor:
    labels = torch.cat([torch.full_like(inputs["input_ids"], -100), ids[None]], dim=1)
    return model(**chat_inputs(inputs, ids, kind=1), labels=labels).loss


PALIGEMMA = replace(
    LLAVA,
    name="paligemma",
    model=paligemma_model,
    processing=paligemma_processing,
    logits=_paligemma_logits,
    loss=_paligemma_loss,
    tokenizer=lambda: paligemma_processing().tokenizer,
)
