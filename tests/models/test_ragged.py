"""Flat captions become packed sequences and come back."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from hf_contrastive_caption.models.ragged import pack, unpack


@pytest.mark.parametrize("lengths", [[3, 1, 4, 4, 2], [1], [1, 1, 1], [5, 5], [1, 2, 3]])
def test_equals_the_packing_of_separate_tensors(lengths: list[int]) -> None:
    values = torch.randn(sum(lengths), 3, requires_grad=True)
    packed = pack(values, lengths)
    expected = pack_sequence(values.split(lengths), enforce_sorted=False)
    for one, other in zip(packed, expected, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(unpack(packed), values)
    weights = torch.randn_like(values)
    (gradient,) = torch.autograd.grad((unpack(packed) * weights).sum(), values)
    assert torch.equal(gradient, weights)
