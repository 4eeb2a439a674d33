"""Captioners in which the image stands before the text, in the same row, and what their model classes share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache
from transformers.utils.generic import ModelOutput

from hf_contrastive_caption.captioners.base import Captioner, TrieScorer
from hf_contrastive_caption.captioners.batch import CaptionBatch, Images
from hf_contrastive_caption.captioners.packing import DecoderRows, block_causal_mask, decoder_rows
from hf_contrastive_caption.captioners.tries import PrefixTrie, additive
from hf_contrastive_caption.captioners.vocabulary import (
    edge_log_probs,
    edge_log_probs_instead_of_logits,
    log_softmax_of,
)

IMAGE_STATES = "image_states"


class Prefix(NamedTuple):
    """What stands before the captions in the row of an image: its tokens, and those of a prompt but the last.

    Attributes:
        real: Whether a place holds a token, false in padding, (n_images, prefix_length).
        visible: Whether a place sees another one, each at least itself, (n_images, prefix_length, prefix_length).
        positions: Position of each token, (n_images, prefix_length).
        first: Position of the token from which a caption's first token is predicted, (n_images,).
    """

    real: Tensor
    visible: Tensor
    positions: Tensor
    first: Tensor


class PrefixCaptioner(Captioner):
    """Scores captions with a decoder that reads image, prompt and caption in one row.

    Packed scoring is one plain forward without a cache, which layers under gradient checkpointing would drop: image
    and prompt, then all captions of the image. A caption sees the image, the prompt and itself, and its positions
    begin behind the prompt. The last token of the prompt, from which a caption's first token is predicted, is
    repeated for each caption: it is the captions' start token. Repeated scoring has a row for each caption, in which
    a hook repeats the image's states. Tries stand behind a key-value cache in which each image is prefilled once.

    A subclass says how one class of models names its parts and arguments.

    Attributes:
        vision_path: Where in the model its vision encoder is.
        projection_path: Where the module is that brings the encoder's states to the decoder's width. What it is given,
            (n_images, ...), are the states of :meth:`encode`.
    """

    vision_path: ClassVar[str]
    projection_path: ClassVar[str]
    pad_token_id: int

    @abstractmethod
    def prefix(self, images: Images) -> Prefix:
        """What stands before the captions of each image."""

    def packed_prefix(self, images: Images) -> Prefix:
        """What stands before packed captions; the same, where it does not see the token that captions begin behind."""
        return self.prefix(images)

    @abstractmethod
    def text_arguments(self, images: Images, captions: CaptionBatch, rows: DecoderRows) -> dict[str, Any]:
        """The keyword arguments of the model's forward that are no pixels."""

    @abstractmethod
    def plain_arguments(self, images: Images, inputs: Tensor) -> dict[str, Any]:
        """The plainest arguments for images and what is behind their prompts, (n_images, length), without padding."""

    @abstractmethod
    def run_vision(self, images: Images) -> None:
        """Run the vision encoder up to the module at ``projection_path``, and whatever else of the model."""

    def mask_hooks(self, images: Images, rows: DecoderRows) -> list[RemovableHandle]:
        """Hooks through which a mask of packed rows gets where the model's forward does not let it pass."""
        return []

    def layer_masks(self, mask: Tensor, queries: Tensor, keys: Tensor) -> Tensor | dict[str, Tensor]:
        """What the model takes as the mask of its layers, some of which may see near tokens only.

        Args:
            mask: Additive, (n_images, 1, queries, keys).
            queries: Positions of the tokens that look, (n_images, queries).
            keys: Positions of the tokens that are seen, (n_images, keys).
        """
        return mask

    def position_shift(self, images: Images) -> Tensor | int:
        """What is added to a count of tokens for positions behind a prompt, (n_images, 1), or one number for all."""
        return 0

    def behind_cache(self, **arguments: Any) -> ModelOutput:
        """Call the model with text alone, without gradients: what is before it lies in the cache."""
        outputs: ModelOutput = self.base_model(**arguments)
        return outputs

    def read_model(self) -> None:
        """Read off the model what scoring needs; called at the end of a subclass's ``__init__``."""
        self._vision: nn.Module = self.base_model.get_submodule(self.vision_path)
        self._projection: nn.Module = self.base_model.get_submodule(self.projection_path)

    @property
    def vision(self) -> nn.Module | None:
        """See :attr:`Captioner.vision`."""
        return self._vision

    def vision_settings(self) -> dict[str, Any]:
        """See :meth:`Captioner.vision_settings`: all but those of the language model and its tokens."""
        settings = super().vision_settings().items()
        return {name: value for name, value in settings if name != "text_config" and not name.endswith("token_id")}

    def adopt_vision(self, other: Captioner) -> None:
        """See :meth:`Captioner.adopt_vision`."""
        assert isinstance(other, PrefixCaptioner) and type(other) is type(self)
        self._vision = other._vision
        self.base_model.set_submodule(self.vision_path, self._vision)
        self._projection = self.base_model.get_submodule(self.projection_path)  # may be a part of it

    def encode(self, images: Images) -> Images:
        """See :meth:`Captioner.encode`; the states are (n_images, ...), and tokens of a prompt stay beside them."""
        if IMAGE_STATES in images:
            return images
        states = self.vision_states(images)
        num_images = next(iter(images.values())).shape[0]
        if states.shape[0] != num_images:
            raise ValueError(
                f"the {type(self._vision).__name__} of {self.name} gives states of {tuple(states.shape)} for "
                f"{num_images} images, which are not told apart; such a model can be trained and can caption, but "
                "neither freeze_vision_encoder, cache_vision_states nor self-retrieval by its own scores"
            )
        return {IMAGE_STATES: states, **self.beside_states(images)}

    def vision_states(self, images: Images) -> Tensor:
        """What the module at ``projection_path`` is given for some images, (n_images, ...), without gradients."""
        self._hold_norms()
        found: list[Tensor] = []
        hook = self._projection.register_forward_pre_hook(lambda module, args: found.append(args[0]))
        try:
            with torch.no_grad():
                self.run_vision(self.placed(images))
        finally:
            hook.remove()
        return found[0]

    def beside_states(self, images: Images) -> Images:
        """What of the images is needed beside the states of the vision encoder: tokens of a prompt."""
        return {}

    def rows(self, images: Images, captions: CaptionBatch) -> DecoderRows:
        """See :meth:`Captioner.rows`; only ``source`` counts the places of the prefix."""
        packed = self.layout == "packed"
        num_images = next(iter(images.values())).shape[0]
        rows = decoder_rows(captions, num_images, self.start_token_id, self.pad_token_id, packed=packed)
        prefix = self.packed_prefix(images) if packed else self.prefix(images)
        width, length = rows.input_ids.shape[1], prefix.real.shape[1]
        row = rows.source // width
        return rows._replace(source=rows.source + (row + 1) * length)

    def prepare(self, images: Images, captions: CaptionBatch, rows: DecoderRows) -> dict[str, Any]:
        """See :meth:`Captioner.prepare`."""
        return {**self._pixels(images), **self.text_arguments(images, captions, rows), "use_cache": False}

    def scoring(self, images: Images, captions: CaptionBatch, rows: DecoderRows) -> AbstractContextManager[None]:
        """See :meth:`Captioner.scoring`."""
        image_index = None if rows.packed else captions["image_index"]
        hooks = [*self._state_hooks(images, image_index), *self.mask_hooks(images, rows)]
        return self.scoring_with(hooks, captions, rows)

    def reference_log_probs(self, images: Images, captions: CaptionBatch) -> Tensor:
        """See :meth:`Captioner.reference_log_probs`."""
        scores = []
        pieces = captions["input_ids"].split(captions["lengths"].tolist())
        for ids, image in zip(pieces, captions["image_index"].tolist(), strict=True):
            one = {name: value[image : image + 1] for name, value in images.items()}
            logits = self.base_model(**self.plain_arguments(one, ids[None, :-1]), use_cache=False).logits[0]
            scores.append(log_softmax_of(logits[-len(ids) :], ids))
        return torch.cat(scores)

    def trie_scorer(self, images: Images, max_logits_bytes: int | None = None) -> TrieScorer:
        """See :meth:`Captioner.trie_scorer`; keeps each layer's keys and values of images and prompt."""
        states = self.encode(images)
        logits_bytes = self.max_logits_bytes if max_logits_bytes is None else max_logits_bytes
        prefix, shift = self.prefix(states), self.position_shift(states)
        cache = self._prefilled(states)
        length = prefix.real.shape[1]
        num_images = prefix.real.shape[0]

        def score(trie: PrefixTrie) -> Tensor:
            fused = edge_log_probs_instead_of_logits(self.vocabulary, trie, logits_bytes)
            before = additive(prefix.real[:, None].expand(-1, trie.num_nodes, -1), self.dtype)[0, 0][:, None]
            own = additive(trie.mask, self.dtype).expand(num_images, -1, -1, -1)
            mask = torch.cat([before, own], dim=3)  # (n_images, 1, n_nodes, length + n_nodes)
            positions = prefix.first[:, None] + trie.depth  # (n_images, n_nodes)
            seen = torch.cat([prefix.positions, positions], dim=1)
            with torch.no_grad(), fused if self.head == "fused" else nullcontext():
                try:
                    outputs = self.behind_cache(
                        input_ids=trie.input_ids.expand(num_images, -1),
                        position_ids=positions + shift,
                        attention_mask=self.layer_masks(mask, positions, seen),
                        past_key_values=cache,
                        use_cache=True,
                    )
                finally:
                    if cache.get_seq_length() > length:
                        cache.crop(length - cache.get_seq_length())
                logits: Tensor = outputs["logits"]
                return logits[..., 0] if self.head == "fused" else edge_log_probs(logits, trie)

        return score

    def _prefilled(self, states: Images) -> DynamicCache:
        """Keys and values of the images and their prompts, in all layers."""
        # Without the config, so that layers with a window keep all: the mask says what they see.
        cache = DynamicCache()
        nothing = torch.empty(self.prefix(states).real.shape[0], 0, dtype=torch.long, device=self.device)
        arguments = {**self._pixels(states), **self.plain_arguments(states, nothing)}
        with ExitStack() as opened, torch.no_grad():
            for hook in self._state_hooks(states, None):
                opened.callback(hook.remove)
            self.base_model(**arguments, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.crop(-1)  # the start token is in every trie
        return cache

    def no_pixels(self, states: Tensor) -> dict[str, Any]:
        """What the model's forward takes in place of images: a black one, whose states are not used.

        None at all would be better still, but attention layers do not reshape an empty batch.
        """
        size = self.base_model.config.vision_config.image_size
        return {"pixel_values": states.new_zeros(1, 3, size, size)}

    def _pixels(self, images: Images) -> dict[str, Any]:
        if IMAGE_STATES in images:
            return self.no_pixels(images[IMAGE_STATES])
        beside = self.beside_states(images)
        return self.placed({name: value for name, value in images.items() if name not in beside})

    def _state_hooks(self, images: Images, image_index: Tensor | None) -> list[RemovableHandle]:
        """A hook that gives the projection the states that are given, or those of the image of each row."""
        given = images.get(IMAGE_STATES)
        if given is None and image_index is None:
            return []

        def put_states(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            states = args[0] if given is None else given
            return (states if image_index is None else states.index_select(0, image_index), *args[1:])

        return [self._projection.register_forward_pre_hook(put_states)]


def packed_mask(prefix: Prefix, caption_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """The additive attention mask of a prefix and packed captions: each caption sees the prefix and itself.

    Args:
        prefix: What stands before the captions.
        caption_ids: Caption number of each token behind it, -1 in padding, (n_images, width).
        dtype: A floating dtype.

    Returns:
        0 where attention is allowed and the dtype's lowest number elsewhere, (n_images, 1, length + width, length +
        width).
    """
    lowest = torch.finfo(dtype).min
    width = caption_ids.shape[1]
    own = block_causal_mask(caption_ids, dtype)  # (n_images, 1, width, width)
    before = prefix.real[:, None].expand(-1, width, -1)  # (n_images, width, length)
    left = torch.cat([prefix.visible, before], dim=1)  # (n_images, length + width, length)
    left = torch.zeros(left.shape, dtype=dtype, device=own.device).masked_fill_(~left, lowest)
    right = torch.cat([own.new_full((*own.shape[:2], left.shape[2], width), lowest), own], dim=2)
    return torch.cat([left[:, None], right], dim=3)


def unpadded(padded: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """What is real of each row of a padded tensor: n_rows tensors, (count, ...)."""
    return [row[:count] for row, count in zip(padded, counts, strict=True)]


def replace_mask(module: nn.Module, mask: Tensor) -> RemovableHandle:
    """A hook that gives a module another ``attention_mask`` than its caller made."""

    def put_mask(
        module: nn.Module, args: tuple[Any, ...], arguments: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**arguments, "attention_mask": mask}

    return module.register_forward_pre_hook(put_mask, with_kwargs=True)
