"""Captioners whose text decoder attends to the image: ``VisionEncoderDecoderModel``."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BaseImageProcessor,
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    VisionEncoderDecoderModel,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import ModelOutput

from hf_contrastive_caption.captioners.base import Captioner, TrieScorer
from hf_contrastive_caption.captioners.batch import CaptionBatch, Images
from hf_contrastive_caption.captioners.packing import DecoderRows, block_causal_mask, decoder_rows
from hf_contrastive_caption.captioners.tries import PrefixTrie, additive
from hf_contrastive_caption.captioners.vocabulary import (
    edge_log_probs,
    edge_log_probs_instead_of_logits,
    log_probs_instead_of_logits,
    log_softmax_of,
)
from hf_contrastive_caption.processing import CaptionProcessor

ENCODER_STATES = "encoder_hidden_states"

logger = logging.getLogger(__name__)

_POSITIONS_AFTER_PADDING = frozenset(
    {"roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "xmod", "data2vec-text"}
)
"""Decoders that count positions from ``pad_token_id + 1``."""

_CROSS_ATTENTIONS = frozenset({"crossattention", "cross_attn", "encoder_attn"})
"""What cross-attention is called in the layers of those decoders that can be built without it."""

_POSITION_LIMITS = ("n_positions", "max_position_embeddings", "max_target_positions")
"""The names under which decoder configs state how many positions they have."""


class CrossAttentionCaptioner(Captioner):
    """Scores captions with a vision encoder and a text decoder that attends to the encoder's states.

    Packed scoring is one plain forward: images in, one decoder row per image, with positions that restart at every
    caption and a block-diagonal causal mask. Repeated scoring is the same call with one row per caption, in which a
    hook on the encoder repeats its states.
    """

    def __init__(self, model: nn.Module, processor: CaptionProcessor, **options: Any) -> None:
        super().__init__(model, processor, **options)
        captioner = self.base_model
        assert isinstance(captioner, VisionEncoderDecoderModel)
        _check_decoder(captioner)
        _check_vocabulary(captioner, processor)
        decoder_config = _decoder_config(captioner)
        self.start_token_id = _start_token_id(captioner, processor)
        padding = (_setting(captioner.config, "pad_token_id"), _setting(decoder_config, "pad_token_id"))
        self.pad_token_id = _first_given(*padding) or 0
        self.position_limit = position_limit(decoder_config)
        self.position_offset = _position_offset(decoder_config)
        self._said_too_wide = False
        self._encoder: nn.Module = captioner.encoder
        self._vocabulary: nn.Module = captioner.decoder.get_output_embeddings()

    @classmethod
    def make_processor(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, image_processor: BaseImageProcessor
    ) -> CaptionProcessor:
        """See :meth:`Captioner.make_processor`."""
        assert isinstance(model, VisionEncoderDecoderModel)
        limit = position_limit(_decoder_config(model))
        return CaptionProcessor(tokenizer, image_processor, _end_token_id(model, tokenizer), limit)

    @property
    def name(self) -> str:
        """See :attr:`Captioner.name`."""
        model: Any = self.base_model
        return f"{type(model).__name__} of {type(model.encoder).__name__} and {type(model.decoder).__name__}"

    @property
    def decoder(self) -> PreTrainedModel:
        """See :attr:`Captioner.decoder`."""
        model: Any = self.base_model
        decoder: PreTrainedModel = model.decoder
        return decoder

    @property
    def vision(self) -> nn.Module:
        """See :attr:`Captioner.vision`."""
        return self._encoder

    def adopt_vision(self, other: Captioner) -> None:
        """See :meth:`Captioner.adopt_vision`."""
        assert isinstance(other, CrossAttentionCaptioner)
        model: Any = self.base_model
        model.encoder = self._encoder = other.vision

    def encode(self, images: Images) -> Images:
        """See :meth:`Captioner.encode`; the states are (n_images, positions, hidden_size)."""
        if ENCODER_STATES in images:
            return images
        self._hold_norms()
        with torch.no_grad():
            inputs = {name: _to_dtype(value, self.dtype) for name, value in images.items()}
            return {ENCODER_STATES: self._encoder(**inputs)[0]}

    def rows(self, images: Images, captions: CaptionBatch) -> DecoderRows:
        """See :meth:`Captioner.rows`; captions too many for the decoder's positions get rows of their own."""
        if self.layout == "packed":
            rows = self._rows(images, captions, packed=True)
            if self.position_limit is None or rows.input_ids.shape[1] <= self.position_limit:
                return rows
            self._say_once_too_wide(rows.input_ids.shape[1])
        return self._rows(images, captions, packed=False)

    def prepare(self, images: Images, captions: CaptionBatch, rows: DecoderRows) -> dict[str, Any]:
        """See :meth:`Captioner.prepare`."""
        arguments: dict[str, Any] = {"decoder_input_ids": rows.input_ids, "use_cache": False}
        if rows.packed:
            arguments["decoder_position_ids"] = rows.position_ids + self.position_offset
            arguments["decoder_attention_mask"] = block_causal_mask(rows.caption_ids, self.dtype)
        else:
            arguments["decoder_attention_mask"] = (rows.caption_ids >= 0).long()
        if ENCODER_STATES in images:
            states = images[ENCODER_STATES]
            states = states if rows.packed else states.index_select(0, captions["image_index"])
            return {**arguments, "encoder_outputs": BaseModelOutput(last_hidden_state=states)}
        # Some encoders (Swin) do not cast their pixels to their weights' dtype.
        return {**arguments, **{name: _to_dtype(value, self.dtype) for name, value in images.items()}}

    @contextmanager
    def scoring(self, images: Images, captions: CaptionBatch, rows: DecoderRows) -> Iterator[None]:
        """See :meth:`Captioner.scoring`."""
        repeat = None
        if not rows.packed and ENCODER_STATES not in images:
            repeat = self._encoder.register_forward_hook(_repeat_states(captions["image_index"]))
        try:
            if self.head == "fused":
                with log_probs_instead_of_logits(
                    self._vocabulary, rows.source, captions["input_ids"], self.max_logits_bytes
                ):
                    yield
            else:
                yield
        finally:
            if repeat is not None:
                repeat.remove()

    def gather(self, outputs: ModelOutput, captions: CaptionBatch, rows: DecoderRows) -> Tensor:
        """See :meth:`Captioner.gather`."""
        logits: Tensor = outputs["logits"]
        if self.head == "fused":
            return logits.view(-1)
        return log_softmax_of(logits.flatten(0, 1).index_select(0, rows.source), captions["input_ids"])

    def reference_log_probs(self, images: Images, captions: CaptionBatch) -> Tensor:
        """See :meth:`Captioner.reference_log_probs`."""
        scores = []
        start = torch.full((1,), self.start_token_id, device=self.device)
        pieces = captions["input_ids"].split(captions["lengths"].tolist())
        for ids, image in zip(pieces, captions["image_index"].tolist(), strict=True):
            one = {name: value[image : image + 1] for name, value in images.items()}
            inputs = torch.cat([start, ids[:-1]])[None]  # (1, length)
            logits = self.base_model(**one, decoder_input_ids=inputs, use_cache=False).logits[0]
            scores.append(log_softmax_of(logits, ids))
        return torch.cat(scores)

    def trie_scorer(self, images: Images, max_logits_bytes: int | None = None) -> TrieScorer:
        """See :meth:`Captioner.trie_scorer`; keeps each layer's keys and values of the images."""
        states = self.encode(images)[ENCODER_STATES]
        logits_bytes = self.max_logits_bytes if max_logits_bytes is None else max_logits_bytes
        keys_and_values = DynamicCache()  # filled by the first trie, read by all others

        def score(trie: PrefixTrie) -> Tensor:
            fused = edge_log_probs_instead_of_logits(self._vocabulary, trie, logits_bytes)
            with torch.no_grad(), fused if self.head == "fused" else nullcontext():
                logits: Tensor = self.base_model(
                    encoder_outputs=BaseModelOutput(last_hidden_state=states),
                    decoder_input_ids=trie.input_ids.expand(states.shape[0], -1),
                    decoder_position_ids=(trie.depth + self.position_offset).expand(states.shape[0], -1),
                    decoder_attention_mask=additive(trie.mask, self.dtype).expand(states.shape[0], -1, -1, -1),
                    past_key_values=EncoderDecoderCache(DynamicCache(), keys_and_values),
                    use_cache=True,
                ).logits
                return logits[..., 0] if self.head == "fused" else edge_log_probs(logits, trie)

        return score

    def _say_once_too_wide(self, width: int) -> None:
        if not self._said_too_wide:
            self._said_too_wide = True
            logger.warning(
                "%s: the captions of an image have %d tokens together, but the decoder has %s positions; such batches "
                "are scored with a row per caption, which is exact and slower. A decoder with more positions, or "
                "fewer captions per image, would pack them",
                self.name,
                width,
                self.position_limit,
            )

    def _rows(self, images: Images, captions: CaptionBatch, *, packed: bool) -> DecoderRows:
        num_images = next(iter(images.values())).shape[0]
        return decoder_rows(captions, num_images, self.start_token_id, self.pad_token_id, packed=packed)


