"""Prompts: how they are written and read, and what is said where they cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import processors
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    Gemma2Config,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    SiglipVisionConfig,
)

from hf_contrastive_caption import prompting
from hf_contrastive_caption.captioners import Captioner, caption_batch, captioner_for
from hf_contrastive_caption.captioners.pairs import PairScorer
from hf_contrastive_caption.generation import caption_images
from hf_contrastive_caption.processing import CaptionProcessor
from hf_contrastive_caption.prompting import PromptProcessor
from tests import tiny
from tests.families import Family
from tests.families.blip import blip_model
from tests.families.blip2 import BLIP2, BLIP2_T5, blip2_model, blip2_processing
from tests.families.chat import (
    CHAT_TEMPLATE,
    CHAT_TOKENS,
    GEMMA3,
    IMAGE,
    LLAVA,
    PALIGEMMA,
    PROMPT,
    gemma3_model,
    gemma3_processing,
    llava_model,
    llava_processing,
    paligemma_processing,
)
from tests.families.common import LAYERS, VISION
from tests.families.git import git_model
from tests.families.idefics3 import IDEFICS3


def llava(prompt: str | None = PROMPT, template: str | None = CHAT_TEMPLATE, **options: Any) -> Captioner:
    processing = llava_processing()
    processing.chat_template = template
    return captioner_for(llava_model(), processing, prompt=prompt, **options)


def padded(inputs: dict[str, Tensor], by: int) -> dict[str, Tensor]:
    """The prompts of all images with so much padding on the left."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    return {
        **inputs,
        "input_ids": torch.cat([torch.full_like(ids[:, :by], tiny.PAD), ids], dim=1),
        "attention_mask": torch.cat([torch.zeros_like(mask[:, :by]), mask], dim=1),
    }


