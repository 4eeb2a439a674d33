"""Finding out, on the real model, which quick way of scoring is exact.

Some decoders swallow position ids without a word and give wrong numbers (BART, MBart, TrOCR), others change their
logits after the projection, and what holds for a class need not hold for the next release of it. So nothing is looked
up in a table: a captioner's quick ways are compared with one plain forward per caption before they are used.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hf_contrastive_caption.captioners.batch import CaptionBatch, Images, caption_batch
from hf_contrastive_caption.captioners.determinism import evaluation_mode, largest_difference
from hf_contrastive_caption.captioners.packing import sum_by_caption
from hf_contrastive_caption.captioners.tries import prefix_trie
from hf_contrastive_caption.precision import plain_forward

if TYPE_CHECKING:
    from hf_contrastive_caption.captioners.base import Captioner

logger = logging.getLogger(__name__)

TOLERANCE_PER_TOKEN = {torch.float64: 1e-8, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Nats per caption token by which two right ways of scoring may differ, by the dtype that matrix products run in."""

_PROBE_LENGTHS = (9, 4, 7, 2)
_REFUSALS = (TypeError, ValueError, RuntimeError, IndexError, AttributeError)
"""What a decoder raises that does not take position ids or a four-dimensional mask, or a head of unknown size."""


def verify(captioner: Captioner) -> None:
    """Choose the layout and head of a captioner that agree with its plain scores.

    Tries packed rows first unless repeated ones are asked for, with log-probabilities fused into the projection
    first; keeps the first combination that agrees.

    Args:
        captioner: Its ``layout`` and ``head`` are set.

    Raises:
        ValueError: If none agrees, the decoder is not causal, or ``packing="packed"`` was asked for and is not exact.
    """
    with _plainly(captioner):
        _choose(captioner)


@contextmanager
def _plainly(captioner: Captioner) -> Iterator[None]:
    """Without noise, gradients and autocast, whatever the model is in the middle of."""
    no_autocast = torch.autocast(captioner.device.type, enabled=False)
    with evaluation_mode(captioner.model), plain_forward(captioner.model), torch.no_grad(), no_autocast:
        yield


def _choose(captioner: Captioner) -> None:
    images, captions = probe(captioner)
    with captioner.checking_images(images):
        plain = captioner.reference_log_probs(images, captions)
    if not torch.isfinite(plain).all():
        raise ValueError(
            f"{captioner.name} gives captions scores that are not finite: its weights hold NaN or infinite numbers, "
            "or overflow in their dtype"
        )
    _check_causal(captioner, images, captions, plain)
    _warn_if_blind(captioner, images, captions, plain)
    layouts = {"auto": ("packed", "repeated"), "packed": ("packed",), "repeated": ("repeated",)}[captioner.packing]
    row_lengths, probes = _row_lengths(captioner), {"repeated": (images, captions, plain)}
    probes["packed"] = probes["repeated"]
    if row_lengths is not _PROBE_LENGTHS:  # too many tokens for a row are not packed, and packing is not checked
        images, captions = probe(captioner, row_lengths)
        with captioner.checking_images(images):
            probes["packed"] = images, captions, captioner.reference_log_probs(images, captions)
    tried: list[str] = []
    for layout, head in itertools.product(layouts, ("fused", "logits")):
        captioner.layout, captioner.head = layout, head  # type: ignore[assignment]
        images, captions, plain = probes[layout]
        try:
            scores = captioner._token_log_probs(captioner.model, images, captions)
        except _REFUSALS as error:
            tried.append(f"{layout} with {head}: {type(error).__name__}: {error}")
            continue
        worst, allowed = _disagreement(scores, plain, captions, _tolerance(captioner))
        if worst <= allowed:
            _report(captioner, tried)
            return
        tried.append(f"{layout} with {head}: off by {worst:.2g} nats")
    raise ValueError(
        f"no way of scoring {captioner.name} {tuple(layouts)} agrees with one plain forward per "
        f"caption ({'; '.join(tried)}). {captioner.way_out}"
    )


