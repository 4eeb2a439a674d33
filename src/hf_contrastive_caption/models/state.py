"""What is carried from one word of a caption to the next, in place of keys and values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class RecurrentState:
    """What a recurrent decoder knows of its captions so far; it stands where other models have keys and values.

    Beam search calls :meth:`reorder_cache`, the one thing that ``generate`` asks of a cache that a model made.

    Attributes:
        hidden: The LSTM's output, (layers, n_captions, hidden_size).
        cell: The LSTM's memory, (layers, n_captions, hidden_size).
        seen: What the decoder made of the images, so that the next word need not compute it again; ``generate`` has
            a row of it for each caption, and beams only change places with beams of the same image.
    """

    def __init__(self, hidden: Tensor, cell: Tensor, seen: tuple[Tensor, ...] | None = None) -> None:
        self.hidden = hidden
        self.cell = cell
        self.seen = seen

    def select(self, index: Tensor) -> RecurrentState:
        """The states with these numbers, (n_captions,), in this order."""
        return RecurrentState(self.hidden.index_select(1, index), self.cell.index_select(1, index))

    def split(self, number: int) -> tuple[RecurrentState, RecurrentState]:
        """The states of the first ``number`` captions, and those of the others."""
        first = RecurrentState(self.hidden[:, :number].contiguous(), self.cell[:, :number].contiguous())
        return first, RecurrentState(self.hidden[:, number:], self.cell[:, number:])

    @classmethod
    def concatenate(cls, states: Sequence[RecurrentState]) -> RecurrentState:
        """The captions of all states, one behind the other."""
        return cls(torch.cat([state.hidden for state in states], 1), torch.cat([state.cell for state in states], 1))

    @classmethod
    def join(cls, states: Sequence[RecurrentState], groups: int) -> RecurrentState:
        """States of several runs of captions as one, where each run has equally many captions of each group.

        Args:
            states: Their captions are ordered by group.
            groups: Number of groups, such as images.

        Returns:
            All captions of the first group, in the order of the runs, then those of the second one, and so on.
        """
        if len(states) == 1:
            return states[0]

        def together(parts: list[Tensor]) -> Tensor:
            split = [part.unflatten(1, (groups, -1)) for part in parts]  # (layers, groups, n, hidden_size)
            return torch.cat(split, dim=2).flatten(1, 2)

        return cls(together([state.hidden for state in states]), together([state.cell for state in states]))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Put the states of the chosen beams, (n_beams,), in the place of all."""
        chosen = self.select(beam_idx.to(self.hidden.device))
        self.hidden, self.cell = chosen.hidden, chosen.cell
