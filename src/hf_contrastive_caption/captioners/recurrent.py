"""Captioners with a recurrent decoder: :class:`ShowAndTell` and :class:`AdaptiveAttention`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from hf_contrastive_caption.captioners.base import Captioner, TrieScorer
from hf_contrastive_caption.captioners.batch import CaptionBatch, Images
from hf_contrastive_caption.captioners.packing import DecoderRows, decoder_rows
from hf_contrastive_caption.captioners.settings import check_vocabulary, given_end_token, given_start_token, setting
from hf_contrastive_caption.captioners.tries import PrefixTrie
from hf_contrastive_caption.captioners.vocabulary import (
    edge_log_probs,
    edge_log_probs_instead_of_logits,
    log_softmax_of,
)
from hf_contrastive_caption.fingerprints import settings_of
from hf_contrastive_caption.models.recurrent import (
    RecurrentCaptionerModel,
    RecurrentDecoder,
)
from hf_contrastive_caption.models.state import RecurrentState
from hf_contrastive_caption.models.vision import VisionFeatures
from hf_contrastive_caption.processing import CaptionProcessor

VISION_STATES = "vision_states"


class RecurrentCaptioner(Captioner):
    """Scores captions with a vision model and an LSTM.

    The packed layout has no rows: the captions of all images go flat into the model, which reads them without any
    padding and encodes each image once. The repeated layout pads each caption to the longest one.
    """

    nodes_attend = False

    def __init__(self, model: nn.Module, processor: CaptionProcessor, **options: Any) -> None:
        super().__init__(model, processor, **options)
        captioner = self._recurrent
        config = captioner.config
        check_vocabulary(config, processor, "model")
        self.start_token_id = given_start_token(
            setting(captioner.generation_config, "decoder_start_token_id"), config.decoder_start_token_id
        )
        self.pad_token_id = config.pad_token_id or 0
        self._vision: VisionFeatures = captioner.vision

    @classmethod
    def make_processor(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, image_processor: BaseImageProcessor
    ) -> CaptionProcessor:
        """See :meth:`Captioner.make_processor`; captions may have any length."""
        end = given_end_token(model, tokenizer, setting(model.generation_config, "eos_token_id"))
        return CaptionProcessor(tokenizer, image_processor, end)

    @property
    def _recurrent(self) -> RecurrentCaptionerModel:
        model = self.base_model
        assert isinstance(model, RecurrentCaptionerModel)
        return model

    @property
    def _decoder(self) -> RecurrentDecoder:
        return self._recurrent.decoder

    @property
    def name(self) -> str:
        """See :attr:`Captioner.name`."""
        return f"{type(self._recurrent).__name__} of {type(self._vision.model).__name__}"

    @property
    def decoder(self) -> Any:
        """See :attr:`Captioner.decoder`; a :class:`RecurrentDecoder`, which is a part of the model and no model."""
        return self._decoder

    def decoder_size(self) -> tuple[int, int]:
        """See :meth:`Captioner.decoder_size`."""
        config = self._recurrent.config
        return config.num_hidden_layers, config.hidden_size

    @property
    def vision(self) -> VisionFeatures:
        """See :attr:`Captioner.vision`."""
        return self._vision

    def vision_settings(self) -> dict[str, Any]:
        """See :meth:`Captioner.vision_settings`: the encoder runs by itself."""
        settings: dict[str, Any] = settings_of(self.vision.config)
        return settings

    def adopt_vision(self, other: Captioner) -> None:
        """See :meth:`Captioner.adopt_vision`."""
        assert isinstance(other, RecurrentCaptioner)
        self._recurrent.vision = self._vision = other.vision

    def encode(self, images: Images) -> Images:
        """See :meth:`Captioner.encode`; the features are (n_images, positions, width), pooled ones of one position."""
        if VISION_STATES in images:
            return images
        self._hold_norms()
        with torch.no_grad():
            return {VISION_STATES: self._vision(**images)[0]}

    def rows(self, images: Images, captions: CaptionBatch) -> DecoderRows:
        """See :meth:`Captioner.rows`; in the packed layout all captions are one row, without padding."""
        if self.layout == "repeated":
            return decoder_rows(captions, 0, self.start_token_id, self.pad_token_id, packed=False)
        together = CaptionBatch(
            input_ids=captions["input_ids"],
            lengths=captions["lengths"],
            image_index=torch.zeros_like(captions["image_index"]),
        )
        return decoder_rows(together, 1, self.start_token_id, self.pad_token_id, packed=True)

    def prepare(self, images: Images, captions: CaptionBatch, rows: DecoderRows) -> dict[str, Any]:
        """See :meth:`Captioner.prepare`."""
        arguments: dict[str, Any] = {"image_index": captions["image_index"]}
        if rows.packed:
            arguments |= {"decoder_input_ids": rows.input_ids[0], "lengths": captions["lengths"]}
        else:
            arguments["decoder_input_ids"] = rows.input_ids
        return {**arguments, **_image_arguments(images)}

    def scoring(self, images: Images, captions: CaptionBatch, rows: DecoderRows) -> AbstractContextManager[None]:
        """See :meth:`Captioner.scoring`."""
        return self.scoring_with([], captions, rows)

    def reference_log_probs(self, images: Images, captions: CaptionBatch) -> Tensor:
        """See :meth:`Captioner.reference_log_probs`."""
        scores = []
        start = torch.full((1,), self.start_token_id, device=self.device)
        pieces = captions["input_ids"].split(captions["lengths"].tolist())
        for ids, image in zip(pieces, captions["image_index"].tolist(), strict=True):
            one = _image_arguments({name: value[image : image + 1] for name, value in images.items()})
            inputs = torch.cat([start, ids[:-1]])[None]  # (1, length)
            logits = self.base_model(**one, decoder_input_ids=inputs).logits[0]
            scores.append(log_softmax_of(logits, ids))
        return torch.cat(scores)

    def layer_calls(self, longest: int) -> int:
        """See :meth:`Captioner.layer_calls`; the nodes of each depth are read together."""
        layers, _ = self.decoder_size()
        return longest * layers

    def trie_scorer(self, images: Images, max_logits_bytes: int | None = None) -> TrieScorer:
        """See :meth:`Captioner.trie_scorer`; nodes are read depth by depth, each from its parent's state."""
        features = self.encode(images)[VISION_STATES]
        logits_bytes = self.max_logits_bytes if max_logits_bytes is None else max_logits_bytes
        with torch.no_grad():
            seen = self._decoder.see(features)
            start = self._decoder.start(seen)
        per_node = features.shape[0] * self._decoder.bytes_per_token(features)
        step = max(1, logits_bytes // per_node)

        def score(trie: PrefixTrie) -> Tensor:
            with torch.no_grad():
                hidden = self._read_trie(trie, seen, start, step)  # (n_images, n_nodes, hidden_size)
                fused = edge_log_probs_instead_of_logits(self.vocabulary, trie, logits_bytes)
                with fused if self.head == "fused" else nullcontext():
                    logits: Tensor = self.vocabulary(hidden)
                return logits[..., 0] if self.head == "fused" else edge_log_probs(logits, trie)

        return score

    def _read_trie(self, trie: PrefixTrie, seen: tuple[Tensor, ...], start: RecurrentState, step: int) -> Tensor:
        """What the decoder makes of the nodes, (n_images, n_nodes, hidden_size), at most ``step`` nodes at a time."""
        num_images, device = seen[0].shape[0], seen[0].device
        images = torch.arange(num_images, device=device)
        place = torch.zeros_like(trie.depth)  # of a node among those of its depth
        read: list[Tensor] = []
        order: list[Tensor] = []
        above = start  # of all images, and within an image all nodes of the depth above
        width = 1
        for depth in range(int(trie.depth.max()) + 1):
            nodes = (trie.depth == depth).nonzero()[:, 0]
            place[nodes] = torch.arange(nodes.shape[0], device=device)
            states = []
            for some in nodes.split(step):
                before = place[trie.parents[some]] if depth else torch.zeros_like(some)
                index = (images[:, None] * width + before).flatten()  # (n_images * n_some,)
                tokens = trie.input_ids[some].repeat(num_images)
                image_index = images.repeat_interleave(some.shape[0])
                out = self._decoder(seen, tokens, [1] * tokens.shape[0], image_index, above.select(index))
                read.append(out.hidden.view(num_images, some.shape[0], -1))
                order.append(some)
                states.append(out.state)
            above = RecurrentState.join(states, num_images)
            width = nodes.shape[0]
        back = torch.cat(order).argsort()
        return torch.cat(read, dim=1).index_select(1, back)


def _image_arguments(images: Images) -> dict[str, Any]:
    """Images, or their states, as arguments of the model."""
    if VISION_STATES in images:
        return {"encoder_outputs": BaseModelOutput(last_hidden_state=images[VISION_STATES])}
    return dict(images)
