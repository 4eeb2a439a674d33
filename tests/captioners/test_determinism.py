"""Two forwards in training mode are one number, with every kind of dropout there is and with batch norm."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.oft.layer import MultiplicativeDropoutLayer
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, VisionEncoderDecoderModel, ViTConfig, ViTModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from hf_contrastive_caption.captioners import CaptionBatch, captioner_for
from hf_contrastive_caption.captioners.determinism import (
    disable_dropout,
    largest_difference,
    norms_with_statistics,
    restore_dropout,
)
from tests import tiny
from tests.captioners import naive

FAMILIES = [
    ("gpt2", "vit"),
    ("bert", "vit"),
    ("roberta", "vit"),
    ("mbart", "vit"),
    ("trocr", "vit"),
    ("gpt2", "swin"),
    ("gpt2", "beit"),
]


@pytest.fixture
def images() -> dict[str, Tensor]:
    return tiny.pixel_values(4)


@pytest.fixture
def captions() -> CaptionBatch:
    return tiny.captions([0, 1, 2, 3, 0, 1])


def two_forwards(model: nn.Module, images: dict[str, Tensor], captions: CaptionBatch) -> tuple[Tensor, Tensor]:
    captioner = captioner_for(model, tiny.processing())
    captioner.verify()
    assert model.training
    with torch.no_grad():
        return captioner.log_probs(model, images, captions), captioner.log_probs(model, images, captions)


class TestDropout:
    @pytest.mark.parametrize(("decoder", "encoder"), FAMILIES)
    def test_off_and_on_again(
        self,
        decoder: tiny.DecoderName,
        encoder: tiny.EncoderName,
        images: dict[str, Tensor],
        captions: CaptionBatch,
    ) -> None:
        model = tiny.captioner_model(decoder, dropout=0.3, encoder=encoder)
        settings = model.config.to_dict()
        first, second = two_forwards(model, images, captions)
        assert (first - second).abs().mean() > 1
        rates = disable_dropout(model)
        assert len(rates) > 10
        assert max(rates.values()) == pytest.approx(0.3)
        first, second = two_forwards(model, images, captions)
        assert torch.equal(first, second)
        model.eval()
        with torch.no_grad():
            torch.testing.assert_close(first, naive.log_probs(model, images, captions), rtol=0, atol=1e-4)
        model.train()
        assert model.config.to_dict() == settings
        assert disable_dropout(model) == {}
        restore_dropout(model, rates)
        first, second = two_forwards(model, images, captions)
        assert (first - second).abs().mean() > 1
        assert disable_dropout(model) == rates

    @pytest.mark.parametrize("encoder", ["swin", "beit"])
    def test_dropped_paths_alone_make_noise(
        self, encoder: tiny.EncoderName, images: dict[str, Tensor], captions: CaptionBatch
    ) -> None:
        model = tiny.captioner_model(dropout=0.5, encoder=encoder)
        paths = {name: rate for name, rate in disable_dropout(model).items() if "drop_path" in name}
        assert list(paths.values()) == [0.5]  # none in the first layer
        restore_dropout(model, paths)
        first, second = two_forwards(model, images, captions)
        assert (first - second).abs().max() > 0.1
        assert disable_dropout(model) == paths
        assert torch.equal(*two_forwards(model, images, captions))

    @pytest.mark.parametrize("decoder", ["mbart", "trocr"])
    def test_functional_dropout_and_dropped_layers_alone_make_noise(
        self, decoder: tiny.DecoderName, images: dict[str, Tensor], captions: CaptionBatch
    ) -> None:
        model = tiny.captioner_model(decoder, dropout=0.3)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        first, second = two_forwards(model, images, captions)
        assert (first - second).abs().mean() > 1
        rates = disable_dropout(model)
        assert rates["decoder.model.decoder.layerdrop"] == 0.3
        assert rates["decoder.model.decoder.layers.0.dropout"] == 0.3
        assert rates["decoder.model.decoder.layers.1.activation_dropout"] == 0.3
        assert rates["decoder.model.decoder.layers.1.encoder_attn.dropout"] == 0.3
        assert torch.equal(*two_forwards(model, images, captions))

    @pytest.mark.filterwarnings("ignore:fan_in_fan_out")
    def test_adapters(self, images: dict[str, Tensor], captions: CaptionBatch) -> None:
        config = LoraConfig(r=4, target_modules=["c_attn"], lora_dropout=0.5, init_lora_weights=False)
        model = get_peft_model(tiny.captioner_model(), config)
        first, second = two_forwards(model, images, captions)
        assert (first - second).abs().mean() > 0.1
        rates = disable_dropout(model)
        assert len(rates) == 4  # self- and cross-attention of two layers
        assert all("lora_dropout" in name and rate == 0.5 for name, rate in rates.items())
        assert torch.equal(*two_forwards(model, images, captions))

    def test_dropout_that_is_no_torch_dropout(self) -> None:
        torch.manual_seed(0)
        dropout = MultiplicativeDropoutLayer(0.5).train()
        blocks = torch.randn(16, 4, 4)
        assert not torch.equal(dropout(blocks), blocks)
        assert disable_dropout(dropout) == {".p": 0.5}
        assert torch.equal(dropout(blocks), blocks)

    def test_the_module_itself(self) -> None:
        dropout = nn.Dropout(0.5)
        rates = disable_dropout(dropout)
        assert rates == {".p": 0.5}
        assert dropout.p == 0.0
        restore_dropout(dropout, rates)
        assert dropout.p == 0.5


class NormedViT(ViTModel):
    """A vision encoder with batch norm; those of transformers give no sequence of states."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config, add_pooling_layer=False)
        self.norm = nn.BatchNorm1d(config.hidden_size)

    def forward(self, pixel_values: Tensor, **kwargs: object) -> BaseModelOutputWithPooling:
        states = super().forward(pixel_values, **kwargs).last_hidden_state
        states = self.norm(states.transpose(1, 2)).transpose(1, 2)
        return BaseModelOutputWithPooling(last_hidden_state=states)


