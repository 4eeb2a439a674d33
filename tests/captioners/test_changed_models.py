"""Scores of encoder-decoder captioners that were changed: by adapters, by logits that are not the projection's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import GPT2LMHeadModel, VisionEncoderDecoderModel, ViTModel
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions

from hf_contrastive_caption.captioners import CaptionBatch
from tests import tiny
from tests.captioners import naive
from tests.captioners.scorer import scorer


@pytest.fixture
def images() -> dict[str, Tensor]:
    return tiny.pixel_values(5)


@pytest.fixture
def captions() -> CaptionBatch:
    return tiny.captions((0, 2, 1, 0, 0, 2, 3, 0))  # image 4 of the five has no caption


class Tempered(GPT2LMHeadModel):
    """A decoder that changes its logits after the projection."""

    def forward(self, input_ids: Tensor, encoder_hidden_states: Tensor, **kwargs: Any) -> Any:
        outputs = super().forward(input_ids, encoder_hidden_states=encoder_hidden_states, **kwargs)
        return CausalLMOutputWithCrossAttentions(logits=outputs.logits * 0.5)


class TestChangedLogits:
    def test_are_scored_from_the_logits(
        self, images: dict[str, Tensor], captions: CaptionBatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        torch.manual_seed(0)
        config = tiny.decoder_config("gpt2", add_cross_attention=True, is_decoder=True)
        model = VisionEncoderDecoderModel(
            encoder=ViTModel(tiny.encoder_config(), add_pooling_layer=False), decoder=Tempered(config)
        )
        model.config.decoder_start_token_id = tiny.BOS
        captioner = scorer(model)
        assert (captioner.layout, captioner.head) == ("packed", "logits")
        assert len([record for record in caplog.records if record.name.startswith("hf_contrastive")]) == 1
        expected = naive.log_probs(model, images, captions)
        scores = captioner.log_probs(model, images, captions)
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4)
        ours, theirs = naive.gradients(model, scores), naive.gradients(model, expected)
        assert naive.relative_difference(ours, theirs) <= 1e-5


class TestAdapters:
    @pytest.mark.parametrize(
        ("decoder", "target"),
        [
            ("gpt2", ["c_attn"]),
            ("gpt2", ["c_attn", "q_attn", "lm_head"]),
            ("bert", ["query", "value", "predictions.decoder"]),
        ],
    )
    @pytest.mark.filterwarnings("ignore:fan_in_fan_out")
    def test_lora(
        self, decoder: tiny.DecoderName, target: list[str], images: dict[str, Tensor], captions: CaptionBatch
    ) -> None:
        base = tiny.captioner_model(decoder, tie_word_embeddings=False)
        with torch.no_grad():
            expected = naive.log_probs(base, images, captions)
        model = get_peft_model(base, LoraConfig(r=4, target_modules=target))
        captioner = scorer(model)
        assert captioner.base_model is base
        assert (captioner.layout, captioner.head) == ("packed", "fused")
        with torch.no_grad():  # adapters start at zero
            torch.testing.assert_close(captioner.log_probs(model, images, captions), expected, rtol=0, atol=1e-4)
            generator = torch.Generator().manual_seed(0)
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.3, generator=generator)
        scores = captioner.log_probs(model, images, captions)
        adapted = naive.log_probs(model, images, captions)
        assert (adapted - expected).abs().mean() > 1
        torch.testing.assert_close(scores, adapted, rtol=0, atol=1e-4)
        ours, theirs = naive.gradients(model, scores), naive.gradients(model, adapted)
        assert ours and all("lora_" in name for name in ours)
        assert naive.relative_difference(ours, theirs) <= 1e-5
        with torch.no_grad(), model.disable_adapter():
            torch.testing.assert_close(captioner.log_probs(model, images, captions), expected, rtol=0, atol=1e-4)

    @pytest.mark.filterwarnings("ignore:fan_in_fan_out")
    def test_a_head_that_is_trained_beside_the_adapter(
        self, images: dict[str, Tensor], captions: CaptionBatch
    ) -> None:
        base = tiny.captioner_model(tie_word_embeddings=False)
        model = get_peft_model(base, LoraConfig(r=4, target_modules=["c_attn"], modules_to_save=["lm_head"]))
        captioner = scorer(model)
        scores, expected = captioner.log_probs(model, images, captions), naive.log_probs(model, images, captions)
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4)
        ours, theirs = naive.gradients(model, scores), naive.gradients(model, expected)
        assert any("lm_head" in name for name in ours)
        assert naive.relative_difference(ours, theirs) <= 1e-5
