"""What can be said of sharded models in one process; two processes are in test_fsdp."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from hf_contrastive_caption.captioners import captioner_for
from hf_contrastive_caption.fingerprints import weights_digest
from hf_contrastive_caption.sharding import (
    adapt_fsdp_plugin,
    block_classes,
    check_tied_weights,
    check_trainable,
    full_state_dict,
    full_tensor,
    is_sharded,
    resharded,
    whole_copy,
)
from tests import tiny


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A group of this one process, in which FSDP shards as it does in many."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def sharded_captioner(world: Any, decoder: str = "gpt2") -> Any:
    model = tiny.captioner_model(decoder)  # type: ignore[arg-type]
    blocks = block_classes(model)
    for module in list(model.modules()):
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=world)
    return fully_shard(model, mesh=world)


def test_a_whole_copy_is_plain_frozen_and_equal(world: Any) -> None:
    plain = tiny.captioner_model()
    model = sharded_captioner(world)
    drawn = torch.random.get_rng_state()
    copied = whole_copy(model)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert type(copied) is type(plain) and not is_sharded(copied)
    assert not copied.training and not any(weight.requires_grad for weight in copied.parameters())
    assert copied.generation_config.to_dict() == plain.generation_config.to_dict()
    assert weights_digest(copied) == weights_digest(plain) == weights_digest(model)
    for name, value in full_state_dict(model).items():
        assert torch.equal(value, plain.state_dict()[name])
    with pytest.raises(TypeError, match="a sharded Linear cannot be copied"):
        whole_copy(nn.Linear(2, 2))


def test_a_whole_copy_has_each_weight_in_its_own_precision(world: Any) -> None:
    """A frozen vision side in bfloat16 comes first, and says nothing of the decoder that trains in float32."""
    model = tiny.captioner_model()
    model.encoder.to(torch.bfloat16)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for part in (model.encoder, model.decoder):
        fully_shard(part, mesh=world)
    copied = whole_copy(model).state_dict()
    assert {value.dtype for value in expected.values()} == {torch.bfloat16, torch.float32}
    assert {name: value.dtype for name, value in copied.items()} == {
        name: value.dtype for name, value in expected.items()
    }
    assert all(torch.equal(copied[name], value) for name, value in expected.items())


def test_verifying_leaves_the_weights_in_shards(world: Any) -> None:
    """An optimizer that is made next must get the weights that are kept."""
    model = sharded_captioner(world)
    captioner = captioner_for(model, tiny.processing())
    captioner.verify()
    assert all(isinstance(weight, DTensor) for weight in model.parameters())
    with torch.no_grad():
        scores = captioner.log_probs(model, tiny.pixel_values(2), tiny.captions([0, 1]))
    assert not all(isinstance(weight, DTensor) for weight in model.parameters())  # why resharded is there
    assert is_sharded(model)
    with resharded(model):
        pass
    assert all(isinstance(weight, DTensor) for weight in model.parameters())
    plain = captioner_for(tiny.captioner_model(), tiny.processing())
    expected = plain.log_probs(plain.model, tiny.pixel_values(2), tiny.captions([0, 1]))
    assert torch.allclose(scores, expected, atol=1e-5, rtol=0)


def test_a_sharded_model_keeps_its_weights_trainable(world: Any) -> None:
    model = sharded_captioner(world)
    before = sum(weight.requires_grad for weight in model.parameters())
    assert captioner_for(model, tiny.processing()).freeze_unused() == []
    assert sum(weight.requires_grad for weight in model.parameters()) == before
    assert captioner_for(tiny.captioner_model(), tiny.processing()).freeze_unused() == [
        "encoder.pooler.dense.weight",
        "encoder.pooler.dense.bias",
    ]


def test_a_projection_that_is_gathered_by_itself_is_read_while_it_is_there(world: Any) -> None:
    """FSDP lets go of an own group's weights right after its forward, in a hook that was there before ours."""
    model = tiny.captioner_model(tie_word_embeddings=False)
    fully_shard(model.decoder.get_output_embeddings(), mesh=world, reshard_after_forward=True)
    fully_shard(model, mesh=world)
    captioner = captioner_for(model, tiny.processing())
    captioner.verify()
    assert captioner.head == "fused"
    plain = captioner_for(tiny.captioner_model(tie_word_embeddings=False), tiny.processing())
    images, captions = tiny.pixel_values(2), tiny.captions([0, 1, 1])
    gradients = []
    for one in (captioner, plain):
        one.log_probs(one.model, images, captions).sum().backward()
        gradients.append([weight.grad for weight in one.model.parameters() if weight.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 80
    for own, expected in zip(*gradients, strict=True):
        assert torch.allclose(full_tensor(own), expected, atol=1e-4, rtol=1e-4)


def test_a_model_sharded_by_hand_is_refused_for_training(world: Any) -> None:
    check_trainable(tiny.captioner_model())
    with pytest.raises(ValueError, match="was sharded before the trainer got it"):
        check_trainable(sharded_captioner(world))
    partitioned = tiny.captioner_model()
    next(partitioned.parameters()).ds_id = 0  # type: ignore[attr-defined]  # as DeepSpeed marks it
    with pytest.raises(ValueError, match="before ContrastiveCaptionConfig is made"):
        check_trainable(partitioned)


@pytest.mark.parametrize(("vocabulary", "torn"), [(66, False), (65, True)])
def test_tied_weights_that_do_not_divide_are_refused(
    world: Any, monkeypatch: pytest.MonkeyPatch, vocabulary: int, torn: bool
) -> None:
    model = fully_shard(tiny.captioner_model(vocab_size=vocabulary), mesh=world)
    check_tied_weights(model)  # tied before it was sharded: FSDP knows
    monkeypatch.setattr(type(model), "is_distributed_loading_by_transformers", True)
    monkeypatch.setattr(type(world), "size", lambda mesh, dim=None: 2)
    if torn:
        with pytest.raises(ValueError, match=r"lm_head.weight are one weight of \(65, 32\).*over 2 processes"):
            check_tied_weights(model)
    else:
        check_tied_weights(model)


@pytest.mark.parametrize(
    ("decoder", "encoder", "expected"),
    [
        ("gpt2", "vit", ["GPT2Block", "ViTEmbeddings", "ViTLayer"]),
        ("mbart", "swin", ["MBartDecoderLayer", "SwinStage"]),
        ("bert", "beit", ["BeitLayer", "BertLayer"]),
        ("opt", "vit", ["OPTDecoderLayer", "ViTEmbeddings", "ViTLayer"]),
    ],
)
def test_blocks_of_both_sides(decoder: Any, encoder: Any, expected: list[str]) -> None:
    assert block_classes(tiny.captioner_model(decoder, encoder=encoder)) == expected


def fsdp_plugin(**settings: Any) -> Any:
    defaults = {
        "fsdp_version": 2,
        "cpu_ram_efficient_loading": False,
        "transformer_cls_names_to_wrap": None,
        "mixed_precision_policy": None,
    }
    return SimpleNamespace(**{**defaults, **settings})


def test_the_plugin_is_made_fit() -> None:
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16, torch.bfloat16)
    plugin = fsdp_plugin(mixed_precision_policy=policy)
    adapt_fsdp_plugin(plugin, tiny.captioner_model("mbart"))
    assert plugin.transformer_cls_names_to_wrap == ["MBartDecoderLayer", "ViTEmbeddings", "ViTLayer"]
    assert plugin.mixed_precision_policy == MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16, None)
    named = fsdp_plugin(transformer_cls_names_to_wrap=["ViTLayer"])
    adapt_fsdp_plugin(named, tiny.captioner_model())
    assert named.transformer_cls_names_to_wrap == ["ViTLayer"]


@pytest.mark.parametrize(
    ("settings", "decoder", "message"),
    [
        ({"fsdp_version": 1}, "gpt2", "set fsdp_version: 2"),
        ({"cpu_ram_efficient_loading": True}, "gpt2", "an empty reference"),
        ({}, "bert", "is also a weight of the projection"),
    ],
)
def test_what_cannot_be_made_fit_is_refused(settings: dict[str, Any], decoder: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapt_fsdp_plugin(fsdp_plugin(**settings), tiny.captioner_model(decoder))


def test_whole_models_are_not_sharded() -> None:
    model = tiny.captioner_model()
    assert not is_sharded(model) and not isinstance(model, FSDPModule)
    weight = next(model.parameters())
    assert full_tensor(weight) is weight
