"""A tiny captioner of every family, made from configs, seeded and offline, with its naive twins.

The naive twins are the few lines that a user of the model alone would write, nothing of the package in them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipTextConfig,
    BlipVisionConfig,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Gemma3TextConfig,
    GemmaConfig,
    GitConfig,
    GitForCausalLM,
    GitVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    OPTConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from tests import tiny

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        name: What tests call it.
        model: Makes the captioner from a dropout rate.
        processing: Makes its processing class.
        logits: The model's logits that predict the tokens of one caption, (n_tokens, vocabulary), from the inputs of
            one image and the caption's tokens, (n_tokens,).
        loss: The model's own loss of one caption.
        layout: How captions are laid out with ``packing="auto"``.
        tries: Whether tries are exact.
        options: Of ``captioner_for``.
        tokenizer: Makes its tokenizer.
        vision: Whether it has a vision encoder that can be frozen by itself.
        adapt: Names of the modules that get adapters.
    """

    name: str
    model: Callable[[float], PreTrainedModel]
    processing: Callable[[], Any]
    logits: Callable[[Any, Inputs, Tensor], Tensor]
    loss: Callable[[Any, Inputs, Tensor], Tensor]
    layout: str = "packed"
    tries: bool = True
    options: tuple[tuple[str, Any], ...] = ()
    tokenizer: Callable[[], Any] = tiny.tokenizer
    vision: bool = True
    adapt: str = r".*(query|value|q_proj|v_proj|c_attn)"

    def __str__(self) -> str:
        return self.name


LAYERS: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.3,
}
TOKENS = {
    "vocab_size": tiny.VOCABULARY_SIZE,
    "bos_token_id": tiny.BOS,
    "eos_token_id": tiny.EOS,
    "pad_token_id": tiny.PAD,
}
VISION: dict[str, Any] = {**LAYERS, "image_size": 32, "patch_size": 8}


def with_start(ids: Tensor) -> Tensor:
    """A caption behind the start token, (1, 1 + n_tokens)."""
    return torch.cat([torch.tensor([tiny.BOS]), ids])[None]


# Encoder-decoder --------------------------------------------------------------------------------------------------


def _encoder_decoder(name: tiny.DecoderName, layout: str) -> Family:
    def logits(model: Any, inputs: Inputs, ids: Tensor) -> Tensor:
        return model(**inputs, decoder_input_ids=with_start(ids)[:, :-1], use_cache=False).logits[0]

    def loss(model: Any, inputs: Inputs, ids: Tensor) -> Tensor:
        return model(**inputs, labels=ids[None]).loss

    return Family(
        name=f"vit-{name}",
        model=lambda dropout: tiny.captioner_model(name, dropout=dropout),
        processing=tiny.processing,
        logits=logits,
        loss=loss,
        layout=layout,
        tries=layout == "packed",
    )


# BLIP -------------------------------------------------------------------------------------------------------------


def blip_model(dropout: float = 0.0, seed: int = 0, **text: Any) -> BlipForConditionalGeneration:
    """A tiny BLIP in training mode."""
    torch.manual_seed(seed)
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = BlipConfig(
        text_config=BlipTextConfig(
            **{
                **LAYERS, **TOKENS, **rates, "encoder_hidden_size": 32, "projection_dim": 32,
                "max_position_embeddings": 64, "sep_token_id": tiny.EOS, **text,
            }
        ).to_dict(),
        vision_config=BlipVisionConfig(**VISION, attention_dropout=dropout).to_dict(),
    )  # fmt: skip
    return BlipForConditionalGeneration(config).train()


def _blip_logits(model: Any, inputs: Inputs, ids: Tensor) -> Tensor:
    return model(**inputs, input_ids=with_start(ids)[:, :-1]).logits[0]


def _shifted_loss(model: Any, inputs: Inputs, ids: Tensor) -> Tensor:
    labels = with_start(ids)  # shifted by the model, so that the start token is not among the targets
    return model(**inputs, input_ids=labels, labels=labels).loss


BLIP = Family("blip", blip_model, tiny.processing, _blip_logits, _shifted_loss)


# GIT --------------------------------------------------------------------------------------------------------------


def git_model(dropout: float = 0.0, seed: int = 0, **options: Any) -> GitForCausalLM:
    """A tiny GIT in training mode."""
    torch.manual_seed(seed)
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    vision = GitVisionConfig(**VISION, attention_dropout=dropout).to_dict()
    config = GitConfig(
        **{**LAYERS, **TOKENS, **rates, "max_position_embeddings": 64, "vision_config": vision, **options}
    )
    return GitForCausalLM(config).train()


def _git_logits(model: Any, inputs: Inputs, ids: Tensor) -> Tensor:
    return model(**inputs, input_ids=with_start(ids)[:, :-1]).logits[0, -len(ids) :]


GIT = Family("git", git_model, tiny.processing, _git_logits, _shifted_loss)


# Chat models ------------------------------------------------------------------------------------------------------

