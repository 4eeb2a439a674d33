"""The choice of layout and head on the real model, and what it says about it."""

from __future__ import annotations

import logging

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from hf_contrastive_caption.captioners import captioner_for
from hf_contrastive_caption.captioners.verification import TOLERANCE_PER_TOKEN, _tolerance
from tests import tiny


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("hf_contrastive_caption") and record.levelno >= logging.WARNING
    ]


@pytest.mark.parametrize("decoder", ["gpt2", "bert", "roberta"])
@pytest.mark.parametrize("initializer_range", [0.002, 0.02, 0.3])
def test_packing_is_used_in_silence(
    decoder: tiny.DecoderName, initializer_range: float, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny.captioner_model(decoder, initializer_range=initializer_range)
    captioner = captioner_for(model, tiny.processing())
    captioner.verify()
    assert (captioner.layout, captioner.head) == ("packed", "fused")
    assert warnings_of(caplog) == []


@pytest.mark.parametrize(("decoder", "name"), [("mbart", "MBartForCausalLM"), ("trocr", "TrOCRForCausalLM")])
@pytest.mark.parametrize("init_std", [0.002, 0.02, 0.3])  # a model from scratch is nearly uniform
def test_fall_back_with_one_warning(
    decoder: tiny.DecoderName, name: str, init_std: float, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny.captioner_model(decoder, init_std=init_std)
    captioner = captioner_for(model, tiny.processing())
    assert not captioner.verified
    for _ in range(2):
        captioner.log_probs(model, tiny.pixel_values(2), tiny.captions([0, 1]))
    assert captioner.verified
    assert (captioner.layout, captioner.head) == ("repeated", "fused")
    (message,) = warnings_of(caplog)
    assert name in message
    assert "repeated layout and fused head" in message
    assert "packed with fused: off by" in message


def test_repeated_states_as_asked_need_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    captioner = captioner_for(tiny.captioner_model("mbart"), tiny.processing(), packing="repeated")
    captioner.verify()
    assert captioner.layout == "repeated"
    assert warnings_of(caplog) == []


@pytest.mark.parametrize("decoder", ["mbart", "trocr"])
def test_packing_that_is_not_exact_is_an_error(decoder: tiny.DecoderName) -> None:
    captioner = captioner_for(tiny.captioner_model(decoder), tiny.processing(), packing="packed")
    with pytest.raises(ValueError, match=r"no way of scoring .*\('packed',\).*With packing='auto' repeated states"):
        captioner.verify()
    assert not captioner.verified


@pytest.mark.parametrize("initializer_range", [0.02, 0.3])
def test_a_decoder_that_sees_later_tokens_is_an_error(initializer_range: float) -> None:
    model = tiny.captioner_model("bert", initializer_range=initializer_range)
    for module in model.decoder.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False
        if hasattr(module, "is_decoder"):
            module.is_decoder = False
    captioner = captioner_for(model, tiny.processing())
    with pytest.raises(
        ValueError, match=r"BertLMHeadModel sees later tokens.*build the decoder from a config with is_decoder=True"
    ):
        captioner.verify()


def test_weights_that_are_no_numbers_are_an_error() -> None:
    model = tiny.captioner_model()
    with torch.no_grad():
        model.decoder.transformer.h[0].mlp.c_fc.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="scores that are not finite"):
        captioner_for(model, tiny.processing()).verify()


def test_modes_and_gradients_are_left_as_they_were() -> None:
    model = tiny.captioner_model()
    model.encoder.eval()  # a frozen encoder, say
    modes = [module.training for module in model.modules()]
    assert 0 < sum(modes) < len(modes)
    captioner_for(model, tiny.processing()).verify()
    assert [module.training for module in model.modules()] == modes
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("size", [44, 60, 100, 200])
@pytest.mark.parametrize("padding", [1, 2])
def test_the_probe_holds_no_padding(size: int, padding: int) -> None:
    """RoBERTa gives padding no position of its own: with it in the probe, packing looked wrong by chance."""
    names = [f"w{number}" for number in range(size)]
    names[padding], names[padding + 5] = "<pad>", "<eos>"
    backend = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")
    model = tiny.captioner_model(
        "roberta", vocab_size=size, pad_token_id=padding, eos_token_id=padding + 5, max_position_embeddings=70
    )
    model.generation_config.eos_token_id = padding + 5
    model.config.decoder_start_token_id = padding + 6
    captioner = captioner_for(model, (tokenizer, tiny.image_processor()))
    captioner.verify()
    assert captioner.layout == "packed"


def test_a_model_with_two_positions() -> None:
    captioner = captioner_for(tiny.captioner_model(n_positions=2), tiny.processing())
    captioner.verify()
    assert captioner.processor.max_caption_tokens == 2


def test_a_fresh_head_without_out_features_is_scored_from_the_logits() -> None:
    class Plain(nn.Module):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.weight = linear.weight

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden @ self.weight.t()

    model = tiny.captioner_model()
    model.decoder.lm_head = Plain(model.decoder.lm_head)
    captioner = captioner_for(model, tiny.processing())
    captioner.verify()
    assert (captioner.layout, captioner.head) == ("packed", "logits")


class TestFreezeUnused:
    @pytest.mark.parametrize("decoder", ["gpt2", "mbart"])
    def test_freezes_the_pooler_of_the_vision_encoder_and_nothing_else(self, decoder: tiny.DecoderName) -> None:
        model = tiny.captioner_model(decoder)
        model.encoder.eval()
        modes = [module.training for module in model.modules()]
        captioner = captioner_for(model, tiny.processing())
        pooler = ["encoder.pooler.dense.weight", "encoder.pooler.dense.bias"]
        assert captioner.freeze_unused() == pooler
        assert [name for name, weight in model.named_parameters() if not weight.requires_grad] == pooler
        assert [module.training for module in model.modules()] == modes
        captioner.log_probs(model, tiny.pixel_values(1), tiny.captions([0])).sum().backward()
        assert [name for name, weight in model.named_parameters() if weight.grad is None] == pooler
        assert captioner.freeze_unused() == []

    def test_what_is_frozen_stays_so(self) -> None:
        model = tiny.captioner_model()
        model.encoder.requires_grad_(False)
        captioner = captioner_for(model, tiny.processing())
        assert captioner.freeze_unused() == []
        model.requires_grad_(False)
        assert captioner.freeze_unused() == []
        assert not any(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize(("precision", "allowed"), [("highest", 2e-5), ("high", 3e-2), ("medium", 3e-2)])
def test_tolerance_follows_the_precision_of_matrix_products(precision: str, allowed: float) -> None:
    captioner = captioner_for(tiny.captioner_model(), tiny.processing())
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        assert _tolerance(captioner) == allowed
    finally:
        torch.set_float32_matmul_precision(before)


def test_tolerances_are_stated_for_every_dtype() -> None:
    assert TOLERANCE_PER_TOKEN == {
        torch.float64: 1e-8,
        torch.float32: 2e-5,
        torch.float16: 4e-3,
        torch.bfloat16: 3e-2,
    }


@pytest.mark.parametrize("positions", [2, 5, 12, 20])
def test_packed_rows_are_compared_where_a_row_holds_few_tokens(
    positions: int, caplog: pytest.LogCaptureFixture
) -> None:
    exact = captioner_for(tiny.captioner_model(n_positions=positions), tiny.processing())
    exact.verify()
    assert exact.layout == "packed" and warnings_of(caplog) == []
    model = tiny.captioner_model("mbart", max_position_embeddings=positions)
    wrong = captioner_for(model, tiny.processing())
    wrong.verify()
    assert wrong.layout == "repeated"
    (message,) = warnings_of(caplog)
    assert "packed with fused: off by" in message
    with pytest.raises(ValueError, match="no way of scoring"):
        captioner_for(model, tiny.processing(), packing="packed").verify()
