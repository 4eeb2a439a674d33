"""For each image a list of captions of the nearest other images, on disk."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_contrastive_caption.data.table import ragged_ranges
from hf_contrastive_caption.evaluation.metrics.cider_pairs import CiderDPairs
from hf_contrastive_caption.neighbours.images import ImageSet
from hf_contrastive_caption.precomputed.shards import ShardStore

CAPTIONS, SEEN, REFUSED = "captions", "seen", "refused"

Nearest = Callable[[int, int, int], NDArray[np.int64]]

LOOKED_AT = 4
"""So many times the captions of a list, those of the nearest images, are looked at to fill it."""


class StoredLists:
    """Reads the lists of images from shards, through memory mapping.

    Args:
        store: ``captions``, (n_images, pool), nearest first and -1 behind the last; how many captions were looked at
            for the list, ``seen``, and how many of them were ``refused``, (n_images,) each.
        image_of_row: The number of each row's image, (n_rows,).

    Attributes:
        refused: See :class:`~hf_contrastive_caption.data.hard_negatives.CandidateLists`.
    """

    def __init__(self, store: ShardStore, image_of_row: NDArray[np.int64]) -> None:
        self._store = store
        self.image_of_row = image_of_row
        digest = hashlib.blake2b(digest_size=16)
        seen, refused, lengths = 0, 0, []
        for shard in range(len(store.bounds) - 1):
            tensors = store.mapped(shard)
            digest.update(tensors[CAPTIONS].numpy().tobytes())
            seen, refused = seen + int(tensors[SEEN].sum()), refused + int(tensors[REFUSED].sum())
            lengths.append((tensors[CAPTIONS] >= 0).sum(1))
        self.lengths: NDArray[np.int64] = torch.cat(lengths).numpy()  # (n_images,)
        self.refused = refused / max(seen, 1)
        self._digest = digest.hexdigest()

    def read(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """The lists of some images, (n, pool), with -1 behind the end of a shorter one."""
        shards = np.searchsorted(self._store.bounds, images, side="right") - 1
        found = np.empty((len(images), self._store.mapped(0)[CAPTIONS].shape[1]), np.int64)
        for shard in np.unique(shards).tolist():
            here = np.flatnonzero(shards == shard)
            found[here] = self._store.mapped(shard)[CAPTIONS].numpy()[images[here] - self._store.bounds[shard]]
        return found

    def digest(self) -> str:
        """A hash of all lists."""
        return self._digest


class ListMaker:
    """Makes the lists.

    A caption is not taken if it says the same as one of the image's own, or if its CIDEr-D against all of these is
    above the threshold: it may be true of the image. The next nearest takes its place.

    Args:
        images: The images.
        nearest: The nearest images of some neighbouring images: gets the first, the end, and how many; see
            :func:`~hf_contrastive_caption.neighbours.search.nearest`.
        pool: Captions in a list.
        threshold: The highest CIDEr-D of a caption that is taken.
    """

    def __init__(self, images: ImageSet, nearest: Nearest, pool: int, threshold: float) -> None:
        self._captions = images.captions
        self._nearest = nearest
        self._pool = pool
        self._threshold = threshold
        self._agreement = CiderDPairs(images.words)
        self._text_key = self._captions.text_key[self._captions.numbers]  # in the order of images
        per_image = len(self._captions.numbers) / len(images)
        self._looked_at = math.ceil(LOOKED_AT * pool / per_image)

    def lists(self, numbers: list[int]) -> dict[str, Tensor]:
        """The lists of neighbouring images.

        Args:
            numbers: Their numbers, (n,).

        Returns:
            What :class:`StoredLists` reads.
        """
        near = self._nearest(numbers[0], numbers[-1] + 1, self._looked_at)
        captions = torch.full((len(numbers), self._pool), -1, dtype=torch.int32)
        seen, refused = torch.zeros(len(numbers), dtype=torch.int64), torch.zeros(len(numbers), dtype=torch.int64)
        for place, image in enumerate(numbers):
            others = near[place]
            taken, n_seen = self._of_image(image, others[others >= 0])
            captions[place, : len(taken)] = torch.from_numpy(self._captions.numbers[taken].astype(np.int32))
            seen[place], refused[place] = n_seen, n_seen - len(taken)
        return {CAPTIONS: captions, SEEN: seen, REFUSED: refused}

    def _of_image(self, image: int, others: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
        """The captions that are taken, by their places in the order of images, and how many were looked at."""
        start = self._captions.start
        own = np.arange(start[image], start[image + 1])
        candidates = ragged_ranges(start[others], start[others + 1] - start[others])  # nearest first
        taken: list[NDArray[np.int64]] = [candidates[:0]]
        missing = self._pool
        for first in range(0, len(candidates), self._pool):
            some = candidates[first : first + self._pool]
            allowed = ~np.isin(self._text_key[some], self._text_key[own])
            allowed &= self._agreement.scores(some, own) <= self._threshold
            found = np.flatnonzero(allowed)[:missing]
            taken.append(some[found])
            missing -= len(found)
            if not missing:
                return np.concatenate(taken), first + int(found[-1]) + 1
        return np.concatenate(taken), len(candidates)


def settings(pool: int, threshold: float) -> dict[str, Any]:
    """What lists depend on beside images, captions and what tells how near images are."""
    return {"pool": pool, "threshold": threshold, "looked at": LOOKED_AT}
