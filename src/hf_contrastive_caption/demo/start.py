"""Captioners to begin with where none is at hand, trained by maximum likelihood and kept in a folder."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import PreTrainedModel, PrinterCallback

from hf_contrastive_caption.config import ContrastiveCaptionConfig
from hf_contrastive_caption.console import no_other_progress_bars
from hf_contrastive_caption.data import captions_of, find_columns
from hf_contrastive_caption.models import small_captioner, small_image_processor, word_level_tokenizer
from hf_contrastive_caption.trainer import ContrastiveCaptionTrainer

MADE_WITH = "made_with.json"
"""The file in the folder that says how the captioner in it was made."""


def start_captioner(folder: str | PathLike[str], train: datasets.Dataset, *, steps: int, **options: Any) -> str:
    """Make a small ViT and GPT-2 from scratch and train it by maximum likelihood, unless the folder has it already.

    It is made for images of 64 x 64 pixels, such as those of :func:`scenes`.

    Args:
        folder: Where it is saved, with its tokenizer and image processor.
        train: Images with captions; the words of the captions become the vocabulary.
        steps: Steps of maximum likelihood.
        **options: Other arguments of :func:`train_to_start`.

    Returns:
        The folder, to be given where a model's name is taken.

    Raises:
        ValueError: If the folder has one that was made in another way.
    """
    columns = find_columns(train.features)
    texts = train.select_columns(list(columns.captions))
    tokenizer = word_level_tokenizer(caption for row in texts for caption in captions_of(row, columns))
    processing = (tokenizer, small_image_processor())
    model = small_captioner(tokenizer, seed=options.get("seed", 0))
    return train_to_start(folder, model, processing, train, steps=steps, **options)


def train_to_start(
    folder: str | PathLike[str],
    model: PreTrainedModel,
    processing_class: Any,
    train: datasets.Dataset,
    *,
    steps: int,
    learning_rate: float = 2e-3,
    batch_size: int = 64,
    seed: int = 0,
    prompt: str | None = None,
) -> str:
    """Train a captioner from scratch by maximum likelihood, unless the folder has it already.

    Args:
        folder: Where it is saved, with its tokenizer and image processor, and with a note of how it was made.
        model: The captioner with random weights, trained in place.
        processing_class: Its tokenizer and image processor, or its processor.
        train: Images with captions.
        steps: Steps of maximum likelihood.
        learning_rate: The highest; it rises for a tenth of the steps and falls along a cosine.
        batch_size: Images in a step.
        seed: Seed of the order and of the captions that are drawn.
        prompt: What a chat model is asked.

    Returns:
        The folder, to be given where a model's name is taken.

    Raises:
        ValueError: If the folder has one that was made in another way.
    """
    recipe = {"model": type(model).__name__, "weights": model.num_parameters(), "images": len(train), "steps": steps}
    recipe |= {"learning_rate": learning_rate, "batch_size": batch_size, "seed": seed, "prompt": prompt}
    note = Path(folder) / MADE_WITH
    if note.exists():
        found = json.loads(note.read_text(encoding="utf-8"))
        if found != recipe:
            raise ValueError(
                f"{folder} has a captioner that was made with {found}, and one with {recipe} is asked for; delete "
                "the folder or choose another one"
            )
        return str(folder)
    args = ContrastiveCaptionConfig(
        output_dir=str(folder),
        objective="mle",
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=steps // 10,
        seed=seed,
        prompt=prompt,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    with no_other_progress_bars():
        trainer = ContrastiveCaptionTrainer(
            model=model, args=args, train_dataset=train, processing_class=processing_class
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trainer.save_model()
    note.write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
    return str(folder)
