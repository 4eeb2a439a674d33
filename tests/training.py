"""Trainers of tiny captioners for the tests, and what they logged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_contrastive_caption import ContrastiveCaptionConfig, ContrastiveCaptionTrainer
from tests import tiny


def arguments(folder: Path, **options: Any) -> ContrastiveCaptionConfig:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "num_negatives": 3,
        "max_steps": 2,
        "disable_tqdm": True,
        "learning_rate": 1e-3,
    }
    return ContrastiveCaptionConfig(**{**settings, **options})


def trainer(
    folder: Path, model: Any = None, data: Dataset | None = None, options: dict[str, Any] | None = None, **kwargs: Any
) -> ContrastiveCaptionTrainer:
    model = tiny.captioner_model() if model is None else model
    data = tiny.caption_dataset() if data is None else data
    kwargs = {"processing_class": tiny.processing(), "train_dataset": data, **kwargs}
    return ContrastiveCaptionTrainer(model=model, args=arguments(folder, **(options or {})), **kwargs)


def logged(run: ContrastiveCaptionTrainer, name: str) -> list[float]:
    return [entry[name] for entry in run.state.log_history if name in entry]
