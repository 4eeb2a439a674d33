"""Image processors of every backend: Pillow, torchvision, and one of a user's own."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import BaseImageProcessor, BatchFeature

from hf_contrastive_caption.captioners import captioner_for
from tests import tiny
from tests.captioners import naive

NAMES = ("ViT", "DeiT", "Beit", "Donut", "Bit")
"""Those that stand beside the checkpoints of ViT, DeiT, BEiT, Donut and DINOv2."""


class OwnImageProcessor(BaseImageProcessor):
    """Works with NumPy alone, and gives something beside the pixels that is no tensor."""

    model_input_names = ["pixel_values"]

    def preprocess(self, images: Any, **kwargs: Any) -> BatchFeature:
        resized = [np.asarray(image.resize((32, 32)), dtype=np.float32) / 255 for image in images]
        pixels = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).contiguous()
        return BatchFeature({"pixel_values": pixels, "sizes": [image.size for image in images]})


def processor_of(name: str, backend: str) -> BaseImageProcessor:
    if backend == "torchvision" and find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    processor_class = getattr(transformers, f"{name}ImageProcessor{'Pil' if backend == 'pil' else ''}")
    size = {"height": 32, "width": 32}
    if name == "Bit":
        return processor_class(size={"shortest_edge": 32}, crop_size=size)
    return processor_class(size=size, crop_size=size) if name == "DeiT" else processor_class(size=size)


CASES = [(name, backend) for name in NAMES for backend in ("pil", "torchvision")]


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_scores_are_those_of_the_pixels_that_it_makes(name: str, backend: str) -> None:
    check(processor_of(name, backend))


def test_one_of_the_users_own() -> None:
    check(OwnImageProcessor())


def check(image_processor: BaseImageProcessor) -> None:
    model = tiny.captioner_model()
    captioner = captioner_for(model, (tiny.tokenizer(), image_processor))
    images = [*tiny.images(2), Image.new("RGB", (32, 50), "red")]
    inputs = captioner.processor.process_images(images)
    assert {key: tuple(value.shape) for key, value in inputs.items()} == {"pixel_values": (3, 3, 32, 32)}
    for number, image in enumerate(images):
        alone = torch.as_tensor(image_processor([image], return_tensors="pt")["pixel_values"])
        torch.testing.assert_close(inputs["pixel_values"][number : number + 1], alone, rtol=0, atol=0)
    captions = tiny.captions((0, 1, 1, 2))
    with torch.no_grad():
        scores = captioner.log_probs(model, inputs, captions)
        torch.testing.assert_close(scores, naive.log_probs(model, inputs, captions), rtol=0, atol=1e-4)
