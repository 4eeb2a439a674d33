"""Hashes change with everything that they are of, and with nothing else."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.helpers import rescale_adapter_scale
from torch import nn

from hf_contrastive_caption.fingerprints import autocast_settings, json_digest, model_digest, weights_digest
from tests import tiny


class Holder(nn.Module):
    """Weights and buffers of given names."""

    def __init__(self, weights: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor] | None = None) -> None:
        super().__init__()
        for name, value in weights.items():
            self.register_parameter(name, nn.Parameter(value.clone(), requires_grad=False))
        for name, value in (buffers or {}).items():
            self.register_buffer(name, value.clone())


ONE, TWO = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([5.0])


def digest(weights: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor] | None = None) -> str:
    return weights_digest(Holder(weights, buffers))


class TestWeightsDigest:
    def test_everything_about_a_weight_matters(self) -> None:
        different = [
            digest({"a": ONE, "b": TWO}),
            digest({"b": ONE, "a": TWO}),
            digest({"a": ONE}),
            digest({"a": ONE}, {"b": TWO + 1}),
            digest({"a": ONE.t().contiguous(), "b": TWO}),
            digest({"a": ONE.reshape(4), "b": TWO}),
            digest({"a": ONE.reshape(1, 4), "b": TWO}),
            digest({"a": ONE.double(), "b": TWO}),
            digest({"a": ONE.bfloat16(), "b": TWO}),
            digest({"a": ONE.half(), "b": TWO}),
            digest({"a": torch.nextafter(ONE, ONE + 1), "b": TWO}),
            digest({"a": torch.zeros(2)}),
            digest({"a": -torch.zeros(2)}),
            digest({}),
        ]
        assert len(set(different)) == len(different)

    def test_nothing_else_does(self) -> None:
        expected = digest({"a": ONE, "b": TWO})
        assert digest({"b": TWO, "a": ONE}) == expected
        assert digest({"a": ONE.t().contiguous().t(), "b": TWO}) == expected  # another layout of the same values
        model = Holder({"a": ONE, "b": TWO})
        model.eval().requires_grad_(False)
        assert weights_digest(model) == expected
        assert digest({"a": ONE}, {"b": TWO}) == expected  # as their names in the state

    def test_every_kind_of_tensor(self) -> None:
        values = [torch.tensor(3.0), torch.zeros(0, 2), torch.tensor([True, False]), torch.tensor([7]), ONE.bfloat16()]
        found = {digest({}, {"a": value}) for value in values}
        assert len(found) == len(values)
        assert found == {digest({}, {"a": value.clone()}) for value in values}

    def test_not_numbers_are_equal_bit_for_bit(self) -> None:
        assert digest({"a": torch.tensor([float("nan")])}) == digest({"a": torch.tensor([float("nan")])})


class TestModelDigest:
    def test_knows_weights_and_config(self) -> None:
        model = tiny.captioner_model()
        expected = model_digest(model)
        assert model_digest(tiny.captioner_model().eval()) == expected
        others = [tiny.captioner_model(seed=1), tiny.captioner_model(n_head=4)]
        scaled = copy.deepcopy(model)
        scaled.config.decoder.scale_attn_by_inverse_layer_idx = True
        assert len({expected, *map(model_digest, [*others, scaled])}) == 4

    def test_knows_the_class(self) -> None:
        class Other(type(tiny.captioner_model())):  # type: ignore[misc]
            """The same weights, and maybe another forward."""

        model = tiny.captioner_model()
        before = model_digest(model)
        model.__class__ = Other
        assert model_digest(model) != before

    def test_knows_which_adapter_is_in_use(self) -> None:
        config = LoraConfig(target_modules=["c_attn"], init_lora_weights=False)
        model = get_peft_model(tiny.captioner_model(), config, adapter_name="first")
        model.add_adapter("second", config)
        digests = [model_digest(model)]
        model.set_adapter("second")
        digests.append(model_digest(model))
        with model.disable_adapter():
            digests.append(model_digest(model))
        assert len(set(digests)) == 3
        model.set_adapter("first")
        assert model_digest(model) == digests[0]

    def test_of_an_adapter_that_was_saved_and_loaded(self, tmp_path: Path) -> None:
        model = get_peft_model(tiny.captioner_model(), LoraConfig(target_modules=["c_attn"], init_lora_weights=False))
        before = model_digest(model)
        model.save_pretrained(tmp_path)
        for is_trainable in (True, False):
            loaded = PeftModel.from_pretrained(tiny.captioner_model(), str(tmp_path), is_trainable=is_trainable)
            assert model_digest(loaded) == before
            config: Any = loaded.peft_config["default"]
            config.base_model_name_or_path, config.revision, config.peft_version = "/elsewhere/base", "abc", "99.0"
            assert model_digest(loaded) == before
        config.use_rslora = True
        assert model_digest(loaded) != before

    def test_knows_the_scale_of_an_adapter_as_it_is_now(self) -> None:
        model = get_peft_model(tiny.captioner_model(), LoraConfig(target_modules=["c_attn"], init_lora_weights=False))
        before = model_digest(model)
        with rescale_adapter_scale(model, 0.5):
            assert model_digest(model) != before
        assert model_digest(model) == before


def test_autocast_is_known_by_its_dtype() -> None:
    device = torch.device("cpu")
    assert autocast_settings(device) == [False]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert autocast_settings(device) == [True, "torch.bfloat16"]


class TestJsonDigest:
    def test_of_equal_values(self) -> None:
        assert json_digest({"a": [1, 2.5, None], "b": {"x", "y"}}) == json_digest(
            {"b": {"y", "x"}, "a": [1, 2.5, None]}
        )

    @pytest.mark.parametrize("other", [[1, 2], ["1", 2, 3], [1, 2, 3.5], [2, 1, 3], [[1, 2, 3]], {"1": 2}])
    def test_of_different_values(self, other: object) -> None:
        assert json_digest(other) != json_digest([1, 2, 3])

    def test_texts_of_any_script(self) -> None:
        texts = ["a\nb", "a b", "a\u2028b", "\u72d7", "", "\ud800"]
        assert len({json_digest([text]) for text in texts}) == len(texts)
