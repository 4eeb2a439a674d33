"""The loss against the paper's formula, TRL's line, finite differences and the numbers of the method page."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hf_contrastive_caption.losses import contrastive_caption_loss, mle_loss, ranked_first
from tests.log_ratios import DTYPES, log_ratios, trl_loss


def naive_loss(positive: Tensor, negative: Tensor, noise_ratio: float, beta: float) -> Tensor:
    """The paper's formula as it stands there, one pair after the other."""

    def h(log_ratio: Tensor) -> Tensor:
        return 1 / (1 + noise_ratio * torch.exp(-beta * log_ratio))

    losses = []
    for one, others in zip(positive, negative, strict=True):
        loss = -torch.log(h(one))
        for other in others:
            loss = loss - torch.log(1 - h(other)) / len(others)
        losses.append(loss)
    return torch.stack(losses)


class TestContrastiveCaptionLoss:
    @pytest.mark.parametrize("noise_ratio", [0.2, 1.0, 3.0, 5.0, 100.0])
    @pytest.mark.parametrize("num_negatives", [1, 5, 32])
    @pytest.mark.parametrize("beta", [0.1, 1.0])
    def test_equal_models_give_the_constant(self, noise_ratio: float, num_negatives: int, beta: float) -> None:
        zeros = torch.zeros(7, dtype=torch.float64), torch.zeros(7, num_negatives, dtype=torch.float64)
        loss = contrastive_caption_loss(*zeros, noise_ratio=noise_ratio, beta=beta)
        assert loss.item() == pytest.approx(math.log(1 + noise_ratio) + math.log(1 + 1 / noise_ratio), abs=1e-14)

    def test_equal_models_with_the_papers_settings_give_twice_ln_two(self) -> None:
        assert contrastive_caption_loss(torch.zeros(3), torch.zeros(3, 5)).item() == pytest.approx(1.3862944, abs=1e-6)

    @pytest.mark.parametrize(("noise_ratio", "beta"), [(1.0, 1.0), (0.5, 1.0), (4.0, 0.3)])
    def test_equals_the_papers_formula(self, noise_ratio: float, beta: float) -> None:
        positive, negative = log_ratios(20, 5)
        loss = contrastive_caption_loss(positive, negative, noise_ratio, beta, reduction="none")
        torch.testing.assert_close(loss, naive_loss(positive, negative, noise_ratio, beta), rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("beta", [1.0, 0.1])
    def test_equals_bco_pair(self, beta: float) -> None:
        positive, negative = log_ratios(20, 1)
        loss = contrastive_caption_loss(positive, negative, beta=beta, reduction="none")
        bco_pair = -F.logsigmoid(beta * positive) - F.logsigmoid(-(beta * negative[:, 0]))
        assert torch.equal(loss, bco_pair)

    def test_equals_the_lines_of_trl(self) -> None:
        positive, negative = log_ratios(20, 1)
        theirs = trl_loss("bco_pair", positive, negative[:, 0])
        assert torch.equal(contrastive_caption_loss(positive, negative, reduction="none"), theirs)

    @given(
        positive=st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=4),
        negative=st.floats(-1e4, 1e4),
        noise_ratio=st.floats(1e-3, 1e3),
    )
    def test_is_two_softplus(self, positive: list[float], negative: float, noise_ratio: float) -> None:
        offset = math.log(noise_ratio)
        loss = contrastive_caption_loss(
            torch.tensor(positive, dtype=torch.float64),
            torch.full((len(positive), 2), negative, dtype=torch.float64),
            noise_ratio,
            reduction="none",
        )

        def softplus(x: float) -> float:
            return max(x, 0) + math.log1p(math.exp(-abs(x)))

        expected = [softplus(offset - one) + softplus(negative - offset) for one in positive]
        assert loss.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)
        assert (loss >= 0).all()

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_far_from_zero(self, dtype: torch.dtype, sign: float) -> None:
        positive = torch.full((2,), -1e4 * sign, dtype=dtype, requires_grad=True)
        negative = torch.full((2, 5), 1e4 * sign, dtype=dtype, requires_grad=True)
        far = abs(float(positive.detach()[0]))  # 1e4 is no bfloat16 number
        loss = contrastive_caption_loss(positive, negative, reduction="sum")
        loss.backward()
        assert loss.dtype == torch.promote_types(dtype, torch.float32)
        assert loss.item() == (4 * far if sign > 0 else 0.0)
        pull = 1.0 if sign > 0 else 0.0
        assert positive.grad is not None and negative.grad is not None
        assert positive.grad.tolist() == [-pull] * 2
        assert negative.grad.flatten().tolist() == pytest.approx([pull / 5] * 10, rel=5e-3)

    def test_a_badly_wrong_negative_keeps_its_gradient_where_a_clipped_logarithm_has_none(self) -> None:
        negative = torch.full((1, 1), 20.0, requires_grad=True)
        (grad,) = torch.autograd.grad(contrastive_caption_loss(torch.zeros(1), negative), negative)
        assert grad.item() == pytest.approx(1.0, abs=1e-7)
        clipped = -torch.log((1 - torch.sigmoid(negative)).clamp_min(1e-12))
        (lost,) = torch.autograd.grad(clipped.sum(), negative)
        assert lost.item() == 0.0

    @pytest.mark.parametrize("terms", ["both", "positives", "negatives"])
    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    def test_gradient_by_finite_differences(self, terms: str, reduction: str) -> None:
        positive, negative = log_ratios(4, 3)
        weights = torch.tensor([1.0, 0.0, 2.0, 0.5], dtype=torch.float64)

        def loss(positive: Tensor, negative: Tensor) -> Tensor:
            return contrastive_caption_loss(
                positive, negative, 2.0, 0.7, terms=terms, weights=weights, reduction=reduction
            )

        assert torch.autograd.gradcheck(loss, (positive.requires_grad_(), negative.requires_grad_()))

    def test_terms_add_up(self) -> None:
        positive, negative = log_ratios(6, 5)
        parts = {
            terms: contrastive_caption_loss(positive, negative, 3.0, terms=terms)
            for terms in ("both", "positives", "negatives")
        }
        torch.testing.assert_close(parts["positives"] + parts["negatives"], parts["both"], rtol=1e-14, atol=0)
        expected = F.softplus(math.log(3.0) - positive).mean()
        torch.testing.assert_close(parts["positives"], expected, rtol=1e-12, atol=0)

    def test_positives_alone_need_no_negatives(self) -> None:
        positive, _ = log_ratios(6, 1)
        loss = contrastive_caption_loss(positive, positive.new_zeros(6, 0), terms="positives")
        torch.testing.assert_close(loss, F.softplus(-positive).mean(), rtol=1e-12, atol=0)

    def test_reductions(self) -> None:
        positive, negative = log_ratios(6, 5)
        weights = torch.tensor([1.0, 2.0, 0.0, 1.0, 0.5, 0.0], dtype=torch.float64)
        each = contrastive_caption_loss(positive, negative, reduction="none")
        total = contrastive_caption_loss(positive, negative, weights=weights, reduction="sum")
        mean = contrastive_caption_loss(positive, negative, weights=weights)
        assert total.item() == pytest.approx(float((each * weights).sum()), rel=1e-14)
        assert mean.item() == pytest.approx(float((each * weights).sum() / 4.5), rel=1e-14)
        assert contrastive_caption_loss(positive, negative).item() == pytest.approx(float(each.mean()), rel=1e-14)

    def test_a_row_of_weight_zero_counts_for_nothing(self) -> None:
        positive, negative = log_ratios(6, 5)
        weights = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
        padded_positive = positive.clone().requires_grad_()
        padded_negative = negative.clone().requires_grad_()
        padded = contrastive_caption_loss(padded_positive, padded_negative, weights=weights)
        torch.testing.assert_close(padded, contrastive_caption_loss(positive[:4], negative[:4]), rtol=1e-14, atol=0)
        padded.backward()
        assert padded_positive.grad is not None and padded_negative.grad is not None
        assert padded_positive.grad[4:].tolist() == [0.0, 0.0]
        assert padded_negative.grad[4:].abs().sum().item() == 0.0

    def test_only_padding_gives_zero(self) -> None:
        assert contrastive_caption_loss(torch.ones(2), torch.ones(2, 3), weights=torch.zeros(2)).item() == 0.0

    def test_is_float32_under_autocast(self) -> None:
        positive, negative = (value.float() for value in log_ratios(6, 5))
        with torch.autocast("cpu", torch.bfloat16):
            loss = contrastive_caption_loss(positive, negative)
        assert loss.dtype == torch.float32
        assert torch.equal(loss, contrastive_caption_loss(positive, negative))

    @pytest.mark.parametrize(
        ("positive", "negative"), [((3,), (3,)), ((3,), (2, 5)), ((3, 1), (3, 5)), ((), (1, 5)), ((3,), (3, 5, 1))]
    )
    def test_shapes_that_do_not_fit(self, positive: tuple[int, ...], negative: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="takes positive of shape"):
            contrastive_caption_loss(torch.zeros(positive), torch.zeros(negative))

    @pytest.mark.parametrize("noise_ratio", [0.0, -1.0, float("nan")])
    def test_noise_ratio_must_be_positive(self, noise_ratio: float) -> None:
        with pytest.raises(ValueError, match="noise_ratio must be above 0"):
            contrastive_caption_loss(torch.zeros(2), torch.zeros(2, 5), noise_ratio)

    def test_options_that_do_not_exist(self) -> None:
        with pytest.raises(ValueError, match="terms must be one of .* but is 'positive'"):
            contrastive_caption_loss(torch.zeros(2), torch.zeros(2, 5), terms="positive")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="reduction must be one of .* but is 'average'"):
            contrastive_caption_loss(torch.zeros(2), torch.zeros(2, 5), reduction="average")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="no negatives to average"):
            contrastive_caption_loss(torch.zeros(2), torch.zeros(2, 0))
        with pytest.raises(ValueError, match=r"weights must be of shape \(2,\), but are \(2, 1\)"):
            contrastive_caption_loss(torch.zeros(2), torch.zeros(2, 5), weights=torch.ones(2, 1))


