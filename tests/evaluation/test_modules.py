"""The modules load with ``evaluate`` and no network, and give the numbers of the package."""

from __future__ import annotations

from pathlib import Path

import evaluate
import pytest

from hf_contrastive_caption.evaluation.metrics.caption_metrics import caption_metrics, prepare_references
from hf_contrastive_caption.evaluation.metrics.document_frequencies import DocumentFrequencies
from hf_contrastive_caption.evaluation.metrics.invention import invented_words
from hf_contrastive_caption.evaluation.modules import module_names, module_path

pytestmark = pytest.mark.filterwarnings("ignore:the document frequencies of CIDEr:UserWarning")

CAPTIONS = ["A dog runs.", "Two cats"]
LISTS = [["a dog", "the dog runs"], ["cats sleep"]]
STRINGS = ["a dog runs", "cats sleep"]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)


@pytest.mark.parametrize("name", ["bleu", "rouge_l", "cider", "cider_d"])
def test_modules_give_the_package_s_scores(name: str, tmp_path: Path) -> None:
    loaded = evaluate.load(module_path(name), cache_dir=str(tmp_path))
    for references in (LISTS, STRINGS):
        lists = [[r] if isinstance(r, str) else r for r in references]
        expected = {key: score.corpus for key, score in caption_metrics(CAPTIONS, lists, metrics=[name]).items()}
        computed = loaded.compute(predictions=CAPTIONS, references=references)
        assert computed == expected
        assert all(type(value) is float for value in computed.values())


def test_invented_words_module(tmp_path: Path) -> None:
    loaded = evaluate.load(module_path("invented_words"), cache_dir=str(tmp_path))
    computed = loaded.compute(predictions=CAPTIONS, references=LISTS)
    assert computed == {"invented_words": invented_words(CAPTIONS, LISTS).corpus, "n_content": 4, "n_invented": 1}


def test_cider_module_reads_a_saved_table(tmp_path: Path) -> None:
    table = DocumentFrequencies.from_references(prepare_references([["a dog"], ["a cat"], ["dog runs"], ["a bus"]]))
    table.save(tmp_path / "table.json")
    loaded = evaluate.load(module_path("cider_d"), cache_dir=str(tmp_path))
    computed = loaded.compute(
        predictions=CAPTIONS, references=LISTS, document_frequencies=str(tmp_path / "table.json")
    )
    expected = caption_metrics(CAPTIONS, LISTS, metrics=["cider_d"], document_frequencies=table)["cider_d"]
    assert computed["cider_d"] == pytest.approx(expected.corpus, abs=1e-12)


def test_self_retrieval_module(tmp_path: Path) -> None:
    """Ranks 1, 2 to 3 (a tie) and 3 of three images."""
    loaded = evaluate.load(module_path("self_retrieval"), cache_dir=str(tmp_path))
    scores = [[0.9, 0.1, 0.2], [0.7, 0.5, 0.5], [0.3, 0.2, 0.1]]
    computed = loaded.compute(predictions=scores, references=[0, 1, 2], k=(1, 2))
    assert computed == pytest.approx(
        {
            "recall_at_1": 1 / 3,
            "recall_at_2": (1 + 0.5 + 0) / 3,
            "median_rank": 2.5,
            "mean_reciprocal_rank": (1 + (1 / 2 + 1 / 3) / 2 + 1 / 3) / 3,
        }
    )


def test_unknown_modules_are_refused_with_the_names() -> None:
    assert {"bleu", "cider", "cider_d", "invented_words", "rouge_l", "self_retrieval"} <= set(module_names())
    with pytest.raises(ValueError, match="no evaluate module 'spice'; the names are bleu, cider"):
        module_path("spice")
