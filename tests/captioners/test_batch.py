"""The ragged batch of captions."""

from __future__ import annotations

import pytest
import torch

from hf_contrastive_caption.captioners import caption_batch
from hf_contrastive_caption.captioners.batch import Padding, join_images


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


def test_joined_images_are_padded_where_they_may_be() -> None:
    parts = [{"ids": torch.tensor([[5, 6]]), "states": torch.ones(1, 1, 2)}]
    parts.append({"ids": torch.tensor([[7, 8, 9]]), "states": torch.full((1, 2, 2), 2.0)})
    joined = join_images(parts, {"ids": Padding(3, left=True), "states": Padding(0)})
    assert joined["ids"].tolist() == [[3, 5, 6], [7, 8, 9]]
    assert joined["states"].tolist() == [[[1, 1], [0, 0]], [[2, 2], [2, 2]]]
    with pytest.raises(ValueError, match=r"states has different sizes for different images \(\(1, 2\), \(2, 2\)\)"):
        join_images(parts, {"ids": Padding(3, left=True)})
