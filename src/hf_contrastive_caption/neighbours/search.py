"""Which images are nearest to each image, exactly, by blocks: never are all pairs in memory."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Similarities of a block of images with all images take so many bytes at most, and twice as many beside them.
BLOCK_BYTES = 128 * 2**20

_STEPS = 2**20
_NUMBERS = 2**32


class Features(Protocol):
    """What tells how near images are.

    Attributes:
        usable: Which images can be neighbours and have neighbours, (n_images,) bool.
    """

    usable: Tensor

    def __len__(self) -> int:
        """Number of images."""
        ...

    def similarities(self, start: int, stop: int) -> Tensor:
        """Cosine similarities of some neighbouring images with all images, float32, (stop - start, n_images)."""
        ...


class DenseFeatures:
    """A vector for each image.

    Args:
        vectors: They need not be of length 1, float32, (n_images, width).
        usable: Which images have one, (n_images,) bool; all that are not zero if not given.
        centred: Take the mean off first. Pooled states of an encoder have much in common, which says nothing.
    """

    def __init__(self, vectors: Tensor, usable: Tensor | None = None, *, centred: bool = False) -> None:
        self.usable = (vectors != 0).any(1) if usable is None else usable
        if centred:
            vectors = vectors - vectors[self.usable].mean(0)
        self.vectors = torch.nn.functional.normalize(vectors, dim=1)

    def __len__(self) -> int:
        return len(self.vectors)

    def similarities(self, start: int, stop: int) -> Tensor:
        """See :meth:`Features.similarities`."""
        return self.vectors[start:stop] @ self.vectors.T


class SparseFeatures:
    """A vector for each image that is zero almost everywhere, as counts of words are.

    Args:
        image: The image of each entry, in order, (n_entries,).
        column: Its place in the vector, (n_entries,).
        value: The entry, not zero, (n_entries,).
        shape: Number of images, and length of a vector.
    """

    def __init__(
        self,
        image: NDArray[np.int64],
        column: NDArray[np.int64],
        value: NDArray[np.float64],
        shape: tuple[int, int],
    ) -> None:
        norm = np.sqrt(np.bincount(image, value**2, shape[0]))  # (n_images,)
        self.usable = torch.from_numpy(norm > 0)
        self._start = np.searchsorted(image, np.arange(shape[0] + 1))
        self._image, self._column = image, column
        self._value = (value / norm[image]).astype(np.float32)
        self._shape = shape
        self._all = torch.sparse_csr_tensor(
            torch.from_numpy(self._start), torch.from_numpy(column), torch.from_numpy(self._value), shape,
            check_invariants=False,
        )  # fmt: skip

    def __len__(self) -> int:
        return self._shape[0]

    def similarities(self, start: int, stop: int) -> Tensor:
        """See :meth:`Features.similarities`."""
        entries = slice(self._start[start], self._start[stop])
        block = np.zeros((self._shape[1], stop - start), np.float32)
        block[self._column[entries], self._image[entries] - start] = self._value[entries]
        return (self._all @ torch.from_numpy(block)).T


def nearest(features: Features, start: int, stop: int, k: int, block_bytes: int = BLOCK_BYTES) -> NDArray[np.int64]:
    """The nearest images of some neighbouring images, by cosine similarity.

    Similarities are compared in steps of 2**-20, below which matrix products differ by the sizes of their blocks;
    equal ones are in the order of numbers.

    Args:
        features: What tells how near images are.
        start: The first image.
        stop: The end of images.
        k: How many for each.
        block_bytes: Bytes of similarities in memory at one time.

    Returns:
        Numbers of other images, nearest first, (stop - start, min(k, n_images - 1)); -1 where there are no more.
    """
    n_images = len(features)
    k = min(k, n_images - 1)
    if k < 1:
        return np.full((stop - start, 0), -1)
    usable = features.usable
    found = []
    per_block = max(1, block_bytes // (4 * n_images))
    for first in range(start, stop, per_block):
        last = min(first + per_block, stop)
        similarity = features.similarities(first, last)  # (n, n_images)
        # One whole number for similarity and image, so that there are no ties: topk says nothing of their order.
        backwards = torch.arange(n_images - 1, -1, -1, device=similarity.device)
        keys = (similarity * _STEPS).round().long() * _NUMBERS + backwards
        here = torch.arange(first, last)
        never = torch.iinfo(torch.int64).min
        keys[:, ~usable.to(keys.device)] = never
        keys[torch.arange(last - first), here] = never
        best = keys.topk(k, dim=1).values.cpu()
        images = n_images - 1 - best % _NUMBERS
        images[(best == never) | ~usable.cpu()[first:last, None]] = -1
        found.append(images)
    return torch.cat(found).numpy()
