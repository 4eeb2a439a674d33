"""Which captioner class serves which model."""

from __future__ import annotations

import logging
from typing import Any

import transformers
from torch import nn
from transformers import (
    BaseImageProcessor,
    Blip2Config,
    Blip2ForConditionalGeneration,
    BlipConfig,
    BlipForConditionalGeneration,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GitConfig,
    GitForCausalLM,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
)

from hf_contrastive_caption.captioners.base import Captioner, Packing, _is_peft
from hf_contrastive_caption.captioners.blip import BlipCaptioner
from hf_contrastive_caption.captioners.blip2 import Blip2Captioner
from hf_contrastive_caption.captioners.chat import Gemma3Captioner, LlavaCaptioner, PaliGemmaCaptioner
from hf_contrastive_caption.captioners.encoder_decoder import EncoderDecoderCaptioner
from hf_contrastive_caption.captioners.git import GitCaptioner
from hf_contrastive_caption.captioners.idefics3 import Idefics3Captioner
from hf_contrastive_caption.captioners.llava_next import LlavaNextCaptioner
from hf_contrastive_caption.captioners.qwen_vl import Qwen2VLCaptioner, Qwen3VLCaptioner
from hf_contrastive_caption.captioners.recurrent import RecurrentCaptioner
from hf_contrastive_caption.captioners.settings import reads_text_alone
from hf_contrastive_caption.captioners.vocabulary import DEFAULT_MAX_LOGITS_BYTES
from hf_contrastive_caption.models.recurrent import RecurrentCaptionerConfig, RecurrentCaptionerModel
from hf_contrastive_caption.processing import CaptionProcessor
from hf_contrastive_caption.prompting import PromptProcessor, saved_prompt

logger = logging.getLogger(__name__)

Processing = CaptionProcessor | ProcessorMixin | tuple[PreTrainedTokenizerBase, BaseImageProcessor]
"""How the text and image side of a model can be given: one object that has both, or a pair of them in any order."""

_CAPTIONERS: dict[type[PreTrainedConfig], type[Captioner]] = {
    VisionEncoderDecoderConfig: EncoderDecoderCaptioner,
    BlipConfig: BlipCaptioner,
    Blip2Config: Blip2Captioner,
    Gemma3Config: Gemma3Captioner,
    GitConfig: GitCaptioner,
    Idefics3Config: Idefics3Captioner,
    LlavaConfig: LlavaCaptioner,
    LlavaNextConfig: LlavaNextCaptioner,
    LlavaOnevisionConfig: LlavaNextCaptioner,
    PaliGemmaConfig: PaliGemmaCaptioner,
    Qwen2VLConfig: Qwen2VLCaptioner,
    Qwen2_5_VLConfig: Qwen2VLCaptioner,
    Qwen3VLConfig: Qwen3VLCaptioner,
    SmolVLMConfig: Idefics3Captioner,
    RecurrentCaptionerConfig: RecurrentCaptioner,
}

_MODELS: dict[type[Captioner], tuple[type[PreTrainedModel], ...]] = {
    EncoderDecoderCaptioner: (VisionEncoderDecoderModel,),
    BlipCaptioner: (BlipForConditionalGeneration,),
    Blip2Captioner: (Blip2ForConditionalGeneration,),
    Gemma3Captioner: (Gemma3ForConditionalGeneration,),
    GitCaptioner: (GitForCausalLM,),
    Idefics3Captioner: (Idefics3ForConditionalGeneration, SmolVLMForConditionalGeneration),
    LlavaCaptioner: (LlavaForConditionalGeneration,),
    LlavaNextCaptioner: (LlavaNextForConditionalGeneration, LlavaOnevisionForConditionalGeneration),
    PaliGemmaCaptioner: (PaliGemmaForConditionalGeneration,),
    Qwen2VLCaptioner: (Qwen2VLForConditionalGeneration, Qwen2_5_VLForConditionalGeneration),
    Qwen3VLCaptioner: (Qwen3VLForConditionalGeneration,),
    RecurrentCaptioner: (RecurrentCaptionerModel,),
}
"""The models that captioner classes serve: others have configs of the same class. A user's class checks its own."""


def register_captioner(config_class: type[PreTrainedConfig], captioner_class: type[Captioner]) -> None:
    """Say which captioner class serves the models of a config class, and those of its subclasses.

    Args:
        config_class: Class of ``model.config``.
        captioner_class: :class:`SimpleCaptioner`, or another subclass of :class:`Captioner`. A later registration of
            the same config class replaces the earlier one.
    """
    if not (isinstance(config_class, type) and issubclass(config_class, PreTrainedConfig)):
        raise TypeError(f"config_class must be a subclass of transformers.PreTrainedConfig, but is {config_class!r}")
    if not (isinstance(captioner_class, type) and issubclass(captioner_class, Captioner)):
        raise TypeError(f"captioner_class must be a subclass of Captioner, but is {captioner_class!r}")
    _CAPTIONERS[config_class] = captioner_class


