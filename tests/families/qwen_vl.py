"""Tiny Qwen2-VL, Qwen2.5-VL and Qwen3-VL."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    AutoProcessor,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)

from tests import tiny
from tests.families.chat import CHAT_TEMPLATE, IMAGE_TOKEN, LLAVA, chat_inputs, chat_tokenizer
from tests.families.common import LAYERS, TOKENS, Inputs

Kind = Literal["qwen2", "qwen2.5", "qwen3"]

QWEN_IMAGE_TOKENS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
PATCHES = {"patch_size": 8, "temporal_patch_size": 2}


# The video processor, which their own classes want, needs torchvision. No more than that is left out.
class Qwen2VLImagesProcessor(Qwen2VLProcessor):
    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)


class Qwen2_5_VLImagesProcessor(Qwen2_5_VLProcessor):
    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)


class Qwen3VLImagesProcessor(Qwen3VLProcessor):
    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)


PROCESSORS: dict[Kind, tuple[Any, type[ProcessorMixin]]] = {
    "qwen2": (Qwen2VLConfig, Qwen2VLImagesProcessor),
    "qwen2.5": (Qwen2_5_VLConfig, Qwen2_5_VLImagesProcessor),
    "qwen3": (Qwen3VLConfig, Qwen3VLImagesProcessor),
}
for config_class, processor_class in PROCESSORS.values():
    AutoProcessor.register(config_class, processor_class, exist_ok=True)


def qwen_processing(kind: Kind = "qwen2", **options: Any) -> ProcessorMixin:
    """Images of about 64 x 64 pixels, which are 4 x 4 image tokens if they are square."""
    tokenizer = chat_tokenizer()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.add_special_tokens({"additional_special_tokens": list(QWEN_IMAGE_TOKENS)})
    size = {"shortest_edge": 48 * 48, "longest_edge": 80 * 80}
    images = Qwen2VLImageProcessorPil(**{**PATCHES, "merge_size": 2, "size": size, **options})
    template = CHAT_TEMPLATE.replace(IMAGE_TOKEN, "<|vision_start|><|image_pad|><|vision_end|>")
    return PROCESSORS[kind][1](images, tokenizer, chat_template=template)


def qwen_model(dropout: float = 0.0, seed: int = 1, kind: Kind = "qwen2", **text: Any) -> PreTrainedModel:
    """A tiny model in training mode; the first layer of Qwen2.5-VL's encoder sees windows of 2 x 2 image tokens."""
    torch.manual_seed(seed)
    tokenizer = qwen_processing(kind).tokenizer
    image, video, start, end = tokenizer.convert_tokens_to_ids(list(QWEN_IMAGE_TOKENS))
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ids = dict(zip(names, (image, video, start, end), strict=True))
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
    sizes = {"num_key_value_heads": 1, "attention_dropout": dropout, "max_position_embeddings": 96}
    decoder = {**LAYERS, **TOKENS, **sizes, "vocab_size": len(tokenizer), "rope_parameters": rope, **text}
    tower = {"depth": 2, "num_heads": 2, "initializer_range": 0.3, **PATCHES}
    wide = {**tower, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32}
    model: PreTrainedModel
    if kind == "qwen2":
        vision = {**tower, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
        model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=decoder, vision_config=vision, **ids))
    elif kind == "qwen2.5":
        windows = {**wide, "window_size": 32, "fullatt_block_indexes": [1]}
        config = Qwen2_5_VLConfig(text_config=decoder, vision_config=windows, **ids)
        model = Qwen2_5_VLForConditionalGeneration(config)
    else:
        deep = {**wide, "num_position_embeddings": 36, "deepstack_visual_indexes": [0]}
        decoder |= {"head_dim": 16, "rope_parameters": {**rope, "mrope_interleaved": True}}
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=decoder, vision_config=deep, **ids))
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = tiny.EOS, tiny.PAD
    return model.train()


def qwen_inputs(inputs: Inputs, ids: Tensor) -> Inputs:
    """Image and prompt of one image, as the model alone takes them, with a caption behind them."""
    types = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(ids)[None]], dim=1)
    flat = inputs["pixel_values"][0, : int(inputs["image_grid_thw"].prod())]
    return {**chat_inputs(inputs, ids), "mm_token_type_ids": types, "pixel_values": flat}


def _qwen_logits(model: Any, inputs: Inputs, ids: Tensor) -> Tensor:
    return model(**qwen_inputs(inputs, ids)).logits[0, -len(ids) - 1 : -1]


def _qwen_loss(model: Any, inputs: Inputs, ids: Tensor) -> Tensor:
    labels = torch.cat([torch.full_like(inputs["input_ids"], -100), ids[None]], dim=1)
    return model(**qwen_inputs(inputs, ids), labels=labels).loss


QWEN2_VL = replace(
    LLAVA,
    name="qwen2_vl",
    model=qwen_model,
    processing=qwen_processing,
    logits=_qwen_logits,
    loss=_qwen_loss,
    tokenizer=lambda: qwen_processing().tokenizer,
)
QWEN2_5_VL = replace(
    QWEN2_VL,
    name="qwen2_5_vl",
    model=lambda dropout: qwen_model(dropout, kind="qwen2.5"),
    processing=lambda: qwen_processing("qwen2.5"),
)
QWEN3_VL = replace(
    QWEN2_VL,
    name="qwen3_vl",
    model=lambda dropout: qwen_model(dropout, kind="qwen3"),
    processing=lambda: qwen_processing("qwen3"),
)
