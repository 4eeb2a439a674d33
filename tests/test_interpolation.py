"""Captioners between two: exact at both ends, on the line in between, and refused where there is no line."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_contrastive_caption import Captioner, captioner_for, interpolate_captioners
from tests import tiny
from tests.cli.commands import run


def captioner(seed: int) -> Captioner:
    model = tiny.captioner_model()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)
    return captioner_for(model.eval(), tiny.processing())


def weights(one: Captioner) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in one.model.state_dict().items()}


@pytest.mark.parametrize("share", [0.0, 0.25, 0.7, 1.0])
def test_weights_lie_on_the_line_and_the_given_ones_stay(share: float) -> None:
    start, tuned = captioner(1), captioner(2)
    before = weights(start), weights(tuned)
    made = weights(interpolate_captioners(start, tuned, share))
    for name, value in made.items():
        first, second = before[0][name], before[1][name]
        if share in (0, 1) or not value.is_floating_point():
            assert torch.equal(value, second if share else first), name
        else:
            wanted = (1 - share) * first.double() + share * second.double()
            torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-6)
    for one, kept in zip((start, tuned), before, strict=True):
        assert all(torch.equal(value, kept[name]) for name, value in weights(one).items())
    assert any(not torch.equal(before[0][name], before[1][name]) for name in made)


def test_an_adapter_counts_by_the_share_and_a_base_by_name_will_do(tmp_path: Path) -> None:
    """The adapter's product B A times the share: with weights merged by hand."""
    base = captioner(1)
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(copy.deepcopy(base.model), LoraConfig(r=2, target_modules=["c_attn"], lora_alpha=4))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator))
    tuned = captioner_for(model.eval(), base.processor)
    made = interpolate_captioners(tmp_path / "base", tuned, 0.25)
    layers = dict(model.named_modules())
    changed = 0
    for name, value in weights(base).items():
        layer = layers.get(f"base_model.model.{name.removesuffix('.weight')}")
        delta = torch.zeros_like(value)
        if hasattr(layer, "get_delta_weight") and name.endswith(".weight"):
            delta, changed = layer.get_delta_weight("default").detach(), changed + 1
        torch.testing.assert_close(weights(made)[name], value + 0.25 * delta, rtol=1e-5, atol=1e-6)
    assert changed > 0 and any("lora" in name for name in tuned.model.state_dict())  # its adapter is still there


def test_it_captions_and_is_saved(tmp_path: Path) -> None:
    made = interpolate_captioners(captioner(1), captioner(2), 0.5)
    made.save_pretrained(tmp_path)
    images = tiny.images(3)
    assert Captioner.from_pretrained(tmp_path).caption(images, max_new_tokens=5) == made.caption(
        images, max_new_tokens=5
    )


@pytest.mark.parametrize("share", [-0.1, 1.01, float("nan")])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"goes from 0 \(the start\) to 1"):
        interpolate_captioners(captioner(1), captioner(2), share)


def test_other_models_and_vocabularies_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = captioner_for(tiny.captioner_model(decoder="bert"), tiny.processing())
    with pytest.raises(ValueError, match="weights of the two captioners .* differ in name or shape, such as decoder"):
        interpolate_captioners(other, captioner(1), 0.5)
    one = captioner(1)
    monkeypatch.setattr(tiny, "WORDS", tiny.WORDS[::-1])
    with pytest.raises(ValueError, match="number their tokens differently"):
        interpolate_captioners(one, captioner(2), 0.5)


def test_equal_weights_with_other_settings_are_refused() -> None:
    """The number of attention heads is in no weight. Ids of special tokens and rates of dropout may differ."""
    one, other = captioner(1), captioner(2)
    other.model.config.decoder.update({"attn_pdrop": 0.3, "eos_token_id": 0})
    interpolate_captioners(one, other, 0.5)
    other.model.config.decoder.n_head = 1
    with pytest.raises(
        ValueError, match=r"decoder\.n_head is 2 in the config of the start and 1 in that of the tuned"
    ):
        interpolate_captioners(one, other, 0.5)


def test_what_is_no_captioner_and_no_share_is_refused() -> None:
    with pytest.raises(TypeError, match="Got a VisionEncoderDecoderModel; give a captioner"):
        interpolate_captioners(captioner(1).model, captioner(2), 0.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="share is '0.5', but must be a number"):
        interpolate_captioners(captioner(1), captioner(2), "0.5")  # type: ignore[arg-type]


def test_it_can_be_trained_further(tmp_path: Path) -> None:
    """From objects as from folders."""
    start, tuned = captioner(1), captioner(2)
    tuned.save_pretrained(tmp_path)
    for given in (tuned, tmp_path):
        made = interpolate_captioners(start, given, 0.5)
        assert all(weight.requires_grad for weight in made.model.parameters())
    assert not any(weight.grad is not None for weight in tuned.model.parameters())


def test_what_has_nothing_in_between_is_refused() -> None:
    one, other = captioner(1), captioner(2)
    for number, each in enumerate((one, other)):
        each.model.register_buffer("scale", torch.tensor([number]))
    with pytest.raises(ValueError, match="scale has whole numbers that differ"):
        interpolate_captioners(one, other, 0.5)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start, tuned = captioner(1), captioner(2)
    start.save_pretrained(tmp_path / "start")
    tuned.save_pretrained(tmp_path / "tuned")
    words = ["interpolate", tmp_path / "start", tmp_path / "tuned", "--share", "0.5", "--out"]
    assert run(*words, tmp_path / "out") == 0 and "0.5 of the way" in capsys.readouterr().out
    made = weights(Captioner.from_pretrained(tmp_path / "out"))
    expected = weights(interpolate_captioners(start, tuned, 0.5))
    assert all(torch.equal(value, expected[name]) for name, value in made.items())
    assert run(*words, tmp_path / "out") == 2 and "holds files already" in capsys.readouterr().err
