"""BLIP-2 captioners: ``Blip2ForConditionalGeneration``, with a decoder-only language model or an encoder-decoder."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import (
    EncoderDecoderCache,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import ModelOutput

from hf_contrastive_caption.captioners.base import Captioner
from hf_contrastive_caption.captioners.batch import CaptionBatch, Images
from hf_contrastive_caption.captioners.chat import ChatCaptioner
from hf_contrastive_caption.captioners.cross_attention import ENCODER_STATES, CrossAttentionCaptioner
from hf_contrastive_caption.captioners.image_tokens import check_query_tokens, image_tokens_match
from hf_contrastive_caption.captioners.packing import DecoderRows
from hf_contrastive_caption.captioners.prefix import replace_mask
from hf_contrastive_caption.captioners.settings import (
    check_vocabulary,
    given_start_token,
    setting,
    stop_tokens,
    to_dtype,
)
from hf_contrastive_caption.captioners.tries import PrefixTrie, additive
from hf_contrastive_caption.processing import CaptionProcessor
from hf_contrastive_caption.prompting import PromptProcessor, suffix_processor


class Blip2Captioner(ChatCaptioner):
    """Scores captions with BLIP-2: the states of its queries, the start token, a prompt if there is one, a caption.

    It is no chat model: its processor puts the image tokens before the tokenizer's start token and the prompt. The
    states of :meth:`encode` are those of the Q-Former, so there is no vision encoder that could be frozen by itself.
    """

    vision_path = "vision_model"
    projection_path = "language_projection"
    decoder_path = "language_model"

    @classmethod
    def for_model(cls, model: PreTrainedModel) -> type[Captioner]:
        """See :meth:`Captioner.for_model`: an encoder-decoder reads image and prompt in its encoder."""
        return cls if model.config.use_decoder_only_language_model else Blip2EncoderDecoderCaptioner

    @property
    def vision(self) -> None:
        """See :attr:`Captioner.vision`."""
        return None

    @classmethod
    def read_prompt(
        cls, processor: ProcessorMixin, prompt: str | None, stops: list[int], max_tokens: int | None
    ) -> PromptProcessor:
        """See :meth:`ChatCaptioner.read_prompt`."""
        question = (prompt or "").rstrip(" ")  # the space is the lead, so that it is joined with the first word
        lead = " " if question else ""  # "Question: what is this? Answer: a dog", but "a dog" behind the start token
        mark = str(processor.image_token)  # type: ignore[attr-defined]
        return suffix_processor(processor, prompt, stops[0], max_tokens, mark, question=question, lead=lead)

    @classmethod
    def check_prompt(cls, model: PreTrainedModel, processor: ProcessorMixin, ids: Tensor) -> None:
        """See :meth:`ChatCaptioner.check_prompt`."""
        check_query_tokens(model, processor, ids)
        super().check_prompt(model, processor, ids)

    def behind_cache(self, **arguments: Any) -> ModelOutput:
        """See :meth:`PrefixCaptioner.behind_cache`: BLIP-2's own forward always takes images."""
        model: Any = self.base_model
        outputs: ModelOutput = model.language_model(**arguments)
        return outputs


