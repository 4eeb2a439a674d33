"""Tune a captioner with LoRA: a small adapter trains, and the reference is the model with its adapters off.

    python examples/lora.py --data photographs --output runs/lora
    python examples/lora.py --output runs/lora

``--data`` is a folder with parquet files or images (see docs/cli.md) that has the splits train and test. The second
command needs no download: it draws scenes, and trains a small captioner on them first.

The reference takes no memory of its own. The output folder gets ``adapter`` (to publish or to keep: a few megabytes,
loaded on the base model that it names) and ``merged`` (a plain captioner, which needs no PEFT any more). Both are
loaded again and caption the first test images, which shows that they say the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from peft import LoraConfig

from hf_contrastive_caption import Captioner, ContrastiveCaptionConfig, ContrastiveCaptionTrainer, scenes
from hf_contrastive_caption.data.files import choose_split, load_splits
from hf_contrastive_caption.demo.start import start_captioner

CHECKPOINT = "nlpconnect/vit-gpt2-image-captioning"


def main(arguments: list[str] | None = None) -> ContrastiveCaptionTrainer:
    options = parse(arguments)
    if options.data is None:
        data = scenes(options.images, 2, max(options.images // 10, 10))
        model = options.model or start_captioner(options.output / "start", data["train"], steps=options.start_steps)
    else:
        data, model = load_splits(options.data), options.model or CHECKPOINT
    train, test = choose_split(data, "train")[1], choose_split(data, "test")[1]

    trainer = ContrastiveCaptionTrainer(
        model=model,
        args=ContrastiveCaptionConfig(
            output_dir=str(options.output / "adapter"),
            num_train_epochs=1,
            max_steps=options.steps,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            warmup_steps=0.1,
            logging_first_step=True,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=train,
        peft_config=LoraConfig(r=options.rank, lora_alpha=2 * options.rank, target_modules=options.target_modules),
    )
    print(f"The reference is {trainer.reference.description}.")
    trainer.model.print_trainable_parameters()
    trainer.train()
    trainer.save_model()

    comparison = trainer.compare_with_reference(test, folder=options.output / "report")
    print(comparison.to_markdown())

    merged = trainer.model.merge_and_unload()  # the adapter is added to the weights: a plain model again
    merged.save_pretrained(options.output / "merged")
    trainer.captioner.processor.save_pretrained(options.output / "merged")

    images = test["image"][:3]
    for name in (model, options.output / "adapter", options.output / "merged"):
        captions = Captioner.from_pretrained(name).caption(images)
        print(f"\n{name}:", *captions, sep="\n  ")
    return trainer


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", help=f"folder or repository (default: {CHECKPOINT}; without --data a small one from scratch)")
    add("--data", help="folder, parquet file, or name of a data set (default: drawn scenes)")
    add("--output", type=Path, required=True, help="folder for adapter, merged model and report")
    add("--rank", type=int, default=16, help="of the adapter (default: %(default)s)")
    add("--target-modules", default="all-linear", help="regular expression, or all-linear (default: %(default)s)")
    add("--steps", type=int, default=-1, help="of tuning (default: one epoch)")
    add("--batch-size", type=int, default=32, help="images in a step (default: %(default)s)")
    add("--learning-rate", type=float, default=2e-4, help="highest (default: %(default)s)")
    add("--images", type=int, default=6000, help="scenes to draw (default: %(default)s)")
    add("--start-steps", type=int, default=1200, help="that train the small captioner (default: %(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
