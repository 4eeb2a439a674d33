"""What a training step costs by counting: operations and bytes per image, for each way to hold the reference.

``reference_memory.py`` sets these figures beside counted operations, measured times and measured memory.

Operations are those of matrix products and convolutions. With E the forward of the vision encoder over an image and D
that of the decoder over its 1 + K captions, a backward takes about twice its forward, and so

=============================  ===================  =============================
strategy                       operations           with gradient checkpointing
=============================  ===================  =============================
MLE of the same captions       3E + 3D              4E + 4D
default, a frozen copy         4E + 4D              5E + 5D
scores ahead                   3E + 3D              4E + 4D
shared frozen encoder          E + 4D               E + 5D
cached states                  4D                   5D
cached states, scores ahead    3D                   4D
MLE with an adapter            2E + 2D              3E + 3D
adapters off                   3E + 3D              4E + 4D
=============================  ===================  =============================

:func:`step_operations` knows what this leaves out: pixels and frozen states take no gradient, attention has two
factors that take one also where no weight trains, an adapter's own products, and that checkpointing computes the
layers again but not the vocabulary projection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hf_contrastive_caption.captioners import CaptionBatch, Captioner, Images

STRATEGIES: dict[str, dict[str, Any]] = {
    "mle": {"objective": "mle"},
    "default": {},
    "scores_ahead": {"precompute_reference": True},
    "shared_encoder": {"freeze_vision_encoder": True},
    "cached_states": {"freeze_vision_encoder": True, "cache_vision_states": True},
    "cached_states_scores_ahead": {
        "freeze_vision_encoder": True,
        "cache_vision_states": True,
        "precompute_reference": True,
    },
    "mle_adapter": {"objective": "mle"},
    "adapters_off": {},
}
"""Options of the trainer by strategy; the last two train an adapter."""

ADAPTERS = ("mle_adapter", "adapters_off")
FLOAT32, ADAMW_STATES = 4, 2


@dataclass(frozen=True)
class Part:
    """Operations of the forward of an encoder or decoder over a batch.

    Attributes:
        products: With weights, in the layers.
        attention: Of queries with keys, and of attention weights with values.
        edge: Outside of the layers: of the pixels with the patch embedding, or of the vocabulary projection.
        adapter: With the weights of an adapter.
        states: The share of ``products`` that projects image states to keys and values; 0 in an encoder.
        first: The share of ``products`` that reads the embedded input: queries, keys and values of the first layer.
        last: The share of ``products`` whose result checkpointing need not have again: PyTorch stops computing a layer
            again at the last tensor that its backward reads, which in GPT-2 lies before the last product.
    """

    products: float
    attention: float
    edge: float
    adapter: float = 0.0
    states: float = 0.0
    first: float = 0.0
    last: float = 0.0

    @property
    def forward(self) -> float:
        """Without adapters."""
        return self.products + self.attention + self.edge

    @property
    def again(self) -> float:
        """What gradient checkpointing computes a second time, without adapters."""
        return self.products + self.attention - self.last


@dataclass(frozen=True)
class Forwards:
    """The two forwards of a batch."""

    encoder: Part
    decoder: Part


def step_operations(strategy: str, cost: Forwards, *, checkpointing: bool = False) -> float:
    """Operations of a training step, of the batch that the forwards are of."""
    encoder, decoder = cost.encoder, cost.decoder
    both = encoder.forward + decoder.forward
    if strategy in ADAPTERS:
        adapters = encoder.adapter + decoder.adapter
        # Frozen weights pass the gradient on and take none; before the first adapter nothing needs it.
        passed_on = encoder.products - encoder.first + decoder.products - decoder.first + decoder.edge
        backward = passed_on + 2 * (encoder.attention + decoder.attention)
        total = both + backward + 3 * adapters + (both if strategy == "adapters_off" else 0.0)
        again = encoder.again + encoder.last + decoder.again + decoder.last + adapters  # the adapter comes last
        return total + (again if checkpointing else 0.0)
    trains_encoder = "freeze_vision_encoder" not in STRATEGIES[strategy]
    backward = 2 * decoder.forward - (0.0 if trains_encoder else decoder.states)
    total = decoder.forward + backward + (decoder.again if checkpointing else 0.0)
    if trains_encoder:
        total += encoder.forward + 2 * encoder.forward - encoder.edge + (encoder.again if checkpointing else 0.0)
    if strategy == "default":
        total += both
    elif strategy == "shared_encoder":
        total += both  # the encoder once for both, the decoder of the reference
    elif strategy == "cached_states":
        total += decoder.forward
    return total


def held_bytes(strategy: str, encoder_weights: int, decoder_weights: int, adapter_weights: int = 0) -> int:
    """Bytes of weights, gradients, states of AdamW and the reference, all in float32.

    Args:
        strategy: The strategy.
        encoder_weights: Number of weights of the vision encoder.
        decoder_weights: Number of weights of the decoder.
        adapter_weights: Number of weights of the adapter.
    """
    both = encoder_weights + decoder_weights
    if strategy in ADAPTERS:
        trained, held = adapter_weights, both + adapter_weights
    else:
        frozen_encoder = "freeze_vision_encoder" in STRATEGIES[strategy]
        trained, held = decoder_weights if frozen_encoder else both, both
    reference = {"default": both, "shared_encoder": decoder_weights, "cached_states": decoder_weights}
    return FLOAT32 * (held + (1 + ADAMW_STATES) * trained + reference.get(strategy, 0))


def states_bytes(positions: int, width: int, bytes_per_number: int = FLOAT32) -> int:
    """Bytes on disk of the cached states of one image."""
    return positions * width * bytes_per_number


def scores_bytes(num_negatives: int, epochs: int, positives: int = 1) -> int:
    """Bytes on disk of the reference's scores for one image that brings so many positives to each epoch."""
    return FLOAT32 * (1 + num_negatives) * positives * epochs


