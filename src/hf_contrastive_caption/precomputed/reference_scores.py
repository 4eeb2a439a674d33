"""The reference's scores of all captions that a training will draw, on disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_contrastive_caption.data import CaptionCollator, ContrastiveCaptionDataset
from hf_contrastive_caption.data.collator import Batch, collate_captions
from hf_contrastive_caption.data.examples import StoredScores
from hf_contrastive_caption.data.negatives import EVALUATION_EPOCH
from hf_contrastive_caption.data.sampler import SampleKey
from hf_contrastive_caption.precomputed.shards import ShardStore, folder_for
from hf_contrastive_caption.precomputed.vision_states import OPENED
from hf_contrastive_caption.processing import CaptionProcessor
from hf_contrastive_caption.reference import Reference

ROWS_PER_SHARD = 2048

_SCORES = "log_probs"


class ReferenceScores:
    """Reads the reference's scores of what is drawn for rows in an epoch.

    Args:
        stores: The scores of each epoch, one item for each positive of a row, in the order of rows.
        positive_start: Number of the first positive of each row, and of all positives, (n_rows + 1,).
    """

    def __init__(self, stores: dict[int, ShardStore], positive_start: NDArray[np.int64]) -> None:
        self._stores = stores
        self._start = positive_start

    def read(self, rows: Iterable[int], epoch: int) -> list[StoredScores]:
        """Scores of each row's positives, each with its negatives, flat: (n_positives * (1 + K),) for each row.

        Raises:
            ValueError: There are none for this epoch.
        """
        if epoch not in self._stores:
            raise ValueError(
                f"the reference's scores were computed ahead for the epochs {sorted(self._stores)}, and epoch {epoch} "
                "is asked for; train by Trainer.train(), which computes them for num_train_epochs or max_steps"
            )
        store = self._stores[epoch]
        read = [store.read(int(self._start[row]), int(self._start[row + 1])) for row in rows]
        return [StoredScores(stored[_SCORES].flatten(), bool(stored[OPENED].all())) for stored in read]


@dataclass(frozen=True)
class ScoringWork:
    """What there is to score for one data set.

    Args:
        data: Images with positives and negatives, as the reference reads them.
        reference: Who scores.
        precision: What it computes in.
        directory: Where such scores are kept.
    """

    data: ContrastiveCaptionDataset
    reference: Reference
    precision: torch.dtype
    directory: str | None

    def plan(self, epochs: list[int]) -> tuple[dict[int, ShardStore], NDArray[np.int64], NDArray[np.int64]]:
        """The store of each epoch, the bounds of shards in rows, and the first positive of each row."""
        data, processor = self.data, self.reference.processor
        folder, key = folder_for(
            "reference-scores",
            {
                "format": 2,
                "data": data.fingerprint(),
                "seed": data.seed,
                "num_negatives": data.num_negatives,
                "negatives": data.negatives_digest(),
                "captions_per_image": data.captions_per_image,
                "evaluation": data.evaluation,
                "text": processor.text_fingerprint(),
                "image processor": processor.image_fingerprint(),
                "reference": self.reference.digest(),
                "precision": str(self.precision),
            },
            self.directory,
        )
        rows = np.append(np.arange(0, len(data), ROWS_PER_SHARD), len(data))
        start = data.positive_start()
        names = {epoch: "evaluation" if epoch == EVALUATION_EPOCH else f"epoch-{epoch}" for epoch in epochs}
        stores = {epoch: ShardStore(folder / names[epoch], f"{key} {epoch}", start[rows]) for epoch in epochs}
        return stores, rows, start

    def score(self, batch: Batch, epochs: list[int]) -> dict[str, Tensor]:
        """Scores by epoch, (n_positives, 1 + K), and whether the images opened, (n_positives,), in uint8.

        The images are encoded once for all epochs.
        """
        images, width = self.reference.encode(batch["images"]), 1 + self.data.num_negatives
        found: dict[str, Tensor] = {}
        for epoch, captions in zip(epochs, batch["draws"], strict=True):
            found[f"{_SCORES} {epoch}"] = self.reference.log_probs(images, captions).view(-1, width)
            found[f"{OPENED} {epoch}"] = batch[OPENED][captions["image_index"][::width]].to(torch.uint8)
        return found


@dataclass(frozen=True)
class ScoringBatches:
    """Makes the batches to be scored, in a worker, which gets no model.

    Args:
        data: Images with positives and negatives, as the reference reads them.
        processor: How the reference reads them.
        epochs: The epochs to score.
    """

    data: ContrastiveCaptionDataset
    processor: CaptionProcessor
    epochs: list[int]

    def __call__(self, rows: list[int]) -> Batch:
        """The images of rows, and what is drawn for them in each epoch."""
        first = self.data.__getitems__([SampleKey(self.epochs[0], row) for row in rows])
        batch = CaptionCollator([self.processor], self.data.num_negatives)(first)
        draws = [batch["captions"]]
        for epoch in self.epochs[1:]:
            examples = self.data.__getitems__([SampleKey(epoch, row) for row in rows])
            draws.append(collate_captions([example.tokens[0] for example in examples]))
        return {"images": batch["images"], "draws": draws, OPENED: ~batch["skipped"]}


def write_scores(stores: dict[int, ShardStore], shard: int, tensors: dict[str, Tensor]) -> None:
    """Write a shard of each epoch that was scored."""
    for epoch, store in stores.items():
        if f"{_SCORES} {epoch}" in tensors:
            store.write(shard, {name: tensors[f"{name} {epoch}"] for name in (_SCORES, OPENED)})
