"""Invented words, by hand."""

from __future__ import annotations

import pytest

from hf_contrastive_caption.evaluation.metrics.caption_metrics import prepare_references
from hf_contrastive_caption.evaluation.metrics.invention import FUNCTION_WORDS, invented_words, is_content_word, stem


def test_counts_by_hand() -> None:
    captions = ["Three dogs are running on the red grass.", "It is one of those!", "", "A man's T-shirt"]
    references = [["A dog runs.", "grass"], ["x"], ["y"], ["a man in a t-shirt"]]
    for given in (references, prepare_references(references)):
        scores = invented_words(captions, given)
        assert scores.n_content.tolist() == [5, 0, 0, 2]
        assert scores.n_invented.tolist() == [2, 0, 0, 0]
        assert scores.words == [["three", "red"], [], [], []]
        assert scores.corpus == 2 / 7


def test_no_content_words_at_all_is_zero() -> None:
    assert invented_words(["the"], [["a"]]).corpus == 0.0


def test_repeated_invented_words_count_each_time() -> None:
    scores = invented_words(["red red cat"], [["cats"]])
    assert (scores.n_content.tolist(), scores.n_invented.tolist()) == ([3], [2])


def test_words_are_compared_by_stem() -> None:
    assert stem("dogs") == stem("dog") and stem("running") == stem("runs")
    assert stem("st.") == stem("st")


@pytest.mark.parametrize("word", ["the", "n't", "'s", "-lrb-", "into", "themselves", "!!", "*", "would"])
def test_function_words_and_signs_are_no_content(word: str) -> None:
    assert not is_content_word(word)


@pytest.mark.parametrize("word", ["2", "two", "dog", "red", "t-shirt", "猫", "runs"])
def test_other_words_are_content(word: str) -> None:
    assert is_content_word(word)


def test_function_words_are_written_as_the_tokenizer_writes_them() -> None:
    assert all(word == word.lower() and word and not word.isspace() for word in FUNCTION_WORDS)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="2 captions and references for 1 images"):
        invented_words(["a", "b"], [["a"]])
    with pytest.raises(TypeError, match="captions must be a list of strings"):
        invented_words("a", [["a"]])
