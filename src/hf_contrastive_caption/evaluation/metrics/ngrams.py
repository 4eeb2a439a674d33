"""N-grams of many texts as integers, counted once with numpy and shared by all scorers.

A word is a number, and an n-gram is the pair of the n-gram without its last word and that word, packed into one 64-bit
key. Counting is then sorting of integers, and finding the n-grams of one collection in another is a binary search.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

#: Longest n-gram that is counted: BLEU-4 and CIDEr stop there.
MAX_N = 4

_HALF = 32
_LOW = (1 << _HALF) - 1


def pack(high: Integers, low: Integers) -> Integers:
    """One key for two numbers below 2**31; keys sort by ``high``, then by ``low``."""
    return (high << _HALF) | low


def unpack(keys: Integers) -> tuple[Integers, Integers]:
    """The two numbers of each key."""
    return keys >> _HALF, keys & _LOW


def look_up(table: Integers, keys: Integers) -> Integers:
    """Where each key stands in a table.

    Args:
        table: Sorted keys without repetition, (n_table,).
        keys: What to look for, (n,).

    Returns:
        Places, (n,); -1 for a key that is not in the table.
    """
    if not len(table):
        return np.full(len(keys), -1, np.int64)
    place = np.minimum(np.searchsorted(table, keys), len(table) - 1)  # (n,)
    return np.where(table[place] == keys, place, -1)


@dataclass(frozen=True)
class NgramVocabulary:
    """The distinct n-grams of a collection of texts; an n-gram of length n is a number below ``size(n)``.

    Args:
        words: Number of each word.
        keys: For n = 2, 3, ... the sorted keys (number of the first n - 1 words, number of the last word), each
            (size(n),). The place of a key is the number of its n-gram.
    """

    words: dict[str, int]
    keys: tuple[Integers, ...]

    def size(self, n: int) -> int:
        """How many distinct n-grams there are."""
        return len(self.words) if n == 1 else len(self.keys[n - 2])

    def translate(self, other: NgramVocabulary) -> list[Integers]:
        """The numbers that these n-grams have in another vocabulary.

        Args:
            other: The other vocabulary.

        Returns:
            For n = 1, 2, ... the number of each n-gram there, (size(n),), and -1 for one that is not there.
        """
        if other is self:
            return [np.arange(self.size(n), dtype=np.int64) for n in range(1, len(self.keys) + 2)]
        words = np.fromiter((other.words.get(word, -1) for word in self.words), np.int64, len(self.words))
        found = [words]
        for mine, theirs in zip(self.keys, other.keys, strict=True):
            first, last = unpack(mine)
            first, last = found[-1][first], words[last]
            known = (first >= 0) & (last >= 0)
            numbers = np.full(len(mine), -1, np.int64)
            numbers[known] = look_up(theirs, pack(first[known], last[known]))
            found.append(numbers)
        return found


@dataclass(frozen=True)
class OrderCounts:
    """How often each n-gram of one length stands in each text, without zeros and sorted by text.

    Args:
        keys: Sorted keys (text, n-gram), (n_entries,).
        counts: How often, (n_entries,).
    """

    keys: Integers
    counts: Integers


@dataclass(frozen=True)
class NgramCounts:
    """The n-grams of a collection of texts.

    Args:
        lengths: Words in each text, (n_texts,).
        vocabulary: The distinct n-grams.
        orders: Counts for n = 1, 2, ...
    """

    lengths: Integers
    vocabulary: NgramVocabulary
    orders: tuple[OrderCounts, ...]


def count_ngrams(texts: Sequence[Sequence[str]], max_n: int = MAX_N) -> NgramCounts:
    """Count the n-grams of texts.

    Args:
        texts: Words of each text; a text may be empty.
        max_n: Longest n-gram.

    Returns:
        The counts for n = 1, ..., ``max_n``.
    """
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))  # (n_texts,)
    numbers: defaultdict[str, int] = defaultdict()
    numbers.default_factory = numbers.__len__
    words = np.fromiter(map(numbers.__getitem__, chain.from_iterable(texts)), np.int64, int(lengths.sum()))
    starts = np.arange(len(words), dtype=np.int64)  # where each n-gram starts, (n_ngrams,)
    text = np.repeat(np.arange(len(texts), dtype=np.int64), lengths)  # (n_words,)
    left = np.repeat(np.cumsum(lengths), lengths) - starts  # words from here to the end of the text, (n_words,)
    ngram, keys, orders = words, [], []
    for n in range(1, max_n + 1):
        if n > 1:
            whole = left[starts] >= n
            starts = starts[whole]
            distinct, ngram = np.unique(pack(ngram[whole], words[starts + n - 1]), return_inverse=True)
            keys.append(distinct)
        entries, counts = np.unique(pack(text[starts], ngram), return_counts=True)
        orders.append(OrderCounts(entries, counts))
    return NgramCounts(lengths, NgramVocabulary(dict(numbers), tuple(keys)), tuple(orders))
