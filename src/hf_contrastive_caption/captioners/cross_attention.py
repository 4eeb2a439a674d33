"""Captioners whose text decoder attends to the image, and what their model classes have in common."""

from __future__ import annotations

import logging
from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import ModelOutput

from hf_contrastive_caption.captioners.base import Captioner, TrieScorer
from hf_contrastive_caption.captioners.batch import CaptionBatch, Images
from hf_contrastive_caption.captioners.packing import DecoderRows, block_causal_mask, decoder_rows
from hf_contrastive_caption.captioners.settings import first_given, position_limit, position_offset, setting
from hf_contrastive_caption.captioners.tries import PrefixTrie, additive
from hf_contrastive_caption.captioners.vocabulary import (
    edge_log_probs,
    edge_log_probs_instead_of_logits,
    log_softmax_of,
)
from hf_contrastive_caption.fingerprints import settings_of

ENCODER_STATES = "encoder_hidden_states"

logger = logging.getLogger(__name__)


class CrossAttentionCaptioner(Captioner):
    """Scores captions with a vision encoder and a text decoder that attends to the encoder's states.

    Packed scoring is one plain forward: images in, one decoder row per image, with positions that restart at every
    caption and a block-diagonal causal mask. Repeated scoring is the same call with one row per caption, in which a
    hook on the encoder repeats its states. A subclass says how one class of models names its parts and arguments.

    Attributes:
        vision_path: Where in the model its vision encoder is.
        decoder_path: Where in the model its text decoder is.
        text_arguments: What the names of the decoder's arguments begin with in the model's forward.
    """

    vision_path: ClassVar[str]
    decoder_path: ClassVar[str]
    text_arguments: ClassVar[str]

    @abstractmethod
    def states_arguments(self, states: Tensor) -> dict[str, Any]:
        """What the model's forward takes in place of images, for given states, (rows, positions, hidden_size)."""

    def states_of(self, states: Tensor) -> list[torch.utils.hooks.RemovableHandle]:
        """Hooks through which a model sees given states where its forward takes none."""
        return []

    def position_arguments(self, rows: DecoderRows) -> dict[str, Tensor]:
        """What tells the decoder where the tokens of packed rows stand in their captions, (rows, width)."""
        return {"position_ids": rows.position_ids + self.position_offset}

    def repeating_hooks(self, images: Images, captions: CaptionBatch) -> list[torch.utils.hooks.RemovableHandle]:
        """Hooks through which each caption gets a row of its image's states while the encoder reads an image once."""
        return [self._encoder.register_forward_hook(_repeat_states(captions["image_index"]))]

    def trie_logits(self, states: Images, trie: PrefixTrie, cache: EncoderDecoderCache) -> Tensor:
        """What the decoder's output embedding gives for the nodes of a trie, (n_images, n_nodes or n_edges, ...).

        Args:
            states: The result of :meth:`encode`, as :meth:`decoder_states` made it.
            trie: The captions.
            cache: Its second part is filled with keys and values of the states by the first call, and read by others.
        """
        num_images = states[ENCODER_STATES].shape[0]
        logits: Tensor = self.decoder(
            encoder_hidden_states=states[ENCODER_STATES],
            input_ids=trie.input_ids.expand(num_images, -1),
            position_ids=(trie.depth + self.position_offset).expand(num_images, -1),
            attention_mask=additive(trie.mask, self.dtype).expand(num_images, -1, -1, -1),
            past_key_values=cache,
            use_cache=True,
        ).logits
        return logits

    def decoder_states(self, states: Images) -> Images:
        """What the decoder attends to, of the result of :meth:`encode`: the same, unless the model puts more between.

        The model's own ``forward`` does this by itself; only who calls the decoder alone needs it.
        """
        return states

    def read_decoder(self) -> None:
        """Read off the decoder what the layout of captions needs; called at the end of a subclass's ``__init__``."""
        config = self.decoder.config
        self.pad_token_id = first_given(setting(self.base_model.config, "pad_token_id"), config.pad_token_id) or 0
        self.position_limit = position_limit(config)
        self.position_offset = position_offset(config)
        self._said_too_wide = False
        self._encoder: nn.Module = self.base_model.get_submodule(self.vision_path)

    @property
    def name(self) -> str:
        """See :attr:`Captioner.name`."""
        parts = [self.base_model.get_submodule(path) for path in (self.vision_path, self.decoder_path)]
        return f"{type(self.base_model).__name__} of {type(parts[0]).__name__} and {type(parts[1]).__name__}"

    @property
    def decoder(self) -> PreTrainedModel:
        """See :attr:`Captioner.decoder`."""
        decoder = self.base_model.get_submodule(self.decoder_path)
        assert isinstance(decoder, PreTrainedModel)
        return decoder

    @property
    def vision(self) -> nn.Module | None:
        """See :attr:`Captioner.vision`."""
        return self._encoder

    @property
    def vocabulary(self) -> nn.Module:
        """See :attr:`Captioner.vocabulary`."""
        head: nn.Module = self.decoder.get_output_embeddings()
        return head

    def vision_settings(self) -> dict[str, Any]:
        """See :meth:`Captioner.vision_settings`: the encoder runs by itself."""
        settings: dict[str, Any] = settings_of(self._encoder.config)
        return settings

    def adopt_vision(self, other: Captioner) -> None:
        """See :meth:`Captioner.adopt_vision`."""
        assert isinstance(other, CrossAttentionCaptioner) and type(other) is type(self)
        self._encoder = other._encoder
        self.base_model.set_submodule(self.vision_path, self._encoder)

    def encode(self, images: Images) -> Images:
        """See :meth:`Captioner.encode`; the states are (n_images, positions, hidden_size)."""
        if ENCODER_STATES in images:
            return images
        self._hold_norms()
        with torch.no_grad():
            return {ENCODER_STATES: self._encoder(**self.placed(images))[0]}

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
        text: dict[str, Tensor] = {"input_ids": rows.input_ids}
        if rows.packed:
            text |= self.position_arguments(rows)
            text["attention_mask"] = block_causal_mask(rows.caption_ids, self.dtype)
        else:
            text["attention_mask"] = (rows.caption_ids >= 0).long()
        arguments: dict[str, Any] = {**self._text(text), "use_cache": False}
        if ENCODER_STATES in images:
            return {**arguments, **self.states_arguments(self._states_by_row(images, captions, rows))}
        return {**arguments, **self.placed(images)}

    def scoring(self, images: Images, captions: CaptionBatch, rows: DecoderRows) -> AbstractContextManager[None]:
        """See :meth:`Captioner.scoring`."""
        hooks: list[torch.utils.hooks.RemovableHandle] = []
        if ENCODER_STATES in images:
            hooks = self.states_of(self._states_by_row(images, captions, rows))
        elif not rows.packed:
            hooks = self.repeating_hooks(images, captions)
        return self.scoring_with(hooks, captions, rows)

    def reference_log_probs(self, images: Images, captions: CaptionBatch) -> Tensor:
        """See :meth:`Captioner.reference_log_probs`."""
        scores = []
        start = torch.full((1,), self.start_token_id, device=self.device)
        pieces = captions["input_ids"].split(captions["lengths"].tolist())
        for ids, image in zip(pieces, captions["image_index"].tolist(), strict=True):
            one = {name: value[image : image + 1] for name, value in images.items()}
            text = self._text({"input_ids": torch.cat([start, ids[:-1]])[None]})  # (1, length)
            logits = self.base_model(**one, **text, use_cache=False).logits[0]
            scores.append(log_softmax_of(logits, ids))
        return torch.cat(scores)

    def trie_scorer(self, images: Images, max_logits_bytes: int | None = None) -> TrieScorer:
        """See :meth:`Captioner.trie_scorer`; keeps each layer's keys and values of the images."""
        with torch.no_grad():
            states = self.decoder_states(self.encode(images))
        logits_bytes = self.max_logits_bytes if max_logits_bytes is None else max_logits_bytes
        keys_and_values = DynamicCache()  # filled by the first trie, read by all others

        def score(trie: PrefixTrie) -> Tensor:
            fused = edge_log_probs_instead_of_logits(self.vocabulary, trie, logits_bytes)
            with torch.no_grad(), fused if self.head == "fused" else nullcontext():
                logits = self.trie_logits(states, trie, EncoderDecoderCache(DynamicCache(), keys_and_values))
                return logits[..., 0] if self.head == "fused" else edge_log_probs(logits, trie)

        return score

    def _states_by_row(self, images: Images, captions: CaptionBatch, rows: DecoderRows) -> Tensor:
        states = images[ENCODER_STATES]
        return states if rows.packed else states.index_select(0, captions["image_index"])

    def _text(self, arguments: dict[str, Tensor]) -> dict[str, Tensor]:
        return {self.text_arguments + name: value for name, value in arguments.items()}

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


def _repeat_states(image_index: Tensor) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], output: ModelOutput) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=output[0].index_select(0, image_index))

    return hook
