"""What a step of the GAN reads: images, their vectors for the evaluator, right captions and wrong ones."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from torch import Tensor

from gan.evaluator import pooled
from gan.sampling import every
from gan.settings import GanSettings
from hf_contrastive_caption.captioners import CaptionBatch, Captioner, Images
from hf_contrastive_caption.captioners.encoder_decoder import EncoderDecoderCaptioner
from hf_contrastive_caption.data import CaptionCollator, ContrastiveCaptionDataset
from hf_contrastive_caption.data.keyed import derive_key, keyed_permutation
from hf_contrastive_caption.data.sampler import SampleKey
from hf_contrastive_caption.precomputed.shards import fill_shards
from hf_contrastive_caption.precomputed.vision_states import ImageBatches, VisionStates, VisionWork

NUM_NEGATIVES = 1
ENCODED_AT_ONCE = 64


class GanBatch(NamedTuple):
    """A step's images with captions from the data.

    Attributes:
        images: What the generator reads.
        vectors: What the evaluator reads, (n_images, state_width).
        real: A caption of each image.
        mismatched: For each image a caption of another one.
    """

    images: Images
    vectors: Tensor
    real: CaptionBatch
    mismatched: CaptionBatch


class GanData:
    """The batches of a training, each a pure function of (seed, step).

    Captions and wrong captions are those of the library's data set with one negative: never of the same image, nor of
    the same text. States of the vision encoder are computed at the start, once for each image, and kept on disk.

    Args:
        captioner: The generator as it was given, in evaluation mode.
        dataset: One split, with an image column and captions.
        settings: Batch size, seed, longest caption, and whether the vision encoder is frozen.

    Raises:
        ValueError: If the captioner has no vision encoder of its own, its states have a size that depends on the
            image, or the data has fewer images than a batch.
    """

    def __init__(self, captioner: Captioner, dataset: datasets.Dataset, settings: GanSettings) -> None:
        _check_vision(captioner)
        limits = [settings.max_new_tokens, captioner.processor.max_caption_tokens or settings.max_new_tokens]
        processor = replace(captioner.processor, max_caption_tokens=min(limits))
        self._data = ContrastiveCaptionDataset(dataset, [processor], NUM_NEGATIVES, seed=settings.seed)
        if len(self._data) < settings.batch_size:
            raise ValueError(
                f"the data has {len(self._data)} rows and a batch {settings.batch_size}; give a smaller batch_size"
            )
        self._captioner = captioner
        self._settings = settings
        self._collate = CaptionCollator([processor], NUM_NEGATIVES)
        self._encoded = copy.copy(self._data)
        self._encoded.vision_states = _vision_states(captioner, self._data, settings.precomputed_dir)
        # The only family whose generate() takes states in place of images.
        self._generator_reads_states = settings.freeze_vision_encoder and isinstance(
            captioner, EncoderDecoderCaptioner
        )

    def fingerprint(self) -> str:
        """A hash of images and captions."""
        return self._data.fingerprint()

    def batch(self, step: int) -> GanBatch:
        """The batch of a step; rows that are left at the end of an epoch are not used in it."""
        size, count = self._settings.batch_size, len(self._data)
        epoch, place = divmod(step, count // size)
        places = np.arange(place * size, (place + 1) * size)
        rows = keyed_permutation(places, count, derive_key(self._settings.seed, "order", epoch))
        keys = [SampleKey(epoch, row) for row in rows.tolist()]
        encoded = _moved(self._collate(self._encoded.__getitems__(keys)), self._captioner.device)
        captions = encoded["captions"]
        images = encoded["images"]
        if not self._generator_reads_states:
            images = self._captioner.placed(self._collate(self._data.__getitems__(keys))["images"])
        real, mismatched = (every(captions, first, 1 + NUM_NEGATIVES) for first in (0, 1))
        return GanBatch(images, pooled(encoded["images"]), real, mismatched)


def _check_vision(captioner: Captioner) -> None:
    if captioner.vision is None:
        raise ValueError(
            f"{captioner.name} has no vision encoder that runs without a caption, and the evaluator reads its states; "
            "use another captioner, or say vision_path and states_argument of your own"
        )
    if captioner.padding():
        raise ValueError(
            f"{captioner.name} makes states of sizes that depend on image and prompt, whose mean the evaluator would "
            "take over padding too; use a captioner with images of one size, such as a VisionEncoderDecoderModel"
        )


def _vision_states(captioner: Captioner, data: ContrastiveCaptionDataset, directory: str | None) -> VisionStates:
    """The states of all images, those that are not on disk computed."""
    work = VisionWork(data, captioner, captioner.dtype, directory)
    store, items, rows = work.plan(nullcontext())
    with torch.no_grad():
        fill_shards(
            store.missing(),
            store.bounds,
            ImageBatches(data, rows),
            lambda batch: work.encode(_moved(batch, captioner.device)),
            store.write,
            batch_size=ENCODED_AT_ONCE,
            num_workers=0,
            progress=None,
        )
    return VisionStates(store, items)


def _moved(batch: Any, device: torch.device) -> Any:
    """Nested dicts of tensors on a device."""
    if isinstance(batch, dict):
        return {name: _moved(value, device) for name, value in batch.items()}
    return batch.to(device)
