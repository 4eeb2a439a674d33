"""Which captioner serves which model, and what is said to models and processors that cannot caption."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    BertLMHeadModel,
    Blip2Model,
    BlipForQuestionAnswering,
    BlipModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    TrOCRProcessor,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTModel,
)

from hf_contrastive_caption.captioners import (
    EncoderDecoderCaptioner,
    caption_batch,
    captioner_for,
    register_captioner,
    registry,
)
from hf_contrastive_caption.captioners.registry import split_processing_class
from hf_contrastive_caption.processing import CaptionProcessor
from tests import tiny
from tests.families.blip import blip_model
from tests.families.blip2 import blip2_model, blip2_processing
from tests.families.chat import (
    gemma3_model,
    gemma3_processing,
    llava_model,
    llava_processing,
    paligemma_model,
    paligemma_processing,
)
from tests.families.git import git_model
from tests.families.idefics3 import idefics3_model, idefics3_processing


class TestProcessingClass:
    def test_pair_in_either_order(self) -> None:
        tokenizer, image_processor = tiny.processing()
        for pair in ((tokenizer, image_processor), (image_processor, tokenizer), [image_processor, tokenizer]):
            captioner = captioner_for(tiny.captioner_model(), pair)
            assert isinstance(captioner, EncoderDecoderCaptioner)
            assert captioner.processor.tokenizer is tokenizer
            assert captioner.processor.image_processor is image_processor

    def test_one_processor_with_both(self) -> None:
        tokenizer, image_processor = tiny.processing()
        processor = TrOCRProcessor(image_processor=image_processor, tokenizer=tokenizer)
        captioner = captioner_for(tiny.captioner_model("trocr"), processor)
        assert captioner.processor.tokenizer is tokenizer
        assert captioner.processor.image_processor is image_processor

    def test_caption_processor_is_taken_as_it_is(self) -> None:
        processor = CaptionProcessor(*tiny.processing(), end_token_id=tiny.EOS, max_caption_tokens=7)
        assert captioner_for(tiny.captioner_model(), processor).processor is processor
        assert split_processing_class(processor) == (processor.tokenizer, processor.image_processor)

    @pytest.mark.parametrize("side", [0, 1])
    def test_one_side_is_missing(self, side: int) -> None:
        part = tiny.processing()[side]
        for given in (part, (part,), (part, part)):
            with pytest.raises(TypeError, match=r"one tokenizer and one image processor.*" + type(part).__name__):
                captioner_for(tiny.captioner_model(), given)

    def test_nothing_is_given(self) -> None:
        with pytest.raises(TypeError, match=r"\['NoneType'\].*AutoTokenizer and AutoImageProcessor"):
            captioner_for(tiny.captioner_model(), None)


class TestModels:
    @pytest.mark.parametrize(
        ("make", "processing", "served"),
        [
            (lambda: llava_model().model, llava_processing, "LlavaForConditionalGeneration"),
            (lambda: git_model().git, tiny.processing, "GitForCausalLM"),
            (lambda: BlipModel(blip_model().config), tiny.processing, "BlipForConditionalGeneration"),
            (lambda: BlipForQuestionAnswering(blip_model().config), tiny.processing, "BlipForConditionalGeneration"),
            (lambda: Blip2Model(blip2_model().config), blip2_processing, "Blip2ForConditionalGeneration"),
            (lambda: gemma3_model().model, gemma3_processing, "Gemma3ForConditionalGeneration"),
            (lambda: paligemma_model().model, paligemma_processing, "PaliGemmaForConditionalGeneration"),
            (
                lambda: idefics3_model().model,
                idefics3_processing,
                "Idefics3ForConditionalGeneration or SmolVLMForConditionalGeneration",
            ),
        ],
    )
    def test_another_model_of_the_family(self, make: Any, processing: Any, served: str) -> None:
        model = make()
        with pytest.raises(
            TypeError, match=rf"^{type(model).__name__} writes no captions; .* {served}\. Load it with "
        ):
            captioner_for(model, processing())

    def test_no_pretrained_model(self) -> None:
        with pytest.raises(TypeError, match=r"must be a transformers.PreTrainedModel .* but Linear was given"):
            captioner_for(nn.Linear(2, 2), tiny.processing())

    def test_adapter_around_no_pretrained_model(self) -> None:
        model = get_peft_model(nn.Sequential(nn.Linear(8, 8)), LoraConfig(target_modules=["0"]))
        with pytest.raises(TypeError, match="but Sequential was given"):
            captioner_for(model, tiny.processing())

    def test_no_end_token(self) -> None:
        pair = tiny.tokenizer(eos_token=None), tiny.image_processor()
        with pytest.raises(ValueError, match=r"neither eos_token nor sep_token.*set tokenizer.eos_token"):
            captioner_for(tiny.captioner_model(), pair)

    def test_separator_as_end_token(self) -> None:
        model = tiny.captioner_model("bert")
        for config in (model.config, model.generation_config, model.config.decoder):
            config.eos_token_id = None
        pair = tiny.tokenizer(eos_token=None, sep_token="<eos>"), tiny.image_processor()
        assert captioner_for(model, pair).processor.end_token_id == tiny.EOS

    def test_end_token_of_the_generation_config_comes_first(self) -> None:
        model = tiny.captioner_model()
        model.generation_config.eos_token_id = [9, 2]
        assert captioner_for(model, tiny.processing()).processor.end_token_id == 9

    def test_end_token_that_the_decoder_does_not_know(self) -> None:
        model = tiny.captioner_model()
        model.generation_config.eos_token_id = 50256  # what GPT2Config has unless told otherwise
        with pytest.raises(ValueError, match=r"end token of captions is 50256, but the gpt2 decoder knows 65 tokens"):
            captioner_for(model, tiny.processing())

    def test_tokenizer_of_another_model(self) -> None:
        with pytest.raises(ValueError, match=r"the tokenizer has 65 tokens, but the gpt2 decoder knows 40"):
            captioner_for(tiny.captioner_model(vocab_size=40), tiny.processing())

    @pytest.mark.parametrize("decoder", ["gpt2", "bert"])
    @pytest.mark.parametrize("given", ["pair", "processor"])
    def test_no_cross_attention(self, decoder: tiny.DecoderName, given: str) -> None:
        torch.manual_seed(0)
        decoder_class = {"gpt2": GPT2LMHeadModel, "bert": BertLMHeadModel}[decoder]
        model = VisionEncoderDecoderModel(
            encoder=ViTModel(tiny.encoder_config()), decoder=decoder_class(tiny.decoder_config(decoder))
        )
        assert model.decoder.config.add_cross_attention  # set by VisionEncoderDecoderModel after it was built
        processing: Any = tiny.processing()
        if given == "processor":
            processing = CaptionProcessor(*processing, end_token_id=tiny.EOS)
        with pytest.raises(ValueError, match=rf"the {decoder} decoder was built without cross-attention"):
            captioner_for(model, processing)

    def test_a_decoder_that_cannot_have_it(self) -> None:
        with pytest.raises(ValueError, match=r"OPTForCausalLM takes no encoder_hidden_states"):
            captioner_for(tiny.captioner_model("opt"), tiny.processing())

    def test_no_output_head(self) -> None:
        torch.manual_seed(0)
        config = tiny.decoder_config(add_cross_attention=True, is_decoder=True)
        model = VisionEncoderDecoderModel(encoder=ViTModel(tiny.encoder_config()), decoder=GPT2Model(config))
        with pytest.raises(ValueError, match=r"the GPT2Model has no output embedding.*for example GPT2LMHeadModel"):
            captioner_for(model, tiny.processing())

    @pytest.mark.parametrize("packing", ["pack", None, True])
    def test_packing_that_does_not_exist(self, packing: Any) -> None:
        with pytest.raises(ValueError, match=r"must be 'auto', 'packed' or 'repeated'"):
            captioner_for(tiny.captioner_model(), tiny.processing(), packing=packing)

    def test_no_room_for_logits(self) -> None:
        with pytest.raises(ValueError, match="max_logits_bytes must be at least 1, but is 0"):
            captioner_for(tiny.captioner_model(), tiny.processing(), max_logits_bytes=0)


class MyConfig(VisionEncoderDecoderConfig):
    model_type = "my-captioner"


class MyCaptioner(EncoderDecoderCaptioner):
    """Scores twice as high."""

    def gather(self, outputs: Any, captions: Any, rows: Any) -> Any:
        return 2 * super().gather(outputs, captions, rows)


class TestRegisterCaptioner:
    @pytest.fixture(autouse=True)
    def restore(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr(registry, "_CAPTIONERS", dict(registry._CAPTIONERS))
        yield

    def test_subclass_of_a_config_is_served_until_it_has_its_own(self) -> None:
        model = tiny.captioner_model()
        model.config = MyConfig(**model.config.to_dict())
        plain = captioner_for(model, tiny.processing())
        assert type(plain) is EncoderDecoderCaptioner
        register_captioner(MyConfig, MyCaptioner)
        mine = captioner_for(model, tiny.processing())
        assert type(mine) is MyCaptioner
        assert type(captioner_for(tiny.captioner_model(), tiny.processing())) is EncoderDecoderCaptioner
        mine.verified = True  # the plain twin would disagree by a factor of two
        batch = caption_batch([[7, 8, tiny.EOS]], [0])
        images = tiny.pixel_values(1)
        score = plain.log_probs(model, images, batch).item()
        assert mine.log_probs(model, images, batch).item() == pytest.approx(2 * score, rel=1e-6)

    def test_later_registration_replaces_the_earlier(self) -> None:
        register_captioner(VisionEncoderDecoderConfig, MyCaptioner)
        assert type(captioner_for(tiny.captioner_model(), tiny.processing())) is MyCaptioner

    def test_wrong_arguments(self) -> None:
        with pytest.raises(TypeError, match=r"config_class must be a subclass of transformers.PreTrainedConfig"):
            register_captioner(GPT2Config(), MyCaptioner)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"captioner_class must be a subclass of Captioner"):
            register_captioner(GPT2Config, nn.Linear)  # type: ignore[type-abstract, arg-type]
