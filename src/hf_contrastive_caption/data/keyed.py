"""Pseudo-random numbers that are pure functions of a key.

A random state in the workers of a data loader can neither be resumed nor does it give the same numbers for another
number of workers or processes. Everything random in this room is a function of (seed, epoch, position) instead,
computed in vectorised unsigned 64-bit arithmetic and without tables, so that it needs no memory whatever the size of
the data set.
"""

from __future__ import annotations

import hashlib
from math import isqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: The 64-bit golden ratio, the increment of splitmix64.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_HALF = np.uint64(32)
_ROUNDS = 8


def mix(*parts: ArrayLike) -> NDArray[np.uint64]:
    """Hash integers to one 64-bit number.

    Each part is folded in with the finaliser of splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom
    number generators", OOPSLA 2014), whose every output bit depends on every input bit.

    Args:
        *parts: Integers or integer arrays that broadcast together. Negative ones count modulo 2**64.

    Returns:
        Uniform unsigned 64-bit numbers, of the broadcast shape (of shape () for plain integers).
    """
    state = np.zeros((), dtype=np.uint64)
    for part in parts:
        with np.errstate(over="ignore"):  # NumPy warns of the wanted overflow, for arrays without dimensions only
            state = _finalise((state ^ _as_uint64(part)) + _GOLDEN)
    return np.asarray(state)


def bounded(hashes: NDArray[np.uint64], bound: ArrayLike) -> NDArray[np.uint64]:
    """Map uniform 64-bit numbers to [0, bound) by multiplication (Lemire 2019), ``bound`` at most 2**32.

    The probabilities of two results differ by less than ``bound / 2**32`` of their value.
    """
    return ((hashes >> _HALF) * _as_uint64(bound)) >> _HALF


def derive_key(seed: int, *parts: int | str) -> int:
    """Make a 64-bit key from a seed and what the key is for.

    Args:
        seed: The user's seed, any integer.
        *parts: Integers and words that tell this use from others, such as ``"negatives"`` and the epoch.

    Returns:
        A key in [0, 2**64). Different arguments give unrelated keys.
    """
    message = repr((int(seed), *(part if isinstance(part, str) else int(part) for part in parts)))
    return int.from_bytes(hashlib.blake2b(message.encode(), digest_size=8).digest(), "little")


def keyed_permutation(index: ArrayLike, size: int, key: ArrayLike) -> NDArray[np.int64]:
    """Look up places of a pseudo-random permutation of [0, size) that exists only as its key.

    An eight-round Feistel network over pairs (left, right) in [0, width) × [0, height), with width × height the
    smallest such rectangle that holds ``size`` numbers. A result outside [0, size) is put in again ("cycle walking",
    Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002); the rectangle has fewer than
    ``size + sqrt(size) + 1`` places, so this is rare. For every size and key the result is an exact bijection.

    Args:
        index: Places in [0, size), of any shape.
        size: Number of things that are permuted, 1 ≤ size ≤ 2**62.
        key: 64-bit keys that broadcast with ``index``, one permutation each.

    Returns:
        The numbers at those places, in [0, size), of the broadcast shape.

    Raises:
        ValueError: ``size`` is less than 1 or more than 2**62.
    """
    if not 1 <= size <= 2**62:
        raise ValueError(f"keyed_permutation got size={size}; it permutes between 1 and 2**62 things")
    width = isqrt(size - 1) + 1 if size > 1 else 1
    height = -(-size // width)
    numbers, keys = _as_uint64(index), _as_uint64(key)
    permuted = np.atleast_1d(_feistel(numbers, keys, width, height))
    outside = permuted >= np.uint64(size)
    if outside.any():
        spread = np.broadcast_to(keys, permuted.shape)
        while outside.any():
            permuted[outside] = _feistel(permuted[outside], spread[outside], width, height)
            outside = permuted >= np.uint64(size)
    return permuted.reshape(np.broadcast_shapes(numbers.shape, keys.shape)).astype(np.int64)


def _feistel(numbers: NDArray[np.uint64], keys: NDArray[np.uint64], width: int, height: int) -> NDArray[np.uint64]:
    """One pass through the network: each round adds a keyed function of one half to the other, modulo its size."""
    sizes = np.uint64(width), np.uint64(height)
    halves = [numbers // sizes[1], numbers % sizes[1]]
    for turn in range(_ROUNDS):
        changed = turn % 2
        with np.errstate(over="ignore"):
            round_hash = _finalise(halves[1 - changed] + _finalise(keys + np.uint64(turn + 1) * _GOLDEN))
            half = halves[changed] + bounded(round_hash, sizes[changed])
            halves[changed] = half - sizes[changed] * (half >= sizes[changed])
    return np.asarray(halves[0] * sizes[1] + halves[1])


def _finalise(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * _MULTIPLIERS[0]
    state = (state ^ (state >> np.uint64(27))) * _MULTIPLIERS[1]
    return state ^ (state >> np.uint64(31))


def _as_uint64(value: ArrayLike) -> NDArray[np.uint64]:
    if isinstance(value, int):
        return np.asarray(value % 2**64, dtype=np.uint64)
    return np.asarray(value).astype(np.uint64, copy=False)
