"""Trainings with hard negatives: the same with scores ahead, workers and resumes; lists are kept, and made anew."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from hf_contrastive_caption import ContrastiveCaptionConfig
from hf_contrastive_caption.data import ContrastiveCaptionDataset
from hf_contrastive_caption.data.hard_negatives import HardNegatives
from hf_contrastive_caption.data.scenes import scenes
from hf_contrastive_caption.evaluation.retrieval.retrievers import DualEncoderRetriever
from hf_contrastive_caption.neighbours.search import DenseFeatures, nearest
from hf_contrastive_caption.precomputed.shards import ABOUT
from tests import tiny
from tests.evaluation.retrieval import test_retrievers as dual
from tests.precomputed.test_ahead import broken
from tests.training import logged, trainer

KINDS: dict[str, dict[str, Any]] = {
    "nearest images": {"negatives": "nearest"},
    "mixed images": {"negatives": "mixed", "hard_negative_schedule": "linear"},
    "mixed captions": {"negatives": "mixed", "hard_negative_source": "captions", "hard_negative_share": 0.3},
}
POOL = 6


def options(folder: Path, **more: Any) -> dict[str, Any]:
    return {"precomputed_dir": str(folder / "ahead"), "hard_negative_pool": POOL, **more}


def drawing(run: Any) -> ContrastiveCaptionDataset:
    data = run.train_dataset
    assert isinstance(data, ContrastiveCaptionDataset)
    return data


def lists_of(run: Any) -> list[list[int]]:
    hard = drawing(run).hard_negatives
    assert hard is not None
    return hard.lists.read(np.arange(len(hard.lists.image_of_row))).tolist()


@pytest.fixture(scope="module")
def drawn_scenes() -> Dataset:
    return scenes(24, 0, 0, image_size=16)["train"]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_ahead_workers_and_resumes_change_no_loss(tmp_path: Path, drawn_scenes: Dataset, kind: str) -> None:
    """Ten steps are two epochs of six and four."""
    given = options(tmp_path, **KINDS[kind], max_steps=10)
    saving = {"save_strategy": "steps", "save_steps": 4}
    plain = trainer(tmp_path / "plain", data=drawn_scenes, options={**given, **saving})
    plain.train()
    ahead = trainer(tmp_path / "ahead", data=drawn_scenes, options={**given, "precompute_reference": True})
    ahead.train()
    assert logged(ahead, "loss") == pytest.approx(logged(plain, "loss"), rel=2e-5)
    workers = trainer(tmp_path / "workers", data=drawn_scenes, options={**given, "dataloader_num_workers": 2})
    workers.train()
    assert logged(workers, "loss") == logged(plain, "loss")
    resumed = trainer(tmp_path / "resumed", data=drawn_scenes, options=given)
    resumed.train(resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-4"))
    assert logged(resumed, "loss")[-6:] == logged(plain, "loss")[-6:]
    shuffled = trainer(tmp_path / "shuffled", data=drawn_scenes, options={"max_steps": 10})
    shuffled.train()
    assert np.abs(np.asarray(logged(shuffled, "loss")) - logged(plain, "loss")).max() > 0.05
    assert lists_of(plain) == lists_of(ahead) == lists_of(workers) == lists_of(resumed)


def test_lists_follow_the_states_of_the_reference(tmp_path: Path) -> None:
    """By a plain forward of the encoder, image by image; with and without states from disk."""
    data, model = tiny.caption_dataset(12), tiny.captioner_model()
    processor = tiny.image_processor()
    states = torch.stack(
        [
            model.eval().encoder(**processor(images=image, return_tensors="pt"))[0][0].mean(0).detach()
            for image in data["image"]
        ]
    )
    near = nearest(DenseFeatures(states, centred=True), 0, 12, 11)
    for more in ({}, {"freeze_vision_encoder": True, "cache_vision_states": True}):
        given = options(tmp_path / str(len(more)), negatives="nearest", hard_negative_threshold=10, **more)
        run = trainer(tmp_path, data=data, options=given)
        run.train()
        for image, captions in enumerate(lists_of(run)):
            assert [caption // 5 for caption in captions] == [near[image][0]] * 5 + [near[image][1]]


@pytest.mark.parametrize("source", ["images", "captions"])
@pytest.mark.parametrize("by_name", [False, True])
def test_a_dual_encoder_tells_what_is_near(tmp_path: Path, source: str, by_name: bool) -> None:
    model, processor = dual.model("clip"), dual.processor("clip")
    encoder = DualEncoderRetriever(model, processor)
    data = tiny.caption_dataset(10, captions_per_image=3)
    given = options(tmp_path, negatives="nearest", hard_negative_source=source, hard_negative_threshold=10)
    if by_name:
        model.save_pretrained(tmp_path / "clip")
        processor.save_pretrained(tmp_path / "clip")
        run = trainer(tmp_path, data=data, options={**given, "hard_negative_encoder": str(tmp_path / "clip")})
    else:
        run = trainer(tmp_path, data=data, options=given, hard_negative_encoder=encoder)
    run.train()
    if source == "images":
        vectors = encoder.image_features(data["image"][:])
    else:
        vectors = torch.stack([encoder.text_features(captions).mean(0) for captions in data["captions"]])
    near = nearest(DenseFeatures(vectors), 0, 10, 9)
    for image, captions in enumerate(lists_of(run)):
        assert [caption // 3 for caption in captions] == [near[image][0]] * 3 + [near[image][1]] * 3


def test_an_index_finds_the_same(tmp_path: Path, drawn_scenes: Dataset) -> None:
    """Of so few images it searches all; the lists are others all the same, as of many they may be."""
    pytest.importorskip("faiss")
    found = []
    for index in ("exact", "faiss"):
        given = options(tmp_path, negatives="mixed", hard_negative_index=index)
        run = trainer(tmp_path, data=drawn_scenes, options=given)
        run.train()
        found.append(lists_of(run))
    assert found[0] == found[1]
    assert len(list((tmp_path / "ahead").glob("neighbours-*"))) == 2


def test_lists_serve_other_runs_and_only_what_fits(tmp_path: Path, drawn_scenes: Dataset) -> None:
    folder = tmp_path / "ahead"

    def found(data: Dataset = drawn_scenes, model: Any = None, **more: Any) -> tuple[dict[Path, int], dict[Path, int]]:
        """The files with lists, and those with features."""
        given = options(tmp_path, **{"negatives": "mixed", "max_steps": 1, **more})
        trainer(tmp_path / "run", model, data, given).train()
        lists, features = folder.glob("neighbours-*/*.safetensors"), folder.glob("neighbour-features-*/*.safetensors")
        return {file: file.stat().st_mtime_ns for file in lists}, {file: file.stat().st_mtime_ns for file in features}

    first, features = found()
    assert len(first) == len(features) == 1
    assert found(negatives="nearest", seed=5, num_negatives=2, learning_rate=1e-2) == (first, features)
    seen = first
    for n_features, more in (
        (1, {"hard_negative_pool": POOL - 1}),
        (1, {"hard_negative_threshold": 2.0}),
        (1, {"hard_negative_source": "captions"}),
        (2, {"model": tiny.captioner_model(seed=1)}),
        (3, {"data": drawn_scenes.select(range(20))}),
        (4, {"bf16": True}),
        (5, {"data": drawn_scenes.map(lambda row: {"captions": ["a " + text for text in row["captions"]]})}),
    ):
        now, features = found(**more)
        assert len(now) == len(seen) + 1 and now.items() > seen.items(), more
        assert len(features) == n_features, more
        seen = now
    about = [json.loads(file.read_text()) for file in folder.glob(f"neighbours-*/{ABOUT}")]
    assert {entry["pool"] for entry in about} == {POOL, POOL - 1}


def test_scores_ahead_are_those_of_the_draws(tmp_path: Path, drawn_scenes: Dataset) -> None:
    """Each kind, share and schedule has scores of its own; more epochs add theirs where no draw changes."""
    given = options(tmp_path, precompute_reference=True)

    def epochs(**more: Any) -> int:
        trainer(tmp_path / "run", data=drawn_scenes, options={**given, "max_steps": 6, **more}).train()
        return len(list((tmp_path / "ahead").glob("reference-scores-*/epoch-*")))

    assert epochs(negatives="mixed") == 1
    assert epochs(negatives="mixed", max_steps=7) == 2
    assert epochs(negatives="mixed", hard_negative_share=0.6) == 3
    assert epochs(negatives="nearest") == 4
    assert epochs(negatives="mixed", hard_negative_schedule="linear", max_steps=7) == 6
    assert epochs(hard_negative_pool=100) == 7


def test_what_is_logged(tmp_path: Path, drawn_scenes: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    given = options(
        tmp_path, negatives="mixed", hard_negative_schedule="linear", hard_negative_share=0.8, max_steps=12
    )
    run = trainer(tmp_path, data=drawn_scenes, options=given)
    with caplog.at_level(logging.INFO):
        run.train()
    assert logged(run, "hard_negative_share") == [0.4] * 6 + [0.8] * 6
    (refused,) = set(logged(run, "refused_negatives"))
    assert 0 < refused < 1
    message = next(line for line in caplog.messages if line.startswith("hard negatives"))
    assert f"{100 * refused:.1f}% of the captions" in message
    assert "0 images have fewer than the 3 that" in message and "states of the reference" in message


def test_images_with_short_lists_get_shuffled_ones_for_the_rest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two images look at one caption each, whatever is drawn."""
    given = options(tmp_path, negatives="nearest", num_negatives=5, hard_negative_pool=50)
    run = trainer(tmp_path, data=tiny.caption_dataset(3, captions_per_image=1), options=given)
    with caplog.at_level(logging.INFO):
        run.train()
    assert "3 images have fewer than the 5 that a caption may ask for" in caplog.text
    drawn, _ = drawing(run).draw(np.arange(3), 0)
    for row in range(3):
        assert set(drawn[row, 1:3].tolist()) == {0, 1, 2} - {row} and row not in drawn[row, 1:]


