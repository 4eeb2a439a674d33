"""Makes the captioner of one unit: from scratch, or tuned from its reference; a training that was stopped goes on."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from datasets import Dataset
from gan.settings import GanSettings
from gan.training import read_log, train_gan
from transformers import PreTrainedModel, PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from hf_contrastive_caption import (
    Captioner,
    ContrastiveCaptionConfig,
    ContrastiveCaptionTrainer,
    interpolate_captioners,
)
from hf_contrastive_caption.data import captions_of, find_columns
from hf_contrastive_caption.data.files import load_splits
from hf_contrastive_caption.data.scenes import scenes
from hf_contrastive_caption.loading import load_captioner
from hf_contrastive_caption.models import (
    small_captioner,
    small_image_processor,
    small_recurrent_captioner,
    word_level_tokenizer,
)
from hf_contrastive_caption.precision import processor_computes_in
from studies.files import Place, read_json, write_json
from studies.plan import NUM_NEGATIVES, Scale, Unit, reference_row

FINISHED = "finished.json"
SPLITS = ("train", "validation", "test")
SAVE_STEPS = 200


def load_data(place: Place) -> Mapping[str, Dataset]:
    """The splits: those of a folder, or drawn scenes, the same ones for every seed of a training.

    Raises:
        ValueError: If there is no such folder, or a split is missing.
    """
    if place.source is not None:
        splits = load_splits(place.source)
        missing = [name for name in SPLITS if name not in splits]
        if missing:
            raise ValueError(f"{place.source} has no split called {' or '.join(missing)}, but {', '.join(splits)}")
        return splits
    return scenes(*place.scale.scenes, image_size=place.scale.image_size, seed=0)


def finished(folder: Path) -> dict[str, Any] | None:
    """What is known of a training that ended, ``None`` of one that did not."""
    file = folder / FINISHED
    return read_json(file) if file.exists() else None


def train(unit: Unit, place: Place, data: Mapping[str, Dataset]) -> dict[str, Any]:
    """Train the captioner of a unit into its folder, or go on with it.

    Returns:
        Its seconds of training (of this process), and the last values that were logged.
    """
    folder = place.captioner(unit)
    done = finished(folder)
    if done is not None:
        return done
    start = perf_counter()
    if unit.row.objective == "gan":
        logged = _train_gan(unit, place, data["train"], folder)
    elif unit.row.objective == "interpolated":
        before, tuned = (place.captioner(needed) for needed in unit.needs())
        interpolate_captioners(before, tuned, unit.row.settings["share"], device="cpu").save_pretrained(folder)
        logged = {}
    else:
        folder.mkdir(parents=True, exist_ok=True)
        trainer = _trainer(unit, place, data["train"], folder)
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))
        trainer.save_model(str(folder))
        logged = _last_values(trainer.state.log_history)
    told = {"seconds": round(perf_counter() - start, 1), "logged": logged}
    write_json(folder / FINISHED, told)
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    shutil.rmtree(folder / "_references", ignore_errors=True)
    return told


def _trainer(unit: Unit, place: Place, rows: Dataset, folder: Path) -> ContrastiveCaptionTrainer:
    if unit.row.objective == "reference":
        model, tokenizer = _new_captioner(unit, place, rows)
        args = _reference_arguments(unit, place.scale, folder)
        processing = (tokenizer, small_image_processor(place.scale.image_size))
        return ContrastiveCaptionTrainer(model=model, args=args, train_dataset=rows, processing_class=processing)
    start = str(_reference_folder(unit, place, unit.row.model))
    others = {}
    if unit.row.reference != unit.row.model:
        others["reference_model"] = str(_reference_folder(unit, place, unit.row.reference))
    args = _tuning_arguments(unit, place.scale, folder)
    if args.negatives != "shuffled":
        args.precomputed_dir = str(place.output / unit.data / "_neighbours")
    return ContrastiveCaptionTrainer(model=start, args=args, train_dataset=rows, **others)


def _reference_folder(unit: Unit, place: Place, model: str) -> Path:
    return place.captioner(Unit(unit.data, reference_row(model), unit.seed))


def _new_captioner(unit: Unit, place: Place, rows: Dataset) -> tuple[PreTrainedModel, Any]:
    columns = find_columns(rows.features)
    texts = rows.select_columns(list(columns.captions))
    captions = (caption for row in texts for caption in captions_of(row, columns))
    tokenizer = word_level_tokenizer(captions, place.scale.min_frequency)
    if unit.row.model == "vit-gpt2":
        sizes = {"image_size": place.scale.image_size, **place.scale.vit, "num_positions": 256}
        return small_captioner(tokenizer, **sizes, seed=unit.seed), tokenizer
    vision = None
    if unit.row.model == "show-and-tell":
        folder = _reference_folder(unit, place, "adaptive-attention")
        vision = load_captioner(folder, device=None).model.vision.model
    return small_recurrent_captioner(unit.row.model, tokenizer, vision, seed=unit.seed), tokenizer


def _reference_arguments(unit: Unit, scale: Scale, folder: Path) -> ContrastiveCaptionConfig:
    return _arguments(
        unit,
        scale,
        folder,
        objective="mle",
        captions_per_image=scale.reference_captions,
        max_steps=scale.reference_steps,
        per_device_train_batch_size=scale.reference_batch_size,
        learning_rate=scale.reference_rates[unit.row.model],
        lr_scheduler_type="cosine",
        warmup_steps=min(200, scale.reference_steps // 10),
        bf16=scale.bf16 and (torch.cuda.is_available() or processor_computes_in(torch.bfloat16)),
    )


def _tuning_arguments(unit: Unit, scale: Scale, folder: Path) -> ContrastiveCaptionConfig:
    settings = {"num_negatives": NUM_NEGATIVES, **unit.row.settings}
    rate = scale.rates[unit.row.model] * settings.pop("learning_rate_factor", 1.0)
    if "reference_refresh_share" in settings:
        # A third of 400 steps is 133: the third replacement then stands before the last step, which changes nothing.
        settings["reference_refresh"] = max(1, round(scale.steps * settings.pop("reference_refresh_share")))
    return _arguments(
        unit,
        scale,
        folder,
        objective=unit.row.objective,
        captions_per_image=scale.control_captions if unit.row.objective == "mle" else 1,
        max_steps=scale.steps,
        per_device_train_batch_size=scale.batch_size,
        learning_rate=rate,
        lr_scheduler_type="linear",
        warmup_steps=scale.steps // 10,
        bf16=False,
        **settings,
    )


def _arguments(unit: Unit, scale: Scale, folder: Path, **others: Any) -> ContrastiveCaptionConfig:
    return ContrastiveCaptionConfig(
        output_dir=str(folder),
        max_caption_tokens=scale.max_caption_tokens,
        per_device_eval_batch_size=scale.eval_batch_size,
        seed=unit.seed,
        logging_steps=50,
        save_steps=SAVE_STEPS,
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),  # without a word for it, bfloat16 wants a GPU
        dataloader_pin_memory=torch.cuda.is_available(),
        **others,
    )


def _train_gan(unit: Unit, place: Place, rows: Dataset, folder: Path) -> dict[str, float]:
    captioner: Captioner = load_captioner(_reference_folder(unit, place, unit.row.model))
    settings = GanSettings(
        steps=place.scale.steps,
        evaluator_steps=place.scale.steps // 2,
        batch_size=place.scale.batch_size,
        learning_rate=place.scale.rates[unit.row.model],
        max_new_tokens=place.scale.max_caption_tokens,
        freeze_vision_encoder=False,  # as in all other rows
        seed=unit.seed,
        precomputed_dir=str(place.output / unit.data / "_states"),
    )
    train_gan(captioner, rows, settings, folder)
    *_, last = read_log(folder)
    return last


def _last_values(history: list[dict[str, float]]) -> dict[str, float]:
    """The last logged loss and what stands beside it."""
    entry = next((entry for entry in reversed(history) if "loss" in entry), {})
    return {name: value for name, value in entry.items() if isinstance(value, (int, float))}