class TestMleLoss:
    def test_is_the_mean_over_tokens(self) -> None:
        log_probs = torch.tensor([-1.0, -2.0, -6.0])
        assert mle_loss(log_probs).item() == 3.0
        assert mle_loss(log_probs, reduction="sum").item() == 9.0
        assert mle_loss(log_probs, reduction="none").tolist() == [1.0, 2.0, 6.0]

    def test_weights(self) -> None:
        log_probs, weights = torch.tensor([-1.0, -2.0, -6.0]), torch.tensor([1.0, 1.0, 0.0])
        assert mle_loss(log_probs, weights).item() == 1.5
        assert mle_loss(log_probs, weights, reduction="sum").item() == 3.0
        assert mle_loss(log_probs, weights, reduction="none").tolist() == [1.0, 2.0, 0.0]

    def test_equals_cross_entropy(self) -> None:
        torch.manual_seed(0)
        logits, targets = torch.randn(11, 7, dtype=torch.float64), torch.randint(0, 7, (11,))
        log_probs = logits.log_softmax(1)[torch.arange(11), targets]
        assert mle_loss(log_probs).item() == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-14)

    def test_half_precision_is_summed_in_float32(self) -> None:
        loss = mle_loss(torch.full((4096,), -1.0, dtype=torch.bfloat16), reduction="sum")
        assert loss.dtype == torch.float32
        assert loss.item() == 4096.0