IMAGE_TOKEN = "<image>"
CHAT_WORDS = ("USER", "ASSISTANT", ":", "Describe", "picture", ".")
IMAGE = tiny.VOCABULARY_SIZE
CHAT_TOKENS = {**TOKENS, "vocab_size": tiny.VOCABULARY_SIZE + 1 + len(CHAT_WORDS)}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }} : {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}" + IMAGE_TOKEN + " {% else %}{{ part['text'] }} {% endif %}{% endfor %}"
    "{% if message['role'] == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT :{% endif %}"
)
PROMPT = "Describe the picture ."


def chat_tokenizer(**options: Any) -> Any:
    """The tiny tokenizer with the words of a chat and an image token."""
    tokenizer = tiny.tokenizer(**options)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    tokenizer.add_tokens(list(CHAT_WORDS))
    return tokenizer


def llava_processing() -> LlavaProcessor:
    return LlavaProcessor(
        image_processor=tiny.image_processor(),
        tokenizer=chat_tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which "default" leaves out again
        chat_template=CHAT_TEMPLATE,
    )


def llava_model(dropout: float = 0.0, seed: int = 0, **text: Any) -> LlavaForConditionalGeneration:
    """A tiny LLaVA in training mode: CLIP's encoder without its last layer, and Llama."""
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**{**VISION, "num_hidden_layers": 3}, attention_dropout=dropout),
        text_config=LlamaConfig(
            **{**LAYERS, **CHAT_TOKENS, "attention_dropout": dropout, "max_position_embeddings": 96, **text}
        ),
        image_token_id=IMAGE,
    )
    model = LlavaForConditionalGeneration(config).train()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = tiny.EOS, tiny.PAD
    return model


def gemma3_processing() -> Gemma3Processor:
    names = {"boi_token": "<boi>", "image_token": "<soft>", "eoi_token": "<eoi>"}
    tokenizer = chat_tokenizer(extra_special_tokens=names)
    template = CHAT_TEMPLATE.replace(IMAGE_TOKEN, "<boi>")
    return Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": 32, "width": 32}),
        tokenizer,
        chat_template=template,
        image_seq_length=4,
    )


def gemma3_model(dropout: float = 0.0, seed: int = 0, **text: Any) -> Gemma3ForConditionalGeneration:
    """A tiny Gemma 3 in training mode: a layer with a window that is shorter than the prompt, and one without."""
    torch.manual_seed(seed)
    tokens = gemma3_processing().tokenizer
    layers = {"num_key_value_heads": 1, "head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]}
    sizes = {**CHAT_TOKENS, "vocab_size": len(tokens), "attention_dropout": dropout, "max_position_embeddings": 96}
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(**VISION, attention_dropout=dropout),
        text_config=Gemma3TextConfig(**{**LAYERS, **sizes, **layers, "sliding_window": 7, **text}),
        mm_tokens_per_image=4,
        image_token_index=tokens.image_token_id,
        boi_token_index=tokens.boi_token_id,
        eoi_token_index=tokens.eoi_token_id,
    )
    model = Gemma3ForConditionalGeneration(config).train()
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.5)  # 0 in a new model
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = tiny.EOS, tiny.PAD
    return model


@cache  # it adds 1,152 tokens to the tokenizer, one by one
def paligemma_processing() -> PaliGemmaProcessor:
    images = tiny.image_processor()
    images.image_seq_length = 16
    return PaliGemmaProcessor(images, chat_tokenizer())


def paligemma_model(dropout: float = 0.0, seed: int = 0, **text: Any) -> PaliGemmaForConditionalGeneration:
    """A tiny PaliGemma in training mode."""
    torch.manual_seed(seed)
    tokens = paligemma_processing().tokenizer
    heads = {"num_key_value_heads": 1, "head_dim": 16}
    sizes = {**CHAT_TOKENS, "vocab_size": len(tokens), "attention_dropout": dropout, "max_position_embeddings": 96}
    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(**VISION, attention_dropout=dropout, vision_use_head=False),
        text_config=GemmaConfig(**{**LAYERS, **sizes, **heads, **text}),
        projection_dim=32,
        image_token_index=IMAGE,
    )
    model = PaliGemmaForConditionalGeneration(config).train()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = tiny.EOS, tiny.PAD
    return model


def chat_inputs(inputs: Inputs, ids: Tensor, kind: int = 0) -> Inputs:
    """Image and prompt of one image with a caption of a kind of tokens behind them."""
    behind = {
        "input_ids": torch.cat([inputs["input_ids"], ids[None]], dim=1),
        "attention_mask": torch.cat([inputs["attention_mask"], torch.ones_like(ids)[None]], dim=1),
    }
    if "token_type_ids" in inputs:
        behind["token_type_ids"] = torch.cat([inputs["token_type_ids"], torch.full_like(ids, kind)[None]], dim=1)
    return {**inputs, **behind}


def _chat_logits(model: Any, inputs: Inputs, ids: Tensor) -> Tensor:
    return model(**chat_inputs(inputs, ids)).logits[0, -len(ids) - 1 : -1]


def _chat_loss(model: Any, inputs: Inputs, ids: Tensor) -> Tensor:
    labels = torch.cat([torch.full_like(inputs["input_ids"], -100), ids[None]], dim=1)
    return model(**chat_inputs(inputs, ids), labels=labels).loss


