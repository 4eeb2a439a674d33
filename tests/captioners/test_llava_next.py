"""LLaVA-NeXT and LLaVA-OneVision: images of different shapes, and so of different numbers of pieces, in one batch."""

from __future__ import annotations

from typing import Any

import pytest

from hf_contrastive_caption.captioners import captioner_for
from tests import tiny
from tests.captioners.lengths import check_images_of_different_lengths
from tests.families.chat import IMAGE
from tests.families.llava_next import llava_next_model, llava_next_processing, onevision_model, onevision_processing

KINDS: dict[str, Any] = {
    "llava_next": (llava_next_model, llava_next_processing, [24, 14, 16]),
    "llava_onevision": (onevision_model, onevision_processing, [10, 14, 16]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packing", ["packed", "repeated"])
def test_numbers_of_pieces_that_differ(kind: str, packing: Any) -> None:
    make_model, make_processing, num_tokens = KINDS[kind]
    captioner = captioner_for(make_model(), make_processing(), prompt="picture", packing=packing)
    images = [image.resize(size) for image, size in zip(tiny.images(3), [(60, 60), (64, 30), (30, 64)], strict=True)]
    inputs = captioner.processor.process_images(images)
    assert inputs["pixel_values"].shape == (3, 5, 3, 32, 32)
    assert inputs["pixel_values"][1, :3].any() and not inputs["pixel_values"][1, 3:].any()
    assert inputs["input_ids"].eq(IMAGE).sum(1).tolist() == num_tokens
    check_images_of_different_lengths(captioner, images, "prefix tries" if packing == "packed" else "rows")
