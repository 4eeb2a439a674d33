"""A score of one's own: weighted sums of measures."""

from __future__ import annotations

import pytest

from hf_contrastive_caption.evaluation.score import parse_score, weighted_sum


@pytest.mark.parametrize(
    ("formula", "weights"),
    [
        ("cider_d", {"cider_d": 1.0}),
        ("cider_d + recall_at_1", {"cider_d": 1.0, "recall_at_1": 1.0}),
        (" cider_d+2*recall@1 - .5 * invented ", {"cider_d": 1.0, "recall_at_1": 2.0, "invented": -0.5}),
        ("-median_rank * 0.25", {"median_rank": -0.25}),
        ("recall@10 + recall_at_10", {"recall_at_10": 2.0}),
        ("+ 3. * rouge_l", {"rouge_l": 3.0}),
    ],
)
def test_formulas(formula, weights):
    assert parse_score(formula) == weights


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("", "cannot be read"),
        ("cider_d +", "cannot be read"),
        ("cider_d * recall_at_1", "cannot be read"),
        ("2 * cider_d * 2", "cannot be read"),
        ("cider_d / 2", "cannot be read"),
        ("loss", "no measure 'loss'"),
        ("recall_at_0", "no measure 'recall_at_0'"),
        ("bleu_5 + cider_d", "no measure 'bleu_5'; there are recall_at_K, cider_d"),
    ],
)
def test_what_cannot_be_read_is_named(formula, message):
    with pytest.raises(ValueError, match=message):
        parse_score(formula)


def test_weighted_sum():
    weights = parse_score("cider_d + 2 * recall@1 - invented")
    assert weighted_sum(weights, {"cider_d": 0.5, "recall_at_1": 0.1, "invented": 0.3, "rouge_l": 9}) == pytest.approx(
        0.4
    )
