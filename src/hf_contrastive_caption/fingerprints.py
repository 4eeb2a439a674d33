"""Hashes of what a stored number depends on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from hf_contrastive_caption.sharding import full_tensor, unsharded_class

_ASIDE = ("_name_or_path", "architectures", "dtype", "transformers_version", "use_cache")
"""Entries of a config that say where a model came from, and a switch that Trainer sets and scoring does not use; the
dtype is that of the weights, which are hashed."""

_ASIDE_OF_ADAPTERS = ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision")
"""The same of an adapter's config; PEFT sets some of them when it saves or loads one."""


def weights_digest(model: nn.Module) -> str:
    """A hash of all weights and buffers of a model by name, their values bit for bit."""
    return tensors_digest(model.state_dict(keep_vars=True))


def tensors_digest(tensors: Mapping[str, Any]) -> str:
    """A hash of tensors by name, their values bit for bit; what is no tensor does not count."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(tensors.items()):
        if isinstance(value, torch.Tensor):
            content = full_tensor(value).detach().cpu().contiguous().view(-1)
            digest.update(f"{name} {content.dtype} {tuple(value.shape)}".encode())
            digest.update(content.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def model_digest(model: nn.Module) -> str:
    """A hash of what a transformers model computes with: its class, config, weights, and the adapters of PEFT.

    Weights are not all: the number of attention heads, the start token, the scale of an adapter and whether it is in
    use are none. Where a model came from does not count: one in memory and the same one saved and loaded are equal.
    """
    adapters: dict[str, Any] = {}
    base: Any = model
    if isinstance(model, PeftModel):
        adapters = adapter_settings(model)
        base = model.get_base_model()
    name = unsharded_class(type(base)).__qualname__
    return json_digest([name, settings_of(base.config), weights_digest(model), adapters])


def base_digest(model: PeftModel) -> str:
    """The :func:`model_digest` of a PEFT model without its adapters, as if PEFT had never been around it."""
    base: Any = model.get_base_model()
    inside = {id(value) for value in _adapter_tensors(base)}
    tensors = {
        re.sub(r"\.(base_layer|original_module|token_adapter)\b", "", name): value
        for name, value in base.state_dict(keep_vars=True).items()
        if id(value) not in inside
    }
    name = unsharded_class(type(base)).__qualname__
    return json_digest([name, settings_of(base.config), tensors_digest(tensors), {}])


def adapter_settings(model: PeftModel) -> dict[str, Any]:
    """How the adapters of a PEFT model act, apart from their weights: configs, and which are in use where."""
    return {
        **{
            name: {key: value for key, value in config.to_dict().items() if key not in _ASIDE_OF_ADAPTERS}
            for name, config in model.peft_config.items()
        },
        "in use": [
            [name, layer.active_adapters, layer.disable_adapters, layer.merged_adapters, _scaling(layer)]
            for name, layer in model.named_modules()
            if isinstance(layer, BaseTunerLayer)
        ],
    }


def _scaling(layer: BaseTunerLayer) -> dict[str, float]:
    """The scale of each adapter as it is now, which may not be that of its config; empty for kinds without one."""
    scaling: Any = getattr(layer, "scaling", {})  # most kinds have it, and no common class says so
    return {name: float(scale) for name, scale in scaling.items()}


def autocast_settings(device: torch.device) -> list[Any]:
    """Whether autocast is in force on a device, and in which dtype."""
    if not torch.is_autocast_enabled(device.type):
        return [False]
    return [True, str(torch.get_autocast_dtype(device.type))]


def _adapter_tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """The weights and buffers of adapters, and of modules that PEFT trains in place of others."""
    for module in model.modules():
        if not isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            continue
        for name in (*module.adapter_layer_names, *module.other_param_names):
            part = getattr(module, name, None)
            if isinstance(part, nn.Module):
                yield from part.parameters()
                yield from part.buffers()


def settings_of(config: Any) -> Any:
    """What a transformers config says of how a model computes, without where it came from.

    Args:
        config: A config, or a part of one as JSON holds it.
    """
    if not isinstance(config, dict):
        config = json.loads(config.to_json_string(use_diff=False))
    return {
        name: settings_of(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if name not in _ASIDE
    }


def without_dropout(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a config without rates of dropout, for models in which it is off."""
    return {
        name: without_dropout(value) if isinstance(value, dict) else value
        for name, value in settings.items()
        if "drop" not in name
    }


def json_digest(value: Any) -> str:
    """A hash of anything that JSON can hold, and of sets."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=sorted).encode(), digest_size=16).hexdigest()
