"""Intervals against plain loops over the resamples, known values, and how often they cover the truth."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_contrastive_caption.evaluation.bootstrap import STATISTICS, Bootstrap, Difference, Interval

numbers = st.floats(-100, 100, allow_nan=False).map(lambda value: round(value, 3))

PLAIN: dict[str, Callable[..., float]] = {
    "mean": lambda values: sum(values) / len(values),
    "median": lambda values: float(np.median(values)),
    "ratio": lambda tops, bottoms: sum(tops) / sum(bottoms) if sum(bottoms) else 0.0,
}


def resamples(num_items: int, count: int, seed: int) -> list[list[int]]:
    """The resamples themselves: the replicates of the mean of one item's indicator say how often it was drawn."""
    bootstrap = Bootstrap(num_items, count, seed)
    return bootstrap._items.tolist()


def plain_quantile(values: list[float], share: float) -> float:
    """Between the two neighbours, in proportion."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(numbers, st.integers(0, 5)), min_size=1, max_size=8),
    st.sampled_from(sorted(PLAIN)),
    st.sampled_from([0.5, 0.9, 0.95]),
)
def test_intervals_equal_plain_loops(rows: list[tuple[float, int]], name: str, confidence: float) -> None:
    columns = [[first for first, _ in rows], [float(second) for _, second in rows]][: 2 if name == "ratio" else 1]
    bootstrap = Bootstrap(len(rows), 60, seed=3, confidence=confidence)
    replicates = [
        PLAIN[name](*([column[item] for item in items] for column in columns)) for items in resamples(len(rows), 60, 3)
    ]
    interval = getattr(bootstrap, name)(*columns)
    assert interval == bootstrap.interval(STATISTICS[name], *columns)
    assert interval.value == pytest.approx(PLAIN[name](*columns), abs=1e-9)
    assert interval.low == pytest.approx(plain_quantile(replicates, (1 - confidence) / 2), abs=1e-9)
    assert interval.high == pytest.approx(plain_quantile(replicates, (1 + confidence) / 2), abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=8))
def test_differences_equal_plain_loops(rows: list[tuple[float, float]]) -> None:
    ours, theirs = [first for first, _ in rows], [second for _, second in rows]
    difference = Bootstrap(len(rows), 60, seed=5).difference(STATISTICS["median"], [ours], [theirs])
    replicates = [
        float(np.median([ours[item] for item in items]) - np.median([theirs[item] for item in items]))
        for items in resamples(len(rows), 60, 5)
    ]
    assert difference.value == pytest.approx(float(np.median(ours) - np.median(theirs)), abs=1e-9)
    low, high = plain_quantile(replicates, 0.025), plain_quantile(replicates, 0.975)
    if len(rows) <= 5:
        low, high = min(low, 0), max(high, 0)
    assert (difference.low, difference.high) == pytest.approx((low, high), abs=1e-9)
    below, above = (sum(value <= 0 for value in replicates), sum(value >= 0 for value in replicates))
    least = max(1 / 60, 2 / 2 ** len(rows))
    assert difference.p_value == pytest.approx(min(1.0, max(2 * min(below, above) / 60, least)), abs=1e-12)


def test_resamples_draw_every_item_as_often_with_replacement() -> None:
    items = np.array(resamples(10, 4000, 0))
    assert items.shape == (4000, 10)
    counts = np.bincount(items.ravel(), minlength=10)
    assert np.abs(counts / 4000 - 1).max() < 0.06  # four standard deviations of 0.015
    assert np.mean([len(set(row)) for row in items.tolist()]) == pytest.approx(10 * (1 - 0.9**10), abs=0.06)


def test_same_seed_same_resamples() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert Bootstrap(30, 200, seed=1).mean(values) == Bootstrap(30, 200, seed=1).mean(values)
    assert Bootstrap(30, 200, seed=1).mean(values) != Bootstrap(30, 200, seed=2).mean(values)
    assert resamples(30, 5, 1)[0][:10] != resamples(31, 5, 1)[0][:10]


@pytest.mark.parametrize("seed", range(3))
def test_intervals_contain_the_number_itself(seed: int) -> None:
    generator = np.random.default_rng(seed)
    values, counts = generator.normal(size=50), generator.integers(1, 9, 50)
    bootstrap = Bootstrap(50, 300)
    for interval in (bootstrap.mean(values), bootstrap.median(values), bootstrap.ratio(values, counts)):
        assert interval.low < interval.value < interval.high


def test_the_mean_of_a_normal_sample_has_the_interval_of_the_books() -> None:
    values = np.random.default_rng(0).normal(size=400)
    interval = Bootstrap(400, 4000).mean(values)
    error = values.std() / 20
    assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    bootstrap = Bootstrap(60, 300)
    intervals = [bootstrap.mean(generator.normal(2.0, size=60)) for _ in range(200)]
    covered = sum(interval.low <= 2.0 <= interval.high for interval in intervals)
    assert 0.88 * 200 <= covered <= 0.99 * 200


def test_p_values_are_small_as_often_as_they_say_where_nothing_differs() -> None:
    generator = np.random.default_rng(1)
    bootstrap = Bootstrap(60, 300)
    differences = [
        bootstrap.difference(STATISTICS["mean"], [generator.normal(size=60)], [generator.normal(size=60)])
        for _ in range(200)
    ]
    small = sum(difference.p_value < 0.05 for difference in differences)
    assert 0.01 * 200 <= small <= 0.12 * 200
    assert sum(difference.is_real for difference in differences) <= 0.12 * 200


def test_a_pair_is_compared_image_by_image() -> None:
    """Images differ by far more than captioners; only pairs show it."""
    generator = np.random.default_rng(0)
    difficulty = generator.normal(scale=100.0, size=80)
    ours, theirs = difficulty + 1 + generator.normal(scale=0.1, size=80), difficulty
    bootstrap = Bootstrap(80)
    difference = bootstrap.difference(STATISTICS["mean"], [ours], [theirs])
    assert difference.value == pytest.approx(1.0, abs=0.05)
    assert 0.9 < difference.low < difference.high < 1.1
    assert difference.p_value == 1 / 1000  # no replicate on the other side: not less than one in all of them
    assert difference.is_real
    assert bootstrap.mean(ours).high - bootstrap.mean(ours).low > 30


def test_no_difference_at_all() -> None:
    values = np.arange(9.0)
    difference = Bootstrap(9).difference(STATISTICS["mean"], [values], [values])
    assert difference == Difference(0.0, 0.0, 0.0, 1.0)
    assert not difference.is_real


@pytest.mark.parametrize(("low", "high", "real"), [(0.1, 2, True), (-2, -0.1, True), (-1, 1, False), (0, 1, False)])
def test_a_difference_is_real_if_its_interval_leaves_zero_out(low: float, high: float, real: bool) -> None:
    assert Difference((low + high) / 2, low, high, 0.5).is_real is real


@pytest.mark.parametrize(("images", "p_value", "real"), [(1, 1.0, False), (5, 1 / 16, False), (6, 1 / 32, True)])
def test_a_few_images_that_all_agree_show_what_a_sign_test_would(images: int, p_value: float, real: bool) -> None:
    difference = Bootstrap(images).difference(STATISTICS["mean"], [np.ones(images)], [np.zeros(images)])
    assert (difference.low, difference.high, difference.p_value) == (float(real), 1, p_value)
    assert difference.is_real is real


def test_one_item_and_constant_values_have_no_width() -> None:
    assert Bootstrap(1).mean([3.5]) == Interval(3.5, 3.5, 3.5)
    assert Bootstrap(6).median([2.0] * 6) == Interval(2.0, 2.0, 2.0)


def test_a_ratio_of_nothing_is_zero() -> None:
    assert Bootstrap(3).ratio([0, 0, 0], [0, 0, 0]) == Interval(0.0, 0.0, 0.0)
    ratio = Bootstrap(2, 1000).ratio([1, 0], [2, 0])  # a quarter of the resamples has the second item alone
    assert ratio == Interval(0.5, 0.0, 0.5)


@pytest.mark.parametrize("name", ["mean", "median", "ratio"])
@pytest.mark.parametrize("length", [4, 6])
def test_values_of_another_number_of_images(name: str, length: int) -> None:
    bootstrap, values = Bootstrap(5), np.ones(length)
    arguments = [values] if name != "ratio" else [np.ones(5), values]
    with pytest.raises(ValueError, match=rf"\({length},\).*5 images"):
        getattr(bootstrap, name)(*arguments)
    with pytest.raises(ValueError, match=rf"\({length},\).*5 images"):
        bootstrap.difference(STATISTICS["mean"], [np.ones(5)], [values])


@pytest.mark.parametrize(
    "arguments",
    [{"num_items": 0}, {"num_items": 3, "resamples": 0}, *({"num_items": 3, "confidence": c} for c in (0.0, 1.0, 95))],
)
def test_impossible_settings(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="got num_items="):
        Bootstrap(**arguments)
