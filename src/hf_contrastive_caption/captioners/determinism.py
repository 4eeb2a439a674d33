"""Making a model's forward a function of its input alone, also while it trains.

The log-ratio compares two models on one caption: noise in either is noise in the loss. ``model.eval()`` is no way out:
it silently switches gradient checkpointing off, and Trainer calls ``model.train()`` before every step. So the rates
themselves are set to 0, and batch norms are kept from using the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

_NORMS_WITH_STATISTICS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


def disable_dropout(model: nn.Module) -> dict[str, float]:
    """Set every dropout rate in the model to 0, of modules and of functional dropout alike.

    Zeroing ``nn.Dropout`` modules is not enough: the decoders of TrOCR, MBart and OPT call functional dropout with a
    rate that they hold as an attribute, Swin and BEiT drop whole paths, MBart and others whole layers, and LoRA has
    a dropout of its own, and OFT one that is no ``nn.Dropout``.

    Args:
        model: Changed in place. Its config is not touched, so the saved model keeps its rates.

    Returns:
        The rates that were above 0 before, by the name of module and attribute, for :func:`restore_dropout`.
    """
    before: dict[str, float] = {}
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            is_rate = "drop" in attribute or (attribute == "p" and "drop" in type(module).__name__.lower())
            if is_rate and isinstance(value, float) and value > 0:
                before[f"{name}.{attribute}"] = value
    _set_rates(model, dict.fromkeys(before, 0.0))
    return before


def restore_dropout(model: nn.Module, rates: dict[str, float]) -> None:
    """Put back the rates that :func:`disable_dropout` returned."""
    _set_rates(model, rates)


def _set_rates(model: nn.Module, rates: dict[str, float]) -> None:
    for path, rate in rates.items():
        name, attribute = path.rsplit(".", 1)
        setattr(model.get_submodule(name), attribute, rate)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode, and afterwards each of its modules back into the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():  # train() would also wake what the user put to sleep
            module.training = training


def norms_with_statistics(model: nn.Module) -> list[nn.Module]:
    """The modules that use, and update, statistics of the batch when they are in training mode."""
    return [module for module in model.modules() if isinstance(module, _NORMS_WITH_STATISTICS)]


def largest_difference(first: torch.Tensor, second: torch.Tensor) -> float:
    """Largest absolute difference of two tensors of one shape; infinite where one of them is not a number."""
    difference = (first.cpu().double() - second.cpu().double()).abs().max().item()
    return float("inf") if difference != difference else difference