def position_limit(decoder_config: PreTrainedConfig) -> int | None:
    """How many tokens the decoder has positions for, or ``None`` if its positions do not end."""
    limit = _first_given(*(_setting(decoder_config, name) for name in _POSITION_LIMITS))
    if limit is None:
        return None
    return limit - _position_offset(decoder_config)


def _position_offset(decoder_config: PreTrainedConfig) -> int:
    """The number from which the decoder counts positions."""
    if decoder_config.model_type not in _POSITIONS_AFTER_PADDING:
        return 0
    padding = _setting(decoder_config, "pad_token_id")
    return (1 if padding is None else padding) + 1


def _to_dtype(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value


def _repeat_states(image_index: Tensor) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], output: ModelOutput) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=output[0].index_select(0, image_index))

    return hook


def _decoder_config(model: VisionEncoderDecoderModel) -> PreTrainedConfig:
    config = model.config.decoder
    assert isinstance(config, PreTrainedConfig)
    return config


def _setting(config: PreTrainedConfig | GenerationConfig | None, name: str) -> Any:
    """A setting that not every config has: since transformers 5 each class declares only its own."""
    return getattr(config, name, None)


def _first_given(*values: Any) -> int | None:
    """The first value that is given, the first of a list of token ids; ``None`` if none is."""
    for value in values:
        if value is not None:
            return int(value[0] if isinstance(value, (list, tuple)) else value)
    return None


