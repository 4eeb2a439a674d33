"""What the loss asks of its frozen side."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from hf_contrastive_caption.captioners import CaptionBatch, Captioner, Images
from hf_contrastive_caption.data.collator import Batch

LEFT_MEMORY = (
    "the reference has left memory (precompute_reference=True), and not all of its scores that this needs were "
    "computed before. Make a new trainer: with all epochs that shall be trained, with every data set that shall be "
    "evaluated as eval_dataset, or without precompute_reference"
)


class Reference(ABC):
    """The frozen side of the loss: scores that take no gradient, have no noise, and never change by themselves.

    Attributes:
        processor: How it reads images and captions.
        dtype: The dtype of its weights.
        shares_vision: Whether it reads the target's image states, so that the image is encoded once for both.
        equals_target: Whether it stands for the target as it is now, so that log-ratios must be 0.
        version: How many times it was replaced.
    """

    shares_vision = False

    def __init__(self, captioner: Captioner, *, equals_target: bool) -> None:
        self._captioner: Captioner | None = captioner
        self.processor = captioner.processor
        self.dtype = captioner.dtype
        self.equals_target = equals_target
        self.version = 0

    @property
    def captioner(self) -> Captioner:
        """Who scores.

        Raises:
            ValueError: The reference has left memory.
        """
        if self._captioner is None:
            raise ValueError(LEFT_MEMORY)
        return self._captioner

    @property
    def in_memory(self) -> bool:
        """Whether it can score captions that were not scored ahead."""
        return self._captioner is not None

    @property
    @abstractmethod
    def description(self) -> str:
        """What it is, in words for the log."""

    @abstractmethod
    def log_probs(self, images: Images, captions: CaptionBatch) -> Tensor:
        """Score captions as :meth:`Captioner.log_probs` does, without gradient and without noise, (n_captions,)."""

    @contextmanager
    def in_place(self) -> Iterator[Captioner]:
        """The reference as a captioner that can write and score; not beyond the context, where it may be the target.

        Raises:
            ValueError: The reference has left memory.
        """
        yield self.captioner

    def encode(self, images: Images) -> Images:
        """See :meth:`Captioner.encode`; the states that :meth:`log_probs` makes for itself."""
        with torch.no_grad():
            return self.captioner.encode(images)

    def score(self, batch: Batch, images: Images) -> Tensor:
        """Score the captions of a batch, (n_captions,).

        Args:
            batch: What the collator made.
            images: Its images, or the target's states of them.
        """
        captions = batch["reference_captions" if "reference_captions" in batch else "captions"]
        return self.log_probs(batch.get("reference_images", images), captions)

    @abstractmethod
    def digest(self) -> str:
        """A hash of what it computes with; equal hashes give equal scores."""

    def place(self, device: torch.device) -> None:
        """Put all that it computes with on a device."""
        self.captioner.model.to(device)

    def weights(self) -> dict[str, Tensor]:
        """The tensors that only the reference has; every process must hold the same."""
        return {}

    def identity(self) -> str:
        """A hash of what it computes with apart from :meth:`weights`; with equal ones :meth:`load` takes it over.

        Empty for a reference whose digest says all.
        """
        return ""

    def weights_name(self) -> str:
        """A name for :meth:`weights`, by which they are stored."""
        return self.digest()

    # Replacement, and what a resume needs ------------------------------------------------------------------------

    def check_refresh(self, target: Captioner) -> None:
        """Whether the reference can become the target.

        Raises:
            ValueError: If it cannot; says why and what can.
        """
        raise ValueError(f"the reference is {self.description}, which cannot be replaced while training")

    def refresh(self, target: Captioner, mixup: float) -> None:
        """Move to where the target is now.

        Args:
            target: The target, for which :meth:`check_refresh` has found nothing.
            mixup: How far: 1 becomes the target, less leaves ``1 - mixup`` of what the reference was.
        """
        raise NotImplementedError("this reference cannot be replaced")

    @property
    def has_state(self) -> bool:
        """Whether there are weights that only the reference has, and that a resume needs."""
        return False

    def save(self, folder: Path) -> None:
        """Write the reference's own weights into a folder."""
        raise NotImplementedError("this reference has no weights of its own")

    def load(self, folder: Path) -> None:
        """Take the weights that :meth:`save` wrote."""
        raise NotImplementedError("this reference has no weights of its own")


def average_(own: Tensor, other: Tensor, mixup: float) -> None:
    """Move a tensor in place to ``(1 - mixup) * own + mixup * other``; exactly ``other`` for 1."""
    other = other.to(own.device)
    if mixup == 1.0 or not own.is_floating_point():
        own.copy_(other)
    else:
        own.lerp_(other.to(own.dtype), torch.tensor(mixup, dtype=own.dtype, device=own.device))
