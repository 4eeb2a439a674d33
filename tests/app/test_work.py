"""What the page computes equals what the library computes without it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hf_contrastive_caption import caption_images, self_retrieval
from hf_contrastive_caption.app.ranking import JUDGES, rank_captions, rank_own_caption
from hf_contrastive_caption.app.work import SIDES, Decoding
from hf_contrastive_caption.captioners import caption_batch
from tests.app.conftest import DECODING, OWN


def log_prob(captioner, image, text) -> list[float]:
    """One plain forward for one caption and one image: ln p of its tokens."""
    images = captioner.processor.process_images([image])
    batch = caption_batch(captioner.processor.tokenize([text]).input_ids, [0])
    with torch.no_grad():
        found: list[float] = captioner.token_log_probs(captioner.model.eval(), images, batch).tolist()
    return found


def test_captions_are_those_of_the_library(captioners, images, answer):
    for side in SIDES:
        captioner = captioners.of(side)
        plain = caption_images(captioner.model, captioner.processor, images, num_beams=2, max_new_tokens=6)
        assert list(answer.captions[side]) == plain
    assert answer.captions["reference"] != answer.captions["target"]


def test_words_are_shaded_by_their_own_log_ratio(captioners, images, answer):
    assert sum(len(text.split()) for text in answer.captions["target"]) > 5
    for side in SIDES:
        for number, (image, text) in enumerate(zip(images, answer.captions[side], strict=True)):
            target, reference = (log_prob(captioners.of(name), image, text) for name in ("target", "reference"))
            words = answer.words[side][number]
            assert [word.text for word in words] == [*text.split(), ""]
            # The tokenizer has one token for a word, and one for the end.
            plain = np.array(target) - np.array(reference)
            assert [word.log_ratio for word in words] == pytest.approx(plain.tolist(), abs=1e-4)


def test_an_own_caption_is_scored_with_every_image(captioners, images, answer):
    own = answer.own
    assert own.text == OWN and len(own.words) == len(images)
    for number, image in enumerate(images):
        target, reference = (log_prob(captioners.of(name), image, OWN) for name in ("target", "reference"))
        assert own.scores["target"][number] == pytest.approx(sum(target), abs=1e-4)
        assert own.scores["reference"][number] == pytest.approx(sum(reference), abs=1e-4)
        assert sum(word.log_ratio for word in own.words[number]) == pytest.approx(
            sum(target) - sum(reference), abs=1e-4
        )
    again = captioners.with_own(replace(answer, own=None), images, f"  {OWN}\n")
    assert again.own.text == OWN and again.captions == answer.captions
    np.testing.assert_array_equal(again.own.scores["target"], own.scores["target"])
    assert captioners.with_own(answer, images, "  ").own is None


def test_a_typed_caption_that_would_be_cut_is_refused(captioners, images, answer):
    with pytest.raises(ValueError, match=r"more than the \d+ tokens that the reference scores"):
        captioners.with_own(answer, images, "red " * 200)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("judge", ["writer", "target", "reference"])
def test_the_ranking_is_self_retrieval(captioners, images, answer, side, judge):
    by = captioners.of(side if judge == "writer" else judge)
    options = {"captions": answer.captions[side], "retriever": by, "k": [1], "resamples": 10, "progress": False}
    plain = self_retrieval(None, images, **options)
    found = rank_captions(answer, judge)[side]
    np.testing.assert_array_equal(found.ranks.expected_rank(), plain.ranks.expected_rank())
    assert found.ranks.recall(1).mean() == plain.recall[1]
    for own, one in enumerate(found.found):
        np.testing.assert_allclose(one.scores, plain.scores[own], atol=1e-4)
        others = [number for number in range(len(images)) if number != own]
        rival = max(others, key=lambda number: plain.scores[own, number])
        assert one.rival == rival
        assert one.margin == pytest.approx(plain.scores[own, own] - plain.scores[own, rival], abs=1e-4)
        assert one.rank == 1 + sum(plain.scores[own, number] > plain.scores[own, own] for number in others)
        assert one.shares.sum() == pytest.approx(1)
        assert np.log(one.shares[own] / one.shares[rival]) == pytest.approx(one.margin, abs=1e-4)


@pytest.mark.parametrize("side", SIDES)
def test_the_log_ratio_ranks_by_one_forward_for_each_pair(captioners, images, answer, side):
    found = rank_captions(answer, "log_ratio")[side].found
    for own, text in enumerate(answer.captions[side]):
        plain = [
            sum(log_prob(captioners.target, image, text)) - sum(log_prob(captioners.reference, image, text))
            for image in images
        ]
        np.testing.assert_allclose(found[own].scores, plain, atol=2e-4)
        assert found[own].rank == 1 + sum(score > plain[own] for score in plain)


def test_an_own_caption_finds_its_best_image(answer):
    scores = answer.own.scores
    for judge, expected in {
        "writer": scores["target"], "target": scores["target"], "reference": scores["reference"],
        "log_ratio": scores["target"] - scores["reference"],
    }.items():  # fmt: skip
        found = rank_own_caption(answer, judge)
        first, second = sorted(expected, reverse=True)[:2]
        assert (found.rank, found.rival) == (None, int(np.argmax(expected)))
        assert found.margin == pytest.approx(first - second)
    assert set(JUDGES) == {"writer", "target", "reference", "log_ratio"}


def test_equal_images_share_their_rank(captioners, images):
    answer = captioners.answer([images[0], images[0], images[1]], DECODING)
    for side in SIDES:
        ranking = rank_captions(answer, "writer")[side]
        assert ranking.ranks.equal.tolist() == [1, 1, 0]
        assert ranking.found[0].rank == 1.5 + ranking.ranks.better[0]
        assert ranking.found[0].shares[0] == ranking.found[0].shares[1]


def test_one_image_has_no_ranking(captioners, images):
    answer = captioners.answer(images[:1], DECODING, OWN)
    assert rank_captions(answer, "writer") == {} and rank_own_caption(answer, "writer") is None


def test_a_captioner_that_cannot_score_all_pairs_says_so_and_still_captions(captioners, images, monkeypatch):
    def refuse(self, captions):
        raise ValueError("these images cannot be told apart")

    monkeypatch.setattr("hf_contrastive_caption.app.work.CaptionerRetriever.scorer", refuse)
    answer = captioners.answer(images[:2], DECODING, OWN)
    assert answer.no_scores == "these images cannot be told apart"
    assert rank_captions(answer, "target") == {} and len(answer.captions["target"]) == 2


def test_sampling_depends_on_its_seed_alone(captioners, images):
    state = torch.get_rng_state()
    drawn = [
        captioners.answer(images[:2], Decoding(sample=True, temperature=2.0, max_new_tokens=6, seed=seed)).captions
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(state, torch.get_rng_state())
    assert Decoding(sample=True, num_beams=5, top_p=0.5).arguments() == {
        "num_beams": 1, "do_sample": True, "temperature": 1.0, "top_p": 0.5,
    }  # fmt: skip
