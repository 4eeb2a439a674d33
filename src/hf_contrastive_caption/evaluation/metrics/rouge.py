r"""ROUGE-L as COCO's evaluation computes it.

With the longest common subsequence of the caption and each reference, the precision :math:`P` is its greatest share of
the caption and the recall :math:`R` its greatest share of a reference; the two may come from different references.

.. math:: \mathrm{ROUGE}_L = \frac{(1 + \beta^2) P R}{R + \beta^2 P}, \qquad \beta = 1.2

This is not the ``rougeL`` of the ``rouge_score`` package, which has another :math:`\beta`, and another tokenizer.

Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004; :math:`\beta` and the maxima over
references: ``pycocoevalcap`` 1.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hf_contrastive_caption.evaluation.metrics.prepared import (
    MetricScores,
    PreparedCaptions,
    PreparedReferences,
    as_captions,
    as_references,
    check_same_number,
)

_BETA_SQUARED = 1.2**2


def rouge_l(
    captions: Sequence[Sequence[str]] | PreparedCaptions,
    references: Sequence[Sequence[Sequence[str]]] | PreparedReferences,
) -> MetricScores:
    """ROUGE-L; the corpus figure is the mean over images.

    Args:
        captions: Words of the caption of each image. An empty caption scores 0, beside an empty reference too, where
            ``pycocoevalcap`` gives 1.
        references: For each image the words of each of its references.

    Returns:
        Scores between 0 and 1.

    Raises:
        ValueError: If the numbers of captions and images differ, or an image has no references.
    """
    captions, references = as_captions(captions), as_references(references)
    check_same_number(len(captions), len(references))
    pairs = zip(captions.words, references.words, strict=True)
    per_image = np.fromiter((_score(*pair) for pair in pairs), np.float64, len(captions))
    return MetricScores("rouge_l", float(per_image.mean()), per_image)


def common_subsequences(caption: Sequence[str], references: Sequence[Sequence[str]]) -> list[int]:
    """Length of the longest common subsequence of a caption and each of its references.

    A column of the table of dynamic programming is one integer with a bit for each word of the caption, and a word of
    the reference updates all of them at once (Hyyrö, "Bit-parallel LCS-length computation revisited", 2004). Words
    that the caption does not have leave the column as it is.

    Args:
        caption: Words.
        references: Words of each reference.

    Returns:
        One length for each reference.
    """
    places: dict[str, int] = {}  # bits set where the caption has the word
    for number, word in enumerate(caption):
        places[word] = places.get(word, 0) | 1 << number
    all_bits = (1 << len(caption)) - 1
    lengths = []
    for reference in references:
        column = all_bits
        for word in reference:
            if word in places:
                matched = column & places[word]
                column = (column + matched) | (column - matched)
        lengths.append(len(caption) - (column & all_bits).bit_count())
    return lengths


def _score(caption: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    common = common_subsequences(caption, references)
    longest = max(common)
    if not longest:
        return 0.0
    precision = longest / len(caption)
    recall = max(length / len(reference) for length, reference in zip(common, references, strict=True) if length)
    return (1 + _BETA_SQUARED) * precision * recall / (recall + _BETA_SQUARED * precision)
