"""A tiny BLIP."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import BlipConfig, BlipForConditionalGeneration, BlipTextConfig, BlipVisionConfig

from tests import tiny
from tests.families.common import LAYERS, TOKENS, VISION, Family, Inputs, shifted_loss, with_start


def blip_model(dropout: float = 0.0, seed: int = 0, **text: Any) -> BlipForConditionalGeneration:
    """A tiny BLIP in training mode."""
    torch.manual_seed(seed)
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = BlipConfig(
        text_config=BlipTextConfig(
            **{
                **LAYERS, **TOKENS, **rates, "encoder_hidden_size": 32, "projection_dim": 32,
                "max_position_embeddings": 64, "sep_token_id": tiny.EOS, **text,
            }
        ).to_dict(),
        vision_config=BlipVisionConfig(**VISION, attention_dropout=dropout).to_dict(),
    )  # fmt: skip
    return BlipForConditionalGeneration(config).train()


def _blip_logits(model: Any, inputs: Inputs, ids: Tensor) -> Tensor:
    return model(**inputs, input_ids=with_start(ids)[:, :-1]).logits[0]


BLIP = Family("blip", blip_model, tiny.processing, _blip_logits, shifted_loss)
