"""Captions of the generator, sampled and greedy in one call of its ``generate``, and the policy gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from hf_contrastive_caption.captioners import CaptionBatch, Captioner, Images, caption_batch
from hf_contrastive_caption.captioners.cross_attention import ENCODER_STATES, CrossAttentionCaptioner
from hf_contrastive_caption.generation import generate_arguments

TOLERANCE_PER_TOKEN = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Nats per token by which the score of a sample may differ from the probability that it was drawn with."""
HALF_PRECISION_TOLERANCE = 0.05


class Written(NamedTuple):
    """What the generator wrote.

    Attributes:
        samples: ``samples_per_image`` captions for each image, those of an image behind each other.
        greedy: One caption for each image.
        log_probs: ln of the probability with which each sample was drawn, (n_samples,).
    """

    samples: CaptionBatch
    greedy: CaptionBatch
    log_probs: Tensor


class DrawTokens(LogitsProcessor):
    """Draws the next token itself, and leaves ``generate``, which decodes greedily, no other choice.

    So the draws come from a generator of random numbers of their own, and from the model's whole distribution:
    ``generate`` would sample among the 50 likeliest tokens unless told otherwise, and its settings know many more
    such changes. Sampled and greedy captions are rows of one batch.

    Args:
        greedy: Which rows are not sampled, (n_rows,).
        generator: Where random numbers come from.
    """

    def __init__(self, greedy: Tensor, generator: torch.Generator) -> None:
        self._greedy = greedy
        self._generator = generator
        self._tokens: list[Tensor] = []
        self._log_probs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Choose the next token of each row; ``scores`` are (n_rows, vocabulary_size)."""
        log_probs = scores.float().log_softmax(-1)
        drawn = torch.multinomial(log_probs.exp(), 1, generator=self._generator)  # (n_rows, 1)
        chosen = torch.where(self._greedy[:, None], log_probs.argmax(-1, keepdim=True), drawn)
        self._tokens.append(chosen[:, 0])
        self._log_probs.append(log_probs.gather(1, chosen)[:, 0])
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)

    def captions(self, end_token_id: int) -> tuple[list[list[int]], Tensor]:
        """The tokens of each row up to its end token, and ln of their probability, (n_rows,).

        A caption that was not finished has no end token, and its probability is that of its tokens.
        """
        tokens, log_probs = torch.stack(self._tokens, 1), torch.stack(self._log_probs, 1)  # (n_rows, longest)
        ended_before = (tokens == end_token_id).cumsum(1) - (tokens == end_token_id).long()
        kept = ended_before == 0
        rows = [row[mask].tolist() for row, mask in zip(tokens, kept, strict=True)]
        return rows, (log_probs * kept).sum(1)


@torch.no_grad()
def write_captions(
    captioner: Captioner, images: Images, samples_per_image: int, max_new_tokens: int, generator: torch.Generator
) -> Written:
    """Sample captions of each image, and decode one greedily.

    Args:
        captioner: The generator, in evaluation mode.
        images: What the image processor gives, or of a ``VisionEncoderDecoderModel`` the result of ``encode``,
            n_images along the first dimension.
        samples_per_image: How many captions are sampled of each image.
        max_new_tokens: Longest caption in tokens, end token included.
        generator: Where random numbers come from, on the captioner's device.
    """
    count = next(iter(images.values())).shape[0]
    each = torch.arange(count, device=captioner.device)
    sampled = each.repeat_interleave(samples_per_image)
    rows = torch.cat([sampled, each])  # (n_rows,) the image of each
    draw = DrawTokens(torch.arange(len(rows), device=captioner.device) >= len(sampled), generator)
    end = captioner.processor.end_token_id
    arguments = generate_arguments(captioner, {"num_beams": 1, "max_new_tokens": max_new_tokens, "eos_token_id": end})
    inputs = _inputs(captioner, {name: value.index_select(0, rows) for name, value in images.items()})
    captioner.generate(inputs, **arguments, logits_processor=LogitsProcessorList([draw]))
    captions, log_probs = draw.captions(end)
    indices = sampled.tolist(), each.tolist()
    split = len(sampled)
    samples = caption_batch(captions[:split], indices[0], captioner.device)
    return Written(samples, caption_batch(captions[split:], indices[1], captioner.device), log_probs[:split])


def policy_loss(log_probs: Tensor, rewards: Tensor, baselines: Tensor) -> Tensor:
    """A loss whose gradient is the policy gradient (REINFORCE), to be minimised.

    The gradient of E[r] is E[(r - b) ∇ ln p(S | I)] for any b that does not depend on S. With b the reward of the
    greedy caption it is self-critical (Rennie et al., CVPR 2017).

    Args:
        log_probs: ln p(S | I) of samples under the generator, with gradients, (n_samples,).
        rewards: r(I, S), (n_samples,).
        baselines: b, (n_samples,).
    """
    return -((rewards - baselines).detach() * log_probs).mean()


def check_samples(captioner: Captioner, written: Written, log_probs: Tensor) -> None:
    """Refuse a generator that is scored by another distribution than it writes with.

    Args:
        captioner: The generator.
        written: What it wrote.
        log_probs: The scores of the samples, (n_samples,).

    Raises:
        ValueError: If ``generate`` changes what the model predicts, as a repetition penalty does.
    """
    off = ((log_probs - written.log_probs).abs() / written.samples["lengths"]).max().item()
    allowed = TOLERANCE_PER_TOKEN.get(captioner.dtype, HALF_PRECISION_TOLERANCE)
    if not off <= allowed:
        raise ValueError(
            f"{captioner.name} draws captions with other probabilities than it scores them with: {off:.2g} nats per "
            "token apart. Take out of model.generation_config what changes them, such as repetition_penalty, "
            "no_repeat_ngram_size, min_new_tokens, suppress_tokens or forced tokens"
        )


def join(*batches: CaptionBatch) -> CaptionBatch:
    """Several batches of captions for the same images as one."""
    names = ("input_ids", "lengths", "image_index")
    together: Any = {name: torch.cat([batch[name] for batch in batches]) for name in names}  # type: ignore[literal-required]
    return CaptionBatch(**together)


def every(captions: CaptionBatch, first: int, step: int) -> CaptionBatch:
    """Every so many captions of a batch, beginning with a certain one."""
    pieces: Sequence[Tensor] = captions["input_ids"].split(captions["lengths"].tolist())
    return CaptionBatch(
        input_ids=torch.cat(pieces[first::step]),
        lengths=captions["lengths"][first::step],
        image_index=captions["image_index"][first::step],
    )


def _inputs(captioner: Captioner, images: Images) -> dict[str, Any]:
    """What ``generate`` takes for images, or for states in their place."""
    if ENCODER_STATES not in images:
        return dict(images)
    assert isinstance(captioner, CrossAttentionCaptioner)
    return captioner.states_arguments(images[ENCODER_STATES])
