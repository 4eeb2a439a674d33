"""Two small captioners, their images, and what the page says of them."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from hf_contrastive_caption.app.work import Answer, Captioners, Decoding
from hf_contrastive_caption.captioners import captioner_for
from hf_contrastive_caption.data.scenes import scenes
from hf_contrastive_caption.models import small_captioner, small_image_processor, word_level_tokenizer

SIZES: dict[str, Any] = {"image_size": 32, "patch_size": 8, "width": 32, "encoder_layers": 1, "decoder_layers": 1}
DECODING = Decoding(num_beams=2, max_new_tokens=6)
OWN = "a red star"


@pytest.fixture(scope="session")
def images() -> list[Image.Image]:
    test = scenes(4, 2, 5, image_size=32)["test"]
    return [image.convert("RGB") for image in test["image"]]


@pytest.fixture(scope="session")
def captioners() -> Captioners:
    texts = [caption for captions in scenes(20, 0, 0, image_size=16)["train"]["captions"] for caption in captions]
    tokenizer = word_level_tokenizer([*texts, OWN])
    models = [small_captioner(tokenizer, **SIZES, heads=2, mlp=64, seed=seed) for seed in (3, 4)]
    return Captioners(*(captioner_for(model, (tokenizer, small_image_processor(32))) for model in models))


@pytest.fixture(scope="session")
def answer(captioners: Captioners, images: list[Image.Image]) -> Answer:
    return captioners.answer(images, DECODING, OWN)