LLAVA = Family(
    "llava",
    llava_model,
    llava_processing,
    _chat_logits,
    _chat_loss,
    options=(("prompt", PROMPT),),
    tokenizer=chat_tokenizer,
)

GEMMA3 = replace(
    LLAVA,
    name="gemma3",
    model=gemma3_model,
    processing=gemma3_processing,
    tokenizer=lambda: gemma3_processing().tokenizer,
)


def _paligemma_logits(model: Any, inputs: Inputs, ids: Tensor) -> Tensor:
    return model(**chat_inputs(inputs, ids, kind=1)).logits[0, -len(ids) - 1 : -1]


def _paligemma_loss(model: Any, inputs: Inputs, ids: Tensor) -> Tensor:
    labels = torch.cat([torch.full_like(inputs["input_ids"], -100), ids[None]], dim=1)
    return model(**chat_inputs(inputs, ids, kind=1), labels=labels).loss


PALIGEMMA = replace(
    LLAVA,
    name="paligemma",
    model=paligemma_model,
    processing=paligemma_processing,
    logits=_paligemma_logits,
    loss=_paligemma_loss,
    tokenizer=lambda: paligemma_processing().tokenizer,
)


# BLIP-2 -----------------------------------------------------------------------------------------------------------


def blip2_processing() -> Blip2Processor:
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(list(CHAT_WORDS))
    return Blip2Processor(tiny.image_processor(), tokenizer, num_query_tokens=4)


def blip2_model(
    dropout: float = 0.0, seed: int = 0, text: PreTrainedConfig | None = None, **options: Any
) -> Blip2ForConditionalGeneration:
    """A tiny BLIP-2 in training mode: four queries, and OPT."""
    torch.manual_seed(seed)
    sizes = {**CHAT_TOKENS, "ffn_dim": 64, "max_position_embeddings": 96, "word_embed_proj_dim": 32, "init_std": 0.3}
    layers = {name: value for name, value in LAYERS.items() if name not in ("intermediate_size", "initializer_range")}
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**VISION, attention_dropout=dropout).to_dict(),
        qformer_config=Blip2QFormerConfig(**LAYERS, **rates, vocab_size=8, encoder_hidden_size=32).to_dict(),
        text_config=(text or OPTConfig(**{**sizes, **layers, "dropout": dropout})).to_dict(),
        num_query_tokens=4,
        image_token_index=len(blip2_processing().tokenizer) - 1,
        **options,
    )
    model = Blip2ForConditionalGeneration(config).train()
    torch.nn.init.normal_(model.query_tokens)  # 0 in a new model
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = tiny.EOS, tiny.PAD
    return model


BLIP2 = replace(
    LLAVA,
    name="blip2",
    model=blip2_model,
    processing=blip2_processing,
    tokenizer=lambda: blip2_processing().tokenizer,
    vision=False,
    adapt=r".*(q_proj|v_proj)",
)


# Idefics3 and SmolVLM ---------------------------------------------------------------------------------------------


def idefics3_processing(*, pieces: bool = False) -> Idefics3Processor:
    """``pieces``: cut images of 64 pixels into pieces of 32, and show the whole image once more."""
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 64 if pieces else 32}, max_image_size={"longest_edge": 32}, do_image_splitting=pieces
    )
    return Idefics3Processor(images, chat_tokenizer(), image_seq_len=4, chat_template=CHAT_TEMPLATE)


def idefics3_model(dropout: float = 0.0, seed: int = 1, kind: str = "idefics3") -> PreTrainedModel:
    """A tiny Idefics3 or SmolVLM in training mode."""
    torch.manual_seed(seed)
    size = len(idefics3_processing().tokenizer)
    text = {**LAYERS, **CHAT_TOKENS, "vocab_size": size, "attention_dropout": dropout, "max_position_embeddings": 192}
    vision = {**VISION, "attention_dropout": dropout}
    common = {"text_config": LlamaConfig(**text).to_dict(), "image_token_id": IMAGE, "scale_factor": 2}
    if kind == "idefics3":
        model = Idefics3ForConditionalGeneration(Idefics3Config(vision_config=vision, pad_token_id=tiny.PAD, **common))
    else:
        model = SmolVLMForConditionalGeneration(SmolVLMConfig(vision_config=vision, pad_token_id=tiny.PAD, **common))
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = tiny.EOS, tiny.PAD
    return model.train()


IDEFICS3 = replace(
    LLAVA,
    name="idefics3",
    model=idefics3_model,
    processing=idefics3_processing,
    tokenizer=lambda: idefics3_processing().tokenizer,
)
SMOLVLM = replace(IDEFICS3, name="smolvlm", model=lambda dropout: idefics3_model(dropout, kind="smolvlm"))

FAMILIES = (
    _encoder_decoder("gpt2", "packed"),
    _encoder_decoder("trocr", "repeated"),
    BLIP,
    GIT,
    LLAVA,
    GEMMA3,
    PALIGEMMA,
    BLIP2,
    IDEFICS3,
    SMOLVLM,
)
