"""What models and tokenizers say of themselves: start and end tokens, how many positions, how large a vocabulary."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_contrastive_caption.processing import CaptionProcessor

logger = logging.getLogger(__name__)

_POSITIONS_AFTER_PADDING = frozenset(
    {"roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "xmod", "data2vec-text"}
)
"""Decoders that count positions from ``pad_token_id + 1``."""

_POSITION_LIMITS = ("n_positions", "max_position_embeddings", "max_target_positions")
"""The names under which decoder configs state how many positions they have."""


def setting(config: PreTrainedConfig | GenerationConfig | None, name: str) -> Any:
    """A setting that not every config has: since transformers 5 each class declares only its own."""
    return getattr(config, name, None)


def reads_text_alone(config: PreTrainedConfig) -> bool:
    """Whether a model with this config is a language model that transformers does not show images to."""
    kind: Any = type(config)
    language = kind in MODEL_FOR_CAUSAL_LM_MAPPING or kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    return language and kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def first_given(*values: Any) -> int | None:
    """The first value that is given, the first of a list of token ids; ``None`` if none is."""
    for value in values:
        if value is not None:
            return int(value[0] if isinstance(value, (list, tuple)) else value)
    return None


def token_ids(value: int | list[int] | None) -> list[int]:
    """The token ids that a setting such as ``eos_token_id`` names, one, several or none."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def position_limit(decoder_config: PreTrainedConfig) -> int | None:
    """How many tokens the decoder has positions for, or ``None`` if its positions do not end."""
    limit = first_given(*(setting(decoder_config, name) for name in _POSITION_LIMITS))
    if limit is None:
        return None
    return limit - position_offset(decoder_config)


def position_offset(decoder_config: PreTrainedConfig) -> int:
    """The number from which the decoder counts positions."""
    if decoder_config.model_type not in _POSITIONS_AFTER_PADDING:
        return 0
    padding = setting(decoder_config, "pad_token_id")
    return (1 if padding is None else padding) + 1


def given_start_token(*values: Any) -> int:
    """The first start token that is given.

    Raises:
        ValueError: If there is none.
    """
    start = first_given(*values)
    if start is None:
        raise ValueError(
            "neither the model's config nor its tokenizer has a start token, so nothing precedes the first word of a "
            "caption; set model.config.decoder_start_token_id to the token that your captions were trained after"
        )
    return start


def given_end_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *values: Any) -> int:
    """The token at which a model stops: the first that is given, or the tokenizer's.

    Raises:
        ValueError: If the tokenizer has none.
    """
    if tokenizer.eos_token_id is None and tokenizer.sep_token_id is None:
        raise ValueError(
            f"the {type(tokenizer).__name__} has neither eos_token nor sep_token: a caption without an end token has "
            "no probability; set tokenizer.eos_token to the token at which the model stops"
        )
    end = first_given(*values, tokenizer.eos_token_id, tokenizer.sep_token_id)
    assert end is not None
    if tokenizer.eos_token_id not in (None, end):
        logger.warning(
            "captions end with token %d, where %s stops generating, although the tokenizer's eos_token is %d; set "
            "eos_token_id of model.generation_config if that is not meant",
            end,
            type(model).__name__,
            tokenizer.eos_token_id,
        )
    return end


def stop_tokens(model: PreTrainedModel, text: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens at which a model that is asked with a prompt stops generating.

    Args:
        model: The captioner.
        text: Config of its language model.
        tokenizer: Has the last word.

    Raises:
        ValueError: If none of them says one.
    """
    given = (setting(model.generation_config, "eos_token_id"), setting(text, "eos_token_id"), tokenizer.eos_token_id)
    stops = next((stop for stop in given if stop is not None), None)
    if stops is None:
        raise ValueError(
            f"neither the generation config of {type(model).__name__} nor its tokenizer says at which token it "
            "stops; set model.generation_config.eos_token_id"
        )
    return stops if isinstance(stops, list) else [stops]


def check_vocabulary(decoder: PreTrainedConfig, processor: CaptionProcessor, part: str) -> None:
    """Whether the decoder knows all tokens of the tokenizer, and the end token.

    Args:
        decoder: Config of the text decoder.
        processor: Tokenizer and end token.
        part: What a user calls ``resize_token_embeddings`` of, ``"model.decoder"`` for one.

    Raises:
        ValueError: If it does not.
    """
    size = setting(decoder, "vocab_size")
    if size is None:
        return
    if len(processor.tokenizer) > size:
        raise ValueError(
            f"the tokenizer has {len(processor.tokenizer)} tokens, but the {decoder.model_type} decoder "
            f"knows {size}; give the tokenizer that the model was trained with, or call "
            f"{part}.resize_token_embeddings(len(tokenizer))"
        )
    if not 0 <= processor.end_token_id < size:
        raise ValueError(
            f"the end token of captions is {processor.end_token_id}, but the {decoder.model_type} "
            f"decoder knows {size} tokens; set eos_token_id in model.generation_config and model.config to the token "
            "at which the model stops"
        )


def to_dtype(value: Tensor, kind: torch.dtype) -> Tensor:
    """Floating values in a dtype; others, such as token ids, as they are."""
    return value.to(kind) if value.is_floating_point() else value
