r"""BLEU-1 to BLEU-4 as COCO's evaluation computes them, for the corpus and for each image.

.. math:: \mathrm{BLEU}_n = e^{\min(0,\, 1 - r/c)} \Big(\prod_{k=1}^{n} p_k\Big)^{1/n}

with :math:`p_k` the share of the caption's k-grams that a reference has, each counted at most as often as in the
reference where it is most frequent, :math:`c` the number of words of the caption and :math:`r` that of the reference
whose length is closest (the shorter one of two). The corpus figure takes the sums over all images. COCO's evaluation
adds 1e-15 to numerators and 1e-9 to denominators, so a caption without any common 4-gram has a small BLEU-4 and not
zero.

Source: Papineni et al., "BLEU: a Method for Automatic Evaluation of Machine Translation", ACL 2002; the constants and
the choice of the length: ``pycocoevalcap`` 1.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hf_contrastive_caption.evaluation.metrics.ngrams import MAX_N, Integers, look_up, pack, unpack
from hf_contrastive_caption.evaluation.metrics.prepared import (
    MetricScores,
    PreparedCaptions,
    PreparedReferences,
    as_captions,
    as_references,
    check_same_number,
)

_TINY = 1e-15  # keeps the score of a caption with no common n-gram above zero
_SMALL = 1e-9  # keeps an empty caption from dividing by zero


def bleu(
    captions: Sequence[Sequence[str]] | PreparedCaptions,
    references: Sequence[Sequence[Sequence[str]]] | PreparedReferences,
) -> list[MetricScores]:
    """BLEU-1, BLEU-2, BLEU-3 and BLEU-4.

    Args:
        captions: Words of the caption of each image; an empty caption scores 0.
        references: For each image the words of each of its references.

    Returns:
        The four scores, between 0 and 1, named ``bleu_1`` to ``bleu_4``.

    Raises:
        ValueError: If the numbers of captions and images differ, or an image has no references.
    """
    captions, references = as_captions(captions), as_references(references)
    check_same_number(len(captions), len(references))
    length = captions.counts.lengths  # (n_images,)
    correct = common_ngrams(captions, references)  # (max_n, n_images)
    guessed = np.maximum(length - np.arange(MAX_N)[:, None], 0)  # (max_n, n_images)
    closest = closest_lengths(length, references)  # (n_images,)
    per_image = _from_counts(correct, guessed, length, closest)
    corpus = _from_counts(
        correct.sum(axis=1, keepdims=True),
        guessed.sum(axis=1, keepdims=True),
        length.sum(keepdims=True),
        closest.sum(keepdims=True),
    )
    return [MetricScores(f"bleu_{n + 1}", float(corpus[n, 0]), per_image[n]) for n in range(MAX_N)]


def common_ngrams(captions: PreparedCaptions, references: PreparedReferences) -> Integers:
    """How many n-grams of each caption its references have, (max_n, n_images)."""
    found = np.zeros((MAX_N, len(captions)), np.int64)
    translated = captions.counts.vocabulary.translate(references.counts.vocabulary)
    for n, (mine, theirs) in enumerate(zip(captions.counts.orders, references.image_counts, strict=True)):
        image, ngram = unpack(mine.keys)
        ngram = translated[n][ngram]
        known = ngram >= 0
        place = look_up(theirs.keys, pack(image[known], ngram[known]))
        hit = place >= 0
        clipped = np.minimum(mine.counts[known][hit], theirs.counts[place[hit]])
        found[n] = np.bincount(image[known][hit], clipped, len(captions)).astype(np.int64)
    return found


def closest_lengths(lengths: Integers, references: PreparedReferences) -> Integers:
    """Number of words of the reference closest in length to each caption, the shorter one of two, (n_images,)."""
    of_reference = references.counts.lengths  # (n_references,)
    distance = np.abs(of_reference - lengths[references.image])
    return unpack(np.minimum.reduceat(pack(distance, of_reference), references.first))[1]


def _from_counts(correct: Integers, guessed: Integers, length: Integers, closest: Integers) -> NDArray[np.float64]:
    """The formula with COCO's constants, (max_n, n) from (max_n, n) and (n,)."""
    precision = (correct + _TINY) / (guessed + _SMALL)
    n = np.arange(1, MAX_N + 1)[:, None]
    scores: NDArray[np.float64] = np.cumprod(precision, axis=0) ** (1 / n)
    ratio = (length + _TINY) / (closest + _SMALL)
    penalty = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return scores * penalty
