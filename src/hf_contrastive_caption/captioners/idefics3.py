"""Idefics3 and SmolVLM captioners, in which an image may be cut into pieces, as many as its shape asks for."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hf_contrastive_caption.captioners.batch import CaptionBatch, Images
from hf_contrastive_caption.captioners.chat import ChatCaptioner
from hf_contrastive_caption.captioners.packing import DecoderRows
from hf_contrastive_caption.captioners.prefix import IMAGE_STATES


class Idefics3Captioner(ChatCaptioner):
    """Scores captions with ``Idefics3ForConditionalGeneration`` and ``SmolVLMForConditionalGeneration``.

    An image is one or several pieces, each of which has as many image tokens in the prompt. States are (n_images,
    pieces, positions, hidden_size), 0 where an image has fewer pieces than another of the batch. The model's forward
    counts pieces by row, so with ``packing="repeated"`` pixels are repeated, and images encoded once per caption.
    """

    vision_path = "model.vision_model"
    projection_path = "model.connector"
    decoder_path = "model.text_model"

    def encode(self, images: Images) -> Images:
        """See :meth:`Captioner.encode`."""
        if IMAGE_STATES in images:
            return images
        flat, real = self.vision_states(images), images["pixel_values"].flatten(2).ne(0).any(2)  # (n_images, pieces)
        states = flat.new_zeros(*real.shape, *flat.shape[1:])
        states[real] = flat
        return {IMAGE_STATES: states, **self.beside_states(images)}

    def prepare(self, images: Images, captions: CaptionBatch, rows: DecoderRows) -> dict[str, Any]:
        """See :meth:`Captioner.prepare`."""
        arguments = super().prepare(images, captions, rows)
        if not rows.packed:
            pixels = self._pixels(images)
            arguments |= {name: value.index_select(0, captions["image_index"]) for name, value in pixels.items()}
        return arguments

    def no_pixels(self, states: Tensor) -> dict[str, Any]:
        """See :meth:`PrefixCaptioner.no_pixels`: a piece of one patch for each piece, as the forward counts them."""
        patch = self.base_model.config.vision_config.patch_size
        pixels = states.new_ones(*states.shape[:2], 3, patch, patch)
        return {"pixel_values": pixels * states.flatten(2).ne(0).any(2)[:, :, None, None, None]}

    def _state_hooks(self, images: Images, image_index: Tensor | None) -> list[RemovableHandle]:
        given = images.get(IMAGE_STATES)
        if given is None:
            return []
        rows = given if image_index is None else given.index_select(0, image_index)
        flat = rows[rows.flatten(2).ne(0).any(2)]  # (pieces of all rows, positions, hidden_size)

        def put_states(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (flat, *args[1:])

        return [self._projection.register_forward_pre_hook(put_states)]
