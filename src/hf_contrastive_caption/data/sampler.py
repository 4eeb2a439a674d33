"""The order of an epoch, and how the epoch reaches the workers.

``set_epoch`` on a data set changes the copy in the main process. Workers that persist, and workers of a loader that
Accelerate has wrapped for several processes, never hear of it. So the epoch travels inside the index, as a
:class:`SampleKey`, and whatever is drawn for the row is a function of the key.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from hf_contrastive_caption.data.keyed import derive_key, keyed_permutation

_CHUNK = 4096


class SampleKey(NamedTuple):
    """What an epoch asks a data set for: a row, in an epoch, and how much it counts (0 for padding)."""

    epoch: int
    row: int
    weight: float = 1.0


class SharedEpoch:
    """An epoch number in memory that all workers share, as the workers of ``datasets`` streams have it."""

    def __init__(self, epoch: int = 0) -> None:
        self._value = torch.tensor(epoch, dtype=torch.int64)
        self._value.share_memory_()

    def __setstate__(self, state: dict[str, torch.Tensor]) -> None:
        self.__dict__.update(state)
        self._value.share_memory_()  # pickled by value, a copy would be private; already shared memory stays as it is

    def get(self) -> int:
        """The epoch."""
        return int(self._value)

    def set(self, epoch: int) -> None:
        """Change the epoch, for the workers too."""
        self._value.fill_(epoch)


class EpochSource(Protocol):
    """A data set with a length and an epoch."""

    def __len__(self) -> int:
        """Number of rows."""
        ...

    @property
    def epoch(self) -> int:
        """The epoch that its next examples are of."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch."""
        ...


class EpochSampler(Sampler[SampleKey]):
    """Goes once through a data set, in an order that is a pure function of (seed, epoch), in O(1) memory.

    The end of an epoch is filled up with rows of weight 0, so that every process gets full batches and no row counts
    twice. (Accelerate's ``even_batches`` repeats rows with full weight.)

    The sampler keeps its epoch in the data set, because Accelerate reaches sometimes the one and sometimes the other:
    after a resume within an epoch of two processes, ``DataLoaderShard.set_epoch`` finds only the data set's.

    Args:
        dataset: The data set, for its length and epoch.
        seed: Another seed, other orders.
        shuffle: Whether to permute the rows; ``False`` for evaluation.
        pad_to: The number of examples is filled up to a multiple of this: the batch size times the number of
            processes. 1 for no padding.

    Raises:
        ValueError: ``pad_to`` is less than 1.
    """

    def __init__(self, dataset: EpochSource, seed: int = 0, shuffle: bool = True, pad_to: int = 1) -> None:
        if pad_to < 1:
            raise ValueError(f"pad_to={pad_to}; give the number of examples in a batch of all processes, at least 1.")
        self.dataset = dataset
        self.seed = seed
        self.shuffle = shuffle
        self.pad_to = pad_to

    @property
    def epoch(self) -> int:
        """The epoch of the next pass."""
        return self.dataset.epoch

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch."""
        self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        """Number of examples of an epoch, padding included."""
        return -(-len(self.dataset) // self.pad_to) * self.pad_to

    def __iter__(self) -> Iterator[SampleKey]:
        """One epoch: every row once with weight 1, then the padding with weight 0."""
        epoch, n_rows = self.epoch, len(self.dataset)
        for rows in self._pieces(epoch):
            for row in rows.tolist():
                yield SampleKey(epoch, row)
        for row in self._rows_at(np.arange(n_rows, len(self)) % n_rows, epoch).tolist():
            yield SampleKey(epoch, row, 0.0)

    def _pieces(self, epoch: int) -> Iterator[NDArray[np.int64]]:
        """The rows of an epoch in their order, some at a time."""
        n_rows = len(self.dataset)
        for start in range(0, n_rows, _CHUNK):
            yield self._rows_at(np.arange(start, min(start + _CHUNK, n_rows)), epoch)

    def _rows_at(self, places: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """The rows at some places of the epoch, (n,)."""
        if not self.shuffle:
            return places
        return keyed_permutation(places, len(self.dataset), derive_key(self.seed, "order", epoch))