class TestReading:
    def test_question_lead_and_end_come_from_the_template(self) -> None:
        processor = llava().processor
        assert isinstance(processor, PromptProcessor)
        assert processor.question == "USER : <image> Describe the picture . ASSISTANT :"
        assert processor.lead == " "
        assert processor.end_token_id == tiny.EOS
        assert processor.max_caption_tokens == 96 - 24
        ids = processor.process_images(tiny.images(1))["input_ids"][0]
        assert (ids == IMAGE).sum() == 16
        assert processor.tokenizer.decode(ids[-2:]) == "ASSISTANT :"

    def test_without_a_prompt_the_image_is_asked_alone(self) -> None:
        processor = llava(None).processor
        assert isinstance(processor, PromptProcessor)
        assert processor.question == "USER : <image> ASSISTANT :"

    def test_the_end_is_the_stop_that_the_template_writes(self) -> None:
        model = llava_model()
        model.generation_config.eos_token_id = [7, tiny.EOS]  # the template ends an answer with the second
        assert captioner_for(model, llava_processing()).processor.end_token_id == tiny.EOS
        model.generation_config.eos_token_id = [7, 9]
        assert captioner_for(model, llava_processing()).processor.end_token_id == 7

    def test_captions_are_what_follows_the_question_when_both_are_tokenized(self) -> None:
        processor = llava().processor
        plain = tiny.tokenizer()
        for text in ("a dog runs", "", "ASSISTANT : a"):
            expected = [*processor.tokenizer(text)["input_ids"], tiny.EOS]
            assert processor.tokenize([text]).input_ids == [expected]
        assert processor.tokenize(["a dog runs"]).input_ids == [[*plain("a dog runs")["input_ids"], tiny.EOS]]

    @pytest.mark.parametrize("beginning", ["ASSISTANT : :", "ASSISTANT"])
    def test_the_end_is_that_of_the_template_where_an_answer_begins_in_two_ways(self, beginning: str) -> None:
        processing, model = llava_processing(), llava_model()
        begun = f"add_generation_prompt %}}{beginning}{{% endif"
        processing.chat_template = CHAT_TEMPLATE.replace("add_generation_prompt %}ASSISTANT :{% endif", begun)
        model.generation_config.eos_token_id = [7, tiny.EOS]
        processor = captioner_for(model, processing, prompt=PROMPT).processor
        assert isinstance(processor, PromptProcessor)
        assert processor.question.endswith(f". {beginning}")
        assert processor.lead == (" : " if beginning == "ASSISTANT" else "")
        assert processor.end_token_id == tiny.EOS

    @pytest.mark.parametrize("family", [LLAVA, GEMMA3, PALIGEMMA, BLIP2, BLIP2_T5, IDEFICS3], ids=str)
    def test_captions_are_read_without_image_tokens(self, family: Family, caplog: pytest.LogCaptureFixture) -> None:
        captioner = captioner_for(family.model(0.0), family.processing(), **dict(family.options))
        token = captioner.processor.tokenizer.convert_ids_to_tokens(captioner.base_model.config.image_token_id)
        prompting._warned_of.clear()
        texts = [f"a {token} dog", "a dog", f"{token}a dog{token}{token}", token, ""]
        for _ in range(2):
            ids = captioner.processor.tokenize(texts).input_ids
        assert ids == [ids[1]] * 3 + [[tiny.EOS]] * 2
        assert len(ids[1]) == 3
        assert caplog.text.count(f"without {token}, ") == 1
        assert f"the first one that has it is 'a {token} dog'" in caplog.text
        inputs = captioner.processor.process_images(tiny.images(1))
        with torch.no_grad():
            scores = captioner.log_probs(captioner.model, inputs, caption_batch(ids, [0] * len(ids)))
        torch.testing.assert_close(scores[[0, 2]], scores[[1, 1]], rtol=0, atol=1e-4)

    @pytest.mark.parametrize("packing", ["packed", "repeated"])
    def test_padding_of_the_tokenizer_where_the_config_has_a_negative_one(self, packing: Any) -> None:
        scores = []
        for number in (tiny.PAD, -1):
            model = llava_model()
            model.config.text_config.pad_token_id = number
            captioner = captioner_for(model, llava_processing(), prompt=PROMPT, packing=packing)
            inputs = captioner.processor.process_images(tiny.images(2))
            with torch.no_grad():
                scores.append(captioner.log_probs(model, inputs, tiny.captions([0, 1, 1])))
            assert captioner.pad_token_id == tiny.PAD  # type: ignore[attr-defined]
        torch.testing.assert_close(scores[1], scores[0], rtol=0, atol=0)

    def test_fingerprints_depend_on_the_prompt(self) -> None:
        first, again, other = (llava(prompt).processor for prompt in (PROMPT, PROMPT, "a ."))
        assert first.image_fingerprint() == again.image_fingerprint() != other.image_fingerprint()
        assert first.text_fingerprint() == again.text_fingerprint() != other.text_fingerprint()

    def test_scores_depend_on_the_prompt(self) -> None:
        scores = []
        for prompt in (PROMPT, "a ."):
            captioner = llava(prompt)
            inputs = captioner.processor.process_images(tiny.images(1))
            with torch.no_grad():
                scores.append(captioner.log_probs(captioner.model, inputs, tiny.captions([0])).item())
        assert abs(scores[0] - scores[1]) > 0.1

    @pytest.mark.parametrize("packing", ["packed", "repeated"])
    def test_padding_before_a_prompt_changes_nothing(self, packing: Any) -> None:
        captioner = llava(packing=packing)
        inputs, captions = captioner.processor.process_images(tiny.images(3)), tiny.captions([0, 2, 1, 0])
        sentences = [[7, 8, tiny.EOS], [7, 9, tiny.EOS], [10, tiny.EOS]]
        with torch.no_grad():
            expected = captioner.log_probs(captioner.model, inputs, captions)
            scores = captioner.log_probs(captioner.model, padded(inputs, 3), captions)
            plain = captioner.reference_log_probs(padded(inputs, 3), captions)
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4)
        assert plain.sum().item() == pytest.approx(expected.sum().item(), abs=1e-3)
        pairs = PairScorer(captioner, sentences)
        torch.testing.assert_close(pairs.scores(padded(inputs, 3)), pairs.scores(inputs), rtol=0, atol=1e-4)