def captioner_for(
    model: nn.Module,
    processing_class: Processing | Any,
    *,
    prompt: str | None = None,
    packing: Packing = "auto",
    max_logits_bytes: int = DEFAULT_MAX_LOGITS_BYTES,
) -> Captioner:
    """The captioner of a model, found by the class of its config.

    Args:
        model: A captioning model, a ``PreTrainedModel`` or a PEFT model around one.
        processing_class: A processor with a tokenizer and an image processor, or a pair of the two (in any order), or
            a :class:`CaptionProcessor`. A family that takes a prompt needs the whole processor.
        prompt: What the model is asked, ``"Describe the image."`` for one, for chat models. It stands before each
            caption in the way of the model's chat template and is not scored. The prompt that the processor was saved
            with if not given, and the image alone if there is none; ``""`` is the image alone in any case.
        packing: How captions are laid out, see :class:`Captioner`.
        max_logits_bytes: Largest size of the logits that are held at one time.

    Raises:
        TypeError: If no captioner is registered for the model, or the processing class lacks one of its two sides.
        ValueError: If the model cannot caption (no cross-attention, no end token, no generation config), or its family
            takes no prompt.
    """
    base = model.get_base_model() if _is_peft(model) else model  # type: ignore[operator]
    if not isinstance(base, PreTrainedModel):
        raise TypeError(
            "a captioner must be a transformers.PreTrainedModel or a PEFT model around one, but "
            f"{type(base).__name__} was given; wrap your module in a PreTrainedModel with a config and register it "
            "with register_captioner"
        )
    captioner_class = _captioner_class(base)
    if base.can_generate() and base.generation_config is None:
        raise ValueError(
            f"the generation_config of {type(base).__name__} is None, without which it neither generates captions nor "
            "is saved by save_pretrained; set model.generation_config = "
            "transformers.GenerationConfig.from_model_config(model.config)"
        )
    processor = _processor(captioner_class, base, processing_class, prompt)
    return captioner_class(model, processor, packing=packing, max_logits_bytes=max_logits_bytes)


def split_processing_class(processing_class: Any) -> tuple[PreTrainedTokenizerBase, BaseImageProcessor]:
    """The tokenizer and the image processor in a processing class.

    Raises:
        TypeError: If one of them is missing.
    """
    if isinstance(processing_class, CaptionProcessor):
        return processing_class.tokenizer, processing_class.image_processor
    if isinstance(processing_class, ProcessorMixin):
        parts = [getattr(processing_class, name) for name in processing_class.get_attributes()]
    elif isinstance(processing_class, (tuple, list)):
        parts = list(processing_class)
    else:
        parts = [processing_class]
    tokenizers = [part for part in parts if isinstance(part, PreTrainedTokenizerBase)]
    image_processors = [part for part in parts if isinstance(part, BaseImageProcessor)]
    if len(tokenizers) != 1 or len(image_processors) != 1:
        raise TypeError(
            "a captioner needs one tokenizer and one image processor; given as processing_class: "
            f"{[type(part).__name__ for part in parts]}. Pass processing_class=(tokenizer, image_processor), as "
            "loaded by AutoTokenizer and AutoImageProcessor, or one processor that has both"
        )
    return tokenizers[0], image_processors[0]


def takes_prompt(model: nn.Module) -> bool:
    """Whether the family of a model asks for captions with a prompt."""
    base = model.get_base_model() if _is_peft(model) else model  # type: ignore[operator]
    return isinstance(base, PreTrainedModel) and has_captioner(base.config) and _captioner_class(base).takes_prompt


def prompt_or(prompt: str | None, model: nn.Module, processing_class: Any, otherwise: str | None) -> str | None:
    """The ``prompt`` for :func:`captioner_for` of a model that stands beside another one.

    Args:
        prompt: What is given for this model, which comes first.
        model: The model.
        processing_class: Its processor, whose saved prompt comes second.
        otherwise: What the other model is asked, if this one takes a prompt.
    """
    if prompt is not None or not takes_prompt(model) or isinstance(processing_class, CaptionProcessor):
        return prompt
    known = isinstance(processing_class, ProcessorMixin) and saved_prompt(processing_class) is not None
    return None if known else otherwise


