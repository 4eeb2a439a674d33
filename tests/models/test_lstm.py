"""The LSTM under autocast, on processors with and without fused layers of lower precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from hf_contrastive_caption.models import lstm
from hf_contrastive_caption.models.lstm import ProcessorLSTM

LOWER = [torch.bfloat16, torch.float16]


def layer():
    torch.manual_seed(0)
    made = ProcessorLSTM(8, 16, 2, batch_first=True)
    return made, torch.randn(3, 5, 8), (torch.randn(2, 3, 16), torch.randn(2, 3, 16))


@pytest.mark.parametrize("dtype", LOWER)
def test_without_fused_layers_it_computes_in_the_precision_of_its_weights(monkeypatch, dtype):
    monkeypatch.setattr(lstm, "processor_computes_in", lambda asked: asked != dtype)
    made, values, state = layer()
    rounded = values.to(dtype)  # what a linear layer before it gives under autocast
    exact, exact_state = nn.LSTM.forward(made, rounded.float(), state)
    with torch.autocast("cpu", dtype):
        found, after = made(rounded, state)
        without_state, _ = made(rounded)
    assert torch.equal(without_state, nn.LSTM.forward(made, rounded.float())[0])
    assert torch.equal(found, exact) and all(map(torch.equal, after, exact_state))
    gradients = [torch.autograd.grad(one.square().sum(), made.parameters()) for one in (found, exact)]
    assert all(map(torch.equal, *gradients)) and all(one.abs().max() > 0 for one in gradients[0])


@pytest.mark.parametrize("dtype", LOWER)
def test_with_fused_layers_autocast_is_left_to_torch(monkeypatch, dtype):
    seen = []

    def forward(self, values, state=None):
        seen.append((torch.is_autocast_enabled("cpu"), values.dtype))
        return values, state

    monkeypatch.setattr(nn.LSTM, "forward", forward)
    monkeypatch.setattr(lstm, "processor_computes_in", lambda asked: asked == dtype)
    made, values, _ = layer()
    with torch.autocast("cpu", dtype):
        made(values.to(dtype))
    made(values)
    assert seen == [(True, dtype), (False, torch.float32)]


@pytest.mark.parametrize("dtype", LOWER)
@pytest.mark.parametrize("gradients", [True, False])
def test_it_runs_under_autocast_on_this_processor(dtype, gradients):
    made, values, state = layer()
    exact, _ = made(values, state)
    with torch.set_grad_enabled(gradients), torch.autocast("cpu", dtype):
        found, _ = made(values, state)
    assert (found.float() - exact).abs().max() < 0.03
    assert found.requires_grad == gradients


@pytest.mark.parametrize("fused", [True, False])
def test_packed_sequences_give_what_their_captions_give_alone(monkeypatch, fused):
    monkeypatch.setattr(lstm, "processor_computes_in", lambda asked: fused)
    made, values, _ = layer()
    captions = [values[0], values[1, :2], values[2, :4]]
    packed = pack_sequence(captions, enforce_sorted=False)
    alone = [made(caption[None])[0][0] for caption in captions]
    for found, caption in zip(unpack_sequence(made(packed)[0]), alone, strict=True):
        assert (found - caption).abs().max() < 1e-6
    if not fused:
        with torch.autocast("cpu", torch.bfloat16):
            lower = unpack_sequence(made(packed.to(torch.bfloat16))[0])
        assert all(found.dtype == torch.float32 for found in lower)
        for found, caption in zip(lower, alone, strict=True):
            assert 0 < (found - caption).abs().max() < 0.03
