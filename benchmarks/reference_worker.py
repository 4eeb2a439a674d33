"""A training step at each turn, for ``reference_memory.py``, which runs this in a process for every strategy."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cost_model import ADAPTERS, STRATEGIES
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from peft import LoraConfig
from PIL import Image
from training_ways import K, Size
from turns import WARM_UP, Turns, say, start_mb

from hf_contrastive_caption import ContrastiveCaptionConfig, ContrastiveCaptionTrainer
from hf_contrastive_caption.models import small_captioner, small_image_processor, word_level_tokenizer
from hf_contrastive_caption.reference import FrozenReference

TOKENS, STEPS_IN_EPOCH = 12, 3


def make_processing(size: Size) -> tuple[Any, Any]:
    """Tokenizer and image processor."""
    words = word_level_tokenizer(f"w{number}" for number in range(size.vocabulary - 4))
    return words, small_image_processor(size.model["image_size"])


def make_dataset(size: Size) -> Dataset:
    """JPEG images of coarse noise, each with 1 + K captions of random words, all of one length."""
    rng = np.random.default_rng(0)
    rows = size.images * STEPS_IN_EPOCH
    images, captions = [], []
    for _ in range(rows):
        noise = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((640, 480))
        noise.save(file := io.BytesIO(), "JPEG", quality=90)
        images.append({"bytes": file.getvalue(), "path": None})
        words = rng.integers(0, size.vocabulary - 4, (1 + K, TOKENS - 1))
        captions.append([" ".join(f"w{word}" for word in caption) for caption in words])
    features = Features({"image": ImageFeature(), "captions": List(Value("string"))})
    return Dataset.from_dict({"image": images, "captions": captions}, features=features)


def lora() -> LoraConfig:
    """The adapter."""
    return LoraConfig(r=8, target_modules="all-linear")


def make_trainer(
    strategy: str, size: Size, folder: Path, max_steps: int, checkpointing: bool
) -> ContrastiveCaptionTrainer:
    """The trainer of a strategy; everything else is the same for all."""
    tokenizer, image_processor = make_processing(size)
    own = dict(STRATEGIES[strategy])
    if own.get("objective") == "mle":
        own["captions_per_image"] = 1 + K
    if checkpointing:
        own["gradient_checkpointing"] = True
    if {"cache_vision_states", "precompute_reference"} & own.keys():
        own["precomputed_dir"] = str(folder / "ahead")
    args = ContrastiveCaptionConfig(
        output_dir=str(folder / "run"),
        per_device_train_batch_size=size.images,
        num_negatives=K,
        max_steps=max_steps,
        bf16=False,
        learning_rate=1e-6,
        logging_steps=10**6,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        seed=0,
        **own,
    )
    return ContrastiveCaptionTrainer(
        model=small_captioner(tokenizer, seed=0, **size.model),
        args=args,
        train_dataset=make_dataset(size),
        processing_class=(tokenizer, image_processor),
        peft_config=lora() if strategy in ADAPTERS else None,
    )


class HeldTurns(Turns):
    """Notes what is held, too."""

    trainer: ContrastiveCaptionTrainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count what is held, when all of it is there."""
        if state.global_step == WARM_UP + self.repeats:
            self.found["held_mb"] = held_mb(self.trainer)


def work(strategy: str, size: Size, repeats: int, checkpointing: bool) -> None:
    """Train, a step at each turn."""
    turns = HeldTurns(repeats, start_mb())
    with tempfile.TemporaryDirectory() as folder:
        turns.trainer = make_trainer(strategy, size, Path(folder), WARM_UP + repeats + 1, checkpointing)
        turns.trainer.add_callback(turns)
        turns.trainer.train()
        kept = sum(file.stat().st_size for file in Path(folder, "ahead").rglob("*.safetensors"))
    say({**turns.found, "operations": turns.counter.get_total_flops(), "ahead_bytes": kept})


def held_mb(trainer: ContrastiveCaptionTrainer) -> float:
    """Weights, gradients, states of the optimizer and the reference, each tensor once, in MB."""
    models = [trainer.captioner.model]
    if isinstance(trainer.reference, FrozenReference):
        models.append(trainer.reference.captioner.model)
    weights = [weight for model in models for weight in model.parameters()]
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    states = [value for state in trainer.optimizer.state.values() for value in state.values()]  # type: ignore[union-attr]
    tensors = {id(one): one for one in [*weights, *gradients, *states] if isinstance(one, torch.Tensor)}
    return sum(one.numel() * one.element_size() for one in tensors.values()) / 1e6
