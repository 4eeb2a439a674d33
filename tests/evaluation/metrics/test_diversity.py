"""Diversity, counted by hand and against the definitions written out."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest

from hf_contrastive_caption.evaluation.metrics.bleu import bleu
from hf_contrastive_caption.evaluation.metrics.cider import cider_d
from hf_contrastive_caption.evaluation.metrics.diversity import (
    cider_btw,
    distinct_captions,
    distinct_n,
    diversity,
    mbleu,
    novel_captions,
    similar_images,
    vocabulary_size,
)
from hf_contrastive_caption.evaluation.metrics.document_frequencies import DocumentFrequencies
from hf_contrastive_caption.evaluation.metrics.prepared import PreparedReferences

from .captions import random_corpus

CAPTIONS = ["A dog runs.", "a dog runs", "The dog sleeps"]


def test_training_captions_that_can_be_read_once_are_refused() -> None:
    assert novel_captions(["a dog"], ["a dog"]) == 0
    with pytest.raises(TypeError, match=r"must be a list of strings, but is a chain, which is read once; use list"):
        novel_captions(["a dog"], chain(["a dog"]))  # type: ignore[arg-type]


def test_counts_by_hand() -> None:
    assert (distinct_captions(CAPTIONS).number, distinct_captions(CAPTIONS).share) == (2, 2 / 3)
    assert vocabulary_size(CAPTIONS) == 5
    assert distinct_n(CAPTIONS, 1) == 5 / 9
    assert distinct_n(CAPTIONS, 2) == 4 / 9
    assert distinct_n(["."], 1) == 0
    assert novel_captions(CAPTIONS, ["A DOG RUNS!", "a cat"]) == 1 / 3
    assert diversity(CAPTIONS, ["a dog runs"]) == {
        "n_captions": 3,
        "distinct_captions": 2,
        "distinct_captions_share": 2 / 3,
        "vocabulary_size": 5,
        "distinct_1": 5 / 9,
        "distinct_2": 4 / 9,
        "mean_length": 3,
        "novel_captions": 1 / 3,
    }
    assert "novel_captions" not in diversity(CAPTIONS)


def test_mbleu_is_the_mean_of_each_against_the_others() -> None:
    sets = [["a dog runs on grass", "a dog runs on sand", "two dogs"], ["a b c d", "a b c d", "a b c e"]]
    words = [[caption.split() for caption in of_image] for of_image in sets]
    parts = [
        bleu([w[i] for w in words], [[w[j] for j in range(3) if j != i] for w in words])[1].corpus for i in range(3)
    ]
    assert mbleu(sets, n=2) == pytest.approx(np.mean(parts), abs=1e-12)
    assert mbleu([["a b c d", "a b c d"]]) == pytest.approx(1, abs=1e-8)


def test_cider_btw_is_the_mean_over_similar_images() -> None:
    captions, references = (
        [" ".join(words) for words in random_corpus(12)[0]],
        [[" ".join(words) for words in of_image] for of_image in random_corpus(12)[1]],
    )
    words, of_images = [caption.split() for caption in captions], [[t.split() for t in r] for r in references]
    table = DocumentFrequencies.from_references(of_images)
    neighbours = np.array([[(i + 1) % 12, (i + 5) % 12] for i in range(12)])
    expected = np.mean(
        [cider_d(words, [of_images[j] for j in column], table).per_image for column in neighbours.T], axis=0
    )
    score = cider_btw(captions, references, neighbours)
    np.testing.assert_allclose(score.per_image, expected, atol=1e-12)
    assert score.corpus == pytest.approx(expected.mean(), abs=1e-12)
    default = cider_btw(captions, references, k=2)
    found = cider_btw(captions, references, similar_images(PreparedReferences(of_images), 2))
    np.testing.assert_array_equal(default.per_image, found.per_image)


def test_similar_images_equal_a_dense_computation() -> None:
    _, references = random_corpus(30, seed=7)
    vectors = []
    for n in range(1, 5):
        grams = [
            [tuple(text[i : i + n]) for text in of_image for i in range(len(text) - n + 1)] for of_image in references
        ]
        names = {gram: number for number, gram in enumerate(sorted(set().union(*grams)))}
        counts = np.zeros((30, len(names)))
        for image, of_image in enumerate(grams):
            for gram in of_image:
                counts[image, names[gram]] += 1
        weighted = counts * np.log(30 / (counts > 0).sum(axis=0))
        norm = np.linalg.norm(weighted, axis=1, keepdims=True)
        vectors.append(np.divide(weighted, norm, out=np.zeros_like(weighted), where=norm > 0))
    dense = np.concatenate(vectors, axis=1)
    similarity = dense @ dense.T
    np.fill_diagonal(similarity, -1)
    found = similar_images(PreparedReferences(references), 3)
    assert found.shape == (30, 3)
    best = np.sort(similarity, axis=1)[:, ::-1][:, :3]
    np.testing.assert_allclose(np.take_along_axis(similarity, found, axis=1), best, atol=1e-6)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="no captions"):
        vocabulary_size([])
    with pytest.raises(ValueError, match="n must be 1 to 4, but is 5"):
        distinct_n(CAPTIONS, 5)
    with pytest.raises(ValueError, match=r"two or more, but was given \[1, 2\]"):
        mbleu([["a", "b"], ["a"]])
    with pytest.raises(ValueError, match=r"k must be between 1 and 1 for 2 images, but is 5"):
        cider_btw(["a", "b"], [["a"], ["b"]])
    with pytest.raises(ValueError, match=r"of shape \(n_images, k\) with 2 images, but are of shape \(2,\)"):
        cider_btw(["a", "b"], [["a"], ["b"]], np.array([1, 0]))
    with pytest.raises(ValueError, match="numbers of images, 0 to 1"):
        cider_btw(["a", "b"], [["a"], ["b"]], np.array([[1], [2]]))
