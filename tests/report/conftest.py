"""Two small captioners and some scenes."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

from hf_contrastive_caption.captioners import Captioner, captioner_for
from hf_contrastive_caption.data.scenes import scenes
from hf_contrastive_caption.models import small_captioner, small_image_processor, word_level_tokenizer
from hf_contrastive_caption.report import CaptionerComparison, compare_captioners

OPTIONS: dict[str, Any] = {
    "metrics": ("cider_d", "bleu"),
    "resamples": 100,
    "progress": False,
    "k": (1, 3),
    "max_new_tokens": 8,
}


@pytest.fixture(scope="session")
def data() -> Dataset:
    return scenes(4, 2, 12, image_size=32)["test"]


@pytest.fixture(scope="session")
def captioners(data: Dataset) -> tuple[Captioner, Captioner]:
    tokenizer = word_level_tokenizer(caption for captions in data["captions"] for caption in captions)
    sizes: dict[str, Any] = {"image_size": 32, "patch_size": 8, "width": 32, "encoder_layers": 1, "decoder_layers": 1}
    models = [small_captioner(tokenizer, **sizes, heads=2, mlp=64, seed=seed) for seed in (3, 4)]
    first, second = (captioner_for(model, (tokenizer, small_image_processor(32))) for model in models)
    return first, second


@pytest.fixture(scope="session")
def comparison(data: Dataset, captioners: tuple[Captioner, Captioner]) -> CaptionerComparison:
    log = [{"step": step, "loss": 2.0 / step, "learning_rate": 1e-3} for step in range(1, 6)]
    log += [{"step": step, "eval_loss": 2.5 / step} for step in (2, 4)]
    return compare_captioners(*captioners, data, names=("old", "new"), log_history=log, **OPTIONS)
