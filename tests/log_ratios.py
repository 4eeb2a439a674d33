"""Log-ratios to try losses on, and TRL's own lines to compare them with."""

from __future__ import annotations

import ast
import inspect
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def log_ratios(positives: int, negatives: int, scale: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random positives (positives,) and negatives (positives, negatives) in float64."""
    generator = torch.Generator().manual_seed(seed)
    positive = torch.randn(positives, generator=generator, dtype=torch.float64) * scale
    negative = torch.randn(positives, negatives, generator=generator, dtype=torch.float64) * scale
    return positive, negative


def trl_loss(loss_type: str, chosen: Tensor, rejected: Tensor, beta: float = 1.0) -> Tensor:
    """What the lines of TRL's DPOTrainer for a loss type make of log-ratios, (n,) each; skips without TRL."""
    dpo_trainer = pytest.importorskip("trl.trainer.dpo_trainer")
    branches = [
        node
        for node in ast.walk(ast.parse(inspect.getsource(dpo_trainer)))
        if isinstance(node, ast.If) and ast.unparse(node.test) == f"loss_type == '{loss_type}'"
    ]
    assert len(branches) == 1
    names = {
        "self": SimpleNamespace(beta=beta),
        "F": F,
        "chosen_logratios": chosen,
        "rejected_logratios": rejected,
        "delta_score": chosen - rejected,  # of reverse_kl, the default
    }
    exec(compile(ast.Module(branches[0].body, type_ignores=[]), "trl", "exec"), names)
    theirs = names["per_sequence_loss"]
    assert isinstance(theirs, Tensor)
    return theirs
