"""Every way to hold the reference gives the losses of a frozen copy."""

from __future__ import annotations

import copy
import gc
import logging
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import TrainerCallback

from hf_contrastive_caption.fingerprints import base_digest, model_digest
from hf_contrastive_caption.reference import AdapterReference, FrozenReference, PrecomputedReference
from tests import tiny
from tests.families.chat import PROMPT, llava_model, llava_processing
from tests.training import logged, trainer

DECODER = r"decoder\.transformer\.h\..*(c_attn|q_attn|c_proj)"
TWO_LN_TWO = 1.3862944


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "target_modules": DECODER, "fan_in_fan_out": True, **options})


def adapted(model: Any = None, *, trained: bool = False, **options: Any) -> PeftModel:
    torch.manual_seed(0)
    model = get_peft_model(tiny.captioner_model() if model is None else model, lora(**options))
    if trained:
        shake(model)
    return model


def shake(model: torch.nn.Module) -> None:
    """Give the adapter an effect."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))


def double(model: Any = None) -> Any:
    """In float64, so that six steps do not amplify the rounding of another layout of batches."""
    return (tiny.captioner_model() if model is None else model).double()


def losses(folder: Path, model: Any = None, options: dict[str, Any] | None = None, **kwargs: Any) -> list[float]:
    model = double(model)
    kwargs = {name: double(value) if name == "reference_model" else value for name, value in kwargs.items()}
    run = trainer(folder, model, options={"max_steps": 6, **(options or {})}, **kwargs)
    run.train()
    return logged(run, "loss")


def test_the_default_is_a_frozen_copy(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    assert isinstance(run.reference, FrozenReference)
    assert run.reference.captioner.model is not run.captioner.model
    run.train()
    assert logged(run, "loss")[0] == pytest.approx(TWO_LN_TWO, abs=1e-6)
    assert logged(run, "start_log_ratio")[0] < 1e-4


def test_scores_ahead_are_those_of_a_frozen_copy(tmp_path: Path) -> None:
    expected = losses(tmp_path / "copy")
    options = {"precompute_reference": True, "precomputed_dir": str(tmp_path / "scores")}
    assert losses(tmp_path / "ahead", options=options) == pytest.approx(expected, abs=1e-6)
    assert max(abs(loss - TWO_LN_TWO) for loss in expected) > 1e-2


def test_an_encoder_of_which_another_layer_is_read_is_not_shared(tmp_path: Path) -> None:
    def run(layer: int, freeze: bool) -> Any:
        models = llava_model(), llava_model()
        models[1].config.vision_feature_layer = layer
        made = trainer(
            tmp_path,
            models[0],
            tiny.caption_dataset(4, 1),
            {"prompt": PROMPT, "freeze_vision_encoder": freeze, "max_steps": 1},
            processing_class=llava_processing(),
            reference_model=models[1],
            reference_processing_class=llava_processing(),
        )
        made.train()
        return made

    expected, other, same = run(-1, False), run(-1, True), run(-2, True)
    assert [one.reference.shares_vision for one in (expected, other, same)] == [False, False, True]
    assert logged(other, "loss") == pytest.approx(logged(expected, "loss"), abs=1e-5)
    assert logged(same, "loss") == pytest.approx([TWO_LN_TWO], abs=1e-5)
    assert abs(logged(other, "loss")[0] - TWO_LN_TWO) > 0.01


def test_a_shared_frozen_encoder_gives_the_losses_of_two(tmp_path: Path) -> None:
    frozen = tiny.captioner_model()
    frozen.encoder.requires_grad_(False)
    expected = losses(tmp_path / "two", frozen)
    options: dict[str, Any] = {"freeze_vision_encoder": True}
    assert losses(tmp_path / "shared", options=options) == pytest.approx(expected, abs=1e-6)
    options |= {"cache_vision_states": True, "precomputed_dir": str(tmp_path / "ahead")}
    assert losses(tmp_path / "states", options=options) == pytest.approx(expected, abs=1e-6)
    options |= {"precompute_reference": True}
    assert losses(tmp_path / "both", options=options) == pytest.approx(expected, abs=1e-6)


def test_a_shared_encoder_runs_once(tmp_path: Path) -> None:
    run = trainer(tmp_path, options={"freeze_vision_encoder": True})
    calls = []
    run.captioner.model.encoder.register_forward_hook(lambda *given: calls.append(1))
    assert run.reference is not None
    assert run.reference.captioner.model.encoder is run.captioner.model.encoder
    run.train()
    assert len(calls) == 2 + 2  # two steps, and once the two forwards that must agree


def test_an_encoder_with_equal_weights_is_found_and_shared(tmp_path: Path) -> None:
    model, reference = double(), double(tiny.captioner_model(seed=1))
    reference.encoder.load_state_dict(model.encoder.state_dict())
    expected = losses(tmp_path / "own", copy.deepcopy(model), reference_model=copy.deepcopy(reference))
    run = trainer(
        tmp_path / "shared", model, options={"freeze_vision_encoder": True, "max_steps": 6}, reference_model=reference
    )
    assert reference.encoder is model.encoder
    run.train()
    assert logged(run, "loss")[0] == pytest.approx(expected[0], abs=1e-6)
    other = double(tiny.captioner_model(seed=2))
    assert not trainer(
        tmp_path, model, options={"freeze_vision_encoder": True}, reference_model=other
    ).reference.shares_vision  # type: ignore[union-attr]


def test_adapters_off_are_a_frozen_copy_of_the_base(tmp_path: Path) -> None:
    expected = losses(tmp_path / "copy", adapted(), reference_model=tiny.captioner_model())
    run = trainer(tmp_path / "off", double(adapted()), options={"max_steps": 6})
    assert isinstance(run.reference, AdapterReference)
    assert not run.reference.has_state
    run.train()
    assert logged(run, "loss") == pytest.approx(expected, abs=1e-6)
    assert expected[0] == pytest.approx(TWO_LN_TWO, abs=1e-6)
    assert abs(expected[-1] - TWO_LN_TWO) > 1e-2


@pytest.mark.parametrize("options", [{"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}])
def test_adapters_of_other_kinds_keep_the_reference(tmp_path: Path, options: dict[str, Any]) -> None:
    model = tiny.captioner_model(tie_word_embeddings=False)
    expected = losses(
        tmp_path / "copy", adapted(copy.deepcopy(model), **options), reference_model=copy.deepcopy(model)
    )
    found = losses(tmp_path / "off", adapted(model, **options))
    assert found == pytest.approx(expected, abs=1e-6)
    assert abs(expected[-1] - expected[0]) > 1e-3


def test_a_trained_adapter_is_the_reference_as_it_is(tmp_path: Path) -> None:
    model = double(adapted(trained=True))
    merged = copy.deepcopy(model).merge_and_unload()
    expected = losses(tmp_path / "copy", copy.deepcopy(model), reference_model=merged)
    run = trainer(tmp_path / "state", model, options={"max_steps": 6})
    assert run.reference is not None
    assert run.reference.has_state
    run.train()
    assert logged(run, "loss") == pytest.approx(expected, abs=1e-6)
    assert logged(run, "start_log_ratio")[0] < 1e-5


def test_the_reference_stays_while_the_adapter_trains(tmp_path: Path) -> None:
    run = trainer(tmp_path, adapted(trained=True), options={"max_steps": 5, "learning_rate": 1e-2})
    images, captions = tiny.pixel_values(2), tiny.captions([0, 0, 1, 1])
    assert run.reference is not None
    before, target_before = run.reference.log_probs(images, captions), scores(run, images, captions)
    digest = run.reference.digest()
    run.train()
    assert torch.equal(run.reference.log_probs(images, captions), before)
    assert run.reference.digest() == digest
    assert (scores(run, images, captions) - target_before).abs().max() > 0.1


def scores(run: Any, images: Any, captions: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = run.captioner.log_probs(run.captioner.model, images, captions)
    return found


class Gradients(TrainerCallback):
    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.seen.append(torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None]))


def test_autocast_does_not_mix_up_the_weights_of_target_and_reference(tmp_path: Path) -> None:
    """Autocast caches casts of trained weights made without gradients; the target must not get them."""
    model = adapted(trained=True)
    frozen = copy.deepcopy(model).requires_grad_(False)
    options = {"bf16": True, "max_steps": 3}
    seen = {}
    for name, reference in (("copy", copy.deepcopy(frozen)), ("state", None)):
        gradients = Gradients()
        run = trainer(
            tmp_path / name, copy.deepcopy(model), options=options, reference_model=reference, callbacks=[gradients],
            **({"reference_processing_class": tiny.processing()} if reference is not None else {}),
        )  # fmt: skip
        run.train()
        seen[name] = gradients.seen
    for first, second in zip(seen["copy"], seen["state"], strict=True):
        assert first.norm() > 0.1
        assert (first - second).norm() < 1e-3 * first.norm()


def test_switching_adapters_off_does_not_unfreeze_what_was_frozen(tmp_path: Path) -> None:
    model = adapted()
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    model.get_parameter(names[0]).requires_grad_(False)
    before = model.get_parameter(names[0]).clone()
    run = trainer(tmp_path, model, options={"learning_rate": 1e-2})
    run.train()
    assert not model.get_parameter(names[0]).requires_grad
    assert torch.equal(model.get_parameter(names[0]), before)


def test_peft_config_makes_an_adapter_without_dead_poolers(tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules="all-linear")
    given = tiny.captioner_model()
    given.encoder.pooler.requires_grad_(False)  # as captioners from scratch have it
    run = trainer(tmp_path, given, peft_config=config, options={"max_steps": 3})
    model = run.captioner.model
    assert isinstance(model, PeftModel)
    assert isinstance(run.reference, AdapterReference)
    names = [name for name, _ in model.named_parameters() if "lora_" in name]
    assert any("encoder" in name for name in names)
    assert any("decoder" in name for name in names)
    assert not any("pooler" in name for name in names)
    assert config.exclude_modules is None  # the user's is not changed
    run.train()
    assert logged(run, "loss")[0] == pytest.approx(TWO_LN_TWO, abs=1e-6)
    frozen = trainer(tmp_path, peft_config=config, options={"freeze_vision_encoder": True}).captioner.model
    assert not any("encoder.layer" in n for n, _ in frozen.named_parameters() if "lora_" in n and "decoder" not in n)
    with pytest.raises(ValueError, match="has a PEFT adapter already"):
        trainer(tmp_path, adapted(), peft_config=config)


def test_merging_gives_back_a_plain_captioner_with_the_same_scores(tmp_path: Path) -> None:
    run = trainer(tmp_path, adapted(), options={"max_steps": 4, "learning_rate": 1e-2})
    run.train()
    images, captions = tiny.pixel_values(2), tiny.captions([0, 0, 1, 1])
    expected = scores(run, images, captions)
    merged = run.captioner.model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    from hf_contrastive_caption import captioner_for

    loaded = type(merged).from_pretrained(tmp_path / "merged")
    again = captioner_for(loaded, tiny.processing())
    assert torch.allclose(again.log_probs(loaded, images, captions), expected, atol=1e-3)


def test_adapters_that_cannot_serve_are_refused(tmp_path: Path) -> None:
    model = adapted(trained=True)
    model.merge_adapter()
    with pytest.raises(ValueError, match="merged into its weights"):
        trainer(tmp_path, model)
    with pytest.raises(ValueError, match="virtual tokens before the caption"):
        trainer(tmp_path, peft_config=PromptTuningConfig(num_virtual_tokens=2))
    several = adapted()
    several.add_adapter("other", lora())
    several.base_model.set_adapter(["default", "other"])
    with pytest.raises(ValueError, match="2 adapters are active at once"):
        trainer(tmp_path, several)
    unsaved = adapted()
    unsaved.get_base_model().decoder.transformer.ln_f.requires_grad_(True)
    with pytest.raises(ValueError, match="2 weights beside the adapter train and would not be saved"):
        trainer(tmp_path, unsaved)
    unsaved.get_base_model().decoder.transformer.ln_f.requires_grad_(False)
    trainer(tmp_path, unsaved)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dora": True},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": {"wte": [1, 2]}},
        {"target_modules": "all-linear"},
    ],
)
def test_adapters_off_have_the_digest_of_the_base(tmp_path: Path, options: dict[str, Any]) -> None:
    model = tiny.captioner_model(tie_word_embeddings=False)
    expected = model_digest(model)
    wrapped = adapted(copy.deepcopy(model), **options)
    assert base_digest(wrapped) == expected
    shake(wrapped)
    assert base_digest(wrapped) == expected
    with torch.no_grad():
        wrapped.get_base_model().decoder.transformer.ln_f.weight.add_(1e-3)
    assert base_digest(wrapped) != expected


def test_digests_tell_apart_what_computes_differently(tmp_path: Path) -> None:
    def digest(model: Any) -> str:
        reference = trainer(tmp_path, model).reference
        assert reference is not None
        return reference.digest()

    off = digest(adapted())
    assert digest(adapted(r=2)) == off  # an adapter without effect makes no difference
    copied = trainer(tmp_path).reference
    assert copied is not None and copied.digest() == off  # nor how the reference is held
    other_start = adapted()
    other_start.config.decoder_start_token_id = 5
    assert digest(other_start) != off
    trained = digest(adapted(trained=True))
    assert trained != off
    assert digest(adapted(trained=True, lora_alpha=32)) != trained


def test_a_lightly_trained_adapter_in_bfloat16_is_not_taken_for_none(tmp_path: Path) -> None:
    model = adapted()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.add_(3e-3 * torch.randn(weight.shape, generator=generator))
    run = trainer(tmp_path, model.to(torch.bfloat16))
    assert run.reference is not None and run.reference.has_state
    run.train()
    assert logged(run, "start_log_ratio")[0] == 0.0


def test_an_adapter_of_a_seed_is_always_the_same(tmp_path: Path) -> None:
    first, second = (dict(trainer(tmp_path, peft_config=lora()).captioner.model.named_parameters()) for _ in range(2))
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())
    other = trainer(tmp_path, peft_config=lora(), options={"seed": 7}).captioner.model
    assert any(not torch.equal(weight, first[name]) for name, weight in other.named_parameters())


def test_dropout_of_a_shared_encoder_comes_back(tmp_path: Path) -> None:
    model = tiny.captioner_model(dropout=0.1)
    run = trainer(tmp_path, model, options={"freeze_vision_encoder": True})
    run.train()
    rates = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {0.1}
    assert logged(run, "start_log_ratio")[0] < 1e-4


def test_an_adapter_in_a_frozen_encoder_is_refused(tmp_path: Path) -> None:
    model = adapted(target_modules="all-linear", fan_in_fan_out=False)
    with pytest.raises(ValueError, match="the vision encoder of the model has adapters"):
        trainer(tmp_path, model, options={"freeze_vision_encoder": True})


def test_scores_ahead_hold_no_second_model(tmp_path: Path) -> None:
    options = {"precompute_reference": True, "precomputed_dir": str(tmp_path / "ahead")}
    run = trainer(tmp_path, options=options)
    assert isinstance(run.reference, PrecomputedReference)
    assert run.reference.captioner is run.captioner  # not even a copy to score with
    run.train()
    with pytest.raises(ValueError, match="has left memory"):
        _ = run.reference.captioner


def test_a_given_reference_leaves_memory(tmp_path: Path) -> None:
    tiny.captioner_model(seed=1).save_pretrained(tmp_path / "reference")
    for part in tiny.processing():
        part.save_pretrained(tmp_path / "reference")
    options = {"precompute_reference": True, "precomputed_dir": str(tmp_path / "ahead")}
    run = trainer(tmp_path, options=options, reference_model=str(tmp_path / "reference"))
    assert run.reference is not None
    alive = weakref.ref(run.reference.captioner.model)
    run.train()
    gc.collect()
    assert alive() is None


def test_a_model_that_changed_after_the_trainer_was_made_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny.captioner_model()
    run = trainer(tmp_path, model)
    with torch.no_grad():
        model.decoder.transformer.ln_f.weight.mul_(1.5)
    with caplog.at_level(logging.WARNING):
        run.train()
    assert "Their weights differ: the model was changed after the trainer was made" in caplog.text
    assert logged(run, "start_log_ratio")[0] > 0.1


def test_equal_models_give_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for options in ({}, {"bf16": True}, {"gradient_checkpointing": True}):
            trainer(tmp_path, options=options).train()
    assert "should be equal" not in caplog.text


def test_stored_weights_of_adapters_go_where_the_model_is(tmp_path: Path) -> None:
    run = trainer(tmp_path, options={"reference_refresh": 1}, peft_config=lora())
    assert isinstance(run.reference, AdapterReference) and run.reference.weights()
    run.reference.place(torch.device("meta"))
    assert {value.device.type for value in run.reference.weights().values()} == {"meta"}
    assert {weight.device.type for weight in run.captioner.model.parameters()} == {"cpu"}
