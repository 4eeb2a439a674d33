"""From examples to the batch that goes to the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_contrastive_caption.data.examples import CaptionExample, Tokens
from hf_contrastive_caption.processing import BLANK_SIZE, CaptionProcessor, read_images

Batch = dict[str, Any]
"""What the collator makes: nested dicts of tensors."""

REFERENCE_LOG_PROBS = "reference_log_probs"
"""Where a batch holds scores of the reference that were computed ahead, (n_captions,)."""


class CaptionCollator:
    """Opens the images of a batch and puts its captions behind each other.

    The batch is a dictionary of tensors, in this order::

        images             what the target's image processor makes, usually pixel_values (n_images, channels, h, w)
                           (or the states of the vision encoder in their place)
        captions           input_ids (n_tokens,), lengths (n_captions,), image_index (n_captions,), all int64
        reference_images   } only with a second processor, the images only where
        reference_captions } its image processor is set differently
        reference_log_probs   scores of the reference that were computed ahead, (n_captions,)
        rows               rows of the data set, (n_images,) int64
        weights            (n_images,) float32: 1, or 0 for padding and skipped images
        skipped            (n_images,) bool: the image did not open, and is white here or was where it was scored

    Images come first because ``transformers`` takes the first dimension of the first tensor for the batch size.
    Seen as (n_positives, 1 + K), the captions are each positive with its K negatives. With distractors they are each
    positive 1 + K times, once for its own image and once for each distractor; the distractors' images stand behind
    those of the rows, and an example with a distractor that does not open has weight 0.

    Args:
        processors: The target's processor, and where the reference has another one, the reference's.
        num_negatives: K, as the data set has it.
    """

    def __init__(self, processors: Sequence[CaptionProcessor], num_negatives: int) -> None:
        self.processors = tuple(processors)
        self.num_negatives = num_negatives
        fingerprints = {processor.image_fingerprint() for processor in self.processors}
        self._reference_images = len(fingerprints) == 2

    def __call__(self, examples: Sequence[CaptionExample]) -> Batch:
        """Make a batch.

        Args:
            examples: The examples, (n_images,).

        Returns:
            The batch.

        Raises:
            BadImageError: An image does not open and is not to be skipped.
            ValueError: The examples were made with another number of processors or negatives.
        """
        self._check(examples)
        shown = [*examples, *(one for example in examples for one in example.distractors)]
        images, closed = _stored_states(shown) if shown[0].vision_states is not None else self._open(shown)
        skipped = [
            skip or not example.has_scores()
            for skip, example in zip(_any_closed(examples, closed), examples, strict=True)
        ]
        weights = [0.0 if skip else example.weight for example, skip in zip(examples, skipped, strict=True)]
        batch: Batch = {
            "images": images[0],
            "captions": self._captions(examples, 0),
        }
        if len(self.processors) == 2:
            if self._reference_images:
                batch["reference_images"] = images[1]
            batch["reference_captions"] = self._captions(examples, 1)
        scores = [one.reference_scores.log_probs for one in examples if one.reference_scores is not None]
        if scores:
            batch[REFERENCE_LOG_PROBS] = torch.cat(scores)
        batch["rows"] = torch.tensor([example.row for example in examples], dtype=torch.int64)
        batch["weights"] = torch.tensor(weights, dtype=torch.float32)
        # A row that only fills the batch up was counted where it stands for itself.
        counted = [skip and example.weight > 0 for example, skip in zip(examples, skipped, strict=True)]
        batch["skipped"] = torch.tensor(counted, dtype=torch.bool)
        return batch

    def _captions(self, examples: Sequence[CaptionExample], processor: int) -> dict[str, torch.Tensor]:
        """The captions as one of the processors reads them, each with the image that it is scored for."""
        captions = collate_captions([example.tokens[processor] for example in examples])
        if any(example.distractors for example in examples):
            image_index = captions["image_index"].view(-1, 1 + self.num_negatives)
            behind = torch.arange(len(image_index) * self.num_negatives).view(-1, self.num_negatives)
            captions["image_index"] = torch.cat([image_index[:, :1], len(examples) + behind], dim=1).flatten()
        return captions

    def _open(self, examples: Sequence[CaptionExample]) -> tuple[list[dict[str, torch.Tensor]], list[bool]]:
        """The images as each of the image processors makes them, and which of them did not open."""
        images, closed = open_images(examples)
        readers = self.processors if self._reference_images else self.processors[:1]
        read, refused = read_images([reader.process_images for reader in readers], images)
        refuse(examples, refused, closed)
        return read, closed

    def _check(self, examples: Sequence[CaptionExample]) -> None:
        for example in examples:
            if len(example.tokens) != len(self.processors):
                raise ValueError(
                    f"The data set was made with {len(example.tokens)} processors, the collator with "
                    f"{len(self.processors)}; give both the same."
                )
            if len(example.tokens[0].lengths) % (1 + self.num_negatives):
                raise ValueError(
                    f"An example has {len(example.tokens[0].lengths)} captions, which is no multiple of 1 + "
                    f"num_negatives = {1 + self.num_negatives}; give data set and collator the same num_negatives."
                )


def _any_closed(examples: Sequence[CaptionExample], closed: Sequence[bool]) -> list[bool]:
    """Whether an image of each example does not open, its own or a distractor, which stand behind all own ones."""
    behind = iter(closed[len(examples) :])
    return [
        own | any([next(behind) for _ in example.distractors])
        for own, example in zip(closed[: len(examples)], examples, strict=True)
    ]


def open_images(examples: Sequence[CaptionExample]) -> tuple[list[Image.Image], list[bool]]:
    """The images of examples, white ones where they do not open, and which of them did not.

    Raises:
        BadImageError: An image does not open and is not to be skipped.
    """
    opened = [example.open_image() for example in examples]
    # A white image of the size of another one suits image processors that keep the size.
    size = next((image.size for image in opened if image is not None), BLANK_SIZE)
    images = [Image.new("RGB", size, "white") if image is None else image for image in opened]
    return images, [image is None for image in opened]


def refuse(examples: Sequence[CaptionExample], refused: Mapping[int, str], closed: list[bool]) -> None:
    """Note which images an image processor does not take among those that do not open.

    Args:
        examples: The examples.
        refused: Numbers of those that were not taken, with the reasons.
        closed: Whether each image does not open; changed in place.

    Raises:
        BadImageError: There is one, and such images are not to be skipped.
    """
    for number, why in refused.items():
        examples[number].refuse(why)
        closed[number] = True


def _stored_states(examples: Sequence[CaptionExample]) -> tuple[list[dict[str, torch.Tensor]], list[bool]]:
    """The states that stand in place of images, and which of the images had not opened."""
    skipped = [not example.has_image() for example in examples]
    stored = [example.vision_states.states for example in examples if example.vision_states is not None]
    return [{name: torch.cat([states[name] for states in stored]) for name in stored[0]}], skipped


def collate_captions(tokens: Sequence[Tokens]) -> dict[str, torch.Tensor]:
    """The captions of some images behind each other, as a :class:`CaptionBatch`."""
    counts = [len(one.lengths) for one in tokens]
    return {
        "input_ids": torch.from_numpy(np.concatenate([one.input_ids for one in tokens]).astype(np.int64)),
        "lengths": torch.from_numpy(np.concatenate([one.lengths for one in tokens])),
        "image_index": torch.repeat_interleave(torch.arange(len(tokens)), torch.tensor(counts)),
    }
