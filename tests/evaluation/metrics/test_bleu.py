"""BLEU against pycocoevalcap, sacrebleu and a count by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings

from hf_contrastive_caption.evaluation.metrics.bleu import bleu

from .captions import Words, corpora, for_pycocoevalcap, random_corpus


def assert_equal_to_pycocoevalcap(captions: list[Words], references: list[list[Words]]) -> None:
    theirs = pytest.importorskip("pycocoevalcap.bleu.bleu")
    corpus, per_image = theirs.Bleu(4).compute_score(*for_pycocoevalcap(captions, references), verbose=0)
    for score, of_corpus, of_images in zip(bleu(captions, references), corpus, per_image, strict=True):
        assert score.corpus == pytest.approx(of_corpus, abs=1e-12)
        np.testing.assert_allclose(score.per_image, of_images, rtol=0, atol=1e-12)


def test_random_corpus_equals_pycocoevalcap() -> None:
    assert_equal_to_pycocoevalcap(*random_corpus(60))


@settings(deadline=None)
@given(corpora)
def test_small_corpora_equal_pycocoevalcap(corpus: tuple[list[Words], list[list[Words]]]) -> None:
    assert_equal_to_pycocoevalcap(*corpus)


def test_corpus_equals_sacrebleu() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    captions, references = random_corpus(200)
    captions = [references[0][0], *captions[1:]]  # something with 4-grams in common
    per_position = [[" ".join(texts[i]) if i < len(texts) else None for texts in references] for i in range(5)]
    metric = sacrebleu.BLEU(tokenize="none", smooth_method="none", force=True)
    theirs = metric.corpus_score([" ".join(words) for words in captions], per_position)
    assert bleu(captions, references)[3].corpus == pytest.approx(theirs.score / 100, abs=1e-9)


def test_counts_by_hand() -> None:
    # 2 of 3 words: "a" counts once, as often as in the reference; of two references equally near the shorter counts.
    scores = bleu([["a", "a", "b"]], [[["a", "b"], ["c", "c", "c", "c"]]])
    assert scores[0].corpus == pytest.approx(2 / 3, abs=1e-8)
    assert scores[1].corpus == pytest.approx(math.sqrt(2 / 3 * 1 / 2), abs=1e-8)
    assert bleu([["a"]], [[["a", "b"]]])[0].corpus == pytest.approx(math.exp(1 - 2), abs=1e-8)
    assert [score.name for score in scores] == ["bleu_1", "bleu_2", "bleu_3", "bleu_4"]


def test_empty_captions_score_nothing() -> None:
    for score in bleu([[], ["a"]], [[["a"]], [["a"]]]):
        assert score.per_image[0] == 0
    assert [score.corpus for score in bleu([[]], [[[]]])] == [0, 0, 0, 0]


def test_other_numbers_of_captions_and_images_are_refused() -> None:
    with pytest.raises(ValueError, match="2 captions and references for 1 images"):
        bleu([["a"], ["b"]], [[["a"]]])
    with pytest.raises(TypeError, match="caption 0 is the string 'a b'"):
        bleu(["a b"], [[["a"]]])
    with pytest.raises(TypeError, match="references of image 0 hold a string"):
        bleu([["a"]], [["a b"]])
