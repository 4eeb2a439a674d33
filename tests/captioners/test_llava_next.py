"""LLaVA-NeXT and LLaVA-OneVision: images of different shapes, and so of different numbers of pieces, in one batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_contrastive_caption.captioners import captioner_for
from hf_contrastive_caption.captioners.pairs import PairScorer
from hf_contrastive_caption.generation import caption_images
from tests import tiny
from tests.captioners.naive import gradients, relative_difference
from tests.families.chat import IMAGE, chat_inputs
from tests.families.llava_next import llava_next_model, llava_next_processing, onevision_model, onevision_processing

KINDS: dict[str, Any] = {
    "llava_next": (llava_next_model, llava_next_processing, [24, 14, 16]),
    "llava_onevision": (onevision_model, onevision_processing, [10, 14, 16]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packing", ["packed", "repeated"])
def test_numbers_of_pieces_that_differ(kind: str, packing: Any) -> None:
    make_model, make_processing, num_tokens = KINDS[kind]
    model = make_model()
    captioner = captioner_for(model, make_processing(), prompt="picture", packing=packing)
    images = [image.resize(size) for image, size in zip(tiny.images(3), [(60, 60), (64, 30), (30, 64)], strict=True)]
    inputs = captioner.processor.process_images(images)
    assert inputs["pixel_values"].shape == (3, 5, 3, 32, 32)
    assert inputs["pixel_values"][1, :3].any() and not inputs["pixel_values"][1, 3:].any()
    assert inputs["input_ids"].eq(IMAGE).sum(1).tolist() == num_tokens
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
    assert pairs.plan.method == ("prefix tries" if packing == "packed" else "rows")
    table = pairs.scores(inputs)
    for number, image in enumerate(images):
        alone = captioner.processor.process_images([image])
        sliced = {name: value[number : number + 1] for name, value in inputs.items()}  # with its padding
        for one in (alone, sliced):
            torch.testing.assert_close(pairs.scores(one)[0], table[number], rtol=0, atol=1e-4)
    for num_beams in (1, 3):
        options = {"num_beams": num_beams, "max_new_tokens": 5, "bad_words_ids": [[IMAGE]]}
        together = caption_images(model, captioner.processor, images, **options)
        assert together == caption_images(model, captioner.processor, images, batch_size=1, **options)
