"""A tiny GIT."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GitConfig, GitForCausalLM, GitVisionConfig

from tests import tiny
from tests.families.common import LAYERS, TOKENS, VISION, Family, Inputs, shifted_loss, with_start


def git_model(dropout: float = 0.0, seed: int = 0, **options: Any) -> GitForCausalLM:
    """A tiny GIT in training mode."""
    torch.manual_seed(seed)
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    vision = GitVisionConfig(**VISION, attention_dropout=dropout).to_dict()
    config = GitConfig(
        **{**LAYERS, **TOKENS, **rates, "max_position_embeddings": 64, "vision_config": vision, **options}
    )
    return GitForCausalLM(config).train()


def _git_logits(model: Any, inputs: Inputs, ids: Tensor) -> Tensor:
    return model(**inputs, input_ids=with_start(ids)[:, :-1]).logits[0, -len(ids) :]


GIT = Family("git", git_model, tiny.processing, _git_logits, shifted_loss)
