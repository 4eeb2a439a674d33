"""The settings of a GAN captioner."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GanSettings:
    """How a GAN captioner is trained.

    Args:
        steps: Steps of the generator, each with one of the evaluator.
        evaluator_steps: Steps of the evaluator alone before them, on captions of the generator as it was given.
        batch_size: Images in a step.
        samples_per_image: Captions that are sampled of each image in a step.
        learning_rate: Highest learning rate of the generator: a tenth of the steps rise to it, the others fall to 0.
        evaluator_learning_rate: Learning rate of the evaluator.
        evaluator_width: Width of the vectors that the evaluator makes of images and captions.
        alpha: Weight of generated captions in the evaluator's loss, where captions of the image have 1.
        beta: Weight of captions of other images.
        max_new_tokens: Longest caption in tokens, end token included, both of those that are sampled and of the
            data's, which are cut.
        freeze_vision_encoder: Whether the vision encoder stays as it was given, so that its states are computed once.
        seed: Seed of the order of images, the captions of a step, the evaluator's first weights and the samples.
        save_steps: Steps between states from which a stopped training goes on.
        precomputed_dir: Where states of the vision encoder are kept; the assets folder of the Hub's cache if not
            given.

    Raises:
        ValueError: If a number is out of its range.
    """

    steps: int = 300
    evaluator_steps: int = 200
    batch_size: int = 32
    samples_per_image: int = 1
    learning_rate: float = 1e-4
    evaluator_learning_rate: float = 1e-3
    evaluator_width: int = 128
    alpha: float = 0.5
    beta: float = 0.5
    max_new_tokens: int = 30
    freeze_vision_encoder: bool = True
    seed: int = 0
    save_steps: int = 100
    precomputed_dir: str | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        counts = ("steps", "batch_size", "samples_per_image", "evaluator_width", "max_new_tokens", "save_steps")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be 1 or more")
        if self.evaluator_steps < 0:
            raise ValueError(f"evaluator_steps is {self.evaluator_steps}, but must be 0 or more")
        for name in ("learning_rate", "evaluator_learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be above 0")
        for name in ("alpha", "beta"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be 0 or more")