def check_states(captioner: Captioner) -> None:
    """Check that the encoded images give a captioner the scores that the images themselves give it.

    Raises:
        ValueError: If they do not.
    """
    with _plainly(captioner):
        images, captions = probe(captioner)
        scores, again = (
            captioner._token_log_probs(captioner.model, each, captions) for each in (images, captioner.encode(images))
        )
    worst, allowed = _disagreement(again, scores, captions, _tolerance(captioner))
    if worst > allowed:
        raise ValueError(
            f"{captioner.name} scores a caption by {worst:.2g} nats otherwise from the states of an image than from "
            "the image: its forward does something else with states that it is given"
        )


def exact_tries(captioner: Captioner) -> bool:
    """Whether scores by prefix tries agree with plain ones on this very model; says so once where they do not."""
    with _plainly(captioner):
        images, captions = _branching_probe(captioner)
        score = captioner.trie_scorer(images)
        if score is None:
            return False
        pairs = [(ids, image) for image in range(2) for ids in captions]
        batch = caption_batch([ids for ids, _ in pairs], [image for _, image in pairs], captioner.device)
        each = captioner.reference_log_probs(images, batch).cpu().double()
        plain = sum_by_caption(each, batch["lengths"].cpu()).view(2, -1)
        start = captioner.start_token_id
        if len(captions) < 2:  # a decoder with one position: there is nothing to share
            return False
        tries = [prefix_trie(part, start).to(captioner.device) for part in (captions, captions[1:])]
        try:
            whole, again = (trie.sum_paths(score(trie)) for trie in tries)  # the second from what the first one kept
        except _REFUSALS as error:
            logger.warning("%s: captions are scored without prefix tries: %s", captioner.name, error)
            return False
    longest = max(map(len, captions))
    off = max(largest_difference(whole, plain), largest_difference(again, plain[:, 1:]))
    if off <= _tolerance(captioner) * longest:
        return True
    logger.warning("%s: captions are scored without prefix tries, which are off by %.2g nats", captioner.name, off)
    return False


def _branching_probe(captioner: Captioner) -> tuple[Images, list[list[int]]]:
    """The images of the probe, and sorted captions that begin alike, one of them with its end token alone."""
    images, captions = probe(captioner)
    longest, *others = (ids.tolist() for ids in captions["input_ids"].split(captions["lengths"].tolist()))
    branches = [longest[:shared] + other for shared, other in enumerate(others) if shared < len(longest)]
    limit = captioner.processor.max_caption_tokens or max(map(len, branches))
    end = [captioner.processor.end_token_id]
    every = {tuple(ids) for ids in (longest, end, *branches) if len(ids) <= limit}
    return images, [list(ids) for ids in sorted(every)]


def _report(captioner: Captioner, tried: list[str]) -> None:
    if not tried:
        return
    logger.warning(
        "%s: captions are scored with the %s layout and %s head, the quickest way that is exact for this model (%s)",
        captioner.name,
        captioner.layout,
        captioner.head,
        "; ".join(tried),
    )


def _disagreement(scores: Tensor, plain: Tensor, captions: CaptionBatch, per_token: float) -> tuple[float, float]:
    """Largest difference of a caption's score, and what is allowed for the caption in which it occurs."""
    lengths = captions["lengths"].cpu()
    difference = sum_by_caption(scores.cpu().double() - plain.cpu().double(), lengths).abs()
    worst = int(torch.nan_to_num(difference / lengths, nan=float("inf")).argmax())
    return float(torch.nan_to_num(difference[worst], nan=float("inf"))), per_token * int(lengths[worst])


def _tolerance(captioner: Captioner) -> float:
    dtype = captioner.dtype
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        dtype = torch.bfloat16  # TF32 and bfloat16 products: ten and eight bits of mantissa
    return TOLERANCE_PER_TOKEN[dtype]


