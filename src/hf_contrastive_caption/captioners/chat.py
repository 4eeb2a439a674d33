"""Chat models that are shown an image: the image's states stand at image tokens within a prompt."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    ProcessorMixin,
)

from hf_contrastive_caption.captioners.batch import CaptionBatch, Images, Padding
from hf_contrastive_caption.captioners.image_tokens import check_settings, image_tokens_match
from hf_contrastive_caption.captioners.packing import DecoderRows
from hf_contrastive_caption.captioners.prefix import IMAGE_STATES, Prefix, PrefixCaptioner, packed_mask
from hf_contrastive_caption.captioners.settings import (
    check_vocabulary,
    first_given,
    position_limit,
    setting,
    stop_tokens,
)
from hf_contrastive_caption.processing import CaptionProcessor
from hf_contrastive_caption.prompting import PromptProcessor, prompt_processor, suffix_processor


class ChatCaptioner(PrefixCaptioner):
    """Scores captions as answers of a chat model, behind an image and a prompt that are not scored.

    Images come with the tokens of the prompt, which the model's own processor makes: see
    :class:`~hf_contrastive_caption.prompting.PromptProcessor`. The prompt's last token is the start token.

    Attributes:
        decoder_path: Where in the model its language model is.
        first_position: The number from which positions are counted.
        caption_type: What ``token_type_ids`` say of a caption, for processors that give them.
        of_prompt: What comes with images but is of the prompt.
        of_shape: What of an image the model's forward takes beside its pixels, such as its size.
    """

    takes_prompt = True
    decoder_path: ClassVar[str] = "model.language_model"
    first_position: ClassVar[int] = 0
    caption_type: ClassVar[int] = 0
    of_prompt: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask", "token_type_ids")
    of_shape: ClassVar[tuple[str, ...]] = ()
    vision_path = "model.vision_tower"
    projection_path = "model.multi_modal_projector"

    def __init__(self, model: nn.Module, processor: CaptionProcessor, **options: Any) -> None:
        super().__init__(model, processor, **options)
        assert isinstance(processor, PromptProcessor)
        config = self.base_model.config
        text = config.get_text_config(decoder=True)
        check_vocabulary(text, processor, "model")
        prompt = processor.process_images([Image.new("RGB", (64, 64))])["input_ids"][0]
        self.start_token_id = int(prompt[-1])
        if self.start_token_id == config.image_token_id:
            raise ValueError(
                "the prompt ends with the image, and the first word of a caption is predicted from a token of text; "
                "use a chat template that writes something behind the image, or give a prompt"
            )
        padding = setting(text, "pad_token_id")  # -1 in configs of the first Llama models
        given = None if padding is not None and padding < 0 else padding
        self.pad_token_id = first_given(given, processor.tokenizer.pad_token_id) or 0
        self.read_model()

    @classmethod
    def make_prompt_processor(
        cls, model: PreTrainedModel, processor: ProcessorMixin, prompt: str | None
    ) -> CaptionProcessor:
        """See :meth:`Captioner.make_prompt_processor`."""
        cls.check_processor(model, processor)
        text = model.config.get_text_config(decoder=True)
        stops = stop_tokens(model, text, processor.tokenizer)
        made = cls.read_prompt(processor, prompt, stops, position_limit(text))
        made = replace(made, image_token_id=model.config.image_token_id)
        ids = made.process_images([Image.new("RGB", (64, 64))])["input_ids"]
        cls.check_prompt(model, processor, ids[0])
        return made.shortened(ids.shape[1])

    @classmethod
    def check_processor(cls, model: PreTrainedModel, processor: ProcessorMixin) -> None:
        """Whether the settings of a processor are those of the model.

        Raises:
            ValueError: If they are not, with the line that sets them.
        """

    @classmethod
    def check_prompt(cls, model: PreTrainedModel, processor: ProcessorMixin, ids: Tensor) -> None:
        """Whether the model goes on from a prompt, (prompt_length,), as its processor writes it.

        Raises:
            ValueError: If it does not.
        """
        tokenizer, last = processor.tokenizer, int(ids[-1])
        stops = stop_tokens(model, model.config.get_text_config(decoder=True), tokenizer)
        if last in stops and last != tokenizer.bos_token_id:  # of some models both are the same token
            raise ValueError(
                f"the prompt ends with {tokenizer.convert_ids_to_tokens(last)}, at which {type(model).__name__} "
                "stops, so no caption would follow it; switch off that the tokenizer appends it "
                "(add_eos_token=False), or set processor.chat_template to one that begins the answer behind it"
            )

    @classmethod
    def read_prompt(
        cls, processor: ProcessorMixin, prompt: str | None, stops: list[int], max_tokens: int | None
    ) -> PromptProcessor:
        """How a prompt is written: by the chat template unless a model has a way of its own; see its arguments there.

        See :func:`~hf_contrastive_caption.prompting.prompt_processor`.
        """
        mark: str = processor.image_token  # type: ignore[attr-defined]
        return prompt_processor(processor, prompt, stops, max_tokens, mark)

    @property
    def decoder(self) -> PreTrainedModel:
        """See :attr:`Captioner.decoder`."""
        decoder = self.base_model.get_submodule(self.decoder_path)
        assert isinstance(decoder, PreTrainedModel)
        return decoder

    def beside_states(self, images: Images) -> Images:
        """See :meth:`PrefixCaptioner.beside_states`: the tokens of the prompt, and the shapes of images."""
        return {name: images[name] for name in (*self.of_prompt, *self.of_shape) if name in images}

    def padding(self) -> dict[str, Padding]:
        """See :meth:`Captioner.padding`: a prompt has as many image tokens, and an image states, as it needs."""
        fill = {name: self.pad_token_id if name == "input_ids" else 0 for name in self.of_prompt}
        return {IMAGE_STATES: Padding(0), **{name: Padding(value, left=True) for name, value in fill.items()}}

    def prefix(self, images: Images) -> Prefix:
        """See :meth:`PrefixCaptioner.prefix`: image and prompt, each token seeing those before it."""
        real = images["attention_mask"][:, :-1].bool()
        length = real.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=real.device).tril()
        own = torch.eye(length, dtype=torch.bool, device=real.device)  # padding sees itself, so no row is empty
        first = self.first_position
        positions = (real.long().cumsum(1) - 1).clamp(min=0) + first
        return Prefix(real, (causal & real[:, None]) | own, positions, real.sum(1) + first)

    def text_arguments(self, images: Images, captions: CaptionBatch, rows: DecoderRows) -> dict[str, Any]:
        """See :meth:`PrefixCaptioner.text_arguments`."""
        if rows.packed:
            prefix = self.packed_prefix(images)
            positions = torch.cat([prefix.positions, prefix.first[:, None] + rows.position_ids], dim=1)
            mask = packed_mask(prefix, rows.caption_ids, self.dtype)
            return {
                "input_ids": torch.cat([images["input_ids"][:, : prefix.real.shape[1]], rows.input_ids], dim=1),
                "position_ids": positions,  # (n_images, length + width)
                "attention_mask": self.layer_masks(mask, positions, positions),
                **self._shapes(images),
            }
        of_rows = {
            name: value.index_select(0, captions["image_index"]) for name, value in self.beside_states(images).items()
        }
        prefix = self.prefix(of_rows)
        arguments = {
            "input_ids": torch.cat([of_rows["input_ids"][:, :-1], rows.input_ids], dim=1),
            "position_ids": torch.cat([prefix.positions, prefix.first[:, None] + rows.position_ids], dim=1),
            "attention_mask": torch.cat([prefix.real, rows.caption_ids >= 0], dim=1).long(),
            **self._shapes(of_rows),
        }
        if "token_type_ids" in images:  # the first token of a row is the prompt's last one
            types = torch.full_like(rows.input_ids[:, 1:], self.caption_type)
            arguments["token_type_ids"] = torch.cat([of_rows["token_type_ids"], types], dim=1)
        return arguments

    def layer_masks(self, mask: Tensor, queries: Tensor, keys: Tensor) -> Tensor | dict[str, Tensor]:
        """See :meth:`PrefixCaptioner.layer_masks`: layers with a sliding window see as many positions back."""
        config = self.base_model.config.get_text_config(decoder=True)
        window, kinds = setting(config, "sliding_window"), set(setting(config, "layer_types") or ())
        if window is None or kinds == {"full_attention"}:
            return mask
        far = (queries[:, :, None] - keys[:, None] >= window)[:, None]  # (n_images, 1, queries, keys)
        near = mask.masked_fill(far, torch.finfo(mask.dtype).min)
        return {"full_attention": mask, "sliding_attention": near} if "full_attention" in kinds else near

    def plain_arguments(self, images: Images, inputs: Tensor) -> dict[str, Any]:
        """See :meth:`PrefixCaptioner.plain_arguments`."""
        mask = torch.cat([images["attention_mask"], torch.ones_like(inputs)], dim=1)
        arguments = {"input_ids": torch.cat([images["input_ids"], inputs], dim=1), "attention_mask": mask}
        if "token_type_ids" in images:
            types = images["token_type_ids"]
            arguments["token_type_ids"] = torch.cat([types, torch.full_like(inputs, self.caption_type)], dim=1)
        if not mask.all():  # the model would count positions from the padding
            arguments["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0) + self.first_position
        return {**self._pixels(images), **self._shapes(images), **arguments}

    def checking_images(self, images: Images) -> AbstractContextManager[None]:
        """See :meth:`Captioner.checking_images`."""
        return image_tokens_match(self._projection, images, self.base_model.config.image_token_id, self.name)

    def run_vision(self, images: Images) -> None:
        """See :meth:`PrefixCaptioner.run_vision`."""
        model: Any = self.base_model
        model.get_image_features(**self._pixels(images), **self._shapes(images))

    def generate(self, images: Images, **arguments: Any) -> Tensor:
        """See :meth:`Captioner.generate`.

        Raises:
            ValueError: If a length is given that counts the prompt with the caption, as most of these models do.
        """
        for name, other in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
            if name in arguments:
                raise ValueError(
                    f"Got {name}={arguments[name]}, in which {self.name} may count image and prompt as well, "
                    f"{images['input_ids'].shape[1]} tokens here; give {other}, which counts the caption alone"
                )
        return super().generate(images, **arguments)[:, images["input_ids"].shape[1] :]

    def _shapes(self, images: Images) -> Images:
        return {name: images[name] for name in self.of_shape}


class LlavaCaptioner(ChatCaptioner):
    """Scores captions with ``LlavaForConditionalGeneration``."""

    @classmethod
    def check_processor(cls, model: PreTrainedModel, processor: ProcessorMixin) -> None:
        """See :meth:`ChatCaptioner.check_processor`: processors of the first checkpoints have neither of the two."""
        config = model.config
        check_settings(
            processor,
            patch_size=setting(config.vision_config, "patch_size"),
            vision_feature_select_strategy=config.vision_feature_select_strategy,
        )


class Gemma3Captioner(ChatCaptioner):
    """Scores captions with ``Gemma3ForConditionalGeneration``, in which an image's tokens see each other."""

    @classmethod
    def read_prompt(
        cls, processor: ProcessorMixin, prompt: str | None, stops: list[int], max_tokens: int | None
    ) -> PromptProcessor:
        """See :meth:`ChatCaptioner.read_prompt`; the place of an image is written as the token before it."""
        mark: str = processor.boi_token  # type: ignore[attr-defined]
        return prompt_processor(processor, prompt, stops, max_tokens, mark)

    def prefix(self, images: Images) -> Prefix:
        """See :meth:`PrefixCaptioner.prefix`."""
        prefix = super().prefix(images)
        image = images["token_type_ids"][:, :-1] == 1  # (n_images, length); one image, so one block
        return prefix._replace(visible=prefix.visible | (image[:, :, None] & image[:, None]))


