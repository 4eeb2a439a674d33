"""The sizes of the demo. This module imports neither torch nor transformers, for a command line that starts fast."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class DemoSettings:
    """What the demo trains, and for how long.

    The defaults take less than six minutes on two processor cores with nothing else running.

    Args:
        seed: Seed of scenes, weights, order of the images and negatives.
        output_dir: Folder for the tuned model, a picture, the page (``report``) and ``results.json``.
        train_images: Scenes to train on.
        validation_images: Scenes for the validation loss.
        test_images: Scenes for all other numbers.
        reference_steps: Steps of maximum likelihood (MLE) that make the reference, from scratch.
        steps: Steps of contrastive tuning, and of the control that goes on with MLE.
        num_negatives: Captions of other images that each caption is compared with (K).
        batch_size: Images in a step.
        reference_learning_rate: Highest learning rate while the reference is made.
        learning_rate: Highest learning rate of the tuning and of the control.
    """

    seed: int = 0
    output_dir: Path = Path("runs/demo")
    train_images: int = 6000
    validation_images: int = 500
    test_images: int = 500
    reference_steps: int = 1200
    steps: int = 400
    num_negatives: int = 5
    batch_size: int = 64
    reference_learning_rate: float = 2e-3
    learning_rate: float = 2e-4

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If a number is too small to train or compare anything.
        """
        for name in ("train_images", "validation_images", "test_images"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} is {getattr(self, name)}, but negatives need 2 images or more")
        for name in ("reference_steps", "steps", "num_negatives", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be 1 or more")
        for name in ("reference_learning_rate", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be above 0")

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON takes them."""
        return {**asdict(self), "output_dir": self.output_dir.as_posix()}


QUICK = {
    "train_images": 96,
    "validation_images": 16,
    "test_images": 16,
    "reference_steps": 6,
    "steps": 3,
    "batch_size": 16,
}
"""Sizes with which the demo takes seconds: to see whether everything works, not to see an effect."""
