"""Flat captions, one behind the other, as sequences that recurrent layers step through together."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


def pack(values: Tensor, lengths: list[int]) -> PackedSequence:
    """Flat values of captions as a packed sequence.

    Equal to ``pack_sequence(values.split(lengths), enforce_sorted=False)``, without a tensor for each caption.

    Args:
        values: (n_tokens, width).
        lengths: Tokens of each caption.
    """
    sizes = torch.tensor(lengths)
    real = _real(sizes, values.device)
    padded = values.new_zeros(*real.shape, values.shape[1])
    padded[real] = values
    return pack_padded_sequence(padded, sizes, batch_first=True, enforce_sorted=False)


def unpack(packed: PackedSequence) -> Tensor:
    """The flat values of a packed sequence, (n_tokens, width), in the order in which :func:`pack` was given them."""
    padded, sizes = pad_packed_sequence(packed, batch_first=True)
    values: Tensor = padded[_real(sizes, padded.device)]
    return values


def _real(sizes: Tensor, device: torch.device) -> Tensor:
    """Where a padded batch has tokens, (n_captions, longest)."""
    return (torch.arange(int(sizes.max())) < sizes[:, None]).to(device)
