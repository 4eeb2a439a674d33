"""BLIP captioners: ``BlipForConditionalGeneration``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BaseImageProcessor,
    BlipForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import BaseModelOutput

from hf_contrastive_caption.captioners.cross_attention import CrossAttentionCaptioner
from hf_contrastive_caption.captioners.settings import (
    check_vocabulary,
    given_end_token,
    given_start_token,
    position_limit,
)
from hf_contrastive_caption.processing import CaptionProcessor


class BlipCaptioner(CrossAttentionCaptioner):
    """Scores captions with BLIP as it generates them: behind its own start token, up to its separator.

    The tokenizer's special tokens are left out of a caption: BLIP puts ``text_config.bos_token_id`` in the place of
    the tokenizer's ``[CLS]``. Its own loss shifts the labels by one, and smooths them where
    ``text_config.label_smoothing`` is above 0, which a score does not.
    """

    vision_path = "vision_model"
    decoder_path = "text_decoder"
    text_arguments = ""

    def __init__(self, model: nn.Module, processor: CaptionProcessor, **options: Any) -> None:
        super().__init__(model, processor, **options)
        captioner = self.base_model
        assert isinstance(captioner, BlipForConditionalGeneration)
        text = captioner.text_decoder.config
        check_vocabulary(text, processor, "model.text_decoder")
        self.start_token_id = given_start_token(text.bos_token_id)
        self.read_decoder()

    @classmethod
    def make_processor(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, image_processor: BaseImageProcessor
    ) -> CaptionProcessor:
        """See :meth:`Captioner.make_processor`."""
        text = model.config.text_config
        for name in ("bos_token_id", "sep_token_id", "eos_token_id"):
            if getattr(text, name) is None:
                raise ValueError(
                    f"{name} of the model's text_config is None, but BLIP begins captions with bos_token_id and ends "
                    "them with sep_token_id, and its generate() needs eos_token_id as well; set "
                    f"model.config.text_config.{name}"
                )
        end = given_end_token(model, tokenizer, text.sep_token_id)
        return CaptionProcessor(tokenizer, image_processor, end, position_limit(text), add_special_tokens=False)

    def states_arguments(self, states: Tensor) -> dict[str, Any]:
        """See :meth:`CrossAttentionCaptioner.states_arguments`: no image, so that the encoder has nothing to do."""
        size = self.base_model.config.vision_config.image_size
        return {"pixel_values": states.new_zeros(0, 3, size, size)}

    def states_of(self, states: Tensor) -> list[torch.utils.hooks.RemovableHandle]:
        """See :meth:`CrossAttentionCaptioner.states_of`: BLIP's forward takes images only."""

        def put_states(module: nn.Module, args: tuple[Any, ...], output: Any) -> BaseModelOutput:
            return BaseModelOutput(last_hidden_state=states)

        return [self._encoder.register_forward_hook(put_states)]

    @property
    def stop_token_ids(self) -> list[int]:
        """See :attr:`Captioner.stop_token_ids`; BLIP's generate knows no other one."""
        return [self.processor.end_token_id]

    def own_arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """See :meth:`Captioner.own_arguments`; BLIP stops at its own separator and pads with its own padding.

        Raises:
            ValueError: If ``eos_token_id`` is another one.
        """
        stop = self.base_model.config.text_config.sep_token_id
        end = arguments.get("eos_token_id", stop)
        if end not in (stop, [stop]):
            raise ValueError(
                f"eos_token_id is {end}, but BLIP's generate() stops at text_config.sep_token_id = {stop}; leave "
                "eos_token_id out, or set it there"
            )
        # What is behind the end is not read.
        return {name: value for name, value in arguments.items() if name not in ("eos_token_id", "pad_token_id")}