def _start_token_id(model: VisionEncoderDecoderModel, processor: CaptionProcessor) -> int:
    start = _first_given(
        _setting(model.config, "decoder_start_token_id"),
        _setting(model.generation_config, "decoder_start_token_id"),
        _setting(_decoder_config(model), "decoder_start_token_id"),
        _setting(_decoder_config(model), "bos_token_id"),
        processor.tokenizer.bos_token_id,
        processor.tokenizer.cls_token_id,
    )
    if start is None:
        raise ValueError(
            "neither the model's config nor its tokenizer has a start token, so nothing precedes the first word of a "
            "caption; set model.config.decoder_start_token_id to the token that your captions were trained after"
        )
    return start


def _end_token_id(model: VisionEncoderDecoderModel, tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None and tokenizer.sep_token_id is None:
        raise ValueError(
            f"the {type(tokenizer).__name__} has neither eos_token nor sep_token: a caption without an end token has "
            "no probability; set tokenizer.eos_token to the token at which the model stops"
        )
    end = _first_given(
        _setting(model.generation_config, "eos_token_id"),
        _setting(model.config, "eos_token_id"),
        _setting(_decoder_config(model), "eos_token_id"),
        tokenizer.eos_token_id,
        tokenizer.sep_token_id,
    )
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


def _check_decoder(model: VisionEncoderDecoderModel) -> None:
    config = _decoder_config(model)
    # VisionEncoderDecoderModel sets the flag in the config of any decoder that it is given, so the layers tell.
    optional = getattr(type(config), "add_cross_attention", None) is False
    names = {name.rpartition(".")[2] for name, _ in model.decoder.named_modules()}
    if optional and not names & _CROSS_ATTENTIONS:
        raise ValueError(
            f"the {config.model_type} decoder was built without cross-attention, so it cannot see the image; build "
            "the captioner with VisionEncoderDecoderModel.from_encoder_decoder_pretrained, or the decoder from a "
            "config with is_decoder=True and add_cross_attention=True, and train the new layers"
        )
    if "encoder_hidden_states" not in inspect.signature(model.decoder.forward).parameters:
        raise ValueError(
            f"{type(model.decoder).__name__} takes no encoder_hidden_states, so it has no cross-attention and cannot "
            "see the image; use a decoder that has it (GPT-2, BERT, RoBERTa, MBart, TrOCR, ...)"
        )
    if model.decoder.get_output_embeddings() is None:
        raise ValueError(
            f"the {type(model.decoder).__name__} has no output embedding, so it predicts no words; use the decoder's "
            "language model class, for example GPT2LMHeadModel"
        )


def _check_vocabulary(model: VisionEncoderDecoderModel, processor: CaptionProcessor) -> None:
    decoder = _decoder_config(model)
    size = _setting(decoder, "vocab_size")
    if size is None:
        return
    if len(processor.tokenizer) > size:
        raise ValueError(
            f"the tokenizer has {len(processor.tokenizer)} tokens, but the {decoder.model_type} decoder "
            f"knows {size}; give the tokenizer that the model was trained with, or call "
            "model.decoder.resize_token_embeddings(len(tokenizer))"
        )
    if not 0 <= processor.end_token_id < size:
        raise ValueError(
            f"the end token of captions is {processor.end_token_id}, but the {decoder.model_type} "
            f"decoder knows {size} tokens; set eos_token_id in model.generation_config and model.config to the token "
            "at which the model stops"
        )
