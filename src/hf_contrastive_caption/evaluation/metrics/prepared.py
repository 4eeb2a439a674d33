"""Tokenized captions and references with what the scorers count in them, made once and used by every metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from hf_contrastive_caption.evaluation.metrics.ngrams import (
    Integers,
    NgramCounts,
    OrderCounts,
    count_ngrams,
    pack,
    unpack,
)

#: From captions to the words of each.
Tokenize = Callable[[Sequence[str]], list[list[str]]]


@dataclass(frozen=True, eq=False)
class MetricScores:
    """What one metric says.

    Args:
        name: Name of the metric.
        corpus: The figure for all images together. For BLEU and METEOR this is not the mean of ``per_image``.
        per_image: The score of each image's caption, float64, (n_images,).
    """

    name: str
    corpus: float
    per_image: NDArray[np.float64]


class PreparedCaptions:
    """One tokenized caption for each image.

    Args:
        words: Words of each caption, (n_images,) lists.
    """

    def __init__(self, words: Sequence[Sequence[str]]) -> None:
        self.words = words

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def counts(self) -> NgramCounts:
        """The n-grams of the captions."""
        return count_ngrams(self.words)


class PreparedReferences:
    """The tokenized references of each image, to be used for the captions of any number of models.

    What is counted is kept with the references. Instances can be pickled.

    Args:
        words: For each image the words of each of its references; at least one reference for each image.
        tokenize: What made the words, if it is known: captions must be tokenized in the same way.

    Raises:
        ValueError: If there is no image, or an image without references.
    """

    def __init__(self, words: Sequence[Sequence[Sequence[str]]], tokenize: Tokenize | None = None) -> None:
        check_references(words)
        self.words = words
        self.tokenize = tokenize
        self.per_image: Integers = np.fromiter(map(len, words), np.int64, len(words))  # (n_images,)
        self.first: Integers = np.cumsum(self.per_image) - self.per_image  # first reference of an image, (n_images,)
        self.image: Integers = np.repeat(np.arange(len(words)), self.per_image)  # (n_references,)

    @classmethod
    def from_strings(cls, references: Sequence[Sequence[str]], tokenize: Tokenize) -> PreparedReferences:
        """Tokenize references.

        Args:
            references: For each image its references, one or more strings.
            tokenize: From captions to the words of each.

        Returns:
            The references.

        Raises:
            TypeError: If an image has a string where a list of strings is expected.
            ValueError: If there is no image, or an image without references.
        """
        check_strings(references, "references", nested=True)
        check_references(references)
        words = iter(tokenize(list(chain.from_iterable(references))))
        return cls([[next(words) for _ in of_image] for of_image in references], tokenize)

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def counts(self) -> NgramCounts:
        """The n-grams of the references, those of all images in one row."""
        return count_ngrams(list(chain.from_iterable(self.words)))

    @cached_property
    def image_counts(self) -> tuple[OrderCounts, ...]:
        """For each image the highest count of an n-gram in any of its references; keys are (image, n-gram)."""
        orders = []
        for order in self.counts.orders:
            text, ngram = unpack(order.keys)
            keys = pack(self.image[text], ngram)  # (n_entries,)
            # Sorted by image already, so that a stable sort has little to do.
            by_key = np.argsort(keys, kind="stable")
            distinct, start = np.unique(keys[by_key], return_index=True)
            highest = np.maximum.reduceat(order.counts[by_key], start) if len(start) else order.counts
            orders.append(OrderCounts(distinct, highest))
        return tuple(orders)


def as_captions(captions: Sequence[Sequence[str]] | PreparedCaptions) -> PreparedCaptions:
    """Captions with room for their counts.

    Raises:
        TypeError: If a caption is a string and not a list of words.
    """
    if isinstance(captions, PreparedCaptions):
        return captions
    for number, words in enumerate(captions):
        if isinstance(words, str):
            raise TypeError(
                f"the scorers take lists of words, but caption {number} is the string {words!r}; tokenize the "
                "captions first, or use caption_metrics, which does"
            )
    return PreparedCaptions(captions)


def as_references(references: Sequence[Sequence[Sequence[str]]] | PreparedReferences) -> PreparedReferences:
    """References with room for their counts.

    Raises:
        TypeError: If a reference is a string and not a list of words.
        ValueError: If there is no image, or an image without references.
    """
    if isinstance(references, PreparedReferences):
        return references
    for number, of_image in enumerate(references):
        if isinstance(of_image, str) or any(isinstance(words, str) for words in of_image):
            raise TypeError(
                f"the scorers take a list of references for each image and a list of words for each reference, but "
                f"the references of image {number} hold a string; tokenize them first, or use caption_metrics, "
                "which does"
            )
    return PreparedReferences(references)


def check_same_number(captions: int, references: int) -> None:
    """Refuse captions and references of different numbers of images."""
    if captions != references:
        raise ValueError(
            f"there are {captions} captions and references for {references} images; give one caption for each image, "
            "in the same order"
        )


def check_references(references: Sequence[Sequence[object]]) -> None:
    """Refuse no images at all, and images without references."""
    if not len(references):
        raise ValueError("there is nothing to score: give the captions and references of at least one image")
    bare = [number for number, of_image in enumerate(references) if not len(of_image)]
    if bare:
        more = ", ..." if len(bare) > 5 else ""
        raise ValueError(
            f"{len(bare)} of {len(references)} images have no references (numbers "
            f"{', '.join(map(str, bare[:5]))}{more}), and a caption cannot be scored without one; leave these images "
            "and their captions out"
        )


def check_strings(texts: Sequence[object], name: str, nested: bool = False) -> None:
    """Refuse what is not a list of strings, or with ``nested`` not a list of lists of strings."""
    expected = "a list of lists of strings (one list for each image)" if nested else "a list of strings"
    if isinstance(texts, str):
        raise TypeError(f"{name} must be {expected}, but is the string {texts!r}; put it into a list")
    if isinstance(texts, Iterator):  # there would be nothing left of it for who asked
        raise TypeError(
            f"{name} must be {expected}, but is a {type(texts).__name__}, which is read once; use list(...)"
        )
    for number, item in enumerate(texts):
        if isinstance(item, str):
            if not nested:
                continue
            raise TypeError(f"{name} must be {expected}, but item {number} is the string {item!r}; put it into a list")
        if not nested or not isinstance(item, Sequence):
            raise TypeError(f"{name} must be {expected}, but item {number} is of type {type(item).__name__}")
        check_strings(item, f"{name}[{number}]")
