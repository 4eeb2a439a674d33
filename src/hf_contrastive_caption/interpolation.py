"""How far a tuning goes, decided after it: weights between those it started from and those it came to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from numbers import Real
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel
from torch import Tensor

from hf_contrastive_caption.captioners import Captioner, captioner_for
from hf_contrastive_caption.fingerprints import settings_of
from hf_contrastive_caption.loading import load_captioner
from hf_contrastive_caption.reference.base import average_
from hf_contrastive_caption.reference.frozen import differing, frozen_copy, tensors_of

_COUNTERS = "num_batches_tracked"
"""Integers of batch normalisation that count batches and decide nothing in a captioner that does not train."""


def interpolate_captioners(
    start: Captioner | str | os.PathLike[str],
    tuned: Captioner | str | os.PathLike[str],
    share: float,
    *,
    device: torch.device | str | None = "auto",
) -> Captioner:
    r"""A captioner whose weights lie on the line from those before a tuning to those after it.

    Weights are :math:`(1 - a)\,\theta_0 + a\,\theta_1` with the share :math:`a`, as in "Robust fine-tuning of
    zero-shot models" (Wortsman et al., CVPR 2022). One tuning so gives captioners between the reference and what it
    became, and which of them is best for a use is found on validation images without training again.

    Args:
        start: The captioner that the tuning began with, its reference: an object, a folder, or a repository.
        tuned: What the tuning made of it; its tokenizer, image processor, prompt and generation settings are kept.
            Adapters are merged, on either side.
        share: 0 is ``start``, 1 is ``tuned``, exactly.
        device: Where the new model is put; ``"auto"`` for this process's GPU if there is one, ``None`` for where
            ``tuned`` is, which is the processor for one that was given by name.

    Returns:
        A new captioner; those that were given stay as they are. Its weights have the dtype of those of ``tuned``,
        float32 for one that was given by name, and take gradients. :meth:`Captioner.save_pretrained` saves it.

    Raises:
        TypeError: If the share is no number, or one of the two is neither a captioner nor a name.
        ValueError: If the share is not from 0 to 1, or the two are not of one architecture and vocabulary.
        OSError: If there is no such repository.
    """
    if isinstance(share, bool) or not isinstance(share, Real):
        raise TypeError(f"share is {share!r}, but must be a number from 0 (the start) to 1 (the tuned captioner)")
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}, but goes from 0 (the start) to 1 (the tuned captioner)")
    made, other = _whole(tuned), _whole(start)
    own, theirs = tensors_of(made.model), tensors_of(other.model)
    _check(made, own, other, theirs)
    with torch.no_grad():
        for name, value in own.items():
            counts = name.endswith(_COUNTERS) and share > 0
            if not counts and not torch.equal(value, theirs[name].to(value)):
                average_(value, theirs[name], 1.0 - share)
    for weight in made.model.parameters():
        weight.requires_grad_(weight.is_floating_point())
    if device is not None:
        made.model.to(PartialState().device if device == "auto" else device)
    return made


def _whole(given: Captioner | str | os.PathLike[str]) -> Captioner:
    """A captioner of which the weights may be changed, with its adapters merged."""
    if not isinstance(given, (Captioner, str, os.PathLike)):
        raise TypeError(
            f"Got a {type(given).__name__}; give a captioner, captioner_for(model, processor), or the name of one"
        )
    captioner = given if isinstance(given, Captioner) else load_captioner(given, device="cpu")
    model = frozen_copy(captioner.model) if captioner is given else captioner.model
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    elif captioner is not given:
        return captioner
    return captioner_for(
        model, captioner.processor, packing=captioner.packing, max_logits_bytes=captioner.max_logits_bytes
    )


def _check(made: Captioner, own: dict[str, Tensor], other: Captioner, theirs: dict[str, Tensor]) -> None:
    differ = differing(own, theirs)
    if differ:
        raise ValueError(
            f"{len(differ)} weights of the two captioners ({other.name} and {made.name}) differ in name or shape, "
            f"such as {differ[0]}; give the captioner that the tuning began with as the start"
        )
    settings = settings_of(made.base_model.config), settings_of(other.base_model.config)
    different = next(_different_settings(*settings), None)
    if different is not None:
        name, after, before = different
        raise ValueError(
            f"{name} is {before!r} in the config of the start and {after!r} in that of the tuned captioner, so equal "
            "weights do not make equal captioners; give the captioner that the tuning began with as the start"
        )
    if other.processor.tokenizer.get_vocab() != made.processor.tokenizer.get_vocab():
        raise ValueError(
            "the tokenizers of the two captioners number their tokens differently; give the captioner that the tuning "
            "began with as the start"
        )
    whole = [
        name
        for name, value in own.items()
        if not value.is_floating_point() and not name.endswith(_COUNTERS) and not value.equal(theirs[name].to(value))
    ]
    if whole:
        raise ValueError(
            f"{min(whole)} has whole numbers that differ: there is nothing between them. Load quantized captioners "
            "in float32 or bfloat16"
        )


def _different_settings(own: dict[str, Any], theirs: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Entries of two configs by which a forward without dropout differs, and their values.

    Ids of special tokens may differ: ``Trainer`` takes over those of the tokenizer.
    """
    for name in sorted(own.keys() | theirs.keys()):
        one, other = own.get(name), theirs.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from ((f"{name}.{part}", *values) for part, *values in _different_settings(one, other))
        elif one != other and not name.endswith("_token_id") and "drop" not in name:
            yield name, one, other
