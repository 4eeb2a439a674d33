"""Models of which every process holds a part: FSDP2, by Accelerate or by ``from_pretrained``, and ZeRO-3.

Scoring needs none of this, since everything happens inside the model's own call. What needs it stands outside of that
call: copying the model for a reference, hashing its weights, and choosing which modules are gathered together.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, Shard
from transformers import PreTrainedModel, TrainingArguments

Model = TypeVar("Model", bound=nn.Module)


def is_sharded(model: nn.Module) -> bool:
    """Whether a process holds only a part of some weight, be it gathered at this moment or not."""
    return any(isinstance(module, FSDPModule) for module in model.modules()) or any(
        isinstance(weight, DTensor) or _is_partitioned(weight) for weight in model.parameters()
    )


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor, gathered from all processes where it is sharded; then all of them have to ask for it.

    Args:
        tensor: A weight or a buffer. Under ZeRO-3 the parameter itself, since a detached one has lost its other parts.
    """
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    if _is_partitioned(tensor):
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().clone()
    return tensor


def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """All weights and persistent buffers of a model by name, whole, on every process; all of them have to ask."""
    with resharded(model), torch.no_grad():
        return {
            name: full_tensor(value)
            for name, value in model.state_dict(keep_vars=True).items()
            if isinstance(value, Tensor)
        }


def shards_later(args: TrainingArguments) -> bool:
    """Whether Accelerate's FSDP will shard the target when the training begins, and no module of it can be held twice.

    The trainer's accelerator, which knows it for sure, is made after the reference.
    """
    return bool(args.fsdp) or parse_flag_from_env("ACCELERATE_USE_FSDP")