def test_evaluations_keep_shuffled_negatives(tmp_path: Path) -> None:
    held_out = tiny.caption_dataset(9, seed=3)
    plain = trainer(tmp_path, eval_dataset=held_out)
    run = trainer(tmp_path, eval_dataset=held_out, options=options(tmp_path, negatives="nearest", max_steps=1))
    expected = plain.evaluate()
    run.train()
    sets = [one.eval_dataset for one in (plain, run)]
    draws = [one.draw(np.arange(9), epoch)[0].tolist() for one in sets for epoch in (0, 4)]  # type: ignore[union-attr]
    assert draws[0] == draws[1] == draws[2] == draws[3]
    run.captioner.model.load_state_dict(plain.captioner.model.state_dict())
    assert run.evaluate()["eval_loss"] == pytest.approx(expected["eval_loss"], abs=1e-6)


def test_lists_stay_when_a_training_begins_again(tmp_path: Path) -> None:
    """The reference has left memory by then."""
    run = trainer(tmp_path, options=options(tmp_path, negatives="nearest", precompute_reference=True))
    run.train()
    first = lists_of(run)
    run.train()
    assert lists_of(run) == first


def test_nothing_travels_with_a_data_set_to_another_trainer(tmp_path: Path) -> None:
    run = trainer(tmp_path, options=options(tmp_path, negatives="nearest"))
    run.train()
    other = trainer(tmp_path, data=run.train_dataset)  # type: ignore[arg-type]
    assert isinstance(run.train_dataset._negatives, HardNegatives)  # type: ignore[union-attr]
    assert drawing(other).hard_negatives is None
    fresh = trainer(tmp_path)
    np.testing.assert_array_equal(drawing(other).draw(np.arange(16), 1)[0], drawing(fresh).draw(np.arange(16), 1)[0])


