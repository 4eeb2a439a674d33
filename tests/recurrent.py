"""Tiny captioners with a recurrent decoder, and vision models of four kinds, for the tests."""

from __future__ import annotations

from typing import Any

import torch
from transformers import ConvNextConfig, PreTrainedConfig, ResNetConfig, SwinConfig, ViTConfig

from hf_contrastive_caption.models import AdaptiveAttention, AdaptiveAttentionConfig, ShowAndTell, ShowAndTellConfig
from hf_contrastive_caption.models.recurrent import RecurrentCaptionerModel
from tests import tiny

MODELS: dict[str, tuple[Any, Any]] = {
    "show-and-tell": (ShowAndTellConfig, ShowAndTell),
    "adaptive-attention": (AdaptiveAttentionConfig, AdaptiveAttention),
}
KINDS = tuple(MODELS)
VISION = ("resnet", "convnext", "swin", "vit")
VISION_WIDTH = 16


def vision_config(name: str = "resnet", **settings: Any) -> PreTrainedConfig:
    """A two-stage vision model of width 16 for images of 32 pixels."""
    if name == "resnet":  # a feature map of 4 x 4
        sizes = {"embedding_size": 8, "hidden_sizes": [8, VISION_WIDTH], "depths": [1, 1], "layer_type": "basic"}
        return ResNetConfig(**sizes, **settings)
    if name == "convnext":
        sizes = {"hidden_sizes": [8, VISION_WIDTH], "depths": [1, 1], "num_stages": 2, "patch_size": 4}
        return ConvNextConfig(**sizes, **settings)
    if name == "swin":
        sizes = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2, "patch_size": 4}
        return SwinConfig(image_size=32, **sizes, **settings)
    layers = {"hidden_size": VISION_WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return ViTConfig(image_size=32, patch_size=8, **layers, **settings)


def captioner_model(kind: str, vision: str = "resnet", seed: int = 0, **settings: Any) -> RecurrentCaptionerModel:
    """A tiny recurrent captioner in training mode; its recurrent weights are large, so that errors show."""
    torch.manual_seed(seed)
    config_class, model_class = MODELS[kind]
    sizes = {"vocab_size": tiny.VOCABULARY_SIZE, "embedding_size": 10, "hidden_size": 12, "initializer_range": 0.5}
    tokens = {"decoder_start_token_id": tiny.BOS, "eos_token_id": tiny.EOS, "pad_token_id": tiny.PAD}
    config = config_class(**{"vision_config": vision_config(vision), **sizes, **tokens, **settings})
    model: RecurrentCaptionerModel = model_class(config)
    with torch.no_grad():
        for name, weight in model.decoder.named_parameters():
            if "embedding" not in name:
                weight.normal_(std=0.7)
    return model.train()