class TestRankedFirst:
    @given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=6))
    def test_equals_the_mean_over_all_ways_to_break_ties(self, scores: list[list[int]]) -> None:
        table = torch.tensor(scores, dtype=torch.float32)

        orders = list(itertools.permutations(range(4)))
        expected = [sum(max(order, key=row.__getitem__) == 0 for order in orders) / len(orders) for row in scores]
        assert ranked_first(table[:, 0], table[:, 1:]).tolist() == pytest.approx(expected, abs=1e-7)

    def test_strict_order(self) -> None:
        negative = torch.tensor([[1.0, 2.0], [1.0, 4.0], [3.0, 3.0], [3.0, 1.0]])
        assert ranked_first(torch.full((4,), 3.0), negative).tolist() == pytest.approx([1.0, 0.0, 1 / 3, 0.5])

    def test_a_scorer_that_cannot_tell_gets_chance(self) -> None:
        assert ranked_first(torch.zeros(9), torch.zeros(9, 5)).mean().item() == pytest.approx(1 / 6)

    def test_not_a_number_is_never_first(self) -> None:
        nan = float("nan")
        positive = torch.tensor([nan, 1.0, nan])
        assert ranked_first(positive, torch.tensor([[0.0], [nan], [nan]])).tolist() == [0.0, 0.0, 0.0]
        assert ranked_first(torch.ones(2), torch.tensor([[nan, 0.0], [0.0, 0.0]])).tolist() == [0.0, 1.0]

    def test_dtype(self) -> None:
        assert ranked_first(torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, 1).bfloat16()).dtype == torch.float32
        assert ranked_first(torch.zeros(2).double(), torch.zeros(2, 2).double()).tolist() == [1 / 3, 1 / 3]
