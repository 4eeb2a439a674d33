"""Captioners made of any vision encoder and any text decoder: ``VisionEncoderDecoderModel``."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn
from transformers import (
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    VisionEncoderDecoderModel,
)
from transformers.modeling_outputs import BaseModelOutput

from hf_contrastive_caption.captioners.batch import Images
from hf_contrastive_caption.captioners.cross_attention import ENCODER_STATES, CrossAttentionCaptioner
from hf_contrastive_caption.captioners.settings import (
    check_vocabulary,
    first_given,
    given_end_token,
    given_start_token,
    position_limit,
    setting,
)
from hf_contrastive_caption.processing import CaptionProcessor

_CROSS_ATTENTIONS = frozenset({"crossattention", "cross_attn", "encoder_attn"})
"""What cross-attention is called in the layers of those decoders that can be built without it."""


class EncoderDecoderCaptioner(CrossAttentionCaptioner):
    """Scores captions with a ``VisionEncoderDecoderModel``, whose logits are aligned with its labels."""

    vision_path = "encoder"
    decoder_path = "decoder"
    text_arguments = "decoder_"

    def __init__(self, model: nn.Module, processor: CaptionProcessor, **options: Any) -> None:
        super().__init__(model, processor, **options)
        captioner = self.base_model
        assert isinstance(captioner, VisionEncoderDecoderModel)
        _check_decoder(captioner)
        check_vocabulary(_decoder_config(captioner), processor, "model.decoder")
        self.start_token_id = _start_token_id(captioner, processor)
        self.read_decoder()

    @classmethod
    def make_processor(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, image_processor: BaseImageProcessor
    ) -> CaptionProcessor:
        """See :meth:`Captioner.make_processor`."""
        assert isinstance(model, VisionEncoderDecoderModel)
        limit = position_limit(_decoder_config(model))
        end = given_end_token(
            model,
            tokenizer,
            setting(model.generation_config, "eos_token_id"),
            setting(model.config, "eos_token_id"),
            setting(_decoder_config(model), "eos_token_id"),
        )
        return CaptionProcessor(tokenizer, image_processor, end, limit)

    def states_arguments(self, states: Tensor) -> dict[str, Any]:
        """See :meth:`CrossAttentionCaptioner.states_arguments`."""
        return {"encoder_outputs": BaseModelOutput(last_hidden_state=states)}

    def own_arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """See :meth:`Captioner.own_arguments`: captions begin behind the token that they are scored behind.

        ``generate`` reads it in ``generation_config``, which does not follow a ``model.config`` that was set later.
        """
        generation = self.base_model.generation_config
        own = first_given(setting(generation, "decoder_start_token_id"), setting(generation, "bos_token_id"))
        if own == self.start_token_id:
            return arguments
        return {"decoder_start_token_id": self.start_token_id, **arguments}

    def decoder_states(self, states: Images) -> Images:
        """See :meth:`CrossAttentionCaptioner.decoder_states`: in the width of the decoder."""
        projection = getattr(self.base_model, "enc_to_dec_proj", None)
        if projection is None:
            return states
        return {**states, ENCODER_STATES: projection(states[ENCODER_STATES])}


def _decoder_config(model: VisionEncoderDecoderModel) -> PreTrainedConfig:
    config = model.config.decoder
    assert isinstance(config, PreTrainedConfig)
    return config


def _start_token_id(model: VisionEncoderDecoderModel, processor: CaptionProcessor) -> int:
    return given_start_token(
        setting(model.config, "decoder_start_token_id"),
        setting(model.generation_config, "decoder_start_token_id"),
        setting(_decoder_config(model), "decoder_start_token_id"),
        setting(_decoder_config(model), "bos_token_id"),
        processor.tokenizer.bos_token_id,
        processor.tokenizer.cls_token_id,
    )


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