def whole_copy(model: Model) -> Model:
    """An unsharded and frozen copy of a sharded model as it is now, in evaluation mode.

    FSDP refuses ``copy.deepcopy``, so the copy is built from the config and given the gathered weights.

    Args:
        model: A sharded ``PreTrainedModel``.

    Raises:
        TypeError: For any other model, such as one with adapters around it.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"a sharded {type(model).__name__} cannot be copied, only a transformers model can; pass the reference as "
            "a model of its own with reference_model=, or attach the adapter before the model is sharded (`accelerate "
            "launch` with fsdp2 shards when the training begins)"
        )
    config = copy.deepcopy(model.config)
    config.distributed_config = None  # what from_pretrained sharded the model by
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[]):  # first weights are drawn and then replaced
        whole = unsharded_class(type(model))(config)
    if model.can_generate():
        whole.generation_config = copy.deepcopy(model.generation_config)
    for (_, own), (_, other) in zip(_tensors(whole), _tensors(model), strict=True):
        own.data = own.data.to(device, other.dtype)  # each its own: parts of a model may be held in lower precision
    whole.load_state_dict(full_state_dict(model), strict=True)
    return whole.requires_grad_(False).eval()  # type: ignore[no-any-return]


@contextmanager
def resharded(model: nn.Module) -> Iterator[None]:
    """Afterwards every process holds only its own part of the weights again.

    FSDP leaves the weights of its outermost module gathered after a forward without a backward. An optimizer that is
    made then would get, and train, weights that are thrown away.
    """
    try:
        yield
    finally:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def check_tied_weights(model: nn.Module) -> None:
    """Refuse a sharded model whose tied weights would drift apart.

    ``from_pretrained(distributed_config=...)`` ties embedding and projection after sharding each of them. Where their
    rows do not divide evenly, FSDP pads both into memory of its own, and only one of them is trained (transformers
    5.23, torch 2.13; a vocabulary of 65 on two processes is wrong from the second step on).

    Raises:
        ValueError: If a tied weight is sharded unevenly that way.
    """
    if not (isinstance(model, PreTrainedModel) and model.is_distributed_loading_by_transformers):
        return
    names = defaultdict(list)
    for name, weight in model.named_parameters(remove_duplicate=False):
        if isinstance(weight, DTensor):
            names[weight].append(name)
    for weight, tied in names.items():
        if len(tied) > 1 and not _divides(weight):
            parts = weight.device_mesh.size()
            raise ValueError(
                f"{' and '.join(tied)} are one weight of {tuple(weight.shape)}, which from_pretrained(distributed_"
                f"config=...) has sharded unevenly over {parts} processes; its uses would drift apart in training. "
                "Save the model once with a vocabulary that divides: model.decoder.resize_token_embeddings(None, "
                f"pad_to_multiple_of={parts}), or let `accelerate launch` shard it (fsdp2)"
            )


def check_trainable(model: nn.Module) -> None:
    """Refuse a model that was sharded before the trainer got it, and not in the one way that ``Trainer`` knows.

    Raises:
        ValueError: If ``fully_shard`` was called on it, or ZeRO-3 took it apart while it was made.
    """
    if any(_is_partitioned(weight) for weight in model.parameters()):
        raise ValueError(
            f"DeepSpeed's ZeRO-3 took the {type(model).__name__} apart while it was loaded, and its reference must be "
            "copied from whole weights. Load the model (and a reference) before ContrastiveCaptionConfig is made: "
            "from then on transformers hands every new model to DeepSpeed, whatever zero3_init_flag says"
        )
    loaded = isinstance(model, PreTrainedModel) and model.is_distributed_loading_by_transformers
    if is_sharded(model) and not loaded:
        raise ValueError(
            f"the {type(model).__name__} was sharded before the trainer got it, and Trainer would put DDP around the "
            "shards. Pass the whole model and start with `contrastive-caption launch --accelerate-config fsdp2`, or "
            "load it with from_pretrained(..., distributed_config=DistributedConfig(fsdp_size=...))"
        )


def adapt_fsdp_plugin(plugin: Any, model: nn.Module) -> None:
    """Set in Accelerate's plugin what a captioner needs; before the model is prepared.

    * The modules that are gathered together are its transformer blocks. Accelerate's own choice stops at an MBart
      decoder, whose class also names encoder layers that a captioner lacks, and at one whose embeddings are a block
      (BERT) and tied.
    * Outputs keep their dtype. Under bf16 Accelerate would round the log-probabilities, which leave the model in
      place of logits, to eight bits.

    Args:
        plugin: ``accelerator.state.fsdp_plugin``, changed in place; blocks that the user named stay.
        model: The model that will be prepared.

    Raises:
        ValueError: For FSDP of the first version, weights that only the first process has loaded, or a projection to
            the vocabulary that cannot be gathered by itself.
    """
    if getattr(plugin, "fsdp_version", 1) != 2:  # Accelerate before 1.6 has no second version
        raise ValueError(
            "fsdp_version is 1, whose flattened weights the scoring cannot read; set fsdp_version: 2 in the config of "
            "Accelerate, or take `contrastive-caption launch --accelerate-config fsdp2`"
        )
    if plugin.cpu_ram_efficient_loading:
        raise ValueError(
            "fsdp_cpu_ram_efficient_loading is true: only the first process has the weights, and the others would "
            "copy an empty reference; set it to false in the config of Accelerate"
        )
    _check_projection(model)
    if plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = block_classes(model)
    policy = plugin.mixed_precision_policy
    if isinstance(policy, MixedPrecisionPolicy) and policy.output_dtype is not None:
        plugin.mixed_precision_policy = dataclasses.replace(policy, output_dtype=None)


def block_classes(model: nn.Module) -> list[str]:
    """The names of the classes of a model's transformer blocks, of the encoder and the decoder.

    The outermost modules that must not be split by what their model says, without embeddings: those may be tied.
    """
    # Accelerate reads the same attribute, and there is no public one.
    whole = {name for part in model.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    found: set[str] = set()
    inside: set[nn.Module] = set()
    for module in model.modules():  # parents first
        if module in inside or type(module).__name__ not in whole:
            continue
        if any(isinstance(part, nn.Embedding) for part in module.modules()) or isinstance(module, PreTrainedModel):
            continue
        found.add(type(module).__name__)
        inside.update(module.modules())
    return sorted(found)


def _check_projection(model: nn.Module) -> None:
    """Refuse a projection whose weights another module holds too, as BERT's and RoBERTa's heads do with its bias.

    Accelerate (1.15) gathers embedding and projection by themselves, and FSDP takes no weight into two groups.
    """
    head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
    own = {id(weight) for weight in head.parameters()}
    for name, weight in model.named_parameters(remove_duplicate=False):
        owner = model.get_submodule(name.rpartition(".")[0])
        if id(weight) in own and owner is not head and not isinstance(owner, nn.Embedding):
            raise ValueError(
                f"{name} is also a weight of the projection to the vocabulary, which Accelerate's FSDP2 gathers by "
                "itself, so that FSDP refuses the model (BERT and RoBERTa decoders). Use ddp or zero3, or load the "
                "model with from_pretrained(..., distributed_config=DistributedConfig(fsdp_size=...))"
            )


def unsharded_class(cls: type[Any]) -> type[Any]:
    """The class of a model before ``fully_shard`` gave it one that also is an ``FSDPModule``."""
    return next(base for base in cls.__mro__ if not issubclass(base, FSDPModule))


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """All weights and buffers of a model by name, tied ones once for each name."""
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    return sorted(named, key=lambda pair: pair[0])


def _divides(weight: DTensor) -> bool:
    """Whether every process holds as much of the weight as every other."""
    mesh = weight.device_mesh
    return all(
        weight.shape[placement.dim] % mesh.size(number) == 0
        for number, placement in enumerate(weight.placements)
        if isinstance(placement, Shard)
    )


def _is_partitioned(tensor: Tensor) -> bool:
    """Whether DeepSpeed's ZeRO-3 holds the tensor; it marks its parameters by an id and by nothing else."""
    return hasattr(tensor, "ds_id")
