"""Tiny data sets and processors for the tests of the data room; nothing is downloaded."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, ViTImageProcessor

from hf_contrastive_caption.processing import CaptionProcessor

WORDS = [f"w{number}" for number in range(60)]


def make_processor(
    words: list[str] | None = None, size: int = 8, max_caption_tokens: int | None = None
) -> CaptionProcessor:
    """A word-level tokenizer (end token 0, unknown 1) and a small image processor."""
    vocabulary = {word: number for number, word in enumerate(["<end>", "<unk>", *(WORDS if words is None else words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unk>")
    image_processor = ViTImageProcessor(size={"height": size, "width": size})
    return CaptionProcessor(fast, image_processor, end_token_id=0, max_caption_tokens=max_caption_tokens)


def png(color: Any, size: tuple[int, int] = (8, 8)) -> bytes:
    """A PNG file of one colour."""
    buffer = BytesIO()
    Image.new("RGB", size, color).save(buffer, format="PNG")
    return buffer.getvalue()


def make_columns(n_rows: int, captions_per_row: int | None = 2) -> dict[str, list[Any]]:
    """Rows with different images, and captions that are all different; ``None`` for one to three captions a row."""
    counts = [1 + row % 3 if captions_per_row is None else captions_per_row for row in range(n_rows)]
    starts = np.cumsum([0, *counts])
    return {
        "image": [{"bytes": png((row % 256, row // 256, 7)), "path": None} for row in range(n_rows)],
        "captions": [
            [caption_text(int(starts[row]) + place) for place in range(count)] for row, count in enumerate(counts)
        ],
    }


def caption_text(number: int) -> str:
    """The text of caption ``number``: its digits in base 50, then as many words as it takes to vary the length."""
    digits = f"w{number % 50} w{number // 50}"
    return digits + " w59" * (number % 4)


def features(**captions: Any) -> datasets.Features:
    """Features with an image column."""
    captions = captions or {"captions": datasets.List(datasets.Value("string"))}
    return datasets.Features({"image": datasets.Image(), **captions})


def make_dataset(n_rows: int = 12, captions_per_row: int | None = 2) -> datasets.Dataset:
    """A data set in memory."""
    return datasets.Dataset.from_dict(make_columns(n_rows, captions_per_row), features=features())


@pytest.fixture(scope="session")
def processor() -> CaptionProcessor:
    """The target's processor."""
    return make_processor()


@pytest.fixture(scope="session")
def memory_dataset() -> datasets.Dataset:
    """Twelve rows in memory, one to three captions each."""
    return make_dataset(12, None)


@pytest.fixture
def disk_dataset(tmp_path: Any) -> datasets.Dataset:
    """Twelve rows on disk, one to three captions each."""
    make_dataset(12, None).save_to_disk(tmp_path / "stored")
    return datasets.load_from_disk(str(tmp_path / "stored"))
