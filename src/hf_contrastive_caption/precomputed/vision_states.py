"""The states of a frozen vision encoder for all images of a data set, on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_contrastive_caption.captioners import Captioner, Images
from hf_contrastive_caption.captioners.batch import Padding, join_images
from hf_contrastive_caption.captioners.verification import probe
from hf_contrastive_caption.data import CaptionCollator, ContrastiveCaptionDataset
from hf_contrastive_caption.data.examples import StoredStates
from hf_contrastive_caption.data.sampler import SampleKey
from hf_contrastive_caption.fingerprints import weights_digest
from hf_contrastive_caption.precomputed.shards import ShardStore, check_space, folder_for

SHARD_BYTES = 256 * 2**20
OPENED = "opened"
"""The name of what says which images opened."""


class VisionStates:
    """Reads the states of rows.

    Args:
        store: The states, one item for each different image.
        item_of_row: The item of each row, (n_rows,).
        padding: What may be of different sizes in different shards, and how it is padded.
    """

    def __init__(
        self, store: ShardStore, item_of_row: NDArray[np.int64], padding: Mapping[str, Padding] | None = None
    ) -> None:
        self._store = store
        self._item_of_row = item_of_row
        self._padding = padding or {}

    def read(self, rows: Sequence[int]) -> list[StoredStates]:
        """What :meth:`Captioner.encode` makes of the images of rows; of a white one where an image does not open.

        All are of one size, so that they can be put together.
        """
        read = [self._store.read(item, item + 1) for item in self._item_of_row[list(rows)].tolist()]
        opened = [bool(states.pop(OPENED)) for states in read]
        joined = join_images(read, self._padding)
        apart = [{name: value[place : place + 1] for name, value in joined.items()} for place in range(len(read))]
        return [StoredStates(states, was_opened) for states, was_opened in zip(apart, opened, strict=True)]


@dataclass(frozen=True)
class VisionWork:
    """What there is to compute for one data set.

    Args:
        data: Images, with negatives or without.
        captioner: Its frozen vision side makes the states.
        precision: What it computes in.
        directory: Where such states are kept.
    """

    data: ContrastiveCaptionDataset
    captioner: Captioner
    precision: torch.dtype
    directory: str | None

    def plan(self, autocast: AbstractContextManager[Any]) -> tuple[ShardStore, NDArray[np.int64], NDArray[np.int64]]:
        """The store, the item of each row, (n_rows,), and the first row of each item, (n_items,)."""
        vision = self.captioner.vision
        assert vision is not None
        folder, key = folder_for(
            "vision-states",
            {
                "format": 1,
                "images": self.data.images_fingerprint(),
                "image processor": self.captioner.processor.image_fingerprint(),
                "settings": self.captioner.vision_settings(),
                "weights": weights_digest(vision),
                "precision": str(self.precision),
            },
            self.directory,
        )
        rows, items = self.data.distinct_images()
        with autocast:
            states = self.encode(probe(self.captioner)[0])
        size = sum(value[0].numel() * value.element_size() for value in states.values())
        per_shard = max(1, SHARD_BYTES // size)
        bounds = np.append(np.arange(0, len(rows), per_shard), len(rows))
        store = ShardStore(folder, key, bounds)
        missing = sum(int(bounds[shard + 1] - bounds[shard]) for shard in store.missing())
        if missing:
            check_space(folder, missing * size, f"the states of {missing} images")
        return store, items, rows

    def encode(self, images: Images) -> Images:
        """The states of a batch, in the precision that the decoder reads them in."""
        opened = images.get(OPENED)
        states = self.captioner.encode({name: value for name, value in images.items() if name != OPENED})
        kept = {name: _in_precision(value, self.precision) for name, value in states.items()}
        return kept if opened is None else {**kept, OPENED: opened.to(torch.uint8)}


@dataclass(frozen=True)
class ImageBatches:
    """Opens images, in a worker, which gets no model.

    Args:
        data: The data set.
        rows: The row of each item, (n_items,).
    """

    data: ContrastiveCaptionDataset
    rows: NDArray[np.int64]

    def __call__(self, items: list[int]) -> Images:
        """The images of some items; those that do not open are white."""
        examples = self.data.__getitems__([SampleKey(0, row) for row in self.rows[items].tolist()])
        batch = CaptionCollator(self.data.processors, self.data.num_negatives)(examples)
        return {**batch["images"], OPENED: ~batch["skipped"]}


def _in_precision(value: Tensor, precision: torch.dtype) -> Tensor:
    return value.to(precision) if value.is_floating_point() else value
