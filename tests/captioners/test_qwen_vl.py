"""Qwen's models: images of different sizes in one batch, positions in a grid, and processors that do not fit."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from hf_contrastive_caption.captioners import Captioner, caption_batch, captioner_for
from hf_contrastive_caption.captioners.pairs import PairScorer
from hf_contrastive_caption.generation import caption_images
from tests import tiny
from tests.captioners.naive import gradients, relative_difference
from tests.families.qwen_vl import QWEN_IMAGE_TOKENS, Kind, qwen_inputs, qwen_model, qwen_processing

SIZES = ((64, 64), (96, 32), (40, 72))
SENTENCES = [[7, 8, tiny.EOS], [7, 9, 10, tiny.EOS], [tiny.EOS]]

every_kind = pytest.mark.parametrize("kind", ["qwen2", "qwen2.5", "qwen3"])


def qwen(kind: Kind = "qwen2", model: Any = None, **options: Any) -> Captioner:
    return captioner_for(model or qwen_model(kind=kind), qwen_processing(kind), prompt="picture", **options)


def pictures() -> list[Image.Image]:
    return [image.resize(size) for image, size in zip(tiny.images(3), SIZES, strict=True)]


def naive(captioner: Captioner, images: list[Image.Image], captions: Any) -> Tensor:
    """ln p of each caption by a forward of its image and prompt alone, without any padding, (n_captions,)."""
    scores = []
    sentences = captions["input_ids"].split(captions["lengths"].tolist())
    for ids, image in zip(sentences, captions["image_index"].tolist(), strict=True):
        alone = captioner.processor.process_images([images[image]])
        logits = captioner.model(**qwen_inputs(alone, ids)).logits[0, -len(ids) - 1 : -1]
        scores.append(logits.log_softmax(-1)[torch.arange(len(ids)), ids].sum())
    return torch.stack(scores)


@every_kind
class TestSizes:
    def test_patches_of_each_image_are_those_of_it_alone(self, kind: Kind) -> None:
        captioner = qwen(kind)
        inputs = captioner.processor.process_images(pictures())
        assert inputs["image_grid_thw"].tolist() == [[1, 8, 8], [1, 4, 12], [1, 10, 6]]
        assert inputs["pixel_values"].shape == (3, 64, 3 * 2 * 8 * 8)
        assert inputs["attention_mask"].sum(1).tolist() == [16 + 7, 12 + 7, 15 + 7]
        for number, (image, patches) in enumerate(zip(pictures(), (64, 48, 60), strict=True)):
            alone = captioner.processor.process_images([image])
            row = inputs["pixel_values"][number]
            assert torch.equal(row[:patches], alone["pixel_values"][0])
            assert not row[patches:].any()
            assert torch.equal(inputs["input_ids"][number, -patches // 4 - 7 :], alone["input_ids"][0])

    @pytest.mark.parametrize("packing", ["packed", "repeated"])
    def test_scores_and_gradients_equal_one_by_one(self, kind: Kind, packing: Any) -> None:
        captioner = qwen(kind, packing=packing)
        inputs, captions = captioner.processor.process_images(pictures()), tiny.captions([0, 1, 2, 1, 0])
        expected = naive(captioner, pictures(), captions)
        scores = captioner.log_probs(captioner.model, inputs, captions)
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4)
        ours = gradients(captioner.model, scores)
        assert relative_difference(ours, gradients(captioner.model, expected)) < 1e-4
        states = captioner.encode(inputs)
        with torch.no_grad():
            from_states = captioner.log_probs(captioner.model, states, captions)
        torch.testing.assert_close(from_states, expected, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("packing", ["packed", "repeated"])
    def test_all_pairs_do_not_depend_on_the_batch(self, kind: Kind, packing: Any) -> None:
        captioner = qwen(kind, packing=packing)
        inputs = captioner.processor.process_images(pictures())
        pairs = PairScorer(captioner, SENTENCES)
        assert pairs.plan.method == ("prefix tries" if packing == "packed" else "rows")
        table = pairs.scores(inputs)
        for number, image in enumerate(pictures()):
            sliced = {name: value[number : number + 1] for name, value in inputs.items()}  # with its padding
            alone = captioner.processor.process_images([image])
            for one in (sliced, alone):
                torch.testing.assert_close(pairs.scores(one)[0], table[number], rtol=0, atol=1e-4)
        assert table.std(0).mean() > 0.1  # the image is seen

    @pytest.mark.parametrize("num_beams", [1, 3])
    def test_captions_do_not_depend_on_the_batch(self, kind: Kind, num_beams: int) -> None:
        captioner = qwen(kind)
        tokens = captioner.processor.tokenizer.convert_tokens_to_ids(list(QWEN_IMAGE_TOKENS))
        options = {"num_beams": num_beams, "max_new_tokens": 6, "bad_words_ids": [[token] for token in tokens]}
        together = caption_images(captioner.model, captioner.processor, pictures(), **options)
        assert together == caption_images(captioner.model, captioner.processor, pictures(), batch_size=1, **options)
        assert len(set(together)) > 1

    def test_beams_are_scored_with_their_own_image(self, kind: Kind) -> None:
        captioner = qwen(kind)
        inputs = captioner.processor.process_images(pictures())
        patches = [pixels[:size] for pixels, size in zip(inputs["pixel_values"], (64, 48, 60), strict=True)]
        plain = {**inputs, "pixel_values": torch.cat(patches)}
        options = {"num_beams": 3, "max_new_tokens": 4, "min_new_tokens": 4, "length_penalty": 0.0, "do_sample": False}
        kept = {"return_dict_in_generate": True, "output_scores": True}
        found = captioner.base_model.eval().generate(**plain, **options, **kept)
        sequences = captioner.generate(inputs, **options)
        assert torch.equal(found.sequences[:, inputs["input_ids"].shape[1] :], sequences)
        captions = caption_batch(sequences.tolist(), [0, 1, 2])
        with torch.no_grad():
            scores = captioner.log_probs(captioner.model, inputs, captions)
        torch.testing.assert_close(found.sequences_scores, scores, rtol=0, atol=1e-4)

    def test_what_the_model_keeps_of_a_call_is_not_used_in_the_next(self, kind: Kind) -> None:
        captioner, captions = qwen(kind), tiny.captions([0, 1, 2, 1, 0])
        inputs = captioner.processor.process_images(pictures())
        first = {name: value[1:2] for name, value in inputs.items()}
        with torch.no_grad():
            expected = captioner.log_probs(captioner.model, inputs, captions)
            table = PairScorer(captioner, SENTENCES).scores(inputs)
            captioner.generate(first, max_new_tokens=4, num_beams=2, do_sample=False)  # keeps its rope_deltas
            assert captioner.base_model.model.rope_deltas.shape == (1, 1)
            again = captioner.log_probs(captioner.model, inputs, captions)
            assert torch.equal(again, expected)
            assert torch.equal(PairScorer(captioner, SENTENCES).scores(inputs), table)
            torch.testing.assert_close(naive(captioner, pictures(), captions), expected, rtol=0, atol=1e-4)


@every_kind
def test_captions_begin_behind_the_longest_side_of_the_grid(kind: Kind) -> None:
    captioner = qwen(kind)
    captioner.verify()
    inputs, captions = captioner.processor.process_images(pictures()), tiny.captions([0, 1, 2])
    captioner.layout = "packed"
    positions = captioner.prepare(inputs, captions, captioner.rows(inputs, captions))["position_ids"]
    prompt = inputs["input_ids"].shape[1] - 1
    assert positions.shape[:2] == (3, 3)
    # "USER : <|vision_start|>", a grid of 4 x 4, 2 x 6 or 5 x 3, then "<|vision_end|> picture ASSISTANT :"
    assert positions[:, :, prompt].tolist() == [[3 + side + 3 for side in (4, 6, 5)]] * 3
    of_image = positions[:, 1, prompt - 15 : prompt - 3]  # between three tokens and three
    assert of_image.tolist() == [[3] * 12, [3] * 6 + [4] * 6, [3, 4, 5, 6, 7, 8] * 2]


@pytest.mark.parametrize("kind", ["qwen2", "qwen2.5"])
def test_a_window_shorter_than_the_prompt_is_packed(kind: Kind) -> None:
    windows = {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1}
    captioner = qwen(kind, qwen_model(kind=kind, **windows))
    assert captioner.base_model.config.text_config.layer_types == ["full_attention", "sliding_attention"]
    inputs, captions = captioner.processor.process_images(pictures()), tiny.captions([0, 1, 2, 1, 0])
    with torch.no_grad():
        scores = captioner.log_probs(captioner.model, inputs, captions)
        torch.testing.assert_close(scores, naive(captioner, pictures(), captions), rtol=0, atol=1e-4)
    assert (captioner.layout, captioner.tries) == ("packed", True)


class TestRefusals:
    def test_another_number_of_image_tokens(self) -> None:
        with pytest.raises(
            ValueError,
            match=r"Qwen2VLImagesProcessor writes 64 image tokens \(number 72\) for an image of \[1, 8, 8\] patches, "
            r"of which Qwen2VLFor\w+ makes 16 states, one of 2 x 2; load model and processor from the same checkp",
        ):
            captioner_for(qwen_model(), qwen_processing(merge_size=1), prompt="picture")

    def test_another_image_token(self) -> None:
        model = qwen_model()
        model.config.image_token_id = 7
        with pytest.raises(ValueError, match=r"writes 0 image tokens \(number 7\) .* the tokenizer's image_token"):
            captioner_for(model, qwen_processing(), prompt="picture")

    def test_patches_of_another_size(self) -> None:
        told = (
            "the patches of Qwen2VLImagesProcessor have 1536 numbers, but Qwen2VLForConditionalGeneration takes 384: "
        )
        with pytest.raises(ValueError, match=re.escape(told + "3 channels of 2 x 8 x 8; load model and processor")):
            captioner_for(qwen_model(), qwen_processing(patch_size=16), prompt="picture")