class Blip2EncoderDecoderCaptioner(CrossAttentionCaptioner):
    """Scores captions with BLIP-2 around an encoder-decoder: T5 reads image and prompt, and its decoder the captions.

    Image and prompt go through the language model's encoder once per image, and the states of :meth:`encode` are what
    it gives. T5 knows no positions, but how far apart two tokens of a row are. Those of a packed caption are as far
    apart as in a row of its own; between the nodes of a trie the difference of their depths is put in.
    """

    takes_prompt = True
    vision_path = "language_model.encoder"
    decoder_path = "language_model.decoder"
    text_arguments = "decoder_"

    def __init__(self, model: nn.Module, processor: CaptionProcessor, **options: Any) -> None:
        super().__init__(model, processor, **options)
        language_model = self.base_model.get_submodule("language_model")
        assert isinstance(language_model, PreTrainedModel)
        self._language_model = language_model
        text: PreTrainedConfig = self.base_model.config.text_config
        check_vocabulary(text, processor, "model")
        self.start_token_id = given_start_token(
            setting(text, "decoder_start_token_id"),
            setting(language_model.generation_config, "decoder_start_token_id"),
            setting(text, "pad_token_id"),
        )
        self.read_decoder()
        self.position_limit = None  # some configs of T5 say how long the texts were that it was trained on

    @classmethod
    def make_prompt_processor(
        cls, model: PreTrainedModel, processor: ProcessorMixin, prompt: str | None
    ) -> CaptionProcessor:
        """See :meth:`Captioner.make_prompt_processor`: the prompt is the encoder's, so a caption stands alone."""
        stops = stop_tokens(model, model.config.text_config, processor.tokenizer)
        mark = str(processor.image_token)  # type: ignore[attr-defined]
        made = suffix_processor(processor, prompt, stops[0], None, mark, question=prompt or "")
        check_query_tokens(model, processor, made.process_images([Image.new("RGB", (64, 64))])["input_ids"][0])
        return replace(made, image_token_id=model.config.image_token_id)

    @property
    def vision(self) -> None:
        """See :attr:`Captioner.vision`: the prompt is in the states, and its embeddings are the decoder's as well."""
        return None

    @property
    def name(self) -> str:
        """See :attr:`Captioner.name`."""
        return f"{type(self.base_model).__name__} of {type(self._language_model).__name__}"

    @property
    def vocabulary(self) -> nn.Module:
        """See :attr:`Captioner.vocabulary`; the decoder itself has none."""
        embeddings: nn.Module = self._language_model.get_output_embeddings()
        return embeddings

    def checking_images(self, images: Images) -> AbstractContextManager[None]:
        """See :meth:`Captioner.checking_images`."""
        projection = self.base_model.get_submodule("language_projection")
        return image_tokens_match(projection, images, self.base_model.config.image_token_id, self.name)

    def encode(self, images: Images) -> Images:
        """See :meth:`Captioner.encode`; the states are (n_images, length of image and prompt, hidden_size)."""
        if ENCODER_STATES in images:
            return images
        self._hold_norms()
        found: list[Tensor] = []
        hook = self._encoder.register_forward_hook(lambda module, args, output: found.append(output[0]))
        inputs = {name: to_dtype(value, self.dtype) for name, value in images.items()}
        start = images["input_ids"].new_full((len(images["input_ids"]), 1), self.start_token_id)
        try:
            with torch.no_grad():
                self.base_model(**inputs, decoder_input_ids=start, use_cache=False)
        finally:
            hook.remove()
        return {ENCODER_STATES: found[0], "attention_mask": images["attention_mask"]}

    def states_arguments(self, states: Tensor) -> dict[str, Any]:
        """See :meth:`CrossAttentionCaptioner.states_arguments`; with an image and a text that nobody reads."""
        size = self.base_model.config.vision_config.image_size
        return {
            "encoder_outputs": BaseModelOutput(last_hidden_state=states),
            "pixel_values": states.new_zeros(1, 3, size, size),
            "input_ids": torch.full((1, 1), self.pad_token_id, device=states.device),
        }

    def position_arguments(self, rows: DecoderRows) -> dict[str, Tensor]:
        """See :meth:`CrossAttentionCaptioner.position_arguments`: T5 sees distances within the row."""
        return {}

    def prepare(self, images: Images, captions: CaptionBatch, rows: DecoderRows) -> dict[str, Any]:
        """See :meth:`Captioner.prepare`; the mask of image and prompt is for each row of the decoder."""
        mask = images["attention_mask"]
        of_rows = mask if rows.packed else mask.index_select(0, captions["image_index"])
        return {**super().prepare(images, captions, rows), "attention_mask": of_rows}

    def repeating_hooks(self, images: Images, captions: CaptionBatch) -> list[RemovableHandle]:
        """See :meth:`CrossAttentionCaptioner.repeating_hooks`; the encoder's mask is for each image."""
        own = replace_mask(self._encoder, images["attention_mask"])
        return [own, *super().repeating_hooks(images, captions)]

    def trie_logits(self, states: Images, trie: PrefixTrie, cache: EncoderDecoderCache) -> Tensor:
        """See :meth:`CrossAttentionCaptioner.trie_logits`."""
        num_images = len(states[ENCODER_STATES])
        hook = self._distances().register_forward_pre_hook(_depths_for_distances(trie.depth))
        try:
            logits: Tensor = self._language_model(
                encoder_outputs=BaseModelOutput(last_hidden_state=states[ENCODER_STATES]),
                attention_mask=states["attention_mask"],
                decoder_input_ids=trie.input_ids.expand(num_images, -1),
                decoder_attention_mask=additive(trie.mask, self.dtype).expand(num_images, -1, -1, -1),
                past_key_values=cache,
                use_cache=True,
            ).logits
        finally:
            hook.remove()
        return logits

    def generate(self, images: Images, **arguments: Any) -> Tensor:
        """See :meth:`Captioner.generate`; behind the token that captions are scored behind."""
        return super().generate(images, **{"decoder_start_token_id": self.start_token_id, **arguments})

    def _distances(self) -> nn.Embedding:
        """T5's table of what it adds to attention for each distance, which the first layer reads for all."""
        table = self.decoder.get_submodule("block.0.layer.0.SelfAttention.relative_attention_bias")
        assert isinstance(table, nn.Embedding)
        return table


def _depths_for_distances(depth: Tensor) -> Any:
    """A hook that has the table of distances read where the depths of two nodes say, instead of their places.

    The table is asked with the kind of each distance, (n_nodes, n_nodes), and its last row has all kinds: that of
    distance ``d`` stands ``d`` places before its end. No two nodes that see each other are farther apart.
    """

    def put_depths(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        kinds = args[0][-1].flip(0)  # (n_nodes,) by distance
        return (kinds[(depth[:, None] - depth).clamp(min=0)],)

    return put_depths