def test_images_that_do_not_open_are_no_neighbours(tmp_path: Path) -> None:
    data = broken(tiny.caption_dataset(6), 3)
    run = trainer(tmp_path, data=data, options=options(tmp_path, negatives="nearest", on_bad_image="skip"))
    run.train()
    lists = lists_of(run)
    assert lists[3] == [-1] * POOL
    assert all(caption // 5 != 3 for captions in lists for caption in captions)
    with pytest.raises(ValueError, match="Row 3"):
        trainer(tmp_path, data=data, options=options(tmp_path / "strict", negatives="nearest")).train()


def test_an_image_that_the_encoder_does_not_take_is_no_neighbour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = DualEncoderRetriever(dual.model("clip"), dual.processor("clip"))
    kind = type(encoder.image_processor)
    plain = kind.preprocess

    def picky(self: Any, images: Any, **options: Any) -> Any:
        if any(image.width > 200 * image.height for image in images):
            raise ValueError("too wide")
        return plain(self, images, **options)

    monkeypatch.setattr(kind, "preprocess", picky)
    columns = tiny.caption_dataset(6).to_dict()
    pictures = tiny.images(6)
    pictures[3] = Image.new("RGB", (900, 4))
    data = Dataset.from_dict({**columns, "image": pictures}).cast_column("image", ImageFeature())
    given = options(tmp_path, negatives="nearest", hard_negative_threshold=10)
    run = trainer(tmp_path, data=data, options={**given, "on_bad_image": "skip"}, hard_negative_encoder=encoder)
    run.train()
    assert [set(captions) == {-1} for captions in lists_of(run)] == [number == 3 for number in range(6)]
    strict = trainer(tmp_path / "strict", data=data, options=options(tmp_path / "strict", negatives="nearest"),
                     hard_negative_encoder=encoder)  # fmt: skip
    with pytest.raises(ValueError, match="Row 3: the image processor takes no image of 900 × 4 pixels: too wide"):
        strict.train()


def test_augmentation_changes_no_list(tmp_path: Path) -> None:
    plain = trainer(tmp_path, options=options(tmp_path / "1", negatives="nearest"))
    run = trainer(
        tmp_path,
        options=options(tmp_path / "2", negatives="nearest"),
        augment=lambda image: image.rotate(90 * torch.rand(()).item()),
    )
    for one in (plain, run):
        one.train()
    assert lists_of(run) == lists_of(plain)
    assert logged(run, "loss") != logged(plain, "loss")


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"negatives": "hard"}, "negatives is 'hard', but must be one of shuffled, nearest, mixed"),
        ({"negatives": "mixed", "hard_negative_share": 0.0}, "hard_negative_share must be above 0"),
        ({"negatives": "nearest", "hard_negative_share": 0.4}, "set negatives to 'mixed', or leave it out"),
        ({"hard_negative_source": "captions"}, "no meaning with negatives='shuffled'; set negatives to 'nearest' or"),
        ({"hard_negative_encoder": "clip"}, "hard_negative_encoder='clip' has no meaning"),
        ({"negatives": "mixed", "hard_negative_threshold": 11}, "CIDEr-D is between 0 and 10"),
        ({"negatives": "mixed", "hard_negative_pool": 0}, "hard_negative_pool must be a whole number of at least 1"),
        ({"negatives": "mixed", "objective": "mle"}, "objective='mle' has no negatives"),
        ({"negatives": "mixed", "objective": "introspective"}, "objective='introspective' has no negatives"),
        (
            {"negatives": "mixed", "hard_negative_source": "captions", "hard_negative_index": "faiss"},
            "name a dual encoder as hard_negative_encoder",
        ),
        ({"precomputed_dir": "here"}, "and negatives are shuffled"),
    ],
)
def test_options_without_meaning_are_refused(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ContrastiveCaptionConfig(output_dir=str(tmp_path), **given)


def test_streams_and_wrong_encoders_are_refused(tmp_path: Path) -> None:
    given = options(tmp_path, negatives="mixed")
    with pytest.raises(ValueError, match=r"negatives='mixed' needs a data set with a length.*Leave it out, or"):
        trainer(tmp_path, data=tiny.caption_dataset().to_iterable_dataset(), options=given)
    with pytest.raises(TypeError, match=r"is a CLIPModel; give DualEncoderRetriever\(model, processor\)"):
        trainer(tmp_path, options=given, hard_negative_encoder=dual.model("clip"))
    encoder = DualEncoderRetriever(dual.model("clip"), dual.processor("clip"))
    with pytest.raises(ValueError, match="negatives are shuffled; set negatives='mixed'"):
        trainer(tmp_path, hard_negative_encoder=encoder)
    with pytest.raises(ValueError, match=r"given twice, as an object and by name \('clip'\)"):
        trainer(tmp_path, options={**given, "hard_negative_encoder": "clip"}, hard_negative_encoder=encoder)
    with pytest.raises(ValueError, match="/nowhere is neither a folder nor the name of a repository"):
        trainer(tmp_path, options={**given, "hard_negative_encoder": "/nowhere"})


def test_only_data_sets_for_training_have_hard_negatives(tmp_path: Path) -> None:
    run = trainer(tmp_path, options=options(tmp_path, negatives="nearest"), eval_dataset=tiny.caption_dataset(6))
    run.train()
    hard = drawing(run).hard_negatives
    assert hard is not None
    with pytest.raises(ValueError, match="evaluations keep shuffled ones"):
        run.eval_dataset.with_hard_negatives(hard.lists, hard.share)  # type: ignore[union-attr]
