"""Models and processors that cannot caption: what is said for every family, before anything is trained."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_contrastive_caption.captioners import captioner_for
from hf_contrastive_caption.captioners.registry import takes_prompt
from hf_contrastive_caption.evaluation.evaluator import as_captioner
from hf_contrastive_caption.generation import caption_images
from hf_contrastive_caption.loading import load_model
from tests import tiny
from tests.captioners.test_families import captioner_of
from tests.families import FAMILIES, Family
from tests.families.blip2 import BLIP2, BLIP2_T5
from tests.families.chat import GEMMA3, LLAVA, PALIGEMMA, PROMPT, llava_processing
from tests.families.common import LAYERS, TOKENS
from tests.families.idefics3 import IDEFICS3, SMOLVLM
from tests.families.llava_next import LLAVA_NEXT, LLAVA_ONEVISION
from tests.training import trainer

every_family = pytest.mark.parametrize("family", FAMILIES, ids=str)


def configs(model: PreTrainedModel) -> list[Any]:
    """The config of a model and those of its parts."""
    parts = [getattr(model.config, name) for name in model.config.sub_configs]
    return [model.config, *parts]


def t5() -> PreTrainedModel:
    return T5ForConditionalGeneration(T5Config(vocab_size=70, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))


TEXT_ALONE: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": lambda: tiny.captioner_model().decoder,
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**LAYERS, **TOKENS)),
    "t5": t5,
}


@pytest.mark.parametrize("name", TEXT_ALONE)
class TestTextAlone:
    def test_an_object(self, name: str) -> None:
        model = TEXT_ALONE[name]()
        with pytest.raises(TypeError, match=rf"{type(model).__name__} reads text alone.*Blip2Config.*the decoder of"):
            captioner_for(model, llava_processing(), prompt=PROMPT)
        with pytest.raises(TypeError, match="reads text alone"):
            caption_images(model, tiny.processing(), tiny.images(1))

    def test_a_name(self, name: str, tmp_path: Path) -> None:
        TEXT_ALONE[name]().save_pretrained(tmp_path)
        with pytest.raises(
            ValueError, match=rf"{tmp_path} is no model that AutoModelForImageTextToText loads.*object"
        ):
            load_model(str(tmp_path))
        with pytest.raises(TypeError, match=rf"{tmp_path} reads text alone"):
            as_captioner(tmp_path)


def test_an_error_of_loading_is_not_taken_for_another_model(tmp_path: Path) -> None:
    tiny.captioner_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="attn_implementation"):
        load_model(str(tmp_path), attn_implementation="no such attention")


def test_no_known_family() -> None:
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = CLIPModel(CLIPConfig(text_config=small, vision_config={**small, "image_size": 8, "patch_size": 4}))
    with pytest.raises(
        TypeError, match=r"no captioner is known for CLIPModel.*LlavaConfig.*call register_captioner\("
    ):
        captioner_for(model, tiny.processing())


@every_family
class TestGenerationConfig:
    def test_none(self, family: Family, tmp_path: Path) -> None:
        model = family.model(0.0)
        model.generation_config = None
        with pytest.raises(ValueError, match=r"generation_config of \w+ is None.*set model.generation_config = "):
            captioner_of(family, model)
        with pytest.raises(ValueError, match=r"generation_config of \w+ is None"):
            caption_images(model, family.processing(), tiny.images(1), **dict(family.options))
        with pytest.raises(ValueError, match=r"generation_config of \w+ is None"):
            trainer(
                tmp_path, model, tiny.caption_dataset(4, 1), dict(family.options), processing_class=family.processing()
            )

    def test_without_end_and_padding_captions_are_the_same(self, family: Family) -> None:
        captions = []
        for left_out in (False, True):
            model = family.model(0.0)
            if left_out:
                model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
            options = {**dict(family.options), "num_beams": 1, "max_new_tokens": 6}
            captions.append(caption_images(model, family.processing(), tiny.images(4), **options))
        assert captions[0] == captions[1]

    def test_no_end_anywhere(self, family: Family) -> None:
        model, processing = family.model(0.0), copy.deepcopy(family.processing())
        model.generation_config.eos_token_id = None
        for config in configs(model):
            config.eos_token_id = None
        (processing[0] if isinstance(processing, tuple) else processing.tokenizer).eos_token = None
        way_out = r"set (tokenizer.eos_token|model.generation_config.eos_token_id|model.config.text_config.eos)"
        with pytest.raises(ValueError, match=way_out):
            captioner_for(model, processing, **dict(family.options))


@pytest.mark.parametrize("family", [family for family in FAMILIES if not dict(family.options).get("prompt")], ids=str)
def test_a_prompt_for_a_family_that_takes_none(family: Family) -> None:
    model = family.model(0.0)
    assert not takes_prompt(model)
    with pytest.raises(ValueError, match=r"prompt='a dog' was given, but \w+ writes captions without being asked"):
        captioner_for(model, family.processing(), prompt="a dog")
    with pytest.raises(ValueError, match=r"prompt='a dog' was given, but \w+ writes captions without being asked"):
        caption_images(model, family.processing(), tiny.images(1), prompt="a dog")


def _set(name: str, value: Any) -> Callable[[Any], Any]:
    def change(processing: Any) -> Any:
        changed = copy.deepcopy(processing)
        setattr(changed, name, value)
        return changed

    return change


MISCOUNTED = [
    (LLAVA, _set("patch_size", 16), 4, 16),
    (LLAVA, _set("patch_size", 4), 64, 16),
    (GEMMA3, _set("full_image_sequence", "<soft>" * 5), 5, 4),
    (PALIGEMMA, _set("image_seq_length", 9), 9, 16),
    (BLIP2, _set("num_query_tokens", 3), 3, 4),
    (BLIP2, _set("num_query_tokens", 6), 6, 4),
    (BLIP2_T5, _set("num_query_tokens", 3), 3, 4),
    (BLIP2_T5, _set("num_query_tokens", 6), 6, 4),
    (IDEFICS3, _set("image_seq_len", 5), 5, 4),
    (SMOLVLM, _set("image_seq_len", 3), 3, 4),
]


@pytest.mark.parametrize(
    ("family", "change", "tokens", "states"),
    MISCOUNTED,
    ids=[f"{family}-{tokens}" for family, _, tokens, _ in MISCOUNTED],
)
def test_more_or_fewer_image_tokens_than_states(
    family: Family, change: Callable[[Any], Any], tokens: int, states: int
) -> None:
    captioner = captioner_of(family)
    other = dataclasses.replace(captioner.processor, processor=change(family.processing()))
    captioner = captioner_for(captioner.model, other)
    expected = rf"writes {tokens} image tokens for an image of which the model makes {states} states.*patch_size"
    with torch.no_grad(), pytest.raises(ValueError, match=expected):
        captioner.log_probs(captioner.model, captioner.processor.process_images(tiny.images(1)), tiny.captions([0]))
    assert not captioner.verified


OTHER_SETTINGS = [
    (LLAVA, "patch_size", None, 8),
    (LLAVA, "patch_size", 4, 8),
    (LLAVA, "vision_feature_select_strategy", None, "default"),
    (LLAVA_NEXT, "patch_size", None, 16),
    (LLAVA_NEXT, "vision_feature_select_strategy", None, "default"),
    (BLIP2, "num_query_tokens", None, 4),
    (BLIP2, "num_query_tokens", 6, 4),
    (BLIP2_T5, "num_query_tokens", None, 4),
]


@pytest.mark.parametrize(("family", "name", "given", "wanted"), OTHER_SETTINGS)
def test_settings_of_a_processor_that_are_not_the_models(family: Family, name: str, given: Any, wanted: Any) -> None:
    model, processing = family.model(0.0), _set(name, given)(family.processing())
    with pytest.raises(ValueError, match=rf"; set processor.{name} = {wanted!r}$"):
        captioner_for(model, processing, **dict(family.options))
    with pytest.raises(ValueError, match=rf"; set processor.{name} = {wanted!r}$"):
        caption_images(model, processing, tiny.images(1), **dict(family.options))
    setattr(processing, name, wanted)
    captioner_for(model, processing, **dict(family.options)).verify()


def test_onevision_has_no_patch_size() -> None:
    processing = _set("vision_feature_select_strategy", None)(LLAVA_ONEVISION.processing())
    with pytest.raises(ValueError, match="set processor.vision_feature_select_strategy = 'full'"):
        captioner_for(LLAVA_ONEVISION.model(0.0), processing, prompt=PROMPT)


@pytest.mark.parametrize("family", [BLIP2, BLIP2_T5], ids=str)
def test_a_blip2_that_does_not_know_its_image_token(family: Family) -> None:
    model, processing = family.model(0.0), family.processing()
    number, model.config.image_token_id = model.config.image_token_id, None
    with pytest.raises(ValueError, match=rf"of Blip2\w+ is None; set model.config.image_token_index = {number} "):
        captioner_for(model, processing, prompt=PROMPT)


@pytest.mark.parametrize(("family", "blind"), [(GEMMA3, "projection"), (BLIP2, "queries"), (GEMMA3, None)], ids=str)
def test_a_model_that_does_not_see_images_is_named(
    family: Family, blind: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    captioner = captioner_of(family)
    if blind == "projection":
        torch.nn.init.zeros_(captioner.base_model.model.multi_modal_projector.mm_input_projection_weight)
    elif blind == "queries":
        torch.nn.init.zeros_(captioner.base_model.language_projection.weight)
    captioner.verify()
    named = caplog.text.count("the same score for two different images: it does not see them")
    assert named == (blind is not None)