class PaliGemmaCaptioner(ChatCaptioner):
    """Scores captions with ``PaliGemmaForConditionalGeneration``: image and prompt see all of each other.

    It is no chat model: its processor writes image and prompt (``"caption en"``, say) in a way of its own, and no chat
    template is needed. Positions are counted from 1.
    """

    first_position = 1
    caption_type = 1

    @classmethod
    def read_prompt(
        cls, processor: ProcessorMixin, prompt: str | None, stops: list[int], max_tokens: int | None
    ) -> PromptProcessor:
        """See :meth:`ChatCaptioner.read_prompt`."""
        mark: str = processor.image_token  # type: ignore[attr-defined]
        return suffix_processor(processor, prompt, stops[0], max_tokens, mark, question=f"{mark}{prompt or ''}")

    def prefix(self, images: Images) -> Prefix:
        """See :meth:`PrefixCaptioner.prefix`."""
        prefix = super().prefix(images)
        return prefix._replace(visible=prefix.visible | prefix.real[:, None])

    def packed_prefix(self, images: Images) -> Prefix:
        """See :meth:`PrefixCaptioner.packed_prefix`: with the prompt's last token, which those before it see.

        Captions do not see it, as each begins with it.
        """
        prefix, real = self.prefix(images), images["attention_mask"].bool()
        own = torch.eye(real.shape[1], dtype=torch.bool, device=real.device)
        positions = torch.cat([prefix.positions, prefix.first[:, None]], dim=1)
        before = torch.cat([prefix.real, torch.zeros_like(real[:, :1])], dim=1)
        return Prefix(before, real[:, None] | own, positions, prefix.first)
