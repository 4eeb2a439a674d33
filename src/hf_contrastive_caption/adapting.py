"""PEFT adapters in a captioner: a new one put where it trains, and those that a trainer can keep."""

from __future__ import annotations

import copy
import dataclasses
import os
import re
from typing import Any

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import check_target_module_exists

from hf_contrastive_caption.captioners import Captioner
from hf_contrastive_caption.config import ContrastiveCaptionConfig
from hf_contrastive_caption.construction import make_captioner
from hf_contrastive_caption.reference.adapters import PROMPT_LEARNING


def with_adapter(captioner: Captioner, peft_config: Any, args: ContrastiveCaptionConfig) -> Captioner:
    """A captioner with a new PEFT adapter in its model, none of it where no gradient would ever reach it.

    Args:
        captioner: Its model is changed in place by PEFT.
        peft_config: The adapter. Modules that no caption's score depends on (the pooler of a ViT) are excluded, and
            so is the vision encoder with ``freeze_vision_encoder``. A method of PEFT that excludes none gets
            adapters there, which are frozen, or refused in a frozen vision encoder.
        args: The training arguments.
    """
    if peft_config.is_prompt_learning:
        raise ValueError(PROMPT_LEARNING)
    if isinstance(captioner.model, PeftModel):
        raise ValueError(
            "the model has a PEFT adapter already, and peft_config asks for another one. Leave peft_config out to go "
            "on with the adapter (which then is the reference as it is now), or call merge_and_unload() first"
        )
    model = captioner.base_model
    for weight in model.parameters():  # PEFT freezes them all; what is frozen already may be dead too
        weight.requires_grad_(weight.is_floating_point())
    dead = {name.rpartition(".")[0] for name in captioner.freeze_unused()}
    excluded = [re.escape(name) for name in sorted(dead)]
    if args.freeze_vision_encoder:
        excluded += [rf"{re.escape(name)}\..*" for name, module in model.named_modules() if module is captioner.vision]
    config = copy.deepcopy(peft_config)
    if excluded and _excludes(config, [name for name, _ in model.named_modules()], "|".join(excluded)):
        config.exclude_modules = "|".join([*excluded, *_as_patterns(config.exclude_modules)])
    with torch.random.fork_rng():
        torch.manual_seed(args.seed)  # Trainer seeds only later, and every process must have the same adapter
        adapted = get_peft_model(model, config)
    base = model.name_or_path
    if base and os.path.isdir(base):  # the adapter is loaded from other working directories too
        adapted.peft_config["default"].base_model_name_or_path = os.path.abspath(base)
    return make_captioner(adapted, captioner.processor, args, "model")


def check_adapters(model: Any) -> None:
    """Refuse a PEFT model that would not come back from a checkpoint as it was.

    Raises:
        ValueError: If several adapters are active at once, or weights train that PEFT does not save.
    """
    if not isinstance(model, PeftModel):
        return
    if len(model.active_adapters) > 1:
        raise ValueError(
            f"{len(model.active_adapters)} adapters are active at once ({', '.join(model.active_adapters)}), of which "
            "a checkpoint brings back one; make one of them (add_weighted_adapter), or activate one (set_adapter)"
        )
    state = model.state_dict(keep_vars=True)
    saved = {
        id(value)
        for adapter in model.peft_config
        for value in get_peft_model_state_dict(
            model, state_dict=state, adapter_name=adapter, save_embedding_layers=False
        ).values()
    }
    lost = [name for name, weight in model.named_parameters() if weight.requires_grad and id(weight) not in saved]
    if lost:
        raise ValueError(
            f"{len(lost)} weights beside the adapter train and would not be saved with it ({', '.join(lost[:3])}). "
            "Name their modules as modules_to_save in the adapter's config, or freeze them with requires_grad_(False)"
        )


def _excludes(config: Any, modules: list[str], pattern: str) -> bool:
    """Whether an adapter's modules can be excluded by a pattern, and some would have to be.

    Not every method of PEFT can (VeRA). Which modules it takes where it is told none, PEFT alone knows.
    """
    if "exclude_modules" not in {option.name for option in dataclasses.fields(config)}:
        return False
    return config.target_modules is None or any(
        _is_target(config, name) for name in modules if re.fullmatch(pattern, name)
    )


def _is_target(config: Any, module: str) -> bool:
    """Whether PEFT would put an adapter into a module."""
    return config.target_modules == "all-linear" or bool(check_target_module_exists(config, module))


def _as_patterns(excluded: list[str] | set[str] | str | None) -> list[str]:
    """What a user excludes, as patterns of whole names: PEFT takes a string for one, and a list for ends of names."""
    if isinstance(excluded, str):
        return [f"(?:{excluded})"]
    return [rf"(?:.*\.)?{re.escape(name)}" for name in excluded or ()]
