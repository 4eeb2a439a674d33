"""Qwen's vision-language captioners, in which an image has as many tokens as its size asks for, placed in a grid."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig, ProcessorMixin
from transformers.utils.generic import ModelOutput

from hf_contrastive_caption.captioners.batch import CaptionBatch, Images
from hf_contrastive_caption.captioners.chat import ChatCaptioner
from hf_contrastive_caption.captioners.packing import DecoderRows
from hf_contrastive_caption.captioners.prefix import IMAGE_STATES, unpadded
from hf_contrastive_caption.processing import CaptionProcessor
from hf_contrastive_caption.prompting import PatchesProcessor, PromptProcessor, prompt_processor

GRID = "image_grid_thw"


class Qwen2VLCaptioner(ChatCaptioner):
    """Scores captions with ``Qwen2VLForConditionalGeneration`` and ``Qwen2_5_VLForConditionalGeneration``.

    Positions have three axes: image tokens stand in a grid, and what is behind an image goes on from the grid's
    longest side, so positions behind the prompt are less than a count of its tokens. The model's own
    ``get_rope_index`` says how much less.

    States are what the whole vision encoder gives, its merger with it, (n_images, most_tokens, hidden_size), 0 where
    an image has fewer tokens than another of the batch.
    """

    vision_path = "model.visual"
    projection_path = "model.visual.merger"
    of_prompt = ("input_ids", "attention_mask", "mm_token_type_ids")
    of_shape = (GRID,)

    def __init__(self, model: nn.Module, processor: CaptionProcessor, **options: Any) -> None:
        super().__init__(model, processor, **options)
        self._check_processor()

    @classmethod
    def read_prompt(
        cls, processor: ProcessorMixin, prompt: str | None, stops: list[int], max_tokens: int | None
    ) -> PromptProcessor:
        """See :meth:`ChatCaptioner.read_prompt`."""
        mark: str = processor.image_token  # type: ignore[attr-defined]
        return prompt_processor(processor, prompt, stops, max_tokens, mark, PatchesProcessor)

    def encode(self, images: Images) -> Images:
        """See :meth:`Captioner.encode`."""
        if IMAGE_STATES in images:
            return images
        self._hold_norms()
        with torch.no_grad():
            outputs = self._vision(self._pixels(images)["pixel_values"], grid_thw=images[GRID])
        of_images = self.states_in(outputs).split(self._token_counts(images))
        return {IMAGE_STATES: pad_sequence(list(of_images), batch_first=True), **self.beside_states(images)}

    def states_in(self, outputs: ModelOutput) -> Tensor:
        """What the vision encoder gives to the decoder, (tokens of all images, hidden_size)."""
        states: Tensor = outputs["pooler_output"]
        return states

    def with_states(self, outputs: ModelOutput, states: Tensor) -> ModelOutput:
        """Outputs of the vision encoder with other states, (tokens of all images, hidden_size)."""
        return type(outputs)(**{**outputs, "pooler_output": states})

    def text_arguments(self, images: Images, captions: CaptionBatch, rows: DecoderRows) -> dict[str, Any]:
        """See :meth:`PrefixCaptioner.text_arguments`."""
        arguments = super().text_arguments(images, captions, rows)
        positions, shift = self._rotary(images)
        if not rows.packed:
            image = captions["image_index"]
            positions, shift = positions.index_select(1, image), shift.index_select(0, image)
        length = positions.shape[2] - 1  # the prompt's last token is each caption's first
        behind = arguments["position_ids"][:, length:] + shift  # (rows, width), the same on all axes
        positions = torch.cat([positions[:, :, :length], behind.expand(3, -1, -1)], dim=2)  # (3, rows, length + width)
        return {**arguments, "position_ids": positions}

    def plain_arguments(self, images: Images, inputs: Tensor) -> dict[str, Any]:
        """See :meth:`PrefixCaptioner.plain_arguments`; the model finds the positions itself, also behind padding."""
        text = torch.zeros_like(inputs)
        return {
            **self._pixels(images),
            **self._shapes(images),
            "input_ids": torch.cat([images["input_ids"], inputs], dim=1),
            "attention_mask": torch.cat([images["attention_mask"], torch.ones_like(inputs)], dim=1),
            "mm_token_type_ids": torch.cat([images["mm_token_type_ids"], text], dim=1),
        }

    def position_shift(self, images: Images) -> Tensor:
        """See :meth:`PrefixCaptioner.position_shift`."""
        return self._rotary(images)[1]

    def no_pixels(self, states: Tensor) -> dict[str, Any]:
        """See :meth:`PrefixCaptioner.no_pixels`: the patches of one image token."""
        config = self.base_model.config.vision_config
        return {"pixel_values": states.new_zeros(config.spatial_merge_size**2, _patch_dimension(config))}

    def generate(self, images: Images, **arguments: Any) -> Tensor:
        """See :meth:`Captioner.generate`."""
        return super().generate({**images, **self._pixels(images)}, **arguments)

    def _pixels(self, images: Images) -> dict[str, Any]:
        pixels = super()._pixels(images)
        if IMAGE_STATES in images:
            return pixels
        return {"pixel_values": torch.cat(unpadded(pixels["pixel_values"], images[GRID].prod(1).tolist()))}

    def _state_hooks(self, images: Images, image_index: Tensor | None) -> list[RemovableHandle]:
        """Hooks that have the vision encoder run on each image once, or on nothing, and give the states of each row.

        The model's forward is given the grid of each row, for it cuts the states into images by it.
        """
        given, grid, counts = images.get(IMAGE_STATES), images[GRID], self._token_counts(images)
        if given is None and image_index is None:
            return []
        merge = self.base_model.config.vision_config.spatial_merge_size
        encoded = grid if given is None else grid.new_tensor([[1, merge, merge]])
        order = range(len(grid)) if image_index is None else image_index.tolist()

        def put_grid(
            module: nn.Module, args: tuple[Any, ...], arguments: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return args, {**arguments, "grid_thw": encoded}

        def put_states(module: nn.Module, args: tuple[Any, ...], outputs: ModelOutput) -> ModelOutput:
            of_images = self.states_in(outputs).split(counts) if given is None else unpadded(given, counts)
            return self.with_states(outputs, torch.cat([of_images[image] for image in order]))

        return [
            self._vision.register_forward_pre_hook(put_grid, with_kwargs=True),
            self._vision.register_forward_hook(put_states),
        ]

    def _check_processor(self) -> None:
        """Whether patches and image tokens are those of the model; what it says itself names no way out.

        Raises:
            ValueError: If they are not.
        """
        config, processor = self.base_model.config, self.processor.processing_class
        vision, images = config.vision_config, self.processor.process_images([Image.new("RGB", (64, 64))])
        same = "load model and processor from the same checkpoint"
        given, taken = images["pixel_values"].shape[2], _patch_dimension(vision)
        if given != taken:
            raise ValueError(
                f"the patches of {type(processor).__name__} have {given} numbers, but {self.name} takes {taken}: "
                f"{vision.in_channels} channels of {vision.temporal_patch_size} x {vision.patch_size} x "
                f"{vision.patch_size}; {same}, or set patch_size and temporal_patch_size of the image processor"
            )
        tokens = int((images["input_ids"] == config.image_token_id).sum())
        (states,), merge = self._token_counts(images), vision.spatial_merge_size
        if tokens != states:
            raise ValueError(
                f"{type(processor).__name__} writes {tokens} image tokens (number {config.image_token_id}) for an "
                f"image of {images[GRID][0].tolist()} patches, of which {self.name} makes {states} states, one of "
                f"{merge} x {merge}; {same}, or set merge_size of the image processor and the tokenizer's image_token"
            )

    def _rotary(self, images: Images) -> tuple[Tensor, Tensor]:
        """Positions of the prompt, (3, n_images, prompt_length), and the shift of those behind it, (n_images, 1)."""
        model: Any = self.base_model
        positions, shift = model.model.get_rope_index(
            images["input_ids"],
            mm_token_type_ids=images["mm_token_type_ids"],
            image_grid_thw=images[GRID],
            attention_mask=images["attention_mask"],
        )
        return positions, shift

    def _token_counts(self, images: Images) -> list[int]:
        """How many image tokens each image has."""
        merge = self.base_model.config.vision_config.spatial_merge_size
        counts: list[int] = (images[GRID].prod(1) // merge**2).tolist()
        return counts


class Qwen3VLCaptioner(Qwen2VLCaptioner):
    """Scores captions with ``Qwen3VLForConditionalGeneration``, whose first decoder layers are given states as well.

    States hold those of the decoder's input and of its first layers behind each other in the last dimension.
    """

    def states_in(self, outputs: ModelOutput) -> Tensor:
        """See :meth:`Qwen2VLCaptioner.states_in`."""
        return torch.cat([outputs["pooler_output"], *outputs["deepstack_features"]], dim=1)

    def with_states(self, outputs: ModelOutput, states: Tensor) -> ModelOutput:
        """See :meth:`Qwen2VLCaptioner.with_states`."""
        first, *deeper = states.chunk(1 + len(outputs["deepstack_features"]), dim=1)
        return type(outputs)(**{**outputs, "pooler_output": first, "deepstack_features": deeper})


def _patch_dimension(config: PreTrainedConfig) -> int:
    """How many numbers a patch has, by the config of the vision encoder."""
    dimension: int = config.in_channels * config.temporal_patch_size * config.patch_size**2
    return dimension
