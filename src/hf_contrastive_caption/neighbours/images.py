"""The images of a data set, each once, with all captions that any of its rows has for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor

from hf_contrastive_caption.data import ContrastiveCaptionDataset
from hf_contrastive_caption.data.by_image import CaptionsByImage
from hf_contrastive_caption.data.collator import open_images, refuse
from hf_contrastive_caption.data.sampler import SampleKey
from hf_contrastive_caption.evaluation.metrics.prepared import PreparedReferences
from hf_contrastive_caption.evaluation.metrics.tokenization import ptb_tokenize
from hf_contrastive_caption.precomputed.vision_states import OPENED
from hf_contrastive_caption.processing import read_images

_TEXTS_AT_ONCE = 4096


@dataclass(frozen=True)
class ImageSet:
    """Images, numbered in the order of their first rows.

    Args:
        data: The data set, without augmentation.
        image_of_row: The number of each row's image, (n_rows,).
        first_row: The first row of each image, (n_images,).
        captions: Their captions.
    """

    data: ContrastiveCaptionDataset
    image_of_row: NDArray[np.int64]
    first_row: NDArray[np.int64]
    captions: CaptionsByImage

    @classmethod
    def of(cls, data: ContrastiveCaptionDataset) -> ImageSet:
        """The images of a data set; rows show the same image if its id or its bytes are the same."""
        image_of_row, first_row = data.same_images()
        return cls(data.without_augmentation(), image_of_row, first_row, data.captions_by_image(image_of_row))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.first_row)

    def texts(self, images: list[int]) -> list[list[str]]:
        """The captions of some images."""
        start = self.captions.start
        numbers = [self.captions.numbers[start[image] : start[image + 1]] for image in images]
        found = iter(self.data.caption_texts(np.concatenate(numbers)))
        return [[next(found) for _ in of_one] for of_one in numbers]

    @cached_property
    def words(self) -> PreparedReferences:
        """The words of all captions, as COCO's evaluation sees them, by image."""
        known: dict[str, str] = {}  # each word once in memory
        words = []
        for first in range(0, len(self), _TEXTS_AT_ONCE):
            texts = self.texts(list(range(first, min(first + _TEXTS_AT_ONCE, len(self)))))
            split = iter(ptb_tokenize([text for of_one in texts for text in of_one]))
            words += [[[known.setdefault(word, word) for word in next(split)] for _ in of_one] for of_one in texts]
        return PreparedReferences(words)


@dataclass(frozen=True)
class OpenedImages:
    """Opens images for a model that is no captioner, in a worker, which gets no model.

    Args:
        images: The images.
        image_processor: The model's.
    """

    images: ImageSet
    image_processor: BaseImageProcessor

    def __call__(self, numbers: list[int]) -> dict[str, Tensor]:
        """What the image processor makes of some images, and which opened; those that do not are white."""
        rows = self.images.first_row[numbers].tolist()
        data = self.images.data.positives_alone()
        examples = data.__getitems__([SampleKey(0, row) for row in rows])
        opened, closed = open_images(examples)
        (pixels,), refused = read_images([self._read], opened)
        refuse(examples, refused, closed)
        return {**pixels, OPENED: ~torch.tensor(closed)}

    def _read(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        return dict(self.image_processor(images=list(images), return_tensors="pt"))
