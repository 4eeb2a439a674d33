"""CIDEr-D against pycocoevalcap, CIDEr against the formula written out, and tables of document frequencies."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from hf_contrastive_caption.evaluation.metrics.cider import cider, cider_d
from hf_contrastive_caption.evaluation.metrics.document_frequencies import DocumentFrequencies

from .captions import Words, corpora, for_pycocoevalcap, random_corpus

pytestmark = pytest.mark.filterwarnings("ignore:the document frequencies of CIDEr:UserWarning")


def ngrams(words: Words, n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def naive_cider(
    captions: list[Words], references: list[list[Words]], of_corpus: list[list[Words]], clip: bool
) -> list[float]:
    """The formula, with the document frequencies of ``of_corpus``."""
    scores = []
    for caption, of_image in zip(captions, references, strict=True):
        total = 0.0
        for n in range(1, 5):
            frequency = Counter(ngram for texts in of_corpus for ngram in set().union(*(ngrams(t, n) for t in texts)))

            def vector(words: Words, n: int = n, frequency: Counter = frequency) -> dict[tuple[str, ...], float]:
                idf = np.log(len(of_corpus))
                return {gram: c * (idf - np.log(max(1, frequency[gram]))) for gram, c in ngrams(words, n).items()}

            mine = vector(caption)
            for reference in of_image:
                other = vector(reference)
                norms = np.sqrt(sum(v**2 for v in mine.values()) * sum(v**2 for v in other.values()))
                dot = sum((min(v, other[g]) if clip else v) * other[g] for g, v in mine.items() if g in other)
                length = max(len(caption) - 1, 0) - max(len(reference) - 1, 0)
                penalty = np.exp(-(length**2) / 72) if clip else 1.0
                total += penalty * dot / norms if norms else 0.0
        scores.append(10 * total / 4 / len(of_image))
    return scores


def assert_equal_to_pycocoevalcap(captions: list[Words], references: list[list[Words]]) -> None:
    theirs = pytest.importorskip("pycocoevalcap.cider.cider")
    corpus, per_image = theirs.Cider().compute_score(*for_pycocoevalcap(captions, references))
    score = cider_d(captions, references)
    assert score.corpus == pytest.approx(corpus, abs=1e-9)
    np.testing.assert_allclose(score.per_image, per_image, rtol=0, atol=1e-9)


def test_random_corpus_equals_pycocoevalcap() -> None:
    assert_equal_to_pycocoevalcap(*random_corpus(60))


@settings(deadline=None)
@given(corpora)
def test_small_corpora_equal_pycocoevalcap(corpus: tuple[list[Words], list[list[Words]]]) -> None:
    assert_equal_to_pycocoevalcap(*corpus)


@pytest.mark.parametrize("clip", [False, True])
def test_both_equal_the_formula(clip: bool) -> None:
    captions, references = random_corpus(25, seed=1)
    score = (cider_d if clip else cider)(captions, references)
    np.testing.assert_allclose(score.per_image, naive_cider(captions, references, references, clip), atol=1e-12)
    assert score.corpus == pytest.approx(score.per_image.mean(), abs=1e-15)
    assert score.name == ("cider_d" if clip else "cider")


@pytest.mark.parametrize("clip", [False, True])
def test_frequencies_of_another_corpus_equal_the_formula(clip: bool) -> None:
    captions, references = random_corpus(20, seed=2)
    _, of_corpus = random_corpus(40, seed=3)
    table = DocumentFrequencies.from_references(of_corpus)
    score = (cider_d if clip else cider)(captions, references, table)
    np.testing.assert_allclose(score.per_image, naive_cider(captions, references, of_corpus, clip), atol=1e-12)


def test_identical_captions_score_ten_and_one_image_scores_nothing() -> None:
    references = [[["a", "b", "c", "d", "e"]], [["f", "g", "h", "i", "j"]]]
    captions = [of_image[0] for of_image in references]
    assert cider_d(captions, references).per_image == pytest.approx([10, 10], abs=1e-12)
    assert cider_d(captions[:1], references[:1]).per_image.tolist() == [0]  # ln(1 / 1) = 0 for every n-gram
    assert cider_d([[], []], references).per_image.tolist() == [0, 0]


def test_saved_table_gives_the_same_scores(tmp_path: Path) -> None:
    captions, references = random_corpus(30, seed=4)
    table = DocumentFrequencies.from_references(random_corpus(50, seed=5)[1])
    table.save(tmp_path / "table.json")
    loaded = DocumentFrequencies.load(tmp_path / "table.json")
    assert loaded.n_images == table.n_images == 50
    assert len(loaded.vocabulary.words) < len(table.vocabulary.words)  # n-grams of one image are left out
    expected = cider_d(captions, references, table).per_image
    np.testing.assert_array_equal(cider_d(captions, references, loaded).per_image, expected)
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "table.json").read_bytes()


def test_equal_tables_have_equal_digests(tmp_path: Path) -> None:
    references = random_corpus(50, seed=5)[1]
    table = DocumentFrequencies.from_references(references)
    table.save(tmp_path / "table.json")
    others = [DocumentFrequencies.load(tmp_path / "table.json"), DocumentFrequencies.from_references(references[::-1])]
    assert {other.digest for other in others} == {table.digest}
    assert list(others[1].vocabulary.words) != list(table.vocabulary.words)
    assert DocumentFrequencies.from_references(references[1:]).digest != table.digest


def test_table_holds_the_counts(tmp_path: Path) -> None:
    DocumentFrequencies.from_references([[["a", "b"], ["a", "b"]], [["a", "b", "c"]], [["b"]]]).save(tmp_path / "t")
    content = json.loads((tmp_path / "t").read_text())
    assert content["words"] == ["a", "b"] and content["n_images"] == 3
    assert content["counts"] == [[2, 3], [2], [], []]
    assert content["ngrams"][0] == {"first": [0], "last": [1]}


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(ValueError, match="no table of document frequencies"):
        DocumentFrequencies.load(tmp_path / "other.json")


@pytest.mark.filterwarnings("default:the document frequencies of CIDEr:UserWarning")
def test_few_images_warn_unless_a_large_table_is_given() -> None:
    captions, references = random_corpus(3)
    small = DocumentFrequencies.from_references(references)
    for table in (None, small):
        with pytest.warns(UserWarning, match="come from 3 images"):
            cider_d(captions, references, table)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cider_d(captions, references, DocumentFrequencies.from_references(random_corpus(500)[1]))
        cider_d(*random_corpus(500))
