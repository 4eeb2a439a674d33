"""Images that are cut into pieces, as many as their shape asks for: prompts of different lengths in one batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from torch import Tensor

from hf_contrastive_caption.captioners import captioner_for
from hf_contrastive_caption.captioners.pairs import PairScorer
from hf_contrastive_caption.generation import caption_images
from tests import tiny
from tests.captioners.naive import gradients, relative_difference
from tests.families.chat import IMAGE, chat_inputs
from tests.families.idefics3 import idefics3_model, idefics3_processing
from tests.training import logged, trainer


@pytest.mark.parametrize("kind", ["idefics3", "smolvlm"])
@pytest.mark.parametrize("packing", ["auto", "repeated"])
def test_numbers_of_pieces_that_differ(kind: str, packing: Any) -> None:
    model = idefics3_model(kind=kind)
    captioner = captioner_for(model, idefics3_processing(pieces=True), prompt="picture", packing=packing)
    images = [image.resize(size) for image, size in zip(tiny.images(3), [(40, 40), (64, 20), (50, 40)], strict=True)]
    inputs = captioner.processor.process_images(images)
    pieces = inputs["pixel_values"].flatten(2).ne(0).any(2).sum(1).tolist()
    assert len(set(pieces)) > 1
    lengths = inputs["attention_mask"].sum(1).tolist()
    assert [(inputs["input_ids"][n] == IMAGE).sum().item() for n in range(3)] == [4 * n for n in pieces]
    assert len(set(lengths)) > 1
    captions = tiny.captions([0, 1, 2, 1, 0])

    def naive() -> Tensor:
        scores = []
        sentences = captions["input_ids"].split(captions["lengths"].tolist())
        for ids, image in zip(sentences, captions["image_index"].tolist(), strict=True):
            alone = captioner.processor.process_images([images[image]])  # without padding
            logits = model(**chat_inputs(alone, ids)).logits[0, -len(ids) - 1 : -1]
            scores.append(logits.log_softmax(-1)[torch.arange(len(ids)), ids].sum())
        return torch.stack(scores)

    scores = captioner.log_probs(model, inputs, captions)
    torch.testing.assert_close(scores, naive(), rtol=0, atol=1e-4)
    assert relative_difference(gradients(model, scores), gradients(model, naive())) < 1e-4
    states = captioner.encode(inputs)
    with torch.no_grad():
        torch.testing.assert_close(captioner.log_probs(model, states, captions), naive(), rtol=0, atol=1e-4)
    pairs = PairScorer(captioner, [[7, 8, tiny.EOS], [7, 9, tiny.EOS]])
    assert pairs.plan.method == ("prefix tries" if packing == "auto" else "rows")
    table = pairs.scores(inputs)
    for number, image in enumerate(images):
        alone = captioner.processor.process_images([image])
        torch.testing.assert_close(pairs.scores(alone)[0], table[number], rtol=0, atol=1e-4)
    options = {"num_beams": 1, "max_new_tokens": 5, "bad_words_ids": [[IMAGE]]}
    together = caption_images(model, captioner.processor, images, **options)
    assert together == caption_images(model, captioner.processor, images, batch_size=1, **options)


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
