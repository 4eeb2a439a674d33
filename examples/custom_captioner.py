"""A captioner of your own: a convolutional network and a GRU, tuned contrastively on drawn scenes.

    python examples/custom_captioner.py --output runs/custom

The model is none that the library knows. What it takes to train it is a captioner class of three lines and one call,
``register_captioner``. It is trained from scratch by maximum likelihood, tuned contrastively against a frozen copy of
itself, saved, loaded by name, and compared with what it was: its captions, and how many of them find their own image
among all test images. It takes a minute or two on the processor; few steps on drawn scenes show the way, and no more.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutput

from hf_contrastive_caption import (
    ContrastiveCaptionConfig,
    ContrastiveCaptionTrainer,
    SelfRetrieval,
    SimpleCaptioner,
    captioner_for,
    register_captioner,
    scenes,
    self_retrieval,
)
from hf_contrastive_caption.loading import load_model, load_processing
from hf_contrastive_caption.models import small_image_processor, word_level_tokenizer

# --- the model: as you have it ---------------------------------------------------------------------------------------


class PictureGRUConfig(PreTrainedConfig):
    """Sizes and tokens; ``vocab_size``, ``hidden_size`` and ``num_hidden_layers`` are asked for by the library."""

    model_type = "picture-gru"

    image_size: int = 32
    vocab_size: int = 100
    hidden_size: int = 128
    num_hidden_layers: int = 1
    bos_token_id: int = 1
    eos_token_id: int = 2
    pad_token_id: int = 0


class PictureGRU(PreTrainedModel, GenerationMixin):
    """The picture, as one vector, is the first state of a GRU that reads and writes the caption."""

    config_class = PictureGRUConfig

    def __init__(self, config: PictureGRUConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.picture = nn.Sequential(
            nn.Conv2d(3, width // 2, 4, stride=4),
            nn.GELU(),
            nn.Conv2d(width // 2, width, 4, stride=4),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(width * (config.image_size // 16) ** 2, width),
        )
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        self.words = nn.GRU(width, width, batch_first=True)
        self.lm_head = nn.Linear(width, config.vocab_size)
        self.post_init()

    def forward(
        self, input_ids: Tensor, pixel_values: Tensor | None = None, picture: Tensor | None = None, **kwargs: Any
    ) -> CausalLMOutput:
        """Logits of the next token behind each token; ``generate`` passes on what is not used here."""
        if picture is None:
            picture = self.picture(pixel_values)  # (rows, hidden_size)
        hidden, _ = self.words(self.embed_tokens(input_ids), picture[None].contiguous())  # (rows, length, hidden_size)
        return CausalLMOutput(logits=self.lm_head(hidden))

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        """All tokens are read again for each new one: simple, and quick enough for captions."""
        return {"input_ids": input_ids, "pixel_values": kwargs["pixel_values"]}


# --- the captioner: what the library has to know of it --------------------------------------------------------------


class PictureGRUCaptioner(SimpleCaptioner):
    """Pictures are encoded once for all of their captions, and can be given as the vectors that they are made into."""

    vision_path = "picture"
    states_argument = "picture"


register_captioner(PictureGRUConfig, PictureGRUCaptioner)
AutoConfig.register(PictureGRUConfig.model_type, PictureGRUConfig)  # so that a saved model is loaded by name
AutoModelForImageTextToText.register(PictureGRUConfig, PictureGRU)


# --- training, saving, loading, measuring ----------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> dict[str, SelfRetrieval]:
    options = parse(arguments)
    data = scenes(options.images, 0, options.images // 10, image_size=32)
    tokenizer = word_level_tokenizer(caption for captions in data["train"]["captions"] for caption in captions)
    torch.manual_seed(0)
    model = PictureGRU(
        PictureGRUConfig(
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    processing = (tokenizer, small_image_processor(32))

    folders = {name: options.output / name for name in ("mle", "contrastive")}
    recipes = {
        "mle": {"objective": "mle", "max_steps": options.steps, "learning_rate": 3e-3},
        "contrastive": {"objective": "contrastive", "max_steps": options.steps // 2, "learning_rate": 1e-3},
    }
    for name, recipe in recipes.items():
        args = ContrastiveCaptionConfig(
            output_dir=str(folders[name]),
            per_device_train_batch_size=32,
            warmup_steps=options.steps // 10,
            logging_steps=options.steps // 4,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            dataloader_pin_memory=False,
            **recipe,
        )
        trainer = ContrastiveCaptionTrainer(
            model=model, args=args, train_dataset=data["train"], processing_class=processing
        )
        trainer.train()
        trainer.save_model()

    results = {}
    for name, folder in folders.items():
        captioner = captioner_for(load_model(str(folder)), load_processing(str(folder)))
        found = self_retrieval(captioner, data["test"]["image"], k=(1, 5), progress=False, max_new_tokens=30)
        print(f"\n--- {name}: {len(set(found.captions))} different captions\n\n{found.to_markdown()}\n")
        print("\n".join(found.captions[:5]), flush=True)
        results[name] = found
    return results


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the two models")
    parser.add_argument("--images", type=int, default=2000, help="drawn scenes (default: 2000)")
    parser.add_argument("--steps", type=int, default=400, help="steps of maximum likelihood; half as many contrastive")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
