"""One training example: an image that is still to be opened, and captions that are already tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from hf_contrastive_caption.data.images import BadImageError, open_image, to_rgb
from hf_contrastive_caption.data.keyed import derive_key
from hf_contrastive_caption.processing import CaptionProcessor

#: An augmentation: RGB image in, image out. Its random numbers may come from ``random``, NumPy or torch.
Augmentation = Callable[[Image.Image], Image.Image]
OnBadImage = Literal["raise", "skip"]


class Tokens(NamedTuple):
    """Captions as tokens, behind each other: ``input_ids`` (n_tokens,) and ``lengths`` (n_captions,)."""

    input_ids: NDArray[np.int32]
    lengths: NDArray[np.int64]


class StoredStates(NamedTuple):
    """A vision encoder's states of one image: a dict of tensors, (1, ...) each, and whether the image had opened."""

    states: dict[str, torch.Tensor]
    opened: bool


class StoredScores(NamedTuple):
    """The reference's scores of the captions of one row, (n_captions,), and whether it had read the row's image."""

    log_probs: torch.Tensor
    opened: bool


@dataclass(frozen=True)
class ImageRules:
    """How the images of a data set are opened.

    Args:
        augment: The augmentation, or ``None``.
        on_bad_image: ``"raise"``, or ``"skip"``: go on without the image.
        seed: Seed of the augmentation's random numbers.
    """

    augment: Augmentation | None = None
    on_bad_image: OnBadImage = "raise"
    seed: int = 0


@dataclass(frozen=True, eq=False)
class CaptionExample:
    """An image with its captions.

    Args:
        row: The row of the data set.
        epoch: The epoch that the captions were drawn for.
        weight: 1, or 0 for an example that only fills up a batch.
        image: The image as its column holds it, not opened.
        tokens: The captions' tokens, once for each processor: [positive, its K negatives, next positive, ...].
        rules: How the image is opened.
        vision_states: What stands in place of the image, which then is not opened.
        reference_scores: The reference's scores of the captions, if they were computed ahead.
        distractors: Images that the captions are compared for, as examples without captions: K for each positive, in
            the order of the positives.
    """

    row: int
    epoch: int
    weight: float
    image: Any
    tokens: tuple[Tokens, ...]
    rules: ImageRules
    vision_states: StoredStates | None = None
    reference_scores: StoredScores | None = None
    distractors: tuple[CaptionExample, ...] = ()

    def has_image(self) -> bool:
        """Whether the image opened when its states were computed.

        Raises:
            BadImageError: It did not, and such images are not skipped.
        """
        assert self.vision_states is not None
        if not self.vision_states.opened:
            self.refuse("the image did not open when the states of the vision encoder were computed")
        return self.vision_states.opened

    def has_scores(self) -> bool:
        """Whether scores that were computed ahead are of the image, and not of a white one in its place.

        Raises:
            BadImageError: They are not, and such images are not skipped.
        """
        opened = self.reference_scores is None or self.reference_scores.opened
        if not opened:
            self.refuse("the image did not open when the reference scored its captions ahead")
        return opened

    def open_image(self) -> Image.Image | None:
        """Open and augment the image.

        Returns:
            The image in mode RGB; ``None`` if it does not open and such images are skipped.

        Raises:
            BadImageError: The image does not open; the message names the row.
        """
        try:
            image = open_image(self.image)
        except BadImageError as error:
            self.refuse(str(error), error)
            return None
        if self.rules.augment is None:
            return image
        with keyed_random_state(derive_key(self.rules.seed, "augment", self.epoch, self.row)):
            augmented = self.rules.augment(image)
        if not isinstance(augmented, Image.Image):
            raise TypeError(
                f"augment returned {type(augmented).__name__} for row {self.row}; it must return a PIL image, as the "
                "image processor takes it from there."
            )
        return to_rgb(augmented)

    def refuse(self, why: str, error: Exception | None = None) -> None:
        """Raise for an image that cannot be used, unless such images are skipped.

        Args:
            why: What is wrong with it.
            error: What was raised.

        Raises:
            BadImageError: Such images are not skipped; the message names the row.
        """
        if self.rules.on_bad_image == "raise":
            raise BadImageError(
                f"Row {self.row}: {why}. Repair or remove the row, or pass on_bad_image='skip' to go on without such "
                "images."
            ) from error


@contextmanager
def keyed_random_state(key: int) -> Iterator[None]:
    """Seed ``random``, NumPy's global state and torch's CPU generator, and put all three back afterwards.

    Args:
        key: An integer in [0, 2**64).
    """
    # torch.manual_seed would seed the GPUs too, and their state is not put back here.
    generator = torch.default_generator
    python, numpy, pytorch = random.getstate(), np.random.get_state(), generator.get_state()  # noqa: NPY002
    random.seed(key)
    np.random.seed(key % 2**32)  # noqa: NPY002 - people's augmentations use the global state
    generator.manual_seed(key)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        generator.set_state(pytorch)


def check_options(
    processors: Sequence[CaptionProcessor],
    num_negatives: int,
    captions_per_image: int | str,
    augment: Augmentation | None,
    on_bad_image: str,
    evaluation: bool,
) -> None:
    """Check the options that data sets and streams share.

    Raises:
        TypeError: ``processors`` is one processor instead of a sequence.
        ValueError: An option has a value that it cannot have.
    """
    if isinstance(processors, CaptionProcessor):
        raise TypeError("processors is a single CaptionProcessor; give a list: [processor].")
    if len(processors) not in (1, 2):
        raise ValueError(
            f"Got {len(processors)} processors; give one, the target's, or two, the target's and that of a reference "
            "with its own tokenizer or image processor."
        )
    if num_negatives < 0:
        raise ValueError(f"num_negatives={num_negatives}; give at least 1, or 0 for maximum likelihood.")
    if captions_per_image != "all" and (not isinstance(captions_per_image, int) or captions_per_image < 1):
        raise ValueError(f"captions_per_image={captions_per_image!r}; give a number of at least 1, or 'all'.")
    if on_bad_image not in get_args(OnBadImage):
        raise ValueError(f"on_bad_image={on_bad_image!r}; accepted are 'raise' and 'skip'.")
    if evaluation and augment is not None:
        raise ValueError("augment is for training; evaluation shows every image as it is. Leave augment out.")
