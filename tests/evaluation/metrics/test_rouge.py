"""ROUGE-L against pycocoevalcap, and the longest common subsequence against the table of dynamic programming."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_contrastive_caption.evaluation.metrics.rouge import common_subsequences, rouge_l

from .captions import Words, corpora, for_pycocoevalcap, random_corpus


def naive_common_subsequence(left: Words, right: Words) -> int:
    table = np.zeros((len(left) + 1, len(right) + 1), int)
    for i, first in enumerate(left):
        for j, second in enumerate(right):
            table[i + 1, j + 1] = table[i, j] + 1 if first == second else max(table[i, j + 1], table[i + 1, j])
    return int(table[-1, -1])


def assert_equal_to_pycocoevalcap(captions: list[Words], references: list[list[Words]]) -> None:
    theirs = pytest.importorskip("pycocoevalcap.rouge.rouge")
    corpus, per_image = theirs.Rouge().compute_score(*for_pycocoevalcap(captions, references))
    score = rouge_l(captions, references)
    assert score.corpus == pytest.approx(corpus, abs=1e-12)
    np.testing.assert_allclose(score.per_image, per_image, rtol=0, atol=1e-12)


@settings(deadline=None)
@given(st.lists(st.sampled_from("abc"), max_size=80), st.lists(st.sampled_from("abcd"), max_size=80))
def test_common_subsequence_equals_dynamic_programming(left: Words, right: Words) -> None:
    assert common_subsequences(left, [right, left]) == [naive_common_subsequence(left, right), len(left)]


def test_random_corpus_equals_pycocoevalcap() -> None:
    assert_equal_to_pycocoevalcap(*random_corpus(60))


@settings(deadline=None)
@given(corpora)
def test_small_corpora_equal_pycocoevalcap(corpus: tuple[list[Words], list[list[Words]]]) -> None:
    assert_equal_to_pycocoevalcap(*corpus)


def test_by_hand() -> None:
    # Precision 2/2 from the first reference, recall 1/1 from the second.
    assert rouge_l([["a", "b"]], [[["a", "b", "c", "d"], ["b"]]]).corpus == pytest.approx(1.0, abs=1e-12)
    assert rouge_l([["a"]], [[["a", "b"]]]).corpus == pytest.approx(2.44 * 0.5 / (0.5 + 1.44), abs=1e-12)


def test_empty_captions_score_nothing() -> None:
    assert rouge_l([[], [], ["a"]], [[["a"]], [[]], [[]]]).per_image.tolist() == [0, 0, 0]
