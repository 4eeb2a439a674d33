"""Which reference it is, from what the user passes."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.trainer import TRAINER_STATE_NAME

from hf_contrastive_caption.captioners import Captioner
from hf_contrastive_caption.config import ContrastiveCaptionConfig
from hf_contrastive_caption.fingerprints import weights_digest, without_dropout
from hf_contrastive_caption.prompting import PromptProcessor
from hf_contrastive_caption.reference.adapters import TargetReference, adapter_reference
from hf_contrastive_caption.reference.base import Reference
from hf_contrastive_caption.reference.frozen import FrozenReference, frozen_copy
from hf_contrastive_caption.reference.precomputed import PrecomputedReference
from hf_contrastive_caption.sharding import shards_later

logger = logging.getLogger(__name__)

MakeCaptioner = Callable[..., Captioner]


def make_reference(
    target: Captioner,
    reference_model: Any,
    processing_class: Any,
    args: ContrastiveCaptionConfig,
    make_captioner: MakeCaptioner,
) -> Reference | None:
    """The frozen side of the loss.

    Args:
        target: The target, its vision encoder frozen already if that is asked for.
        reference_model: A captioner or its name; ``None`` for the target as it is now.
        processing_class: That of the reference, if it has its own.
        args: The training arguments.
        make_captioner: Makes a captioner of a model or name, its processing class, the arguments, what to call it in
            messages, and what the target is asked.

    Returns:
        For ``reference_model=None`` the target with its adapters off (PEFT), or a frozen copy; else the given model,
        frozen. ``None`` for objectives without one.
    """
    if args.objective != "contrastive":
        if reference_model is not None:
            raise ValueError(
                f"objective={args.objective!r} has no reference; leave reference_model out, or use 'contrastive'"
            )
        return None
    reference: Reference
    if reference_model is not None:
        reference = _given(target, reference_model, processing_class, args, make_captioner)
    else:
        _warn_if_half_trained(target)
        reference = _target_itself(target, args, make_captioner)
    logger.info("the reference is %s", reference.description)
    return PrecomputedReference(reference) if args.precompute_reference else reference


def _target_itself(target: Captioner, args: ContrastiveCaptionConfig, make_captioner: MakeCaptioner) -> Reference:
    """The reference that is the target as it is now."""
    if isinstance(target.model, PeftModel):
        return adapter_reference(target, replaced=args.reference_refresh is not None)
    if args.precompute_reference:
        return TargetReference(target)
    share = target.vision if args.freeze_vision_encoder and not shards_later(args) else None
    copied = make_captioner(frozen_copy(target.model, share), target.processor, args, "reference_model")
    # A copy of the frozen vision encoder makes the same states.
    return FrozenReference(copied, equals_target=True, shares_vision=args.freeze_vision_encoder)


def _given(
    target: Captioner,
    reference_model: Any,
    processing_class: Any,
    args: ContrastiveCaptionConfig,
    make_captioner: MakeCaptioner,
) -> FrozenReference:
    """A reference that the user gives."""
    if processing_class is None and not isinstance(reference_model, (str, os.PathLike)):
        _check_same_vocabulary(reference_model, target)
        processing_class = target.processor.processing_class
    asked = target.processor.prompt if isinstance(target.processor, PromptProcessor) else None
    captioner = make_captioner(reference_model, processing_class, args, "reference_model", asked)
    shared = args.freeze_vision_encoder and _same_vision(captioner, target)
    if shared and not shards_later(args):
        captioner.adopt_vision(target)
    _check_nothing_shared(captioner, target, target.vision if shared else None)
    return FrozenReference(captioner, shares_vision=shared)


def freeze_vision(captioner: Captioner) -> None:
    """Freeze the vision side of a captioner.

    Raises:
        ValueError: If the family has none that stands by itself, or there are adapters in it.
    """
    vision = captioner.vision
    if vision is None:
        raise ValueError(
            f"freeze_vision_encoder: {captioner.name} has no vision encoder that could be run without the caption; "
            "leave the option out"
        )
    if any(isinstance(module, BaseTunerLayer) for module in vision.modules()):
        raise ValueError(
            "freeze_vision_encoder=True, but the vision encoder of the model has adapters, which would not train. "
            "Take it out of the adapter's target_modules (exclude_modules does), or leave freeze_vision_encoder out"
        )
    vision.requires_grad_(False)


def warn_of_frozen_vision(captioner: Captioner) -> None:
    """Say so where the vision side is frozen without having been asked for, as an earlier trainer may have left it."""
    vision = captioner.vision
    if vision is None or isinstance(captioner.model, PeftModel):
        return
    frozen = {weight for weight in vision.parameters() if not weight.requires_grad}
    trained = {weight for weight in captioner.model.parameters() if weight.requires_grad}
    if frozen and trained and not trained.intersection(vision.parameters()):
        logger.warning(
            "the whole vision encoder of the model is frozen (by an earlier trainer with freeze_vision_encoder=True, "
            "perhaps) and stays so: %d weights. model.requires_grad_(True) before this lets it train; "
            "freeze_vision_encoder=True says that it shall not, and encodes each image once for both models",
            len(frozen),
        )


def _same_vision(reference: Captioner, target: Captioner) -> bool:
    """Whether the two read images in the same way with the same vision encoder, by identity or by equal weights."""
    own, other = target.vision, reference.vision
    if own is None or other is None or type(reference) is not type(target) or type(own) is not type(other):
        return False
    if reference.processor.image_fingerprint() != target.processor.image_fingerprint():
        return False
    if without_dropout(target.vision_settings()) != without_dropout(reference.vision_settings()):
        return False
    if own is other:
        return True
    return weights_digest(own) == weights_digest(other)


def _check_nothing_shared(reference: Captioner, target: Captioner, allowed: nn.Module | None) -> None:
    own = {id(weight) for weight in target.model.parameters()}
    if allowed is not None:
        own -= {id(weight) for weight in allowed.parameters()}
    shared = [name for name, weight in reference.model.named_parameters() if id(weight) in own]
    if shared:
        raise ValueError(
            f"model and reference_model share {len(shared)} weights ({', '.join(shared[:3])}, ...), which cannot be "
            "trained and frozen at once. Pass copy.deepcopy of one of them, or leave reference_model out to get a "
            "frozen copy; a vision encoder that both hold may be shared with freeze_vision_encoder=True"
        )


def _check_same_vocabulary(reference_model: Any, target: Captioner) -> None:
    size, expected = _vocabulary_size(reference_model), _vocabulary_size(target.base_model)
    if size != expected:
        raise ValueError(
            f"the reference has a vocabulary of {size} and the target one of {expected}, so the target's tokens mean "
            "nothing to it; pass reference_processing_class=(tokenizer, image_processor) of the reference"
        )


def _vocabulary_size(model: Any) -> int:
    head = model.get_output_embeddings()
    if head is None:  # BLIP's is one of its text decoder alone
        return int(model.config.get_text_config(decoder=True).vocab_size)
    return int(head.weight.shape[0])


def _warn_if_half_trained(target: Captioner) -> None:
    """Name the checkpoint of an unfinished run that is about to become a reference by itself."""
    folder = Path(target.base_model.name_or_path or "")
    state = folder / TRAINER_STATE_NAME
    if not target.base_model.name_or_path or not state.is_file():
        return
    progress = json.loads(state.read_text())
    step, end = progress.get("global_step", 0), progress.get("max_steps", 0)
    if step < end:
        logger.warning(
            "the reference is a copy of %s, a checkpoint at step %d of %d of a run that is not finished. To go on "
            "with that run, make the trainer with the model that the run began with and call "
            "train(resume_from_checkpoint=%r). If this checkpoint shall be the reference, pass it as reference_model "
            "too",
            folder,
            step,
            end,
            str(folder),
        )
