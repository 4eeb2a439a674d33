"""Ranks under ties against every order in which ties can be broken."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_contrastive_caption.evaluation.retrieval.ranking import chance_recall, rank_own_images

# Three values, so that most tables have ties.
values = st.sampled_from([-1.5, 0.0, 2.0])
squares = st.integers(1, 5).flatmap(
    lambda n: st.lists(st.lists(values, min_size=n, max_size=n), min_size=n, max_size=n)
)


def possible_ranks(row: list[float], own: int) -> list[int]:
    """The rank of the own image in every order of the images in which scores do not rise, each as likely."""
    orders = [
        order
        for order in itertools.permutations(range(len(row)))
        if all(row[before] >= row[after] for before, after in itertools.pairwise(order))
    ]
    return [order.index(own) + 1 for order in orders]


@settings(max_examples=40, deadline=None)
@given(squares, st.data())
def test_equal_what_is_expected_over_all_orders_of_ties(table: list[list[float]], data: st.DataObject) -> None:
    n = len(table)
    own = data.draw(st.one_of(st.none(), st.lists(st.integers(0, n - 1), min_size=n, max_size=n)))
    ranks = rank_own_images(table, own)
    for caption, image in enumerate(range(n) if own is None else own):
        possible = np.array(possible_ranks(table[caption], image))
        for k in range(1, n + 2):
            assert ranks.recall(k)[caption] == pytest.approx(np.mean(possible <= k), abs=1e-12)
        assert ranks.expected_rank()[caption] == pytest.approx(possible.mean(), abs=1e-12)
        assert ranks.reciprocal_rank()[caption] == pytest.approx(np.mean(1 / possible), abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_a_constant_scorer_is_at_chance(n: int) -> None:
    ranks = rank_own_images(np.full((n, n), -3.0, dtype=np.float32))
    assert ranks.recall(1).tolist() == [1 / n] * n
    for k in (1, 5, 10, n, 2 * n):
        assert ranks.recall(k) == pytest.approx([chance_recall(k, n)] * n, abs=1e-12)
    assert ranks.expected_rank().tolist() == [(n + 1) / 2] * n
    assert ranks.reciprocal_rank() == pytest.approx(np.mean(1 / np.arange(1, n + 1)), abs=1e-12)


def test_a_perfect_and_an_adverse_scorer() -> None:
    best, worst = rank_own_images(np.eye(5)), rank_own_images(1 - np.eye(5))
    assert best.recall(1).tolist() == best.expected_rank().tolist() == best.reciprocal_rank().tolist() == [1.0] * 5
    assert worst.expected_rank().tolist() == [5.0] * 5
    assert worst.recall(4).tolist() == [0.0] * 5
    assert worst.recall(5).tolist() == [1.0] * 5


@settings(max_examples=40, deadline=None)
@given(squares, st.randoms(use_true_random=False))
def test_do_not_depend_on_the_order_of_the_images(table: list[list[float]], random: Any) -> None:
    n = len(table)
    shuffled = random.sample(range(n), n)  # place i now holds image shuffled[i]
    before = rank_own_images(table)
    after = rank_own_images(np.asarray(table)[:, shuffled], own=[shuffled.index(image) for image in range(n)])
    assert after.better.tolist() == before.better.tolist()
    assert after.equal.tolist() == before.equal.tolist()


def test_a_last_bit_of_difference_is_no_tie() -> None:
    score = np.float32(-100.0)
    higher = np.nextafter(score, np.float32(0))
    ranks = rank_own_images(np.array([[score, higher, score]], dtype=np.float32), own=[0])
    assert (ranks.better.tolist(), ranks.equal.tolist(), ranks.pool_size) == ([1], [1], 3)


def test_scores_without_bound_have_an_order() -> None:
    table = [[-np.inf, -np.inf, 0.0], [np.inf, np.inf, 0.0], [np.inf, 0.0, -np.inf]]
    assert rank_own_images(table).expected_rank().tolist() == [2.5, 1.5, 3.0]


def test_more_captions_than_images() -> None:
    ranks = rank_own_images([[2.0, 1.0], [2.0, 1.0], [0.0, 0.0]], own=[0, 1, 1])
    assert ranks.expected_rank().tolist() == [1.0, 2.0, 1.5]


@pytest.mark.parametrize(
    ("scores", "own", "message"),
    [
        (np.zeros(3), None, r"\(n_captions, n_images\) .* but is \(3,\)"),
        (np.zeros((2, 2, 2)), None, r"but is \(2, 2, 2\)"),
        (np.zeros((0, 0)), None, r"but is \(0, 0\)"),
        (np.zeros((2, 3)), None, "2 captions are scored against 3 images.* give own"),
        (np.zeros((2, 3)), [0], "0 to 2, for each of 2 captions"),
        (np.zeros((2, 3)), [0, 3], "0 to 2"),
        (np.zeros((2, 3)), [-1, 0], "0 to 2"),
        (np.zeros((2, 3)), [[0], [1]], "0 to 2"),
        ([[0.0, 1.0], [np.nan, 1.0]], None, "a score of caption 1 is not a number"),
        ([[0.0, np.nan], [0.0, 1.0]], None, "a score of caption 0 is not a number"),
    ],
)
def test_what_cannot_be_ranked(scores: Any, own: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank_own_images(scores, own)


def test_chance() -> None:
    assert [chance_recall(k, 4) for k in (1, 2, 4, 5)] == [0.25, 0.5, 1.0, 1.0]
