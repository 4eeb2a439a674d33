"""The ways to score 1 + K captions per image that ``training_step.py`` compares, and the models that they run on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import VisionEncoderDecoderModel

from hf_contrastive_caption.captioners import Captioner, caption_batch, captioner_for
from hf_contrastive_caption.losses import contrastive_caption_loss
from hf_contrastive_caption.models import small_captioner, small_image_processor, word_level_tokenizer
from hf_contrastive_caption.objectives import ContrastiveObjective
from hf_contrastive_caption.reference import FrozenReference

K = 5
PAD, START, END = 0, 1, 2


@dataclass(frozen=True)
class Size:
    """Sizes of a captioner and of a batch, and how often things are timed."""

    images: int
    vocabulary: int
    repeats: int
    model: dict[str, int]


SIZES = {
    "small": Size(
        images=16,
        vocabulary=4_000,
        repeats=7,
        model={"image_size": 192, "patch_size": 16, "width": 192, "encoder_layers": 6, "decoder_layers": 4, "heads": 3}
        | {"mlp": 768, "num_positions": 128},
    ),
    "base": Size(
        images=2,
        vocabulary=50_257,
        repeats=3,
        model={"image_size": 224, "patch_size": 16, "width": 768, "encoder_layers": 12, "decoder_layers": 12}
        | {"heads": 12, "mlp": 3072, "num_positions": 1024},
    ),
}
_TINY = {"image_size": 32, "patch_size": 16, "width": 32, "encoder_layers": 1, "decoder_layers": 1, "heads": 2}
QUICK_SIZES = {
    "small": Size(images=3, vocabulary=100, repeats=2, model=_TINY | {"mlp": 64, "num_positions": 128}),
    "base": Size(images=2, vocabulary=300, repeats=2, model=_TINY | {"mlp": 64, "num_positions": 128}),
}


@dataclass(frozen=True)
class Bench:
    """Target, reference and one batch. The captions of an image are neighbours, the positive one first."""

    model: VisionEncoderDecoderModel
    reference: VisionEncoderDecoderModel
    processing: tuple[Any, Any]
    pixel_values: Tensor
    captions: list[Tensor]
    scorers: dict[str, tuple[Captioner, ContrastiveObjective]] = field(default_factory=dict)

    def scorer(self, layout: Literal["packed", "repeated"]) -> tuple[Captioner, ContrastiveObjective]:
        """Captioner of the target and objective, with both models scored in the given layout; verified once."""
        if layout not in self.scorers:
            both = [captioner_for(model, self.processing, packing=layout) for model in (self.model, self.reference)]
            for captioner in both:
                captioner.verify()
            self.scorers[layout] = both[0], ContrastiveObjective(FrozenReference(both[1]), K, contrastive_caption_loss)
        return self.scorers[layout]


def build(size: Size) -> Bench:
    """Two captioners with different random weights, and a batch; the same for every process."""
    tokenizer = word_level_tokenizer(f"w{number}" for number in range(size.vocabulary - 4))
    image_size = size.model["image_size"]
    model = small_captioner(tokenizer, seed=0, **size.model)
    reference = small_captioner(tokenizer, seed=1, **size.model).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(0)
    count = size.images * (1 + K)
    lengths = (11.8 + 3 * torch.randn(count, generator=generator)).round().clamp(8, 20).long()
    captions = [
        torch.cat([torch.randint(4, size.vocabulary, (length - 1,), generator=generator), torch.tensor([END])])
        for length in lengths.tolist()
    ]
    pixel_values = torch.randn(size.images, 3, image_size, image_size, generator=generator)
    return Bench(model, reference, (tokenizer, small_image_processor(image_size)), pixel_values, captions)


# The ways: each leaves the gradient of the mean loss in the weights of the target and returns the loss ---------------


def one_by_one(bench: Bench) -> float:
    """The naive loop; its backward runs per image, so that it need not keep all forwards."""
    images, total = bench.pixel_values.split(1), 0.0
    for number, image in enumerate(images):
        captions = bench.captions[number * (1 + K) : (number + 1) * (1 + K)]
        target = torch.stack([plain_log_prob(bench.model, image, ids) for ids in captions])
        with torch.no_grad():
            reference = torch.stack([plain_log_prob(bench.reference, image, ids) for ids in captions])
        log_ratio = (target - reference)[None]  # (1, 1 + K)
        loss = contrastive_caption_loss(log_ratio[:, 0], log_ratio[:, 1:]) / len(images)
        loss.backward()
        total += loss.item()
    return total


def plain_log_prob(model: VisionEncoderDecoderModel, image: Tensor, ids: Tensor) -> Tensor:
    """Log-probability of one caption of one image, a scalar."""
    inputs = torch.cat([torch.tensor([START]), ids[:-1]])[None]
    logits = model(pixel_values=image, decoder_input_ids=inputs, use_cache=False).logits[0]
    return -F.cross_entropy(logits, ids, reduction="sum")


def padded(bench: Bench) -> float:
    """One batch of (image, caption) rows."""

    def log_probs(model: VisionEncoderDecoderModel) -> Tensor:
        rows = bench.pixel_values.repeat_interleave(1 + K, dim=0)
        logits = model(
            pixel_values=rows, decoder_input_ids=inputs, decoder_attention_mask=mask, use_cache=False
        ).logits
        return -F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").sum(dim=1)  # (n_captions,)

    labels = padded_labels(bench.captions)
    mask = (labels >= 0).long()
    inputs = F.pad(labels[:, :-1].clamp_min(PAD), (1, 0), value=START)  # (n_captions, longest)
    target = log_probs(bench.model)
    with torch.no_grad():
        reference = log_probs(bench.reference)
    log_ratio = (target - reference).view(-1, 1 + K)
    loss = contrastive_caption_loss(log_ratio[:, 0], log_ratio[:, 1:])
    loss.backward()
    return loss.item()


def padded_labels(captions: list[Tensor]) -> Tensor:
    """Captions as labels, filled up with -100, (n_captions, longest)."""
    return torch.nn.utils.rnn.pad_sequence(captions, batch_first=True, padding_value=-100)


def scored(bench: Bench, layout: Literal["packed", "repeated"]) -> float:
    """The package's two ways: loss and statistics as the trainer computes them."""
    captioner, objective = bench.scorer(layout)
    index = [number // (1 + K) for number in range(len(bench.captions))]
    batch = {
        "images": {"pixel_values": bench.pixel_values},
        "captions": caption_batch([ids.tolist() for ids in bench.captions], index),
        "weights": torch.ones(bench.pixel_values.shape[0]),
    }
    output = objective(captioner, bench.model, batch)
    (output.loss / output.items).backward()
    return output.loss.item() / output.items.item()


WAYS: dict[str, Callable[[Bench], float]] = {
    "one_by_one": one_by_one,
    "padded": padded,
    "repeated": lambda bench: scored(bench, "repeated"),
    "packed": lambda bench: scored(bench, "packed"),
}