class TestRefusals:
    def test_a_pair_in_place_of_the_processor(self) -> None:
        with pytest.raises(TypeError, match=r"Llava\w+ needs its whole processor.*AutoProcessor.from_pretrained"):
            captioner_for(llava_model(), tiny.processing())

    def test_a_processor_without_prompt(self) -> None:
        processor = CaptionProcessor(*tiny.processing(), end_token_id=tiny.EOS)
        with pytest.raises(
            TypeError, match=r"reads a prompt beside the image, which a CaptionProcessor does not have"
        ):
            captioner_for(llava_model(), processor)

    def test_another_prompt_than_that_of_the_processor(self) -> None:
        captioner = llava()
        assert captioner_for(captioner.model, captioner.processor).processor is captioner.processor
        with pytest.raises(
            ValueError, match=r"prompt='a' was given beside a processor that was made for prompt='Desc"
        ):
            captioner_for(captioner.model, captioner.processor, prompt="a")

    def test_no_chat_template(self) -> None:
        with pytest.raises(ValueError, match=r"the LlavaProcessor has no chat template.*set processor.chat_template"):
            llava(template=None)

    def test_a_prompt_that_ends_with_the_image(self) -> None:
        with pytest.raises(ValueError, match="the prompt ends with the image"):
            llava(None, template="<image>")

    def test_a_prompt_that_ends_with_a_stop(self) -> None:
        processing = llava_processing()
        closing = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", tiny.EOS)])
        processing.tokenizer.backend_tokenizer.post_processor = closing
        with pytest.raises(
            ValueError, match=r"the prompt ends with <eos>, at which Llava\w+ stops.*add_eos_token=False"
        ):
            captioner_for(llava_model(), processing, prompt=PROMPT)

    @pytest.mark.parametrize("family", [LLAVA, GEMMA3, PALIGEMMA, BLIP2, BLIP2_T5, IDEFICS3], ids=str)
    def test_a_prompt_with_a_place_for_the_image(self, family: Family) -> None:
        mark = "<boi>" if family is GEMMA3 else "<image>"
        with pytest.raises(
            ValueError, match=rf"Got prompt='{mark} a dog', but a prompt is text alone.*leave {mark} out"
        ):
            captioner_for(family.model(0.0), family.processing(), prompt=f"{mark} a dog")

    @pytest.mark.parametrize(("place", "count"), [("", 0), ("<image> <image> ", 2)])
    def test_a_template_without_one_place_for_the_image(self, place: str, count: int) -> None:
        with pytest.raises(
            ValueError, match=rf"template of the LlavaProcessor writes {count} <image> for a message wi"
        ):
            llava(template=CHAT_TEMPLATE.replace("<image> ", place))

    @pytest.mark.parametrize(
        ("template", "cause"),
        [
            ("{% for m in messages %}{{ m['role'] + ' : ' + m['content'] }}{% endfor %}", "TypeError: can only conc"),
            ("{{ raise_exception('no images') }}", "TemplateError: no images"),
        ],
    )
    def test_a_template_of_text_alone(self, template: str, cause: str) -> None:
        with pytest.raises(
            ValueError, match=rf"of the LlavaProcessor cannot write a message.*\({cause}.*chat_template"
        ):
            llava(template=template)

    @pytest.mark.parametrize("name", ["max_length", "min_length"])
    @pytest.mark.parametrize("family", [LLAVA, GEMMA3, PALIGEMMA, BLIP2, IDEFICS3], ids=str)
    def test_a_length_that_counts_the_prompt(self, family: Family, name: str) -> None:
        with pytest.raises(ValueError, match=rf"Got {name}=30, in which .* give {name[:3]}_new_tokens"):
            caption_images(family.model(0.0), family.processing(), tiny.images(1), prompt=PROMPT, **{name: 30})

    def test_a_prompt_that_leaves_no_position(self) -> None:
        with pytest.raises(ValueError, match=r"image and prompt have 24 tokens, and the decoder has 20 positions"):
            captioner_for(llava_model(max_position_embeddings=20), llava_processing(), prompt=PROMPT)

    def test_no_padding_token(self) -> None:
        processing = llava_processing()
        processing.tokenizer.pad_token = None
        with pytest.raises(ValueError, match=r"has no pad_token.*set tokenizer.pad_token"):
            captioner_for(llava_model(), processing)

    def test_a_processor_that_cuts_images(self) -> None:
        processing = gemma3_processing()
        cuts = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 8}
        if not hasattr(processing, "images_kwargs"):
            pytest.skip("this release of transformers keeps no such settings in its processors")
        processing.images_kwargs = {**processing.images_kwargs, **cuts}
        captioner = captioner_for(gemma3_model(), gemma3_processing(), prompt=PROMPT)
        cutting = captioner_for(captioner.model, processing, prompt=PROMPT).processor
        with pytest.raises(ValueError, match=r"Gemma3Processor made \d pixel_values of 1 images.*do_pan_and_scan"):
            cutting.process_images([Image.new("RGB", (100, 20))])


