"""Ragged captions through a recurrent layer: one caption after the other gives the same."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hf_contrastive_caption.models.ragged import read_ragged
from hf_contrastive_caption.models.state import RecurrentState


class Layer(nn.Module):
    """An LSTM of two layers that notes what it is called with."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(3, 5, 2, batch_first=True, dtype=torch.float64)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, values: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        self.shapes.append(tuple(values.shape))
        outputs, (hidden, cell) = self.lstm(values, (state.hidden, state.cell))
        return outputs, RecurrentState(hidden, cell)


def one_by_one(layer: Layer, values: Tensor, lengths: list[int], state: RecurrentState) -> list[Tensor]:
    """Outputs and both parts of the states, a call for each caption."""
    found = []
    for number, piece in enumerate(values.split(lengths)):
        outputs, after = layer(piece[None], state.select(torch.tensor([number])))
        found.append((outputs[0], after.hidden, after.cell))
    outputs, hidden, cell = zip(*found, strict=True)
    return [torch.cat(outputs), torch.cat(hidden, 1), torch.cat(cell, 1)]


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_equals_one_caption_after_the_other_and_so_do_gradients(lengths: list[int]) -> None:
    layer = Layer()
    torch.manual_seed(sum(lengths))
    values = torch.randn(sum(lengths), 3, dtype=torch.float64, requires_grad=True)
    state = RecurrentState(*torch.randn(2, 2, len(lengths), 5, dtype=torch.float64))
    outputs, after = read_ragged(values, lengths, state, layer)
    assert sum(shape[0] * shape[1] for shape in layer.shapes) == sum(lengths)  # no step for padding
    assert len(layer.shapes) == len(set(lengths))
    expected = one_by_one(layer, values, lengths, state)
    directions = [torch.randn_like(value) for value in expected]
    inputs = [values, *layer.parameters()]
    gradients = []
    for found in ([outputs, after.hidden, after.cell], expected):
        for value, other in zip(found, expected, strict=True):
            torch.testing.assert_close(value, other, rtol=0, atol=1e-12)
        total = sum((value * direction).sum() for value, direction in zip(found, directions, strict=True))
        gradients.append(torch.autograd.grad(total, inputs))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
