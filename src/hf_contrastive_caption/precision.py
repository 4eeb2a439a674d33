"""What GPUs and processors compute in: torch runs lower precisions on all, and far slower where they are not there."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import reduce

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

logger = logging.getLogger(__name__)

_FORWARDS = ("forward", "_original_forward", "_is_accelerate_prepared")
"""What Accelerate puts into a model itself, where it trains or evaluates one under autocast."""

_ASKED = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}


def gpu_computes_in_bfloat16() -> bool:
    """Whether there is a GPU that does, and not only in an emulation."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def processor_computes_in(dtype: torch.dtype) -> bool:
    """Whether oneDNN has matrix products and layers of this type on this processor.

    Where it has none (of bfloat16 without AVX-512, for example), torch multiplies with loops of its own, and some
    layers raise. Of types that oneDNN is not asked about, and without oneDNN, nothing is known: the answer is yes.
    """
    if dtype not in _ASKED or not torch.backends.mkldnn.is_available():
        return True
    return bool(getattr(torch.ops.mkldnn, _ASKED[dtype])())


def widest(device: torch.device) -> torch.dtype:
    """The widest floating type of a device: float64, but on Apple's GPUs, which have none."""
    return torch.float32 if device.type == "mps" else torch.float64


def common_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """The floating type that holds the values of all floating tensors exactly; torch's default if there are none."""
    found = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return reduce(torch.promote_types, found) if found else torch.get_default_dtype()


def without_autocast(model: nn.Module) -> None:
    """Take the autocast out of a model that Accelerate left in its ``forward``, where it is in force for everybody.

    Such a model computes in lower precision whoever calls it, and its copies do.
    """
    original = vars(model).pop("_original_forward", None)
    if original is not None:
        del model.forward
        if original != model.forward:  # it stood in the model before
            model.forward = original
        vars(model).pop("_is_accelerate_prepared", None)  # or it would not be put back for who needs it


@contextmanager
def plain_forward(model: nn.Module) -> Iterator[None]:
    """:func:`without_autocast` for as long as the context lasts."""
    kept = {name: vars(model)[name] for name in _FORWARDS if name in vars(model)}
    without_autocast(model)
    try:
        yield
    finally:
        for name in _FORWARDS:
            vars(model).pop(name, None)
        vars(model).update(kept)


def warn_of_slow_autocast(args: TrainingArguments) -> None:
    """Say so where a training asks for bfloat16 on a processor that does not compute in it."""
    if args.bf16 and args.device.type == "cpu" and args.should_log and not processor_computes_in(torch.bfloat16):
        logger.warning(
            "bf16=True, but this processor does not compute in bfloat16: a step will take many times as long as in "
            "float32. Leave bf16 out"
        )
