"""The ragged batch of captions."""

from __future__ import annotations

import pytest
import torch

from hf_contrastive_caption.captioners import caption_batch


def test_layout() -> None:
    batch = caption_batch([[5, 6, 2], [2], [7, 2]], [1, 0, 1])
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [5, 6, 2, 2, 7, 2],
        "lengths": [3, 1, 2],
        "image_index": [1, 0, 1],
    }
    assert {value.dtype for value in batch.values()} == {torch.int64}
    assert type(batch) is dict


def test_as_many_images_as_captions() -> None:
    with pytest.raises(ValueError, match="given 2 captions and 1 image indices"):
        caption_batch([[2], [2]], [0])


def test_a_caption_has_a_token() -> None:
    with pytest.raises(ValueError, match="caption 1 has no tokens"):
        caption_batch([[2], [], []], [0, 0, 0])