class TestOtherFamilies:
    def test_git_of_videos(self) -> None:
        with pytest.raises(ValueError, match="reads 6 frames of a video"):
            captioner_for(git_model(num_image_with_embedding=6), tiny.processing())

    def test_blip_without_start_or_end(self) -> None:
        for name in ("bos_token_id", "sep_token_id"):
            with pytest.raises(ValueError, match=f"{name} of the model's text_config is None"):
                captioner_for(blip_model(**{name: None}), tiny.processing())

    def test_blip_stops_at_its_separator_only(self) -> None:
        captioner = captioner_for(blip_model(), tiny.processing())
        inputs = captioner.processor.process_images(tiny.images(1))
        with pytest.raises(ValueError, match="eos_token_id is 9, but BLIP's generate"):
            captioner.generate(inputs, eos_token_id=9)

    def test_blip2_writes_a_space_between_a_prompt_and_a_caption_only(self) -> None:
        processor = captioner_for(blip2_model(), blip2_processing(), prompt=PROMPT).processor
        assert isinstance(processor, PromptProcessor)
        assert processor.question == PROMPT
        assert processor.lead == " "
        spaced = captioner_for(blip2_model(), blip2_processing(), prompt=f"{PROMPT} ").processor
        assert isinstance(spaced, PromptProcessor)
        assert (spaced.prompt, spaced.question, spaced.lead) == (f"{PROMPT} ", PROMPT, " ")
        processing = blip2_processing()
        beginning = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", tiny.BOS)])
        processing.tokenizer.backend_tokenizer.post_processor = beginning
        alone = captioner_for(blip2_model(), processing).processor
        assert isinstance(alone, PromptProcessor)
        assert (alone.question, alone.lead) == ("", "")
        ids = processor.process_images(tiny.images(1))["input_ids"][0].tolist()
        image = processor.tokenizer.convert_tokens_to_ids("<image>")
        assert ids == [image] * 4 + processor.tokenizer(PROMPT)["input_ids"]


class TestWindows:
    def test_llava_with_a_window_shorter_than_the_prompt_is_packed(self) -> None:
        sizes = {**LAYERS, **CHAT_TOKENS, "num_key_value_heads": 1, "sliding_window": 12}
        torch.manual_seed(0)
        config = LlavaConfig(
            vision_config=CLIPVisionConfig(**VISION),
            text_config=MistralConfig(**sizes, max_position_embeddings=96),
            image_token_id=IMAGE,
        )
        model = LlavaForConditionalGeneration(config)
        model.generation_config.eos_token_id = tiny.EOS
        captioner = captioner_for(model, llava_processing(), prompt=PROMPT)
        captioner.verify()
        assert (captioner.layout, captioner.tries) == ("packed", True)

    def test_paligemma_with_a_window_has_a_row_per_caption(self, caplog: pytest.LogCaptureFixture) -> None:
        size = len(paligemma_processing().tokenizer)
        sizes = {**LAYERS, **CHAT_TOKENS, "vocab_size": size, "num_key_value_heads": 1}
        torch.manual_seed(0)
        config = PaliGemmaConfig(
            vision_config=SiglipVisionConfig(**VISION, vision_use_head=False),
            text_config=Gemma2Config(**sizes, head_dim=16, sliding_window=12, max_position_embeddings=96),
            projection_dim=32,
            image_token_index=IMAGE,
        )
        model = PaliGemmaForConditionalGeneration(config)
        model.generation_config.eos_token_id = tiny.EOS
        captioner = captioner_for(model, paligemma_processing(), prompt=PROMPT)
        captioner.verify()
        assert (captioner.layout, captioner.tries) == ("repeated", False)
        assert caplog.text.count("captions are scored with the repeated layout") == 1