def has_captioner(config: PreTrainedConfig) -> bool:
    """Whether models of a config are captioners that are known."""
    return any(config_class in _CAPTIONERS for config_class in type(config).__mro__)


def holds_captioner(config: PreTrainedConfig) -> bool:
    """Whether the weights beside a config are a captioner's, too."""
    return has_captioner(config) and not _other_than_saved(config)


def check_architecture(config: PreTrainedConfig, name: str) -> None:
    """Refuse weights of a model that has a captioner's config and is none: what it lacks would be random numbers.

    Raises:
        TypeError: If they were saved from another class of transformers.
    """
    served = _other_than_saved(config)
    if served:
        raise TypeError(
            f"{name} holds a {' and a '.join(config.architectures or ())}; of models with a {type(config).__name__} "
            f"captions are written by {' and '.join(one.__name__ for one in served)}, and weights that are not there "
            "would be random numbers"
        )


def _other_than_saved(config: PreTrainedConfig) -> tuple[type[PreTrainedModel], ...]:
    """The classes of captioners with a config, if it was saved with the weights of another one; else none."""
    found = (_CAPTIONERS.get(config_class) for config_class in type(config).__mro__)
    served = _MODELS.get(next(filter(None, found), Captioner), ())
    saved = [getattr(transformers, one, None) for one in config.architectures or ()]
    if not saved or any(one is None or issubclass(one, served) for one in saved):
        return ()
    return served


def unknown_captioner(config: PreTrainedConfig, name: str) -> str:
    """What is said of a model of no known family, by the name of its class or where it lies."""
    known = ", ".join(sorted(config_class.__name__ for config_class in _CAPTIONERS))
    if reads_text_alone(config):
        return (
            f"{name} reads text alone, and captions are of images; give an image captioner (known are those with "
            f"{known}), or make a language model with cross-attention (GPT-2, BERT) the decoder of one with "
            "VisionEncoderDecoderModel.from_encoder_decoder_pretrained, and train it"
        )
    return (
        f"no captioner is known for {name} with a {type(config).__name__}; known are {known}. For a model of your own "
        "call register_captioner(config_class, SimpleCaptioner), or register a class that says more"
    )


def _processor(
    captioner_class: type[Captioner], model: PreTrainedModel, processing_class: Any, prompt: str | None
) -> CaptionProcessor:
    if prompt is not None and not captioner_class.takes_prompt:
        raise ValueError(
            f"prompt={prompt!r} was given, but {type(model).__name__} writes captions without being asked; leave "
            "prompt out"
        )
    other = prompt is not None and isinstance(processing_class, PromptProcessor)
    if other and (prompt or None) != processing_class.prompt:
        raise ValueError(
            f"prompt={prompt!r} was given beside a processor that was made for prompt={processing_class.prompt!r}; "
            "give one of them"
        )
    if isinstance(processing_class, CaptionProcessor):
        if captioner_class.takes_prompt and not isinstance(processing_class, PromptProcessor):
            raise TypeError(
                f"{type(model).__name__} reads a prompt beside the image, which a CaptionProcessor does not have; "
                "pass the model's processor, as loaded by AutoProcessor, and prompt="
            )
        return processing_class
    if not captioner_class.takes_prompt:
        return captioner_class.make_processor(model, *split_processing_class(processing_class))
    if not isinstance(processing_class, ProcessorMixin):
        parts = processing_class if isinstance(processing_class, (tuple, list)) else [processing_class]
        raise TypeError(
            f"{type(model).__name__} needs its whole processor, which knows how image and prompt are written; given "
            f"as processing_class: {[type(part).__name__ for part in parts]}. Pass AutoProcessor.from_pretrained(...)"
        )
    split_processing_class(processing_class)
    if prompt is None:
        prompt = saved_prompt(processing_class)
        if prompt is not None:
            logger.info("%s is asked %r, the prompt that was saved with its processor", type(model).__name__, prompt)
    return captioner_class.make_prompt_processor(model, processing_class, prompt or None)


def _captioner_class(model: PreTrainedModel) -> type[Captioner]:
    for config_class in type(model.config).__mro__:
        if config_class in _CAPTIONERS:
            captioner_class = _CAPTIONERS[config_class]
            served = _MODELS.get(captioner_class, (PreTrainedModel,))
            if not isinstance(model, served):
                raise TypeError(
                    f"{type(model).__name__} writes no captions; models with a {config_class.__name__} that do are of "
                    f"{' or '.join(one.__name__ for one in served)}. Load it with AutoModelForImageTextToText"
                )
            return captioner_class.for_model(model)
    raise TypeError(unknown_captioner(model.config, type(model).__name__))