def count(action: Callable[[], Any]) -> dict[str, float]:
    """Operations of what an action runs: with weights, of attention, of convolutions."""
    # The counter does not know the fused attention of CPUs.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        action()
    by_name = {str(operator): float(number) for operator, number in counter.get_flop_counts()["Global"].items()}
    convolutions = sum(number for name, number in by_name.items() if "convolution" in name)
    attention = sum(number for name, number in by_name.items() if "bmm" in name)
    return {
        "products": float(counter.get_total_flops()) - attention - convolutions,
        "attention": attention,
        "convolutions": convolutions,
    }


def count_forwards(captioner: Captioner, images: Images, captions: CaptionBatch) -> Forwards:
    """Count the two forwards of a batch.

    Args:
        captioner: A ViT that a GPT-2 attends to; what an adapter multiplies counts as products of the layers.
        images: Of the batch.
        captions: Of the batch, 1 + K for each image.
    """
    states = captioner.encode(images)
    n_images, positions, encoder_width = next(iter(states.values())).shape
    head = captioner.decoder.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    vocabulary = 2.0 * captions["input_ids"].numel() * head.in_features * head.out_features
    layers, width = captioner.decoder_size()
    to_states = 2.0 * n_images * positions * encoder_width * 2 * width * layers  # keys and values
    to_first = 2.0 * n_images * positions * encoder_width * 3 * encoder_width
    n_tokens = captions["input_ids"].numel()  # as many as positions, if captions are of one length
    last = 2.0 * n_tokens * width * (captioner.decoder.config.n_inner or 4 * width) * layers
    with torch.no_grad():
        encoder = count(lambda: captioner.encode(images))
        decoder = count(lambda: captioner.token_log_probs(captioner.model, states, captions))
    return Forwards(
        Part(encoder["products"], encoder["attention"], encoder["convolutions"], first=to_first),
        Part(
            decoder["products"] - vocabulary,
            decoder["attention"],
            vocabulary,
            0.0,
            to_states,
            2.0 * n_tokens * width * 3 * width,
            last,
        ),
    )


def with_adapter(plain: Forwards, adapted: Forwards) -> Forwards:
    """The forwards of a captioner, and what its adapter adds to them."""
    return Forwards(
        replace(plain.encoder, adapter=adapted.encoder.forward - plain.encoder.forward),
        replace(plain.decoder, adapter=adapted.decoder.forward - plain.decoder.forward),
    )
