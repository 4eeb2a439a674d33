"""The relatives of the contrastive caption loss, and introspective learning, against formulas, TRL and differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hf_contrastive_caption.losses import (
    RELATIVES,
    LossType,
    dpo_loss,
    infonce_loss,
    introspective_loss,
    nca_loss,
)
from tests.log_ratios import DTYPES, log_ratios, trl_loss

F64 = torch.float64
LOSSES = [dpo_loss, infonce_loss, nca_loss, introspective_loss]
CONSTANTS: dict[Callable[..., Tensor], Callable[[int], float]] = {
    dpo_loss: lambda k: math.log(2),
    infonce_loss: lambda k: math.log(1 + k),
    nca_loss: lambda k: 2 * math.log(2),
    introspective_loss: lambda k: math.log(2),
}


def naive(loss: Callable[..., Tensor], positive: float, negative: list[float], beta: float) -> float:
    """The formulas as they stand in the papers, on one positive, by plain exponentials."""

    def sigma(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    k = len(negative)
    if loss in (dpo_loss, introspective_loss):
        return sum(-math.log(sigma(beta * (positive - other))) for other in negative) / k
    rewards = [beta * value for value in (positive, *negative)]
    if loss is infonce_loss:
        return -math.log(math.exp(rewards[0]) / sum(map(math.exp, rewards)))
    # NCA with 1 + K answers, of which the first has all of the reward
    share = [1.0, *([0.0] * k)]
    return -sum(share[i] * math.log(sigma(rewards[i])) + math.log(sigma(-rewards[i])) / (1 + k) for i in range(1 + k))


def test_every_loss_type_has_a_loss() -> None:
    assert ("contrastive", *RELATIVES) == get_args(LossType)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("num_negatives", [1, 5, 32])
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_equal_models_give_the_constant(loss: Callable[..., Tensor], num_negatives: int, beta: float) -> None:
    found = loss(torch.zeros(7).double(), torch.zeros(7, num_negatives).double(), beta)
    assert found.item() == pytest.approx(CONSTANTS[loss](num_negatives), abs=1e-14)


@pytest.mark.parametrize("loss", LOSSES)
@given(
    positive=st.floats(-30, 30),
    negative=st.lists(st.floats(-30, 30), min_size=1, max_size=6),
    beta=st.sampled_from([0.1, 0.5, 1.0]),
)
def test_equals_the_formula(loss: Callable[..., Tensor], positive: float, negative: list[float], beta: float) -> None:
    found = loss(torch.tensor([positive], dtype=F64), torch.tensor([negative], dtype=F64), beta, reduction="none")
    expected = naive(loss, positive, negative, beta)
    assert found.tolist() == pytest.approx([expected], rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("beta", [1.0, 0.1])
@pytest.mark.parametrize(("loss", "loss_type"), [(dpo_loss, "sigmoid"), (nca_loss, "nca_pair")])
def test_equals_the_lines_of_trl(loss: Callable[..., Tensor], loss_type: str, beta: float) -> None:
    positive, negative = log_ratios(20, 1)
    ours = loss(positive, negative, beta, reduction="none")
    torch.testing.assert_close(ours, trl_loss(loss_type, positive, negative[:, 0], beta), rtol=1e-14, atol=1e-14)


def test_infonce_with_one_negative_is_dpo_as_in_trl() -> None:
    positive, negative = log_ratios(20, 1)
    ours = infonce_loss(positive, negative, 0.3, reduction="none")
    torch.testing.assert_close(ours, trl_loss("sigmoid", positive, negative[:, 0], 0.3), rtol=1e-13, atol=1e-14)


def test_dpo_is_the_mean_over_pairs() -> None:
    positive, negative = log_ratios(20, 4)
    pairs = [trl_loss("sigmoid", positive, negative[:, k]) for k in range(4)]
    torch.testing.assert_close(dpo_loss(positive, negative, reduction="none"), torch.stack(pairs).mean(0))


@pytest.mark.parametrize("loss", LOSSES)
@given(
    positive=st.lists(st.floats(-20, 20), min_size=3, max_size=3),
    negative=st.lists(st.floats(-20, 20), min_size=6, max_size=6),
    beta=st.sampled_from([0.3, 1.0]),
)
def test_gradient_by_finite_differences(
    loss: Callable[..., Tensor], positive: list[float], negative: list[float], beta: float
) -> None:
    weights = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
    inputs = (
        torch.tensor(positive, dtype=torch.float64, requires_grad=True),
        torch.tensor(negative, dtype=torch.float64).view(3, 2).requires_grad_(),
    )
    for reduction in ("mean", "sum", "none"):
        assert torch.autograd.gradcheck(
            lambda one, others, reduction=reduction: loss(one, others, beta, weights=weights, reduction=reduction),
            inputs,
        )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_far_from_zero(loss: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """A badly wrong pair keeps its gradient of 1, and what is won has none, in every dtype."""
    for sign, pull in ((1.0, 1.0), (-1.0, 0.0)):
        positive = torch.full((2,), -1e4 * sign, dtype=dtype, requires_grad=True)
        negative = torch.full((2, 5), 1e4 * sign, dtype=dtype, requires_grad=True)
        found = loss(positive, negative, reduction="sum")
        found.backward()
        assert torch.isfinite(found) and found.dtype == torch.promote_types(dtype, torch.float32)
        assert positive.grad is not None and negative.grad is not None
        # NCA counts the positive among the six captions that are held down, which is all that is left when it is won.
        share = 6 if loss is nca_loss else 5
        held = 1 / 6 if loss is nca_loss and not pull else 0.0
        assert positive.grad.tolist() == pytest.approx([held - pull] * 2, rel=5e-3)
        assert negative.grad.flatten().tolist() == pytest.approx([pull / share] * 10, rel=5e-3)


@pytest.mark.parametrize("loss", LOSSES)
def test_which_losses_depend_on_differences_alone(loss: Callable[..., Tensor]) -> None:
    positive, negative = log_ratios(6, 5)
    moved = loss(positive + 2, negative + 2, reduction="none") - loss(positive, negative, reduction="none")
    largest = moved.abs().max().item()
    assert largest > 0.5 if loss is nca_loss else largest < 1e-13


@pytest.mark.parametrize(("num_negatives", "beta"), [(1, 1.0), (5, 1.0), (5, 0.2)])
def test_the_positive_of_nca_has_an_optimum(num_negatives: int, beta: float) -> None:
    positive = torch.full((1,), math.log(1 + num_negatives) / beta, dtype=torch.float64, requires_grad=True)
    nca_loss(positive, torch.zeros(1, num_negatives).double(), beta).backward()
    assert positive.grad is not None and positive.grad.item() == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("loss", LOSSES)
def test_weights_and_reductions(loss: Callable[..., Tensor]) -> None:
    positive, negative = log_ratios(6, 5)
    weights = torch.tensor([1.0, 2.0, 0.0, 1.0, 0.5, 0.0])
    each = loss(positive, negative, reduction="none")
    assert each.shape == (6,)
    assert loss(positive, negative).item() == pytest.approx(each.mean().item(), rel=1e-14)
    total = loss(positive, negative, weights=weights, reduction="sum").item()
    assert total == pytest.approx(float((each * weights).sum()), rel=1e-14)
    assert loss(positive, negative, weights=weights).item() == pytest.approx(total / 4.5, rel=1e-14)


@pytest.mark.parametrize("loss", LOSSES)
def test_is_float32_under_autocast(loss: Callable[..., Tensor]) -> None:
    positive, negative = (value.float() for value in log_ratios(6, 5))
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(positive, negative)
    assert found.dtype == torch.float32 and torch.equal(found, loss(positive, negative))


@pytest.mark.parametrize("loss", LOSSES)
def test_shapes_that_do_not_fit(loss: Callable[..., Tensor]) -> None:
    one, others = ("own", "distractors") if loss is introspective_loss else ("positive", "negative")
    name = loss.__name__
    with pytest.raises(ValueError, match=rf"{name} takes {one} of shape .* given \(3,\) and \(2, 5\)"):
        loss(torch.zeros(3), torch.zeros(2, 5))
    with pytest.raises(ValueError, match=rf"{name} needs at least 1 of {others}, K, but was given \(2, 0\)"):
        loss(torch.zeros(2), torch.zeros(2, 0))