def probe(captioner: Captioner, lengths: Sequence[int] = _PROBE_LENGTHS) -> tuple[Images, CaptionBatch]:
    """Two images of noise, each with captions of several lengths, made of words from all over the vocabulary.

    Args:
        captioner: Whose processor reads them.
        lengths: Tokens of the captions of each image; fewer where the captioner scores fewer.
    """
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 256, (64, 96, 3), dtype=np.uint8)) for _ in range(2)]
    images = captioner.placed(captioner.processor.process_images(pictures))
    tokenizer = captioner.processor.tokenizer
    # No padding among them: RoBERTa counts positions by it, and no caption contains it.
    # Nor tokens that are special without a name, such as that of an image.
    unnamed = [number for number, token in tokenizer.added_tokens_decoder.items() if token.special]
    words = np.setdiff1d(np.arange(len(tokenizer)), [*tokenizer.all_special_ids, *unnamed])
    end = captioner.processor.end_token_id
    limit = captioner.processor.max_caption_tokens or max(lengths)
    sentences = [
        [*generator.choice(words, min(length, limit) - 1).tolist(), end] for length in (*lengths, *reversed(lengths))
    ]
    image_index = [0] * len(lengths) + [1] * len(lengths)
    return images, caption_batch(sentences, image_index, captioner.device)


def _row_lengths(captioner: Captioner) -> Sequence[int]:
    """Tokens of the probe's captions of an image where a row of the decoder must hold all of them."""
    lengths = [min(length, captioner.processor.max_caption_tokens or length) for length in _PROBE_LENGTHS]
    row = captioner.position_limit
    if row is None or sum(lengths) <= row:
        return _PROBE_LENGTHS
    return [length for length in (row - row // 2, row // 2) if length]


def _warn_if_blind(captioner: Captioner, images: Images, captions: CaptionBatch, plain: Tensor) -> None:
    """Say so where two images of noise give the first caption the same scores, bit for bit.

    No error: the projection of a new Gemma 3, or the queries of a new BLIP-2, are 0 and learn from there.
    """
    length = int(captions["lengths"][0])
    index = 1 - captions["image_index"][:1]
    other = CaptionBatch(input_ids=captions["input_ids"][:length], lengths=captions["lengths"][:1], image_index=index)
    if torch.equal(captioner.reference_log_probs(images, other), plain[:length]):
        logger.warning(
            "%s gives a caption the same score for two different images: it does not see them. That is so in some "
            "models whose weights are new and 0 (the projection of Gemma 3, the queries of BLIP-2); otherwise look "
            "whether the processor puts the image where the model looks for it",
            captioner.name,
        )


def _check_causal(captioner: Captioner, images: Images, captions: CaptionBatch, plain: Tensor) -> None:
    """Changing the last word of the first caption must leave what is before it as it was."""
    length = int(captions["lengths"][0])
    if length < 3:
        return
    ids = captions["input_ids"][:length].clone()
    # Another word of the probe: the next one in the vocabulary might be a special token, such as that of an image.
    words = captions["input_ids"][: length - 1]
    ids[length - 2] = words[words != ids[length - 2]][0]
    lengths, image_index = captions["lengths"][:1], captions["image_index"][:1]
    alone = CaptionBatch(input_ids=ids, lengths=lengths, image_index=image_index)
    after = captioner.reference_log_probs(images, alone)
    moved = largest_difference(after[: length - 2], plain[: length - 2])
    if moved > _tolerance(captioner):
        raise ValueError(
            f"the decoder of {captioner.name} sees later tokens: changing a token moved the "
            f"log-probability of one before it by {moved:.2g} nats, so ln p(caption | image) is not defined; build "
            "the decoder from a config with is_decoder=True (setting it afterwards changes nothing)"
        )
