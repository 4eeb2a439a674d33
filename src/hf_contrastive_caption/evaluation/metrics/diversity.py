"""How different the captions of a captioner are from each other, from its training captions and from other images'.

Every number here depends on N, the number of captions: more captions repeat more words and more captions. Compare at
equal N, on the same images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hf_contrastive_caption.evaluation.metrics.bleu import bleu
from hf_contrastive_caption.evaluation.metrics.cider import cider_d
from hf_contrastive_caption.evaluation.metrics.document_frequencies import DocumentFrequencies
from hf_contrastive_caption.evaluation.metrics.ngrams import MAX_N, Integers, count_ngrams, pack, unpack
from hf_contrastive_caption.evaluation.metrics.prepared import (
    MetricScores,
    PreparedReferences,
    check_references,
    check_same_number,
    check_strings,
)
from hf_contrastive_caption.evaluation.metrics.tokenization import ptb_tokenize

_BLOCK = 256  # images of which the similarity to all others is in memory at once


@dataclass(frozen=True)
class DistinctCaptions:
    """How many different captions there are.

    Args:
        number: Different captions.
        share: Their share of all captions, between 0 and 1.
    """

    number: int
    share: float


def distinct_captions(captions: Sequence[str]) -> DistinctCaptions:
    """Number and share of captions that differ in their words; the share falls as N grows.

    Args:
        captions: The captions, (n_captions,) strings; after tokenization, so that case and punctuation do not count.

    Returns:
        Number and share.

    Raises:
        ValueError: If there are no captions.
    """
    return _distinct(_tokenized(captions))


def novel_captions(captions: Sequence[str], training_captions: Sequence[str]) -> float:
    """Share of captions whose words are not those of any training caption.

    It depends on the number of training captions more than on N. Source: Shetty et al., "Speaking the Same Language",
    ICCV 2017, arXiv 1703.10476, who call it "novel sentences".

    Args:
        captions: The captions, (n_captions,) strings.
        training_captions: What the captioner was trained on.

    Returns:
        A share between 0 and 1.

    Raises:
        ValueError: If there are no captions.
    """
    return _novel(_tokenized(captions), training_captions)


def vocabulary_size(captions: Sequence[str]) -> int:
    """Number of different words in all captions; it grows with N. Source: Shetty et al., arXiv 1703.10476.

    Args:
        captions: The captions, (n_captions,) strings.

    Returns:
        The number of words.

    Raises:
        ValueError: If there are no captions.
    """
    return _vocabulary(_tokenized(captions))


def distinct_n(captions: Sequence[str], n: int) -> float:
    """Different n-grams in all captions, divided by the number of words; it falls as N grows.

    Source: Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models", NAACL 2016, arXiv
    1510.03055 (distinct-1 and distinct-2, over the whole set).

    Args:
        captions: The captions, (n_captions,) strings.
        n: Length of the n-grams, 1 to 4.

    Returns:
        A value between 0 and 1; 0 for captions without words.

    Raises:
        ValueError: If there are no captions, or ``n`` is not 1 to 4.
    """
    return _distinct_n(_tokenized(captions), n)


def mbleu(caption_sets: Sequence[Sequence[str]], n: int = 4) -> float:
    """How much several captions of one image are alike: mean BLEU-n of each against the others; lower is more diverse.

    The i-th captions of all images are scored together, as a corpus, against the other captions of their images; the
    result is the mean over i. It depends on the number of captions for each image.

    Source: Shetty et al., arXiv 1703.10476, section 5.2; Wang and Chan, "Describing Like Humans: on Diversity in Image
    Captioning", CVPR 2019, arXiv 1903.12020, section 4.

    Args:
        caption_sets: For each image the same number of captions, two or more.
        n: 1 to 4.

    Returns:
        A value between 0 and 1.

    Raises:
        ValueError: If the images have different numbers of captions, or fewer than two, or ``n`` is not 1 to 4.
    """
    _check_n(n)
    check_strings(caption_sets, "caption_sets", nested=True)
    check_references(caption_sets)
    sizes = sorted({len(of_image) for of_image in caption_sets})
    if len(sizes) > 1 or sizes[0] < 2:
        raise ValueError(
            f"mbleu takes the same number of captions for each image, two or more, but was given {sizes}; sample the "
            "same number for each image"
        )
    words = [ptb_tokenize(of_image) for of_image in caption_sets]
    scores = [
        bleu([of_image[i] for of_image in words], [of_image[:i] + of_image[i + 1 :] for of_image in words])[
            n - 1
        ].corpus
        for i in range(sizes[0])
    ]
    return float(np.mean(scores))


def cider_btw(
    captions: Sequence[str],
    references: Sequence[Sequence[str]] | PreparedReferences,
    neighbours: Integers | None = None,
    *,
    k: int = 5,
    document_frequencies: DocumentFrequencies | None = None,
) -> MetricScores:
    """CIDErBtw: agreement of each caption with the references of *other*, similar images; lower is more distinctive.

    It is the mean CIDEr-D of the caption against the references of each of its similar images. A caption that has
    nothing to do with its own image scores low too, so report it beside CIDEr-D. It depends on N: among more images
    more similar ones are found.

    Source: Wang et al., "Compare and Reweight: Distinctive Image Captioning Using Similar Images Sets", ECCV 2020,
    arXiv 2007.06877, section 3. There similar images are found by a retrieval model; the default here needs none.

    Args:
        captions: The caption of each image, (n_images,) strings.
        references: For each image its references, or what ``prepare_references`` made of them.
        neighbours: Numbers of the similar images, (n_images, k); :func:`similar_images` of the references if ``None``.
        k: How many similar images are looked for when ``neighbours`` is ``None``.
        document_frequencies: For CIDEr-D; counted in ``references`` if ``None``.

    Returns:
        Scores between 0 and 10, named ``cider_btw``; the corpus figure is the mean over images.

    Raises:
        ValueError: If the numbers do not fit.
    """
    words = _tokenized(captions)
    if isinstance(references, PreparedReferences):
        prepared = references
    else:
        prepared = PreparedReferences.from_strings(references, ptb_tokenize)
    check_same_number(len(words), len(prepared))
    if document_frequencies is None:
        document_frequencies = DocumentFrequencies.from_references(prepared)
    neighbours = similar_images(prepared, k) if neighbours is None else np.asarray(neighbours)
    if neighbours.ndim != 2 or len(neighbours) != len(words) or not neighbours.shape[1]:
        raise ValueError(
            f"neighbours must be of shape (n_images, k) with {len(words)} images, but are of shape {neighbours.shape}"
        )
    if neighbours.min() < 0 or neighbours.max() >= len(words):
        raise ValueError(f"neighbours must be numbers of images, 0 to {len(words) - 1}")
    per_image = np.zeros(len(words))
    for column in neighbours.T:  # one similar image for each, (n_images,)
        of_others = PreparedReferences([prepared.words[image] for image in column])
        per_image += cider_d(words, of_others, document_frequencies).per_image / neighbours.shape[1]
    return MetricScores("cider_btw", float(per_image.mean()), per_image)


def similar_images(references: PreparedReferences, k: int) -> Integers:
    """The images whose references agree most with those of each image.

    The n-grams of all references of an image are counted together; agreement is the mean over n = 1, ..., 4 of the
    cosine between these counts, weighted as in CIDEr.

    Args:
        references: The references.
        k: How many images; below the number of images.

    Returns:
        Numbers of images, (n_images, k), the most similar one first, never the image itself.

    Raises:
        ValueError: If there are not more than ``k`` images.
    """
    if not 0 < k < len(references):
        raise ValueError(f"k must be between 1 and {len(references) - 1} for {len(references)} images, but is {k}")
    matrix = _weighted_counts(references)
    chosen = np.empty((len(references), k), np.int64)
    for start in range(0, len(references), _BLOCK):
        rows = torch.arange(start, min(start + _BLOCK, len(references)))
        block = torch.sparse.mm(matrix, matrix.index_select(0, rows).to_dense().T).T  # (n_block, n_images)
        block[torch.arange(len(rows)), rows] = -1.0
        # Of equally similar images the first, so that the choice does not depend on the machine.
        order = torch.sort(block, dim=1, descending=True, stable=True).indices
        chosen[start : start + len(rows)] = order[:, :k].numpy()
    return chosen


def diversity(captions: Sequence[str], training_captions: Sequence[str] | None = None) -> dict[str, float]:
    """The measures of one caption for each image that cost little; all depend on N.

    Args:
        captions: The captions, (n_captions,) strings.
        training_captions: What the captioner was trained on; without it there is no ``novel_captions``.

    Returns:
        ``n_captions``, ``distinct_captions``, ``distinct_captions_share``, ``vocabulary_size``, ``distinct_1``,
        ``distinct_2``, ``mean_length`` (in words), and ``novel_captions``.

    Raises:
        ValueError: If there are no captions.
    """
    words = _tokenized(captions)
    distinct = _distinct(words)
    measures: dict[str, float] = {
        "n_captions": len(words),
        "distinct_captions": distinct.number,
        "distinct_captions_share": distinct.share,
        "vocabulary_size": _vocabulary(words),
        "distinct_1": _distinct_n(words, 1),
        "distinct_2": _distinct_n(words, 2),
        "mean_length": sum(map(len, words)) / len(words),
    }
    if training_captions is not None:
        measures["novel_captions"] = _novel(words, training_captions)
    return measures


def _tokenized(captions: Sequence[str]) -> list[list[str]]:
    words = ptb_tokenize(captions)
    if not words:
        raise ValueError("there are no captions; give at least one")
    return words


def _distinct(words: list[list[str]]) -> DistinctCaptions:
    number = len(set(map(tuple, words)))
    return DistinctCaptions(number, number / len(words))


def _vocabulary(words: list[list[str]]) -> int:
    return len({word for of_caption in words for word in of_caption})


def _novel(words: list[list[str]], training_captions: Sequence[str]) -> float:
    seen = set(map(tuple, ptb_tokenize(training_captions)))
    return sum(tuple(of_caption) not in seen for of_caption in words) / len(words)


def _distinct_n(words: list[list[str]], n: int) -> float:
    _check_n(n)
    counts = count_ngrams(words, n)
    return counts.vocabulary.size(n) / max(int(counts.lengths.sum()), 1)


def _check_n(n: int) -> None:
    if not 1 <= n <= MAX_N:
        raise ValueError(f"n must be 1 to {MAX_N}, but is {n}")


def _weighted_counts(references: PreparedReferences) -> Tensor:
    """Sparse (n_images, n_ngrams): counts in all references of an image, weighted, of norm 1 for each n."""
    counts = references.counts
    frequencies = DocumentFrequencies.from_references(references)
    rows, columns, values, offset = [], [], [], 0
    for n, (order, frequency) in enumerate(zip(counts.orders, frequencies.counts, strict=True), start=1):
        text, ngram = unpack(order.keys)
        keys, inverse = np.unique(pack(references.image[text], ngram), return_inverse=True)
        image, ngram = unpack(keys)
        weighted = np.bincount(inverse, order.counts, len(keys)) * np.log(len(references) / frequency[ngram])
        norm = np.sqrt(np.bincount(image, weighted**2, len(references)))[image]
        # An n-gram of one image is not shared with any other: it counts in the norm only.
        shared = (frequency[ngram] > 1) & (norm > 0)
        rows.append(image[shared])
        columns.append(ngram[shared] + offset)
        values.append((weighted[shared] / norm[shared]).astype(np.float32))
        offset += counts.vocabulary.size(n)
    kept, column = np.unique(np.concatenate(columns), return_inverse=True)
    places = torch.from_numpy(np.stack([np.concatenate(rows), column]))
    shape = (len(references), len(kept))
    return torch.sparse_coo_tensor(
        places, torch.from_numpy(np.concatenate(values)), shape, check_invariants=False
    ).coalesce()
