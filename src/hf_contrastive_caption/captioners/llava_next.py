"""LLaVA-NeXT and LLaVA-OneVision captioners, in which an image is cut into as many pieces as its shape asks for."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.hooks import RemovableHandle
from transformers import LlavaNextProcessor, PreTrainedModel, ProcessorMixin
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from hf_contrastive_caption.captioners.batch import Images
from hf_contrastive_caption.captioners.chat import ChatCaptioner
from hf_contrastive_caption.captioners.image_tokens import check_settings
from hf_contrastive_caption.captioners.prefix import IMAGE_STATES, unpadded


class LlavaNextCaptioner(ChatCaptioner):
    """Scores captions with ``LlavaNextForConditionalGeneration`` and ``LlavaOnevisionForConditionalGeneration``.

    An image is shown whole and in pieces, and the model puts their states together by the image's size. States are
    (n_images, most_pieces, positions, hidden_size), 0 where an image has fewer pieces than another of the batch.
    """

    of_shape = ("image_sizes",)

    @classmethod
    def check_processor(cls, model: PreTrainedModel, processor: ProcessorMixin) -> None:
        """See :meth:`ChatCaptioner.check_processor`; LLaVA-OneVision's processor counts without a patch size."""
        config = model.config
        wanted = {"vision_feature_select_strategy": config.vision_feature_select_strategy}
        if isinstance(processor, LlavaNextProcessor):
            wanted["patch_size"] = config.vision_config.patch_size
        check_settings(processor, **wanted)

    def checking_images(self, images: Images) -> AbstractContextManager[None]:
        """See :meth:`Captioner.checking_images`: the model's forward makes the states' number fit, and compares it."""
        return nullcontext()

    def encode(self, images: Images) -> Images:
        """See :meth:`Captioner.encode`."""
        if IMAGE_STATES in images:
            return images
        of_images = self.vision_states(images).split(self._piece_counts(images))
        return {IMAGE_STATES: pad_sequence(list(of_images), batch_first=True), **self.beside_states(images)}

    def _pixels(self, images: Images) -> dict[str, Any]:
        pixels = super()._pixels(images)
        if IMAGE_STATES in images:
            return pixels
        pieces = pixels["pixel_values"]  # (n_images, most_pieces, channels, height, width)
        return {"pixel_values": torch.cat(unpadded(pieces, self._piece_counts(images)))}

    def _state_hooks(self, images: Images, image_index: Tensor | None) -> list[RemovableHandle]:
        given = images.get(IMAGE_STATES)
        if given is None and image_index is None:
            return []
        counts = self._piece_counts(images)
        order = range(len(counts)) if image_index is None else image_index.tolist()

        def put_states(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            of_images = args[0].split(counts) if given is None else unpadded(given, counts)
            return (torch.cat([of_images[image] for image in order]), *args[1:])

        return [self._projection.register_forward_pre_hook(put_states)]

    def _piece_counts(self, images: Images) -> list[int]:
        """How many pieces each image has, as the model's own forward counts them."""
        config = self.base_model.config
        return [
            image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size)
            for size in images["image_sizes"].tolist()
        ]
