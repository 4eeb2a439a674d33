"""Flat captions, one behind the other, through recurrent layers that step through all of them together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hf_contrastive_caption.models.state import RecurrentState

Reader = Callable[[Tensor, RecurrentState], tuple[Tensor, RecurrentState]]
"""From values (n_captions, steps, width) and the states before them to outputs of the layer, (n_captions, steps,
size), and the states behind them."""


def read_ragged(
    values: Tensor, lengths: list[int], state: RecurrentState, read: Reader
) -> tuple[Tensor, RecurrentState]:
    """Run a recurrent layer over flat captions of different lengths, without a step for padding.

    Captions start together, the longest first. From the end of one to the next end those that still run are a dense
    batch, so the layer is called once for each different length. For captions of one length this is the one call that
    there would be without lengths. An ``nn.LSTM`` runs dense batches by oneDNN on processors, and packed sequences
    step by step without it, which is slower where gradients are taken; see ``docs/benchmarks.md``.

    Equal to a call for each caption; ``tests/models/test_ragged.py`` does that.

    Args:
        values: What the layer reads, (n_tokens, width).
        lengths: Tokens of each caption, at least one.
        state: The state of each caption before its first token.
        read: The layer.

    Returns:
        The layer's outputs in the order of ``values``, (n_tokens, size), and the state behind the last token of each
        caption.
    """
    sizes = torch.tensor(lengths)
    order = sizes.argsort(descending=True, stable=True)  # (n_captions,)
    starts = (sizes.cumsum(0) - sizes)[order]
    ends, counts = sizes.unique(return_counts=True)  # ascending
    order_there = order.to(values.device)
    now = state.select(order_there)
    running, begin = len(lengths), 0
    outputs, places, ended = [], [], []
    for end, leaving in zip(ends.tolist(), counts.tolist(), strict=True):
        place = (starts[:running, None] + torch.arange(begin, end)).flatten()  # (running * steps,)
        there = place.to(values.device)
        out, now = read(values.index_select(0, there).view(running, end - begin, -1), now)
        outputs.append(out.flatten(0, 1))
        places.append(place)
        running, begin = running - leaving, end
        now, done = now.split(running)
        ended.append(done)
    back = torch.cat(places).argsort().to(values.device)
    after = RecurrentState.concatenate(ended[::-1]).select(order_there.argsort())
    return torch.cat(outputs).index_select(0, back), after
