"""Train the paper's two captioners on drawn scenes, tune them contrastively, and compare.

    python examples/paper_models.py

Adaptive Attention around a small ResNet is trained from scratch by maximum likelihood (MLE). Show and Tell, whose
paper begins with a trained CNN, gets that ResNet, frozen, and a decoder from scratch. Either captioner is then the
reference of its own contrastive tuning, and as a control goes on with MLE for as many steps at the same learning
rates. A table for each compares the three on the test images. Everything is drawn and made here, nothing is
downloaded; both together take about ten minutes on one processor core.

The output folder gets a folder per captioner and stage, to load with ``AutoModelForImageTextToText.from_pretrained``
after ``import hf_contrastive_caption.models``, and ``results.json``. ``--picture FILE`` also draws where Adaptive
Attention looks (with matplotlib, of the extra ``report``).
"""

from __future__ import annotations

import argparse
import copy
import json
import shlex
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import datasets
import torch
from transformers import PreTrainedModel, PrinterCallback

from hf_contrastive_caption import ContrastiveCaptionConfig, ContrastiveCaptionTrainer, captioner_for, scenes
from hf_contrastive_caption.demo.comparison import ModelScores, learning_rows, score_models, two_sides_rows
from hf_contrastive_caption.evaluation.measures import aligned_table
from hf_contrastive_caption.models import small_image_processor, small_recurrent_captioner, word_level_tokenizer
from hf_contrastive_caption.models.recurrent import RecurrentCaptionerModel
from hf_contrastive_caption.processing import CaptionProcessor

KINDS = ("adaptive-attention", "show-and-tell")  # the second gets the vision model of the first


def main(arguments: list[str] | None = None) -> dict[str, list[ModelScores]]:
    options = parse(arguments)
    data = scenes(options.train_images, options.test_images, options.test_images, seed=options.seed)
    tokenizer = word_level_tokenizer(caption for captions in data["train"]["captions"] for caption in captions)
    found: dict[str, list[ModelScores]] = {}
    seconds: dict[str, float] = {}
    vision: PreTrainedModel | None = None
    for kind in KINDS:
        start = perf_counter()
        new = small_recurrent_captioner(kind, tokenizer, vision, seed=options.seed)
        models, processor = train(options, kind, new, tokenizer, data["train"])
        vision = models["reference"].vision.model
        args = training_arguments(options, kind, "contrastive", options.steps)
        rows = score_models(models, processor, data["validation"], data["test"], args)
        found[kind], seconds[kind] = rows, perf_counter() - start
        print(f"\n{kind}: {len(data['test'])} test images, {seconds[kind]:.0f} s\n")
        print(aligned_table(learning_rows(rows)) + "\n\n" + aligned_table(two_sides_rows(rows)), flush=True)
        for name, model in models.items():
            model.save_pretrained(options.output / f"{kind}-{name}")
            processor.save_pretrained(options.output / f"{kind}-{name}")
        if options.picture and kind == "adaptive-attention":
            draw_attention(models["contrastive"], processor, data["test"], options.picture)
    write_results(options, found, seconds)
    return found


def train(
    options: argparse.Namespace, kind: str, new: RecurrentCaptionerModel, tokenizer: Any, train_split: datasets.Dataset
) -> tuple[dict[str, RecurrentCaptionerModel], CaptionProcessor]:
    """Reference, control and contrastive captioner, the reference first, and what goes with all of them."""
    processor = captioner_for(new, (tokenizer, small_image_processor(64))).processor
    stages = {
        "reference": ("mle", options.reference_steps),
        "control": ("mle", options.steps),
        "contrastive": ("contrastive", options.steps),
    }
    models: dict[str, RecurrentCaptionerModel] = {}
    for name, (objective, steps) in stages.items():
        model = copy.deepcopy(models.get("reference", new))
        trainer = ContrastiveCaptionTrainer(
            model=model,
            args=training_arguments(options, kind, objective, steps, from_scratch=name == "reference"),
            train_dataset=train_split,
            processing_class=processor,
        )
        trainer.remove_callback(PrinterCallback)
        start = perf_counter()
        trainer.train()
        last = next(entry["loss"] for entry in reversed(trainer.state.log_history) if "loss" in entry)
        print(f"{kind}, {name}: {steps} steps in {perf_counter() - start:.0f} s, loss {last:.3f}", flush=True)
        models[name] = model
    return models, processor


def training_arguments(
    options: argparse.Namespace, kind: str, objective: str, steps: int, *, from_scratch: bool = False
) -> ContrastiveCaptionConfig:
    return ContrastiveCaptionConfig(
        output_dir=str(options.output / kind),
        objective=objective,
        num_negatives=5,
        max_steps=steps,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=100,
        learning_rate=options.reference_learning_rate if from_scratch else options.learning_rate,
        lr_scheduler_type="cosine" if from_scratch else "linear",
        warmup_steps=min(100 if from_scratch else 50, steps // 5),
        weight_decay=0.0,
        seed=options.seed,
        logging_steps=min(25, steps),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )


def draw_attention(
    model: RecurrentCaptionerModel, processor: CaptionProcessor, test_split: datasets.Dataset, file: Path
) -> None:
    """Draw a test image once for each word of its caption: where the model looked, and how much it looked at all."""
    import matplotlib.pyplot as plt

    image = max(test_split, key=lambda row: max(map(len, row["captions"])))["image"]
    pixels = processor.process_images([image])
    with torch.no_grad():
        ids = model.eval().generate(**pixels, num_beams=1, max_new_tokens=20)
        output = model(**pixels, decoder_input_ids=ids[:, :-1], output_attentions=True)
    weights = output.cross_attentions[0][0, 0, :, :-1]  # (n_words, positions)
    side = int(weights.shape[1] ** 0.5)
    maps = weights.view(-1, side, side)
    figure, panels = plt.subplots(1, len(maps), figsize=(1.6 * len(maps), 2.1), squeeze=False)
    for panel, looked, token, gate in zip(panels[0], maps, ids[0, 1:].tolist(), output.sentinel_gate[0], strict=True):
        panel.imshow(image, extent=(0, side, side, 0))
        panel.imshow(looked, extent=(0, side, side, 0), cmap="gray", alpha=0.6, interpolation="bilinear")
        panel.set_title(f"{processor.tokenizer.convert_ids_to_tokens(token)}\nimage {1 - float(gate):.2f}", fontsize=8)
        panel.axis("off")
    figure.savefig(file, dpi=100, bbox_inches="tight")
    plt.close(figure)


def write_results(options: argparse.Namespace, found: dict[str, list[ModelScores]], seconds: dict[str, float]) -> None:
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    content = {
        "command": shlex.join(["python", *sys.argv]),
        "settings": settings,
        "seconds": {kind: round(value, 1) for kind, value in seconds.items()},
        "models": {kind: {row.name: row.numbers() for row in rows} for kind, rows in found.items()},
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "results.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/paper_models"), help="default: %(default)s")
    parser.add_argument("--picture", type=Path, help="PNG of where Adaptive Attention looks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-images", type=int, default=6000, help="default: %(default)s")
    parser.add_argument("--test-images", type=int, default=500, help="default: %(default)s")
    parser.add_argument("--reference-steps", type=int, default=800, help="steps of MLE (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="of tuning and control (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="images in a step (default: %(default)s)")
    parser.add_argument("--reference-learning-rate", type=float, default=3e-3, help="highest (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=5e-4, help="of tuning (default: %(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
