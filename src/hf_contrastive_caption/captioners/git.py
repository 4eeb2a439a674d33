"""GIT captioners: ``GitForCausalLM``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import BaseImageProcessor, GitForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from hf_contrastive_caption.captioners.batch import CaptionBatch, Images
from hf_contrastive_caption.captioners.packing import DecoderRows
from hf_contrastive_caption.captioners.prefix import IMAGE_STATES, Prefix, PrefixCaptioner, packed_mask, replace_mask
from hf_contrastive_caption.captioners.settings import (
    check_vocabulary,
    given_end_token,
    given_start_token,
    position_limit,
    setting,
)
from hf_contrastive_caption.fingerprints import settings_of
from hf_contrastive_caption.processing import CaptionProcessor


class GitCaptioner(PrefixCaptioner):
    """Scores captions with GIT: image positions that see each other, then the caption behind its start token.

    Image positions have no position of the text, so captions begin at 0. The tokenizer's special tokens are left out
    of a caption; it begins behind ``config.bos_token_id`` and ends with ``config.eos_token_id``. GIT's own loss drops
    the image positions and shifts the labels by one.
    """

    vision_path = "git.image_encoder"
    projection_path = "git.visual_projection"

    def __init__(self, model: nn.Module, processor: CaptionProcessor, **options: Any) -> None:
        super().__init__(model, processor, **options)
        captioner = self.base_model
        assert isinstance(captioner, GitForCausalLM)
        config = captioner.config
        if config.num_image_with_embedding is not None:
            raise ValueError(
                f"this GIT model reads {config.num_image_with_embedding} frames of a video for each caption, and "
                "captions of single images are scored here; use a checkpoint for images, such as microsoft/git-base"
            )
        check_vocabulary(config, processor, "model")
        self.start_token_id = given_start_token(config.bos_token_id, processor.tokenizer.cls_token_id)
        self.pad_token_id = config.pad_token_id or 0
        self.read_model()

    @classmethod
    def make_processor(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, image_processor: BaseImageProcessor
    ) -> CaptionProcessor:
        """See :meth:`Captioner.make_processor`."""
        stops = setting(model.generation_config, "eos_token_id"), setting(model.config, "eos_token_id")
        end = given_end_token(model, tokenizer, *stops)
        return CaptionProcessor(
            tokenizer, image_processor, end, position_limit(model.config), add_special_tokens=False
        )

    def vision_settings(self) -> dict[str, Any]:
        """See :meth:`Captioner.vision_settings`: the encoder runs by itself."""
        settings: dict[str, Any] = settings_of(self._vision.config)
        return settings

    def prefix(self, images: Images) -> Prefix:
        """See :meth:`PrefixCaptioner.prefix`: the image alone."""
        if IMAGE_STATES in images:
            num_images, length = images[IMAGE_STATES].shape[:2]
        else:
            num_images, _, height, width = images["pixel_values"].shape
            patch = self.base_model.config.vision_config.patch_size
            length = (height // patch) * (width // patch) + 1
        real = torch.ones(num_images, length, dtype=torch.bool, device=self.device)
        positions = torch.zeros(num_images, length, dtype=torch.long, device=self.device)  # GIT gives images none
        return Prefix(real, real[:, None].expand(-1, length, -1), positions, positions[:, 0])

    def text_arguments(self, images: Images, captions: CaptionBatch, rows: DecoderRows) -> dict[str, Any]:
        """See :meth:`PrefixCaptioner.text_arguments`; a mask of two dimensions, which GIT widens for the image."""
        arguments = {"input_ids": rows.input_ids, "attention_mask": (rows.caption_ids >= 0).long()}
        return {**arguments, "position_ids": rows.position_ids} if rows.packed else arguments

    def mask_hooks(self, images: Images, rows: DecoderRows) -> list[RemovableHandle]:
        """See :meth:`PrefixCaptioner.mask_hooks`: GIT's forward takes no other mask beside an image."""
        if not rows.packed:
            return []
        mask = packed_mask(self.prefix(images), rows.caption_ids, self.dtype)
        return [replace_mask(self.base_model.get_submodule("git.encoder"), mask)]

    def plain_arguments(self, images: Images, inputs: Tensor) -> dict[str, Any]:
        """See :meth:`PrefixCaptioner.plain_arguments`."""
        start = inputs.new_full((inputs.shape[0], 1), self.start_token_id)
        return {**self._pixels(images), "input_ids": torch.cat([start, inputs], dim=1)}

    def run_vision(self, images: Images) -> None:
        """See :meth:`PrefixCaptioner.run_vision`."""
        self._projection(self._vision(**images).last_hidden_state)

    def generate(self, images: Images, **arguments: Any) -> Tensor:
        """See :meth:`Captioner.generate`."""
        pixels = images["pixel_values"]
        start = torch.full((len(pixels), 1), self.start_token_id, device=pixels.device)  # not in the pixels' bfloat16
        return super().generate({**images, "input_ids": start}, **arguments)[:, 1:]
