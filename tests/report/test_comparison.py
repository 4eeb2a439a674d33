"""Numbers of a comparison against what they are made of."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig

from hf_contrastive_caption.captioners import caption_batch, captioner_for
from hf_contrastive_caption.evaluation.report import CaptionerReport
from hf_contrastive_caption.evaluation.retrieval.ranking import rival_images
from hf_contrastive_caption.evaluation.retrieval.self_retrieval import self_retrieval
from hf_contrastive_caption.report import compare_captioners
from hf_contrastive_caption.report.comparison import NUM_NEGATIVES, stored_log
from tests import tiny
from tests.families.chat import PROMPT, llava_model, llava_processing
from tests.report.conftest import OPTIONS
from tests.training import trainer

pytestmark = pytest.mark.filterwarnings("ignore:the document frequencies of CIDEr:UserWarning")


def log_probs(captioner, image, text) -> float:
    """One caption of one image, alone."""
    ids = captioner.processor.tokenize([text]).input_ids
    with torch.no_grad():
        captioner.model.eval()
        inputs = captioner.processor.process_images([image])
        return float(captioner.log_probs(captioner.model, inputs, caption_batch(ids, [0])))


def test_words_ranks_and_rivals(comparison, captioners, data):
    reference, target = captioners
    assert [image.number for image in comparison.images] == list(range(12))
    for side, captioner in (("reference", reference), ("target", target)):
        report: CaptionerReport = getattr(comparison, side)
        retrieval = self_retrieval(captioner, data["image"], report.captions, k=(1,), resamples=10, progress=False)
        ranks = retrieval.ranks.expected_rank()
        assert report.rivals == tuple(rival_images(retrieval.scores, 3))
        for image in comparison.images:
            shown = getattr(image, side)
            assert shown.text == report.captions[image.number]
            assert shown.rank == ranks[image.number]
            picture = data[image.number]["image"]
            expected = log_probs(target, picture, shown.text) - log_probs(reference, picture, shown.text)
            assert shown.log_ratio == pytest.approx(expected, abs=1e-4)
            assert shown.invented == report.invented_words[image.number]
            assert [word.text for word in shown.words] == [*shown.text.split(), ""]
    gains = [image.gain for image in comparison.images]
    assert gains == [math.log2(image.reference.rank / image.target.rank) for image in comparison.images]
    assert max(gains) > 0 > min(gains)


def test_rivals_are_the_images_with_higher_scores():
    scores = np.array([[1.0, 3.0, 2.0], [0.0, 0.0, 0.0], [5.0, 4.0, 3.0]], dtype=np.float32)
    assert rival_images(scores, 2) == [(1, 2), (), (0, 1)]
    assert rival_images(scores, 1) == [(1,), (), (0,)]


def test_log_ratios_of_peoples_captions(comparison, captioners, data):
    reference, target = captioners
    assert comparison.positives.shape == (12,)
    assert comparison.negatives.shape == (12 * NUM_NEGATIVES,)
    expected = [
        log_probs(target, row["image"], row["captions"][0]) - log_probs(reference, row["image"], row["captions"][0])
        for row in data
    ]
    np.testing.assert_allclose(comparison.positives, expected, atol=1e-4)
    others = {
        round(log_probs(target, data[0]["image"], text) - log_probs(reference, data[0]["image"], text), 3)
        for text in [captions[0] for captions in data["captions"]][1:]
    }
    assert {round(ratio, 3) for ratio in comparison.negatives[:NUM_NEGATIVES]} <= others


def test_a_model_compared_with_itself(captioners, data):
    same = compare_captioners(captioners[0], captioners[0], data, **OPTIONS)
    assert (same.reference.name, same.target.name) == ("reference", "target")
    for image in same.images:
        assert image.gain == 0
        assert max(abs(word.log_ratio) for word in (*image.reference.words, *image.target.words)) < 1e-5
    assert np.abs([*same.positives, *same.negatives]).max() < 1e-5


def test_some_images_shown_without_retrieval_and_captions(captioners, data):
    plain = data.select_columns(["image"])
    found = compare_captioners(*captioners, plain, **{**OPTIONS, "k": ()}, shown=5, seed=1)
    numbers = [image.number for image in found.images]
    assert len(numbers) == 5
    assert numbers == sorted(numbers)
    assert found.target.num_images == 12
    assert len(found.positives) == 0
    assert all(image.gain == 0 and image.reference.rank is None and not image.rivals for image in found.images)


def test_shown_must_be_positive(captioners, data):
    with pytest.raises(ValueError, match="shown is 0, but at least one image must be shown"):
        compare_captioners(*captioners, data, shown=0, **OPTIONS)


def test_saved_and_named_by_folder(captioners, data, tmp_path: Path):
    for name, captioner in zip(("first", "second"), captioners, strict=True):
        captioner.model.save_pretrained(tmp_path / name)
        captioner.processor.save_pretrained(tmp_path / name)
    for step in (2, 10):
        state = tmp_path / "second" / f"checkpoint-{step}" / "trainer_state.json"
        state.parent.mkdir()
        state.write_text(json.dumps({"log_history": [{"step": step, "loss": 1.0}]}))
    found = compare_captioners(tmp_path / "first", str(tmp_path / "second"), data, **OPTIONS)
    assert (found.reference.name, found.target.name) == ("first", "second")
    assert found.log_history == [{"step": 10, "loss": 1.0}]
    page = found.save(tmp_path / "report" / "deep")
    assert page == tmp_path / "report" / "deep" / "index.html"
    stored = json.loads((page.parent / "comparison.json").read_text())
    again = CaptionerReport.from_dict(stored["target"])
    assert again.measures.keys() == found.target.measures.keys()
    assert (again.rivals, again.captions) == (found.target.rivals, found.target.captions)
    assert again.ranks is not None
    assert np.array_equal(again.ranks.expected_rank(), found.target.ranks.expected_rank())
    words = [word for _, word in stored["images"][0]["target"]]
    assert sum(words) == pytest.approx(found.images[0].target.log_ratio)
    assert replace(found, log_history=()).to_markdown() == found.to_markdown()


def test_the_reference_is_asked_what_the_target_is_asked(tmp_path: Path):
    captioner = captioner_for(llava_model(), llava_processing(), prompt=PROMPT)
    captioner.model.save_pretrained(tmp_path / "base")
    llava_processing().save_pretrained(tmp_path / "base")  # as it was downloaded: without a prompt
    captioner.model.save_pretrained(tmp_path / "tuned")
    captioner.processor.save_pretrained(tmp_path / "tuned")
    data = tiny.caption_dataset(3, 1)
    options = {**OPTIONS, "metrics": ("rouge_l",), "max_new_tokens": 4}
    found = compare_captioners(tmp_path / "base", tmp_path / "tuned", data, **options)
    assert f"asked {PROMPT!r}" in found.reference.decoding
    assert found.reference.captions == found.target.captions
    assert np.abs(found.positives).max() < 1e-4  # the same model with the same prompt
    other = compare_captioners(tmp_path / "base", tmp_path / "tuned", data, reference_prompt="Describe .", **options)
    assert "asked 'Describe .'" in other.reference.decoding
    assert np.abs(other.positives).max() > 1e-2
    with pytest.raises(ValueError, match="captions were given, but each of the two captioners writes its own"):
        compare_captioners(captioner, captioner, data, captions=["a"] * 3, **options)


class TestTrainer:
    def test_against_the_frozen_copy(self, tmp_path: Path):
        data = tiny.caption_dataset(6, 2)
        run = trainer(
            tmp_path, tiny.captioner_model(), data, {"max_steps": 4, "learning_rate": 1e-2}, eval_dataset=data
        )
        start = run.compare_with_reference(**OPTIONS)
        assert np.abs(start.positives).max() < 1e-4
        run.train()
        tuned = run.compare_with_reference(folder=tmp_path / "report", shown=4, **OPTIONS)
        assert tuned.reference.captions == start.reference.captions
        assert tuned.positives.mean() - tuned.negatives.mean() > 0.1
        assert len(tuned.images) == 4
        assert (tmp_path / "report" / "index.html").stat().st_size > 10_000
        assert [row["loss"] for row in tuned.log_history if "loss" in row]

    def test_with_adapters_off(self, tmp_path: Path):
        data = tiny.caption_dataset(6, 2)
        lora = LoraConfig(r=4, target_modules=r".*(c_attn|q_attn)", fan_in_fan_out=True)
        options = {"max_steps": 4, "learning_rate": 3e-2}
        run = trainer(tmp_path, tiny.captioner_model(), data, options, eval_dataset=data, peft_config=lora)
        run.train()
        before = compare_captioners(
            tiny.captioner_model(), tiny.captioner_model(), data, processing_class=tiny.processing(), **OPTIONS
        )
        found = run.compare_with_reference(data, **OPTIONS)
        assert found.reference.captions == before.reference.captions
        assert np.abs(found.positives).mean() > 1e-3

    def test_refused(self, tmp_path: Path):
        data = tiny.caption_dataset(6, 2)
        mle = trainer(tmp_path, tiny.captioner_model(), data, {"objective": "mle"})
        with pytest.raises(ValueError, match="objective='mle' has no reference"):
            mle.compare_with_reference(data)
        run = trainer(tmp_path, tiny.captioner_model(), data, {})
        with pytest.raises(ValueError, match=r"the trainer has 0 evaluation data sets.*pass dataset="):
            run.compare_with_reference()
        ahead = {"max_steps": 2, "precompute_reference": True, "precomputed_dir": str(tmp_path / "ahead")}
        run = trainer(tmp_path, tiny.captioner_model(), data, ahead)
        run.train()
        with pytest.raises(ValueError, match="has left memory .*compare by name"):
            run.compare_with_reference(data)


def test_references_that_say_the_same_are_no_negatives_of_each_other(captioners, data):
    same = data.remove_columns("captions").add_column("captions", [[text] for text in ["A dog.", "a  dog"] * 6])
    comparison = compare_captioners(*captioners, same, **{**OPTIONS, "metrics": ("rouge_l",)})
    assert len(comparison.images) == 12 and len(comparison.negatives) == 0


def test_a_log_is_only_looked_for(tmp_path, caplog):
    for name in ("checkpoint-best", "checkpoint-9", "checkpoint-10"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": name}]}))
    assert stored_log(tmp_path) == [{"step": "checkpoint-10"}]
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text("{")
    assert stored_log(tmp_path) == () and "checkpoint-10/trainer_state.json cannot be read" in caplog.text
