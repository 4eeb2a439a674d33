"""Keyed functions: equal to a scalar twin, exact bijections, and uniform."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_contrastive_caption.data.keyed import bounded, derive_key, keyed_permutation, mix

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
KEYS = st.integers(0, MASK)


def finalise(state: int) -> int:
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & MASK
    return state ^ (state >> 31)


def scalar_mix(*parts: int) -> int:
    state = 0
    for part in parts:
        state = finalise(((state ^ (part & MASK)) + GOLDEN) & MASK)
    return state


def scalar_permutation(index: int, size: int, key: int) -> int:
    width = 1
    while width * width < size:
        width += 1
    height = -(-size // width)
    number = index
    while True:
        left, right = divmod(number, height)
        for turn in range(8):
            round_key = finalise((key + (turn + 1) * GOLDEN) & MASK)
            if turn % 2 == 0:
                left = (left + ((finalise((right + round_key) & MASK) >> 32) * width >> 32)) % width
            else:
                right = (right + ((finalise((left + round_key) & MASK) >> 32) * height >> 32)) % height
        number = left * height + right
        if number < size:
            return number


def test_mix_is_splitmix64():
    # The first outputs of splitmix64 seeded with 0 and 1234567, from its reference implementation.
    assert int(mix(0)) == 0xE220A8397B1DCDAF
    assert int(mix(1234567)) == 6457827717110365317


@given(st.lists(st.integers(-(2**63), MASK), min_size=1, max_size=4))
def test_mix_equals_its_scalar_twin(parts):
    assert int(mix(*parts)) == scalar_mix(*parts)


def test_mix_broadcasts_and_takes_negative_numbers():
    mixed = mix(5, np.arange(-2, 2)[:, None], np.arange(3))
    assert mixed.shape == (4, 3) and mixed.dtype == np.uint64
    assert int(mixed[0, 2]) == scalar_mix(5, -2, 2)


def test_mix_spreads_every_bit():
    """Flipping any input bit flips half of the output bits (avalanche), for either part."""
    values = mix(np.arange(2000))
    for bit in range(0, 64, 7):
        for place in (0, 1):
            flipped = [values, mix(3, np.arange(2000))][place]
            parts = [np.arange(2000, dtype=np.uint64) ^ np.uint64(1 << bit)]
            changed = flipped ^ mix(*([3] * place), *parts)
            share = np.unpackbits(changed.view(np.uint8)).mean()
            assert share == pytest.approx(0.5, abs=0.01)


@given(st.integers(1, 500), KEYS)
@settings(max_examples=150, deadline=None)
def test_permutation_is_a_bijection_and_equals_its_scalar_twin(size, key):
    permuted = keyed_permutation(np.arange(size), size, key)
    assert sorted(permuted.tolist()) == list(range(size))
    assert permuted.tolist() == [scalar_permutation(index, size, key) for index in range(size)]


@given(st.integers(1, 2**62), KEYS, st.data())
@settings(max_examples=60, deadline=None)
def test_permutation_of_any_size_equals_its_scalar_twin(size, key, data):
    if size > 10**9:
        size = 10**9 + size % 1000  # the twin looks for the width one by one
    index = data.draw(st.integers(0, size - 1))
    assert int(keyed_permutation(index, size, key)) == scalar_permutation(index, size, key)


def test_permutation_of_the_largest_size_stays_inside():
    size = 2**62
    permuted = keyed_permutation(np.asarray([0, 1, size - 1]), size, 7)
    assert len(set(permuted.tolist())) == 3
    assert permuted.min() >= 0 and permuted.max() < size


def test_permutations_broadcast_over_keys():
    keys = np.asarray([3, 2**63, MASK], dtype=np.uint64)
    permuted = keyed_permutation(np.arange(10)[:, None], 10, keys)
    assert permuted.shape == (10, 3)
    for column, key in enumerate(keys):
        np.testing.assert_array_equal(permuted[:, column], keyed_permutation(np.arange(10), 10, key))


@pytest.mark.parametrize("size", [2, 3, 4, 5, 7, 13, 50])
def test_permutations_are_uniform(size):
    """Chi-square of where index 0 and the last index go, over 20,000 keys, and of the pair (0, 1)."""
    keys = mix(size, np.arange(20_000))
    for index in (0, size - 1):
        counts = np.bincount(keyed_permutation(index, size, keys), minlength=size)
        expected = 20_000 / size
        chi = ((counts - expected) ** 2 / expected).sum()
        assert chi < size - 1 + 5 * np.sqrt(2 * (size - 1)), counts
    first, second = keyed_permutation(np.asarray([[0], [1]]), size, keys)
    pairs = np.bincount(first * size + second, minlength=size * size).reshape(size, size)
    assert (np.diag(pairs) == 0).all()
    expected = 20_000 / (size * (size - 1))
    off_diagonal = pairs[~np.eye(size, dtype=bool)]
    freedom = size * (size - 1) - 1
    assert ((off_diagonal - expected) ** 2 / expected).sum() < freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("size", [0, -1, 2**62 + 1])
def test_permutation_refuses_impossible_sizes(size):
    with pytest.raises(ValueError, match=f"size={size}.*between 1 and 2\\*\\*62"):
        keyed_permutation(0, size, 1)


def test_bounded_is_uniform():
    counts = np.bincount(bounded(mix(np.arange(60_000)), 6).astype(np.int64), minlength=6)
    assert abs(counts - 10_000).max() < 5 * np.sqrt(10_000)
    assert int(bounded(np.asarray([MASK], np.uint64), 2**32)[0]) == 2**32 - 1


def test_keys_differ_by_seed_use_and_epoch():
    keys = {derive_key(seed, use, epoch) for seed in (0, 1, -1) for use in ("a", "b") for epoch in (-1, 0, 1, 2)}
    assert len(keys) == 24
    assert derive_key(3, "order", 5) == derive_key(np.int64(3), "order", np.int64(5))
    assert derive_key(1, 23) != derive_key(12, 3)
    assert derive_key(1, "2") != derive_key(1, 2)
