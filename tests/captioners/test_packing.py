"""Rows of captions and their masks against plain loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_contrastive_caption.captioners import CaptionBatch, caption_batch
from hf_contrastive_caption.captioners.packing import block_causal_mask, decoder_rows, sum_by_caption

START, PAD = 101, 102


@st.composite
def batches(draw: st.DrawFn) -> tuple[CaptionBatch, int]:
    """Captions of one to six tokens for up to five images in any order; some images have none."""
    num_images = draw(st.integers(1, 5))
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=8))
    image_index = draw(st.lists(st.integers(0, num_images - 1), min_size=len(lengths), max_size=len(lengths)))
    tokens = iter(range(1000))
    return caption_batch([[next(tokens) for _ in range(length)] for length in lengths], image_index), num_images


def naive_rows(
    captions: CaptionBatch, num_images: int, packed: bool
) -> tuple[list[list[int]], list[list[int]], list[list[int]], list[int]]:
    sentences = [piece.tolist() for piece in captions["input_ids"].split(captions["lengths"].tolist())]
    row_of = captions["image_index"].tolist() if packed else list(range(len(sentences)))
    num_rows = num_images if packed else len(sentences)
    tokens: list[list[int]] = [[] for _ in range(num_rows)]
    positions: list[list[int]] = [[] for _ in range(num_rows)]
    numbers: list[list[int]] = [[] for _ in range(num_rows)]
    places = []
    for number, (sentence, row) in enumerate(zip(sentences, row_of, strict=True)):
        for position, token in enumerate([START, *sentence[:-1]]):
            places.append((row, len(tokens[row])))
            tokens[row].append(token)
            positions[row].append(position)
            numbers[row].append(number)
    width = max(len(row) for row in tokens)
    for rows, fill in ((tokens, PAD), (positions, 0), (numbers, -1)):
        for row in rows:
            row.extend([fill] * (width - len(row)))
    return tokens, positions, numbers, [row * width + column for row, column in places]


@given(batches(), st.booleans())
def test_decoder_rows(batch: tuple[CaptionBatch, int], packed: bool) -> None:
    captions, num_images = batch
    rows = decoder_rows(captions, num_images, START, PAD, packed=packed)
    tokens, positions, numbers, source = naive_rows(captions, num_images, packed)
    assert rows.input_ids.tolist() == tokens
    assert rows.position_ids.tolist() == positions
    assert rows.caption_ids.tolist() == numbers
    assert rows.source.tolist() == source
    assert rows.packed is packed


def test_decoder_rows_written_out() -> None:
    captions = caption_batch([[11, 12, 2], [21, 2], [31, 2]], [2, 0, 2])
    rows = decoder_rows(captions, 3, START, PAD, packed=True)
    assert rows.input_ids.tolist() == [
        [START, 21, PAD, PAD, PAD],
        [PAD, PAD, PAD, PAD, PAD],
        [START, 11, 12, START, 31],
    ]
    assert rows.position_ids.tolist() == [[0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, 2, 0, 1]]
    assert rows.caption_ids.tolist() == [[1, 1, -1, -1, -1], [-1, -1, -1, -1, -1], [0, 0, 0, 2, 2]]
    assert rows.source.tolist() == [10, 11, 12, 0, 1, 13, 14]


@given(batches(), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_block_causal_mask(batch: tuple[CaptionBatch, int], dtype: torch.dtype) -> None:
    captions, num_images = batch
    numbers = decoder_rows(captions, num_images, START, PAD, packed=True).caption_ids
    mask = block_causal_mask(numbers, dtype)
    rows, width = numbers.shape
    assert mask.shape == (rows, 1, width, width)
    assert mask.dtype == dtype
    for row in range(rows):
        for query in range(width):
            for key in range(width):
                seen = key <= query and bool(numbers[row, key] == numbers[row, query])
                assert mask[row, 0, query, key].item() == (0.0 if seen else torch.finfo(dtype).min)
    assert (mask == 0).any(dim=-1).all()  # no softmax over nothing, in padding neither


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8))
def test_sum_by_caption(lengths: list[int]) -> None:
    generator = torch.Generator().manual_seed(len(lengths))
    values = torch.randn(sum(lengths), dtype=torch.float64, generator=generator)
    expected = [float(piece.sum()) for piece in values.split(lengths)]
    assert sum_by_caption(values, torch.tensor(lengths)).tolist() == pytest.approx(expected, abs=1e-12)


def test_sum_by_caption_gradient() -> None:
    values = torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: sum_by_caption(values, torch.tensor([3, 1, 2])), (values,))
