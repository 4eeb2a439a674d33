"""Tune a weak captioner against a strong reference of another kind, with a tokenizer of its own.

    python examples/weak_target.py --data photographs --output runs/weak
    python examples/weak_target.py --output runs/weak

``--data`` is a folder with parquet files or images (see docs/cli.md) that has the splits train and test. The second
command needs no download: it draws scenes and trains two captioners on them first. The weak one is the paper's
Adaptive Attention (a CNN and an LSTM) over pieces of words, stopped early; the strong one a ViT and GPT-2 over whole
words.

The weak captioner is tuned twice for the same steps: against a frozen copy of itself, and against the strong one. Dai
and Lin found that a better reference helps a weaker target; the table says whether it does here. Each side reads image
and caption in its own way; what the loss compares are the log-probabilities of whole captions. So it does not begin at
1.386 where the two are not equal.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hf_contrastive_caption import (
    CaptionerReport,
    ContrastiveCaptionConfig,
    ContrastiveCaptionTrainer,
    evaluate_captioner,
    scenes,
)
from hf_contrastive_caption.data.files import choose_split, load_splits
from hf_contrastive_caption.demo.start import start_captioner, train_to_start
from hf_contrastive_caption.evaluation.report import report_table
from hf_contrastive_caption.models import small_image_processor, small_recurrent_captioner

WEAK = "nlpconnect/vit-gpt2-image-captioning"
STRONG = "Salesforce/blip-image-captioning-base"


def main(arguments: list[str] | None = None) -> dict[str, CaptionerReport]:
    options = parse(arguments)
    if options.data is None:
        data = scenes(options.images, 2, max(options.images // 10, 10))
        weak, strong = drawn_captioners(options, data)
    else:
        data, weak, strong = load_splits(options.data), options.model or WEAK, options.reference_model or STRONG
    train, test = choose_split(data, "train")[1], choose_split(data, "test")[1]

    against_itself = tune(options, "against-itself", weak, None, train)
    against_strong = tune(options, "against-strong", weak, strong, train)
    captioners = {
        "weak": weak,
        "strong": strong,
        "weak, tuned against itself": against_itself.captioner,
        "weak, tuned against strong": against_strong.captioner,
    }
    reports = {name: evaluate_captioner(captioner, test, name=name) for name, captioner in captioners.items()}
    print(report_table(list(reports.values())))
    print("\nWhat the better reference does:\n")
    ours, theirs = (reports[f"weak, tuned against {side}"] for side in ("strong", "itself"))
    print(ours.compare(theirs).to_markdown())
    return reports


def tune(
    options: argparse.Namespace, name: str, weak: str, reference: str | None, train: Dataset
) -> ContrastiveCaptionTrainer:
    """Tune the weak captioner against a reference, or against a frozen copy of itself."""
    trainer = ContrastiveCaptionTrainer(
        model=weak,
        reference_model=reference,  # a name: its tokenizer and image processor are loaded with it
        args=ContrastiveCaptionConfig(
            output_dir=str(options.output / name),
            num_train_epochs=1,
            max_steps=options.steps,
            per_device_train_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            warmup_steps=0.1,
            logging_first_step=True,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=train,
    )
    print(f"{name}: the reference is {trainer.reference.description}.", flush=True)
    trainer.train()
    trainer.save_model()
    return trainer


def drawn_captioners(options: argparse.Namespace, data: DatasetDict) -> tuple[str, str]:
    """A weak and a strong captioner of drawn scenes, trained by maximum likelihood; the folders that they are in."""
    train = data["train"]
    strong = start_captioner(options.output / "strong", train, steps=options.start_steps)
    tokenizer = pieces_of_words([caption for row in train["captions"] for caption in row])
    model = small_recurrent_captioner("adaptive-attention", tokenizer)
    processing = (tokenizer, small_image_processor(64))
    steps = max(options.start_steps // 3, 1)
    weak = train_to_start(options.output / "weak", model, processing, train, steps=steps)
    return weak, strong


def pieces_of_words(captions: list[str]) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer with so few pieces that longer words are made of several."""
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    pieces.train_from_iterator(captions, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=pieces, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", help="folder, parquet file, or name of a data set (default: drawn scenes, and small captioners)")
    add("--model", help=f"the weak captioner, with --data (default: {WEAK})")
    add("--reference-model", help=f"the strong captioner, with --data (default: {STRONG})")
    add("--output", type=Path, required=True, help="folder for the captioners")
    add("--steps", type=int, default=300, help="of tuning (default: %(default)s; -1 for one epoch)")
    add("--batch-size", type=int, default=32, help="images in a step (default: %(default)s)")
    add("--learning-rate", type=float, help="highest (default: 1e-5, and 5e-4 for the drawn scenes)")
    add("--images", type=int, default=6000, help="scenes to draw (default: %(default)s)")
    add("--start-steps", type=int, default=1200, help="that train the strong one; the weak one gets a third")
    options = parser.parse_args(arguments)
    if options.data is None and (options.model or options.reference_model):
        parser.error("--model and --reference-model need --data: for drawn scenes both captioners are made here")
    if options.learning_rate is None:
        options.learning_rate = 1e-5 if options.data else 5e-4
    return options


if __name__ == "__main__":
    main()
