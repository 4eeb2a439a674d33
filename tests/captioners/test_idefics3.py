"""Images that are cut into pieces, as many as their shape asks for: prompts of different lengths in one batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature

from hf_contrastive_caption.captioners import captioner_for
from tests import tiny
from tests.captioners.lengths import check_images_of_different_lengths
from tests.families.chat import IMAGE
from tests.families.idefics3 import idefics3_model, idefics3_processing
from tests.training import logged, trainer


@pytest.mark.parametrize("kind", ["idefics3", "smolvlm"])
@pytest.mark.parametrize("packing", ["auto", "repeated"])
def test_numbers_of_pieces_that_differ(kind: str, packing: Any) -> None:
    captioner = captioner_for(
        idefics3_model(kind=kind), idefics3_processing(pieces=True), prompt="picture", packing=packing
    )
    images = [image.resize(size) for image, size in zip(tiny.images(3), [(40, 40), (64, 20), (50, 40)], strict=True)]
    inputs = captioner.processor.process_images(images)
    pieces = inputs["pixel_values"].flatten(2).ne(0).any(2).sum(1).tolist()
    assert len(set(pieces)) > 1
    lengths = inputs["attention_mask"].sum(1).tolist()
    assert [(inputs["input_ids"][n] == IMAGE).sum().item() for n in range(3)] == [4 * n for n in pieces]
    assert len(set(lengths)) > 1
    check_images_of_different_lengths(captioner, images, "prefix tries" if packing == "auto" else "rows")


def test_states_of_numbers_of_pieces_that_differ_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(40, 40), (64, 20), (50, 40), (20, 64)]
    images = [image.resize(size) for image, size in zip(tiny.images(4), sizes, strict=True)]
    features = Features({"image": ImageFeature(), "captions": List(Value("string"))})
    captions = [[text] for text in tiny.texts(4)]
    data = Dataset.from_dict({"image": images, "captions": captions}, features=features)

    def losses(name: str, **more: Any) -> list[float]:
        options = {"prompt": "picture", "freeze_vision_encoder": True, **more}
        run = trainer(tmp_path, idefics3_model(), data, options, processing_class=idefics3_processing(pieces=True))
        run.train()
        if more:
            states = run.train_dataset.vision_states._store  # type: ignore[union-attr]
            widths = [states.read(n, n + 1)["input_ids"].shape[1] for n in range(4)]
            assert len(set(widths)) == (1 if name == "one shard" else 2)
        return logged(run, "loss")

    expected = losses("from images")
    more = {"cache_vision_states": True, "per_device_eval_batch_size": 1}
    assert losses("one shard", precomputed_dir=str(tmp_path / "one"), **more) == pytest.approx(expected, abs=1e-5)
    monkeypatch.setattr("hf_contrastive_caption.precomputed.vision_states.SHARD_BYTES", 1)
    assert losses("an image each", precomputed_dir=str(tmp_path / "each"), **more) == pytest.approx(expected, abs=1e-5)
