"""Batches of rows whose captions are about equally long, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hf_contrastive_caption.data.keyed import derive_key, keyed_permutation
from hf_contrastive_caption.data.sampler import EpochSampler, EpochSource

WINDOW_STEPS = 50
"""Optimizer steps whose rows are sorted together, as in transformers' ``LengthGroupedSampler``."""


class LengthSource(EpochSource, Protocol):
    """A data set that knows how long the captions of a row are, before it makes an example of it."""

    def row_lengths(self, rows: NDArray[np.int64], epoch: int, *, packed: bool) -> NDArray[np.int64]:
        """Tokens of all captions that a row brings to an epoch, or of the longest, (n,) for rows (n,)."""
        ...


class LengthBucketSampler(EpochSampler):
    """Goes once through a data set as :class:`EpochSampler` does, with rows of about equal length in a step.

    The keyed permutation of an epoch is cut into windows of :data:`WINDOW_STEPS` steps. The rows of a window are
    sorted by the length of their captions (positives and negatives as drawn for this epoch) and cut into steps, whose
    order is shuffled by a key. So the order is still a pure function of (seed, epoch), known in O(window) memory. Rows
    that are too few for a whole step come last, whatever their length.

    Args:
        dataset: The data set, for its number of rows, its epoch and its lengths.
        seed: Another seed, other orders.
        pad_to: The number of examples is filled up to a multiple of this: the batch size times the number of
            processes. 1 for no padding.
        step_size: Rows of an optimizer step in all processes and accumulation steps. The order depends on it, and not
            on how the rows of a step are divided.
        packed: Whether the captions of an image will stand in one row of the decoder, so that their tokens together
            count, or in one each, so that the longest counts.

    Raises:
        ValueError: ``pad_to`` or ``step_size`` is less than 1.
    """

    dataset: LengthSource

    def __init__(self, dataset: LengthSource, seed: int = 0, pad_to: int = 1, *, step_size: int, packed: bool) -> None:
        super().__init__(dataset, seed, shuffle=True, pad_to=pad_to)
        if step_size < 1:
            raise ValueError(f"step_size={step_size}; give the number of rows in an optimizer step, at least 1.")
        self.step_size = step_size
        self.packed = packed

    def _pieces(self, epoch: int) -> Iterator[NDArray[np.int64]]:
        n_rows, window = len(self.dataset), WINDOW_STEPS * self.step_size
        for start in range(0, n_rows, window):
            rows = self._rows_at(np.arange(start, min(start + window, n_rows)), epoch)  # (window,)
            lengths = self.dataset.row_lengths(rows, epoch, packed=self.packed)  # (window,)
            n_steps = len(rows) // self.step_size
            in_steps = n_steps * self.step_size
            if n_steps:
                by_length = rows[:in_steps][np.argsort(lengths[:in_steps], kind="stable")]
                key = derive_key(self.seed, "order of steps", epoch, start)
                yield by_length.reshape(n_steps, -1)[keyed_permutation(np.arange(n_steps), n_steps, key)].reshape(-1)
            yield rows[in_steps:][np.argsort(lengths[in_steps:], kind="stable")]
