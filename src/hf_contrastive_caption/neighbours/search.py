"""Which images are nearest to each image, by blocks: never are all pairs in memory."""

from __future__ import annotations

import warnings
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Similarities of a block of images with all images take so many bytes at most, twice while vectors are sparse.
BLOCK_BYTES = 128 * 2**20

_STEPS = 2**20

#: Of the lists that an index divides vectors into, as many as the square root of their number, so many are searched.
_LISTS_SEARCHED = 32


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
        """Cosine similarities of some neighbouring images with all images, float32, (stop - start, n_images).

        -inf where two images have nothing in common, so that they are no neighbours.
        """
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
        image: The image of each entry, (n_entries,), in order.
        column: Its place in the vector, (n_entries,), in order within an image.
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
        self._image, self._column = image, np.ascontiguousarray(column)
        self._value = (value / norm[image]).astype(np.float32)
        self._shape = shape
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse", UserWarning)  # "in beta state", once in a process
            self._all = torch.sparse_csr_tensor(
                torch.from_numpy(self._start), torch.from_numpy(self._column), torch.from_numpy(self._value), shape,
                check_invariants=True,
            )  # fmt: skip

    def __len__(self) -> int:
        return self._shape[0]

    def similarities(self, start: int, stop: int) -> Tensor:
        """See :meth:`Features.similarities`."""
        entries = slice(self._start[start], self._start[stop])
        block = np.zeros((self._shape[1], stop - start), np.float32)
        block[self._column[entries], self._image[entries] - start] = self._value[entries]
        found = (self._all @ torch.from_numpy(block)).T.contiguous()
        return found.masked_fill_(found <= 0, -torch.inf)


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
    found = []
    per_block = max(1, block_bytes // (4 * n_images))
    for first in range(start, stop, per_block):
        last = min(first + per_block, stop)
        steps = features.similarities(first, last).mul_(_STEPS).round_()  # (n, n_images)
        unusable = ~features.usable.to(steps.device)
        if unusable.any():
            steps[:, unusable] = -torch.inf
            steps[unusable[first:last]] = -torch.inf
        steps[torch.arange(last - first), torch.arange(first, last)] = -torch.inf
        found.append(_best(steps, k))
    return torch.cat(found).cpu().numpy()


def _best(steps: Tensor, k: int) -> Tensor:
    """The k highest of each row, equal ones in the order of columns, and -1 where there are no more: (n, k)."""
    values, columns = steps.topk(k, dim=1)
    # topk may take any of those that are equal to the last.
    tied = ((steps >= values[:, -1:]).sum(1) > k) & values[:, -1].isfinite()
    for row in tied.nonzero()[:, 0].tolist():
        values[row], columns[row] = (ranked[:k] for ranked in steps[row].sort(descending=True, stable=True))
    columns, by_column = columns.sort(dim=1)
    values, by_value = values.gather(1, by_column).sort(dim=1, descending=True, stable=True)
    columns = columns.gather(1, by_value)
    return columns.masked_fill(~values.isfinite(), -1)


class FaissIndex:
    """An index of Faiss that finds most of the nearest and does not compare all pairs.

    Vectors are divided into lists by k-means, and for an image the nearest 32 lists are searched (an inverted file,
    ``IndexIVFFlat``). The same vectors give the same neighbours.

    Args:
        features: A vector for each image.

    Raises:
        ImportError: Faiss is not there.
    """

    def __init__(self, features: DenseFeatures) -> None:
        faiss = _faiss()
        vectors = features.vectors.cpu().numpy()
        self._vectors = vectors
        self._images = np.flatnonzero(features.usable.cpu().numpy())  # in the index, (n_usable,)
        n_lists = max(1, int(np.sqrt(len(self._images))))
        width = vectors.shape[1]
        self._quantizer = faiss.IndexFlatIP(width)
        self._index: Any = faiss.IndexIVFFlat(self._quantizer, width, n_lists, faiss.METRIC_INNER_PRODUCT)
        self._index.train(vectors[self._images])
        self._index.add(vectors[self._images])
        self._index.nprobe = min(n_lists, _LISTS_SEARCHED)

    def nearest(self, start: int, stop: int, k: int) -> NDArray[np.int64]:
        """See :func:`nearest`; a row may be shorter than there are images."""
        n_images = len(self._vectors)
        k = min(k, n_images - 1)
        asked = np.arange(start, stop)
        similarity, place = self._index.search(self._vectors[asked], min(k + 1, len(self._images)))
        images = np.where(place < 0, -1, self._images[place])  # (n, k + 1)
        wanted = (images >= 0) & (images != asked[:, None]) & np.isin(asked, self._images)[:, None]
        steps = np.where(wanted, np.round(similarity * _STEPS), -np.inf)
        order = np.lexsort((images, -steps), axis=1)[:, :k]
        found = np.full((len(asked), k), -1)
        found[:, : order.shape[1]] = np.take_along_axis(np.where(wanted, images, -1), order, axis=1)
        return found


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "hard_negative_index='faiss' needs Faiss: pip install 'hf-contrastive-caption[neighbours]', or leave the "
            "option out to compare all pairs"
        ) from error
    return faiss
