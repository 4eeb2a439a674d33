"""What tells how near two images are: states of the reference, or a dual encoder's features of images or captions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_contrastive_caption.captioners import Images
from hf_contrastive_caption.captioners.determinism import evaluation_mode
from hf_contrastive_caption.evaluation.metrics.ngrams import pack, unpack
from hf_contrastive_caption.evaluation.metrics.prepared import PreparedReferences
from hf_contrastive_caption.evaluation.retrieval.retrievers import DualEncoderRetriever
from hf_contrastive_caption.neighbours.images import ImageSet, OpenedImages
from hf_contrastive_caption.neighbours.search import SparseFeatures
from hf_contrastive_caption.precomputed.vision_states import OPENED, ImageBatches
from hf_contrastive_caption.reference import Reference

FEATURES = "features"


class FeatureSource(ABC):
    """Makes a vector for each image, in batches.

    Attributes:
        description: What it is, for the log.
        centred: Whether the mean of all vectors is taken off before they are compared.
        by_reference: Whether it computes in the precision of the training.
    """

    description: str
    centred = False
    by_reference = False

    @abstractmethod
    def depends_on(self) -> dict[str, Any]:
        """What the vectors depend on beside images and captions; JSON."""

    @abstractmethod
    def batches(self, images: ImageSet) -> Callable[[list[int]], Any]:
        """What makes a batch of some of the images, in a worker."""

    @abstractmethod
    def features(self, batch: Any) -> dict[str, Tensor]:
        """``features``, float32, (n, width), and ``opened``: whether the images opened, (n,), of a batch."""

    @abstractmethod
    def ready(self, device: torch.device) -> AbstractContextManager[None]:
        """A context with the model on a device, without noise."""


class ReferenceFeatures(FeatureSource):
    """The mean of the states that the reference's decoder reads.

    Args:
        reference: The reference.

    Raises:
        ValueError: The reference has no states that belong to the image alone.
    """

    centred = True
    by_reference = True

    def __init__(self, reference: Reference) -> None:
        captioner = reference.captioner
        if captioner.vision is None:
            raise ValueError(
                f"{captioner.name} has no vision encoder that could be run without the caption, so its states cannot "
                "tell which images look alike. Give an image-text dual encoder as hard_negative_encoder, or set "
                "hard_negative_source='captions'"
            )
        self._reference = reference
        self.description = "states of the reference"

    def depends_on(self) -> dict[str, Any]:
        """See :meth:`FeatureSource.depends_on`."""
        image_processor = self._reference.processor.image_fingerprint()
        return {"reference": self._reference.digest(), "image processor": image_processor}

    def batches(self, images: ImageSet) -> Callable[[list[int]], Any]:
        """See :meth:`FeatureSource.batches`; reads the states that the data set has, if they are the reference's."""
        data = images.data
        if not self._reference.shares_vision:
            data = data.detached()  # a vision encoder of its own needs the images
        if len(data.processors) > 1 or not self._reference.processor.reads_like(data.processors[0]):
            data = data.with_processors([self._reference.processor])
        return ImageBatches(data.positives_alone(), images.first_row)

    def features(self, batch: Images) -> dict[str, Tensor]:
        """See :meth:`FeatureSource.features`."""
        states = self._reference.encode({name: value for name, value in batch.items() if name != OPENED})
        means = [mean_state(value) for value in states.values() if value.is_floating_point()]
        return {FEATURES: torch.cat(means, dim=1), OPENED: batch[OPENED]}

    def ready(self, device: torch.device) -> AbstractContextManager[None]:
        """See :meth:`FeatureSource.ready`."""
        self._reference.captioner.model.to(device)
        return evaluation_mode(self._reference.captioner.model)


class DualEncoderFeatures(FeatureSource):
    """Features of an image-text dual encoder: of images, or the mean of those of an image's captions.

    Args:
        encoder: The dual encoder.
        of_captions: Whether captions are read, and no images.
    """

    def __init__(self, encoder: DualEncoderRetriever, of_captions: bool) -> None:
        self._encoder = encoder
        self._of_captions = of_captions
        what = "captions" if of_captions else "images"
        self.description = f"{what} as {type(encoder.model).__name__} sees them"

    def depends_on(self) -> dict[str, Any]:
        """See :meth:`FeatureSource.depends_on`."""
        return {"dual encoder": self._encoder.fingerprint(), "of captions": self._of_captions}

    def batches(self, images: ImageSet) -> Callable[[list[int]], Any]:
        """See :meth:`FeatureSource.batches`."""
        if self._of_captions:
            return images.texts
        return OpenedImages(replace(images, data=images.data.detached()), self._encoder.image_processor)

    def features(self, batch: Any) -> dict[str, Tensor]:
        """See :meth:`FeatureSource.features`."""
        if not self._of_captions:
            pixels = {name: value for name, value in batch.items() if name != OPENED}
            return {FEATURES: self._encoder.pixel_features(pixels), OPENED: batch[OPENED]}
        of_captions = self._encoder.text_features([text for texts in batch for text in texts])
        means = [of_one.mean(0) for of_one in of_captions.split([len(texts) for texts in batch])]
        return {FEATURES: torch.stack(means), OPENED: torch.ones(len(batch), dtype=torch.uint8)}

    @contextmanager
    def ready(self, device: torch.device) -> Iterator[None]:
        """See :meth:`FeatureSource.ready`; afterwards the model is where it was: the training does not need it."""
        model: Any = self._encoder.model
        before = model.device
        model.to(device)
        try:
            yield
        finally:
            model.to(before)


def mean_state(states: Tensor) -> Tensor:
    """The mean over all positions but those of padding, which are zero.

    Args:
        states: (n_images, ..., width).

    Returns:
        float32, (n_images, width).
    """
    flat = states.float().flatten(1, -2) if states.dim() > 2 else states.float()[:, None]  # (n_images, n, width)
    real = (flat != 0).any(2).sum(1).clamp_min(1)  # (n_images,)
    return flat.sum(1) / real[:, None]


def word_features(references: PreparedReferences) -> SparseFeatures:
    """How often each word stands in the captions of each image, times ln(n_images / images that have the word).

    Args:
        references: The words of all captions, by image.
    """
    counts = references.counts
    text, word = unpack(counts.orders[0].keys)
    keys, place = np.unique(pack(references.image[text], word), return_inverse=True)
    image, column = unpack(keys)
    n_words = counts.vocabulary.size(1)
    idf = np.log(len(references) / np.bincount(column, minlength=n_words))  # (n_words,)
    value = np.bincount(place, counts.orders[0].counts).astype(np.float64) * idf[column]
    telling = value > 0  # a word of every image says nothing
    return SparseFeatures(image[telling], column[telling], value[telling], (len(references), n_words))
