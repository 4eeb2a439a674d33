"""BLIP-2 captioners: ``Blip2ForConditionalGeneration`` with a decoder-only language model."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import Blip2ForConditionalGeneration, ProcessorMixin
from transformers.utils.generic import ModelOutput

from hf_contrastive_caption.captioners.chat import ChatCaptioner
from hf_contrastive_caption.processing import CaptionProcessor
from hf_contrastive_caption.prompting import PromptProcessor, SuffixProcessor


class Blip2Captioner(ChatCaptioner):
    """Scores captions with BLIP-2: the states of its queries, the start token, a prompt if there is one, a caption.

    It is no chat model: its processor puts the image tokens before the tokenizer's start token and the prompt. The
    states of :meth:`encode` are those of the Q-Former, so there is no vision encoder that could be frozen by itself.
    """

    vision_path = "vision_model"
    projection_path = "language_projection"
    decoder_path = "language_model"

    def __init__(self, model: nn.Module, processor: CaptionProcessor, **options: Any) -> None:
        super().__init__(model, processor, **options)
        captioner = self.base_model
        assert isinstance(captioner, Blip2ForConditionalGeneration)
        if not captioner.config.use_decoder_only_language_model:
            raise ValueError(
                f"the language model of this BLIP-2 is {type(captioner.language_model).__name__}, which reads the "
                "image in an encoder of its own, and captions are scored behind image and prompt in one row; use a "
                "checkpoint with a decoder-only language model, such as Salesforce/blip2-opt-2.7b"
            )

    @property
    def vision(self) -> None:
        """See :attr:`Captioner.vision`."""
        return None

    @classmethod
    def read_prompt(
        cls, processor: ProcessorMixin, prompt: str | None, stops: list[int], max_tokens: int | None
    ) -> PromptProcessor:
        """See :meth:`ChatCaptioner.read_prompt`."""
        return SuffixProcessor(
            tokenizer=processor.tokenizer,
            image_processor=processor.image_processor,
            end_token_id=stops[0],
            max_caption_tokens=max_tokens,
            add_special_tokens=False,
            processor=processor,
            prompt=prompt,
            question=prompt or "",
            lead=" " if prompt else "",  # "Question: what is this? Answer: a dog", but "a dog" behind the start token
        )

    def behind_cache(self, **arguments: Any) -> ModelOutput:
        """See :meth:`PrefixCaptioner.behind_cache`: BLIP-2's own forward always takes images."""
        model: Any = self.base_model
        outputs: ModelOutput = model.language_model(**arguments)
        return outputs
