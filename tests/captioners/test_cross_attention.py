"""Scores of encoder-decoder captioners: packed, repeated and one by one are the same numbers."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    GPT2Config,
    MBartConfig,
    OPTConfig,
    PreTrainedConfig,
    RobertaConfig,
    TrOCRConfig,
)

from hf_contrastive_caption.captioners import CaptionBatch, caption_batch, captioner_for
from hf_contrastive_caption.captioners.settings import position_limit
from tests import tiny
from tests.captioners import naive
from tests.captioners.scorer import scorer

PACKING = ("gpt2", "bert", "roberta")
REPEATING = ("mbart", "trocr")
DECODERS = PACKING + REPEATING
ENCODERS = get_args(tiny.EncoderName)
IMAGE_INDEX = (0, 2, 1, 0, 0, 2, 3, 0)  # image 4 of the five has no caption


@pytest.fixture
def images() -> dict[str, Tensor]:
    return tiny.pixel_values(5)


@pytest.fixture
def captions() -> CaptionBatch:
    return tiny.captions(IMAGE_INDEX)


class TestScores:
    @pytest.mark.parametrize("decoder", DECODERS)
    @pytest.mark.parametrize("packing", ["auto", "repeated"])
    def test_equal_one_by_one(
        self, decoder: tiny.DecoderName, packing: Any, images: dict[str, Tensor], captions: CaptionBatch
    ) -> None:
        model = tiny.captioner_model(decoder)
        captioner = scorer(model, packing=packing)
        assert captioner.layout == ("packed" if decoder in PACKING and packing == "auto" else "repeated")
        assert captioner.head == "fused"
        with torch.no_grad():
            expected = naive.token_log_probs(model, images, captions)
            tokens = captioner.token_log_probs(model, images, captions)
            scores = captioner.log_probs(model, images, captions)
        torch.testing.assert_close(tokens, torch.cat(expected), rtol=0, atol=1e-4)
        torch.testing.assert_close(scores, torch.stack([one.sum() for one in expected]), rtol=0, atol=1e-4)
        assert scores.std() > 10  # far from uniform, so that errors show

    @pytest.mark.parametrize("decoder", DECODERS)
    def test_equal_the_models_own_loss(
        self, decoder: tiny.DecoderName, images: dict[str, Tensor], captions: CaptionBatch
    ) -> None:
        model = tiny.captioner_model(decoder)
        captioner = scorer(model)
        sentences = captions["input_ids"].split(captions["lengths"].tolist())
        labels = nn.utils.rnn.pad_sequence(list(sentences), batch_first=True, padding_value=-100)
        index = captions["image_index"]
        with torch.no_grad():
            scores = captioner.log_probs(model, images, captions)
            loss = model(pixel_values=images["pixel_values"][index], labels=labels).loss
            assert -scores.sum().item() == pytest.approx(loss.item() * len(captions["input_ids"]), rel=1e-5)
            for score, ids, image in zip(scores, sentences, index, strict=True):
                loss = model(pixel_values=images["pixel_values"][image][None], labels=ids[None]).loss
                assert -score.item() == pytest.approx(loss.item() * len(ids), abs=1e-4)

    @pytest.mark.parametrize("decoder", DECODERS)
    def test_depend_on_earlier_tokens_of_the_same_caption_only(
        self, decoder: tiny.DecoderName, images: dict[str, Tensor]
    ) -> None:
        model = tiny.captioner_model(decoder)
        captioner = scorer(model)
        sentences = [[7, 8, 9, 10, 11, tiny.EOS], [20, 21, 22, tiny.EOS], [30, 31, 32, 33, 34, tiny.EOS]]
        first = len(sentences[0])
        with torch.no_grad():
            before = captioner.token_log_probs(model, images, caption_batch(sentences, [1, 1, 1]))
            for place in range(len(sentences[1])):
                changed = [list(sentence) for sentence in sentences]
                changed[1][place] = 40
                after = captioner.token_log_probs(model, images, caption_batch(changed, [1, 1, 1]))
                moved = (after - before).abs()
                here, end = first + place, first + len(sentences[1])
                assert moved[:here].max() <= 1e-6
                assert moved[end:].max() <= 1e-6
                assert moved[here:end].min() > 1e-4

    @pytest.mark.parametrize("decoder", DECODERS)
    @pytest.mark.parametrize("packing", ["auto", "repeated"])
    def test_from_encoded_images(
        self, decoder: tiny.DecoderName, packing: Any, images: dict[str, Tensor], captions: CaptionBatch
    ) -> None:
        model = tiny.captioner_model(decoder)
        captioner = scorer(model, packing=packing)
        states = captioner.encode(images)
        assert {name: tuple(value.shape) for name, value in states.items()} == {"encoder_hidden_states": (5, 17, 32)}
        assert not states["encoder_hidden_states"].requires_grad
        with torch.no_grad():
            expected = captioner.log_probs(model, images, captions)
            torch.testing.assert_close(captioner.log_probs(model, states, captions), expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("encoder", ENCODERS)
    @pytest.mark.parametrize("decoder", DECODERS)
    def test_every_encoder_with_every_decoder(
        self,
        encoder: tiny.EncoderName,
        decoder: tiny.DecoderName,
        images: dict[str, Tensor],
        captions: CaptionBatch,
    ) -> None:
        model = tiny.captioner_model(decoder, encoder=encoder)
        captioner = scorer(model)
        captioner.freeze_unused()
        assert captioner.layout == ("packed" if decoder in PACKING else "repeated")
        scores, expected = captioner.log_probs(model, images, captions), naive.log_probs(model, images, captions)
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4)
        assert (captioner.log_probs(model, {**images}, captions) - scores).abs().max() == 0  # no noise
        with torch.no_grad():
            from_states = captioner.log_probs(model, captioner.encode(images), captions)
        torch.testing.assert_close(from_states, expected, rtol=0, atol=1e-4)
        ours, theirs = naive.gradients(model, scores), naive.gradients(model, expected)
        assert naive.relative_difference(ours, theirs) < 1e-4
        assert ours.keys() == {name for name, weight in model.named_parameters() if weight.requires_grad}

    def test_an_encoder_of_another_width(self, images: dict[str, Tensor], captions: CaptionBatch) -> None:
        model = tiny.captioner_model(n_embd=24)
        assert isinstance(model.enc_to_dec_proj, nn.Linear)
        for packing in ("packed", "repeated"):
            captioner = scorer(model, packing=packing)
            with torch.no_grad():
                expected = naive.log_probs(model, images, captions)
                scores = captioner.log_probs(model, images, captions)
                from_states = captioner.log_probs(model, captioner.encode(images), captions)
            torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4)
            torch.testing.assert_close(from_states, expected, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("decoder", PACKING)
    def test_eager_attention(
        self, decoder: tiny.DecoderName, images: dict[str, Tensor], captions: CaptionBatch
    ) -> None:
        model = tiny.captioner_model(decoder)
        model.set_attn_implementation("eager")
        captioner = scorer(model)
        assert captioner.layout == "packed"
        with torch.no_grad():
            scores = captioner.log_probs(model, images, captions)
            torch.testing.assert_close(scores, naive.log_probs(model, images, captions), rtol=0, atol=1e-4)

    @pytest.mark.parametrize("decoder", DECODERS)
    def test_small_pieces_of_logits(
        self, decoder: tiny.DecoderName, images: dict[str, Tensor], captions: CaptionBatch
    ) -> None:
        model = tiny.captioner_model(decoder)
        captioner = scorer(model, max_logits_bytes=3 * 4 * tiny.VOCABULARY_SIZE)
        with torch.no_grad():
            scores = captioner.log_probs(model, images, captions)
            torch.testing.assert_close(scores, naive.log_probs(model, images, captions), rtol=0, atol=1e-4)

    @pytest.mark.parametrize("decoder", DECODERS)
    def test_the_model_is_left_as_it_was(
        self, decoder: tiny.DecoderName, images: dict[str, Tensor], captions: CaptionBatch
    ) -> None:
        model = tiny.captioner_model(decoder)
        captioner = scorer(model)
        captioner.log_probs(model, images, captions).sum().backward()
        with pytest.raises(ValueError, match="channel dimension"):
            captioner.log_probs(model, {"pixel_values": images["pixel_values"][:, :1]}, captions)
        assert not [name for name, module in model.named_modules() if module._forward_hooks]
        assert not [name for name, module in model.named_modules() if module._forward_pre_hooks]
        assert model(pixel_values=images["pixel_values"], labels=torch.ones(5, 3).long()).logits.shape == (5, 3, 65)


class TestPositions:
    @pytest.mark.parametrize("decoder", PACKING)
    def test_captions_too_many_for_the_positions_get_rows_of_their_own(
        self, decoder: tiny.DecoderName, images: dict[str, Tensor], captions: CaptionBatch
    ) -> None:
        name = "n_positions" if decoder == "gpt2" else "max_position_embeddings"
        model = tiny.captioner_model(decoder, **{name: 12 + (decoder == "roberta")})
        captioner = scorer(model)
        assert captioner.layout == "packed"
        assert captioner.processor.max_caption_tokens == 12
        few = caption_batch([[7, 8, 9, tiny.EOS], [10, tiny.EOS], [11, 12, tiny.EOS]], [0, 0, 1])
        assert captioner.rows(images, few).packed
        assert captioner.rows(images, few).input_ids.shape == (5, 6)
        rows = captioner.rows(images, captions)
        assert not rows.packed
        assert rows.input_ids.shape == (8, int(captions["lengths"].max()))
        with torch.no_grad():
            scores = captioner.log_probs(model, images, captions)
            torch.testing.assert_close(scores, naive.log_probs(model, images, captions), rtol=0, atol=1e-4)

    @pytest.mark.parametrize("decoder", DECODERS)
    def test_the_longest_caption_fits_and_a_longer_one_does_not(
        self, decoder: tiny.DecoderName, images: dict[str, Tensor]
    ) -> None:
        model = tiny.captioner_model(decoder)
        captioner = scorer(model)
        assert captioner.processor.max_caption_tokens == 64
        longest = [*range(10, 60), *range(20, 33), tiny.EOS]
        batch = caption_batch([longest], [0])
        with torch.no_grad():
            scores = captioner.log_probs(model, images, batch)
            torch.testing.assert_close(scores, naive.log_probs(model, images, batch), rtol=1e-5, atol=0)
            if decoder != "trocr":  # rounds its table of positions up
                with pytest.raises((IndexError, RuntimeError)):
                    naive.log_probs(model, images, caption_batch([[9, *longest]], [0]))

    @pytest.mark.parametrize(
        ("config", "limit"),
        [
            (GPT2Config(), 1024),
            (BertConfig(), 512),
            (RobertaConfig(max_position_embeddings=514), 512),  # counted from pad_token_id + 1 = 2
            (RobertaConfig(max_position_embeddings=66, pad_token_id=0), 65),
            (MBartConfig(), 1024),
            (TrOCRConfig(), 512),
            (OPTConfig(), 2048),
            (PreTrainedConfig(), None),
        ],
    )
    def test_position_limit(self, config: PreTrainedConfig, limit: int | None) -> None:
        assert position_limit(config) == limit


class TestGradients:
    @pytest.mark.parametrize("decoder", DECODERS)
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
    @pytest.mark.parametrize("pieces", [False, True])
    def test_equal_one_by_one(
        self, decoder: tiny.DecoderName, dtype: torch.dtype, tolerance: float, pieces: bool, captions: CaptionBatch
    ) -> None:
        model = tiny.captioner_model(decoder).to(dtype)
        images = tiny.pixel_values(5, dtype=dtype)
        budget = 5 * 4 * tiny.VOCABULARY_SIZE if pieces else 2**29
        for packing in ("auto", "repeated") if decoder in PACKING else ("auto",):
            captioner = scorer(model, packing=packing, max_logits_bytes=budget)
            scores = captioner.log_probs(model, images, captions)
            assert scores.dtype == dtype
            ours = naive.gradients(model, scores)
            theirs = naive.gradients(model, naive.log_probs(model, images, captions))
            assert len(theirs) > 50
            assert naive.relative_difference(ours, theirs) <= tolerance

    @pytest.mark.parametrize("decoder", DECODERS)
    @pytest.mark.parametrize("packing", ["auto", "repeated"])
    def test_checkpointing_recomputes_and_changes_nothing(
        self, decoder: tiny.DecoderName, packing: Any, images: dict[str, Tensor], captions: CaptionBatch
    ) -> None:
        model = tiny.captioner_model(decoder, dropout=0.3)
        captioner = scorer(model, packing=packing)
        plain = captioner.log_probs(model, images, captions)
        plain_gradients = naive.gradients(model, plain)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        calls: list[nn.Module] = []
        norms = [module for module in model.decoder.modules() if isinstance(module, nn.LayerNorm)]
        norms[len(norms) // 2].register_forward_pre_hook(lambda module, args: calls.append(module))
        scores = captioner.log_probs(model, images, captions)
        gradients = naive.gradients(model, scores)
        assert len(calls) == 2
        torch.testing.assert_close(scores, plain, rtol=0, atol=1e-5)
        assert naive.relative_difference(gradients, plain_gradients) <= 1e-5

    def test_flow_only_through_the_wrapped_models_own_call(
        self, images: dict[str, Tensor], captions: CaptionBatch
    ) -> None:
        class Wrapper(nn.Module):
            def __init__(self, module: nn.Module) -> None:
                super().__init__()
                self.module, self.calls = module, 0

            def forward(self, **arguments: Any) -> Any:
                self.calls += 1
                outputs = self.module(**arguments)
                return type(outputs)(**{name: value * 2 for name, value in outputs.items() if name == "logits"})

        model = tiny.captioner_model()
        captioner = scorer(model)
        wrapper = Wrapper(model)
        doubled = naive.gradients(model, captioner.log_probs(wrapper, images, captions))
        single = naive.gradients(model, captioner.log_probs(model, images, captions))
        assert wrapper.calls == 1
        # scores twice as large: the weighted sum is, too
        assert naive.relative_difference(doubled, {name: value * 2 for name, value in single.items()}) <= 1e-5


class TestPrecision:
    @pytest.mark.parametrize("decoder", DECODERS)
    def test_bfloat16_weights(
        self, decoder: tiny.DecoderName, images: dict[str, Tensor], captions: CaptionBatch
    ) -> None:
        model = tiny.captioner_model(decoder)
        with torch.no_grad():
            exact = naive.log_probs(model, images, captions)
            model.to(torch.bfloat16)
            half = {name: value.bfloat16() for name, value in images.items()}
            captioner = scorer(model)
            assert captioner.layout == ("packed" if decoder in PACKING else "repeated")
            scores = captioner.log_probs(model, half, captions)
        assert scores.dtype == torch.float32
        per_token = (scores - exact).abs() / captions["lengths"]
        assert per_token.max() < 0.1

    @pytest.mark.parametrize("decoder", DECODERS)
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.0125)])
    def test_autocast(
        self,
        decoder: tiny.DecoderName,
        dtype: torch.dtype,
        tolerance: float,
        images: dict[str, Tensor],
        captions: CaptionBatch,
    ) -> None:
        model = tiny.captioner_model(decoder)
        captioner = scorer(model)
        exact = captioner.log_probs(model, images, captions)
        exact_gradients = naive.gradients(model, exact)
        with torch.autocast("cpu", dtype):
            scores = captioner.log_probs(model, images, captions)
            plain = naive.log_probs(model, images, captions).detach()
        gradients = naive.gradients(model, scores)
        assert scores.dtype == torch.float32
        assert ((scores - exact).abs() / captions["lengths"]).max() < tolerance
        # no worse than twice what plain forwards lose
        assert (scores - exact).norm() < 2 * (plain - exact).norm()
        assert naive.relative_difference(gradients, exact_gradients) < tolerance

    def test_verified_under_autocast(self, images: dict[str, Tensor], captions: CaptionBatch) -> None:
        model = tiny.captioner_model("mbart")
        captioner = captioner_for(model, tiny.processing())
        with torch.autocast("cpu", torch.bfloat16):
            captioner.log_probs(model, images, captions)
        assert captioner.verified
        assert captioner.layout == "repeated"


def test_start_token_is_needed() -> None:
    model = tiny.captioner_model()
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id = None
    model.config.decoder.bos_token_id = None
    with pytest.raises(ValueError, match=r"set model.config.decoder_start_token_id"):
        captioner_for(model, (tiny.tokenizer(bos_token=None), tiny.image_processor()))


def test_scores_are_not_normalised_by_length(images: dict[str, Tensor]) -> None:
    """With all weights zero every token has probability 1 / vocabulary."""
    model = tiny.captioner_model()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    captioner = captioner_for(model, tiny.processing())
    batch = caption_batch([[7, 8, tiny.EOS], [tiny.EOS], [9] * 9 + [tiny.EOS]], [0, 1, 1])
    expected = [-length * math.log(tiny.VOCABULARY_SIZE) for length in (3, 1, 10)]
    assert captioner.log_probs(model, images, batch).tolist() == pytest.approx(expected, rel=1e-6)