def normed_model() -> VisionEncoderDecoderModel:
    torch.manual_seed(0)
    decoder = GPT2LMHeadModel(tiny.decoder_config(add_cross_attention=True, is_decoder=True))
    encoder = NormedViT(tiny.encoder_config())
    with torch.no_grad():
        encoder.norm.running_mean.normal_()
        encoder.norm.running_var.uniform_(0.5, 2.0)
    model = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder)
    model.config.decoder_start_token_id = tiny.BOS
    return model.train()


class TestBatchNorm:
    def test_uses_no_statistics_of_the_batch(self, images: dict[str, Tensor], captions: CaptionBatch) -> None:
        model = normed_model()
        norm = model.encoder.norm
        before = norm.running_mean.clone(), norm.running_var.clone()
        model.eval()
        expected = naive.log_probs(model, images, captions)
        model.train()
        captioner = captioner_for(model, tiny.processing())
        captioner.verify()
        captioner.make_deterministic()
        for _ in range(2):
            model.train()  # as Trainer does before every step
            scores = captioner.log_probs(model, images, captions)
            torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4)
        model.train()
        states = captioner.encode(images)
        torch.testing.assert_close(captioner.log_probs(model, states, captions), expected, rtol=0, atol=1e-4)
        assert torch.equal(norm.running_mean, before[0])
        assert torch.equal(norm.running_var, before[1])
        assert norm.num_batches_tracked.item() == 0
        model.eval()
        theirs = naive.gradients(model, naive.log_probs(model, images, captions))
        assert naive.relative_difference(naive.gradients(model, scores), theirs) <= 1e-5

    def test_does_otherwise(self, images: dict[str, Tensor], captions: CaptionBatch) -> None:
        model = normed_model()
        captioner = captioner_for(model, tiny.processing())
        captioner.verify()
        alone = captioner.log_probs(model, images, captions)
        other = captioner.log_probs(model, tiny.pixel_values(5), captions)  # one image more in the batch
        assert (alone - other).abs().mean() > 0.1
        assert model.encoder.norm.num_batches_tracked.item() == 2

    def test_finds_all_kinds(self) -> None:
        model = nn.Sequential(
            nn.BatchNorm1d(2), nn.LayerNorm(2), nn.SyncBatchNorm(2), nn.InstanceNorm2d(2), nn.GroupNorm(1, 2)
        )
        assert norms_with_statistics(model) == [model[0], model[2], model[3]]


def test_largest_difference() -> None:
    assert largest_difference(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 0.0])) == 2.0
    assert largest_difference(torch.tensor([1.0, float("nan")]), torch.ones(2)) == float("inf")
