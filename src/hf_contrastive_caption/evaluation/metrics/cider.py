r"""CIDEr-D and CIDEr: agreement of a caption with its references in n-grams that tell images apart.

A text becomes, for each n from 1 to 4, a vector of the counts of its n-grams, each times :math:`\ln(N / df)`: of N
images df have the n-gram in a reference (at least 1). *CIDEr* is the cosine between the vectors of the caption
:math:`g` and a reference :math:`r`, averaged over references and n, times 10. *CIDEr-D* makes it harder to game: no
n-gram counts more often than in the reference, and another length costs.

.. math::

    \mathrm{CIDEr} &= 10 \; \overline{\frac{g \cdot r}{|g| |r|}} \\
    \mathrm{CIDEr\text{-}D} &= 10 \; \overline{e^{-(l_g - l_r)^2 / 2 \sigma^2} \frac{\min(g, r) \cdot r}{|g| |r|}},
    \qquad \sigma = 6

The length :math:`l` is the number of 2-grams, as in the authors' code. What COCO's evaluation and papers print as
"CIDEr" is CIDEr-D. The paper also reduces words to their stems; the authors' code does not, and neither does this one.

Source: Vedantam, Zitnick and Parikh, "CIDEr: Consensus-based Image Description Evaluation", CVPR 2015, arXiv
1411.5726, sections 4 and 6; ``pycocoevalcap`` 1.2 (CIDEr-D) and https://github.com/vrama91/cider (both).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hf_contrastive_caption.evaluation.metrics.document_frequencies import DocumentFrequencies
from hf_contrastive_caption.evaluation.metrics.ngrams import (
    MAX_N,
    Integers,
    NgramCounts,
    NgramVocabulary,
    OrderCounts,
    look_up,
    pack,
    unpack,
)
from hf_contrastive_caption.evaluation.metrics.prepared import (
    MetricScores,
    PreparedCaptions,
    PreparedReferences,
    as_captions,
    as_references,
    check_same_number,
)

Floats = NDArray[np.float64]

#: Below this many images, frequencies counted in the scored references themselves call for a warning.
FEW_IMAGES = 500

#: How fast CIDEr-D falls with a difference of lengths.
SIGMA = 6.0


def cider_d(
    captions: Sequence[Sequence[str]] | PreparedCaptions,
    references: Sequence[Sequence[Sequence[str]]] | PreparedReferences,
    document_frequencies: DocumentFrequencies | None = None,
) -> MetricScores:
    """CIDEr-D, which COCO's evaluation prints as "CIDEr"; the corpus figure is the mean over images.

    Args:
        captions: Words of the caption of each image; an empty caption scores 0.
        references: For each image the words of each of its references.
        document_frequencies: How many images have each n-gram; counted in ``references`` when ``None``, as COCO's
            evaluation does. Scores then depend on which images are scored, and are too high for few.

    Returns:
        Scores between 0 and 10.

    Raises:
        ValueError: If the numbers of captions and images differ, or an image has no references.
    """
    return _consensus("cider_d", captions, references, document_frequencies)


def cider(
    captions: Sequence[Sequence[str]] | PreparedCaptions,
    references: Sequence[Sequence[Sequence[str]]] | PreparedReferences,
    document_frequencies: DocumentFrequencies | None = None,
) -> MetricScores:
    """CIDEr without clipping and without a penalty on length; not what COCO's evaluation prints as "CIDEr".

    Args:
        captions: Words of the caption of each image; an empty caption scores 0.
        references: For each image the words of each of its references.
        document_frequencies: As for :func:`cider_d`.

    Returns:
        Scores between 0 and 10.

    Raises:
        ValueError: If the numbers of captions and images differ, or an image has no references.
    """
    return _consensus("cider", captions, references, document_frequencies)


def _consensus(
    name: str,
    captions: Sequence[Sequence[str]] | PreparedCaptions,
    references: Sequence[Sequence[Sequence[str]]] | PreparedReferences,
    document_frequencies: DocumentFrequencies | None,
) -> MetricScores:
    captions, references = as_captions(captions), as_references(references)
    check_same_number(len(captions), len(references))
    if document_frequencies is None:
        document_frequencies = DocumentFrequencies.from_references(references)
    if document_frequencies.n_images < FEW_IMAGES:
        warnings.warn(
            f"the document frequencies of CIDEr come from {document_frequencies.n_images} images; below {FEW_IMAGES} "
            "this makes scores too high and not comparable with those of other sets. Pass document_frequencies="
            "DocumentFrequencies.from_references(...) of a large set of references, or DocumentFrequencies.load(...) "
            "of a saved table",
            UserWarning,
            stacklevel=3,
        )
    similarity = _similarities(captions, references, document_frequencies, clip=name == "cider_d")
    if name == "cider_d":
        bigrams = [np.maximum(counts.lengths - 1, 0) for counts in (captions.counts, references.counts)]
        difference = bigrams[0][references.image] - bigrams[1]  # (n_references,)
        similarity = similarity * np.exp(-(difference**2) / (2 * SIGMA**2))
    per_image = np.bincount(references.image, similarity, len(references)) / references.per_image * 10  # (n_images,)
    return MetricScores(name, float(per_image.mean()), per_image)


def _similarities(
    captions: PreparedCaptions, references: PreparedReferences, frequencies: DocumentFrequencies, clip: bool
) -> Floats:
    """Mean over n of the cosine between each reference and the caption of its image, (n_references,)."""
    mine, theirs = captions.counts, references.counts
    my_weights, their_weights = (ngram_weights(counts.vocabulary, frequencies) for counts in (mine, theirs))
    translated = mine.vocabulary.translate(theirs.vocabulary)
    total = np.zeros(len(references.image))
    for n in range(MAX_N):
        caption_values, caption_norm = tfidf_vectors(mine, n, my_weights[n])
        values, norm = tfidf_vectors(theirs, n, their_weights[n])
        reference, mine_at, theirs_at = _common_entries(mine.orders[n], theirs.orders[n], translated[n], references)
        left, right = caption_values[mine_at], values[theirs_at]  # (n_common,)
        products = (np.minimum(left, right) if clip else left) * right
        scale = caption_norm[references.image] * norm  # (n_references,)
        dot = np.bincount(reference, products, len(total)).astype(np.float64)  # integers when nothing is in common
        # A vector is zero where a text has no n-gram that tells images apart; so is the product then.
        total += np.divide(dot, scale, out=np.zeros_like(dot), where=scale > 0)
    return total / MAX_N


def _common_entries(
    mine: OrderCounts, theirs: OrderCounts, translated: Integers, references: PreparedReferences
) -> tuple[Integers, Integers, Integers]:
    """N-grams that a caption and one of its references share: the reference and both places, each (n_common,)."""
    image, ngram = unpack(mine.keys)
    ngram = translated[ngram]
    known = np.flatnonzero(ngram >= 0)
    image, ngram = image[known], ngram[known]
    repeats = references.per_image[image]  # each n-gram once for each reference of its image
    within = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    reference = np.repeat(references.first[image], repeats) + within
    place = look_up(theirs.keys, pack(reference, np.repeat(ngram, repeats)))
    hit = place >= 0
    return reference[hit], np.repeat(known, repeats)[hit], place[hit]


def ngram_weights(vocabulary: NgramVocabulary, frequencies: DocumentFrequencies) -> list[Floats]:
    """ln(N / df) of every n-gram, each (size(n),); one that no image has counts as if one had it."""
    counted = frequencies.look_up(vocabulary)
    return [np.log(frequencies.n_images) - np.log(np.maximum(order, 1)) for order in counted]


def tfidf_vectors(counts: NgramCounts, n: int, weights: Floats) -> tuple[Floats, Floats]:
    """Values of all entries, (n_entries,), and the norm of each text, (n_texts,)."""
    text, ngram = unpack(counts.orders[n].keys)
    values = counts.orders[n].counts * weights[ngram]
    return values, np.sqrt(np.bincount(text, values**2, len(counts.lengths)))
