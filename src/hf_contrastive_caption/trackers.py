"""Images with their captions, in the experiment trackers that can show them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from transformers import TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback, WandbCallback

SHOWN_IMAGES = 16


def log_caption_table(
    callbacks: Sequence[TrainerCallback],
    step: int,
    name: str,
    images: Sequence[Image.Image],
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
) -> None:
    """Show images with captions and references in TensorBoard and Weights & Biases, where they are in use.

    Args:
        callbacks: Those of the trainer.
        step: The training step.
        name: What the table is called, such as ``"eval/captions"``.
        images: RGB images.
        captions: One for each image.
        references: Any number for each image.
    """
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            rows = "\n".join(
                f"| {number} | {_cell(caption)} | {_cell(' / '.join(texts))} |"
                for number, (caption, texts) in enumerate(zip(captions, references, strict=True))
            )
            table = f"| image | caption | references |\n| --- | --- | --- |\n{rows}"
            callback.tb_writer.add_text(name, table, step)
            for number, image in enumerate(images):
                callback.tb_writer.add_image(f"{name}/{number}", np.asarray(image), step, dataformats="HWC")
        elif isinstance(callback, WandbCallback):
            import wandb

            if wandb.run is None:
                continue
            table = wandb.Table(columns=["image", "caption", "references"])
            for image, caption, texts in zip(images, captions, references, strict=True):
                table.add_data(wandb.Image(image), caption, " / ".join(texts))
            wandb.log({name: table, "train/global_step": step})


def _cell(text: str) -> str:
    """Text that stays in one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")
