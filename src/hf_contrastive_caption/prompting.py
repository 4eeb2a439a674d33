"""The text and image side of captioners that are asked for a caption: models that read image and prompt as a chat.

The model's own processor does what is particular to the model: the chat template says how a question about an image is
written, and the processor puts as many image tokens into it as the image has states.
"""

from __future__ import annotations

import copy
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from hf_contrastive_caption.processing import CaptionProcessor, _digest

logger = logging.getLogger(__name__)

_CAPTION = "hfcontrastivecaption"
"""Stands for a caption where a template is read; no template writes it by itself."""

PROMPT_KEY = "caption_prompt"
"""What the prompt is called in ``tokenizer_config.json``, the one file of a processor that keeps unknown settings:
plain transformers loads it, and writes it again wherever tokenizer or processor are saved or pushed."""


def saved_prompt(processor: ProcessorMixin) -> str | None:
    """The prompt that a processor was saved with by :meth:`PromptProcessor.save_pretrained`, if any."""
    prompt: str | None = processor.tokenizer.init_kwargs.get(PROMPT_KEY)
    return prompt


@dataclass(frozen=True, kw_only=True)
class PromptProcessor(CaptionProcessor):
    """A :class:`CaptionProcessor` whose images come with the tokens of a prompt, image tokens among them.

    Args:
        processor: The model's processor, which has the tokenizer and the image processor.
        prompt: What the user asks, or ``None`` for the image alone.
        question: The prompt as the chat template writes it, up to where the caption begins; the image is one token.
        lead: What the template writes between this and a caption, mostly a space or nothing.
        image_token_id: The token in whose places the model puts its states of the image. Captions are read without
            it, as the model would look for another image there; captions from the web do contain it.
    """

    processor: ProcessorMixin
    prompt: str | None
    question: str
    lead: str = ""
    image_token_id: int | None = None

    @property
    def processing_class(self) -> Any:
        """See :attr:`CaptionProcessor.processing_class`: the model's processor, as if it was saved with the prompt."""
        whole, tokenizer = copy.copy(self.processor), copy.copy(self.tokenizer)  # the user's stay as they are
        others = {name: value for name, value in tokenizer.init_kwargs.items() if name != PROMPT_KEY}
        tokenizer.init_kwargs = others if self.prompt is None else {**others, PROMPT_KEY: self.prompt}
        whole.tokenizer = tokenizer
        return whole

    def process_images(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """Turn RGB images into what the model takes before a caption.

        Args:
            images: RGB images, (n_images,).

        Returns:
            The processor's tensors, n_images along the first dimension: pixels, and the prompt's ``input_ids`` and
            ``attention_mask``, (n_images, prompt_length), padded on the left.

        Raises:
            ValueError: If the processor makes several images of one.
        """
        read: Any = self.processor
        features = read(
            images=[[image] for image in images],
            text=[self.question] * len(images),
            add_special_tokens=not self.starts_itself(),
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        tensors = self.arranged({name: value for name, value in features.items() if isinstance(value, torch.Tensor)})
        for name, value in tensors.items():
            if len(value) != len(images):
                raise ValueError(
                    f"{type(read).__name__} made {len(value)} {name} of {len(images)} images, and one for each is "
                    "scored here; switch off that it cuts images into pieces (do_pan_and_scan, do_image_splitting)"
                )
        return tensors

    def arranged(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The processor's tensors with n_images along the first dimension, as most processors make them."""
        return tensors

    def _encode(self, captions: Sequence[str]) -> list[list[int]]:
        encoded = self._encode_behind(captions)
        found = [number for number, ids in enumerate(encoded) if self.image_token_id in ids]
        if found:
            token: Any = self.tokenizer.convert_ids_to_tokens([self.image_token_id])[0]  # type: ignore[list-item]
            _warn_of_image_token(token, captions[found[0]])
            # Whatever the case of its letters, which the tokenizer may not look at.
            texts = [re.sub(re.escape(token), " ", captions[number], flags=re.IGNORECASE) for number in found]
            again = self._encode_behind([" ".join(text.split()) for text in texts])
            for number, ids in zip(found, again, strict=True):
                encoded[number] = ids
        return encoded

    def _encode_behind(self, captions: Sequence[str]) -> list[list[int]]:
        """The tokens that follow the question when a caption is tokenized behind it."""
        before = self._plain_ids([self.question])[0]
        behind = self._plain_ids([self.question + self.lead + caption for caption in captions])
        alone = self._plain_ids([self.lead + caption for caption in captions])
        # A tokenizer that joins the question's end with the caption would leave no start token for it.
        return [
            ids[len(before) :] if ids[: len(before)] == before else own for ids, own in zip(behind, alone, strict=True)
        ]

    def _plain_ids(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def starts_itself(self) -> bool:
        """Whether the template writes the token with which the tokenizer would begin a text."""
        start = self.tokenizer.bos_token
        return start is not None and self.question.startswith(start)

    def shortened(self, prompt_tokens: int) -> PromptProcessor:
        """The processor of captions that have to share the decoder's positions with a prompt.

        Raises:
            ValueError: If no position is left.
        """
        if self.max_caption_tokens is None:
            return self
        left = self.max_caption_tokens - prompt_tokens
        if left < 2:
            raise ValueError(
                f"image and prompt have {prompt_tokens} tokens, and the decoder has {self.max_caption_tokens} "
                "positions, so none is left for a caption; give a shorter prompt or smaller images"
            )
        return replace(self, max_caption_tokens=left)

    def text_fingerprint(self) -> str:
        """See :meth:`CaptionProcessor.text_fingerprint`; with the question that captions stand behind."""
        return _digest([super().text_fingerprint(), self.question, self.lead, self.image_token_id])

    def image_fingerprint(self) -> str:
        """See :meth:`CaptionProcessor.image_fingerprint`; with the question that comes with the images."""
        settings = json.loads(self.processor.to_json_string())
        return _digest([super().image_fingerprint(), settings, self.question, super().text_fingerprint()])

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Save the whole processor with its chat template, and the prompt; ``AutoProcessor`` loads them again."""
        self.processing_class.save_pretrained(save_directory, **kwargs)


@dataclass(frozen=True, kw_only=True)
class SuffixProcessor(PromptProcessor):
    """A :class:`PromptProcessor` for processors that close the prompt themselves, so a caption is tokenized alone."""

    def process_images(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """See :meth:`PromptProcessor.process_images`; without labels, which are for captions in the prompt's place."""
        return {name: value for name, value in super().process_images(images).items() if name != "labels"}

    def _encode_behind(self, captions: Sequence[str]) -> list[list[int]]:
        return self._plain_ids([self.lead + caption for caption in captions])


@dataclass(frozen=True, kw_only=True)
class PatchesProcessor(PromptProcessor):
    """A :class:`PromptProcessor` for processors that give the patches of all images one after the other.

    ``pixel_values`` are (n_images, most_patches, patch_dimension) here, 0 behind the patches of an image that has
    fewer than another one, which its ``image_grid_thw`` tells: time, height and width in patches, (n_images, 3).
    """

    def arranged(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See :meth:`PromptProcessor.arranged`."""
        of_images = tensors["pixel_values"].split(tensors["image_grid_thw"].prod(1).tolist())
        return {**tensors, "pixel_values": pad_sequence(list(of_images), batch_first=True)}


def prompt_processor(
    processor: ProcessorMixin,
    prompt: str | None,
    stops: Sequence[int],
    max_tokens: int | None,
    mark: str,
    kind: type[PromptProcessor] = PromptProcessor,
) -> PromptProcessor:
    """The processor of a chat model with a prompt.

    Args:
        processor: The model's processor.
        prompt: What the user asks, or ``None``.
        stops: Tokens at which the model stops, the first of them unless the template ends an answer with another.
        max_tokens: Longest caption in tokens.
        mark: What the processor takes for the place of the image in a text.
        kind: The class to make.

    Raises:
        ValueError: If there is no chat template, it has no place for the image, the prompt has one, or the tokenizer
            has no padding.
    """
    if processor.chat_template is None:
        raise ValueError(
            f"the {type(processor).__name__} has no chat template, which says how an image and a prompt are written "
            "for this model; load it with AutoProcessor.from_pretrained from a checkpoint that has one, or set "
            "processor.chat_template"
        )
    tokenizer: PreTrainedTokenizerBase = processor.tokenizer
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"the {type(tokenizer).__name__} has no pad_token, and prompts with images of different sizes differ in "
            "length; set tokenizer.pad_token, for example to tokenizer.eos_token"
        )
    _check_text_alone(prompt, mark)
    content: list[dict[str, str]] = [{"type": "image"}]
    if prompt is not None:
        content.append({"type": "text", "text": prompt})
    asked = [{"role": "user", "content": content}]
    answered = [*asked, {"role": "assistant", "content": [{"type": "text", "text": _CAPTION}]}]
    question, whole = _written(processor, asked, ask=True), _written(processor, answered, ask=False)
    if question.count(mark) != 1:
        raise ValueError(
            f"the chat template of the {type(processor).__name__} writes {question.count(mark)} {mark} for a message "
            f"with one image, and the image stands where it is written once: {question!r}. Set "
            f"processor.chat_template to one that writes {mark} for each part of the type 'image'"
        )
    before, _, tail = whole.partition(_CAPTION)
    # Some templates write what an answer begins with in two ways ("assistant " and "assistant\n"): then no lead.
    lead = before.removeprefix(question) if before.startswith(question) else ""
    question, lead = _space_to_caption(tokenizer, question, lead)
    ends = [token for token in tokenizer(tail, add_special_tokens=False)["input_ids"] if token in stops]
    return kind(
        tokenizer=tokenizer,
        image_processor=processor.image_processor,
        end_token_id=[*ends, *stops][0],
        max_caption_tokens=max_tokens,
        add_special_tokens=False,
        processor=processor,
        prompt=prompt,
        question=question,
        lead=lead,
    )


def suffix_processor(
    processor: ProcessorMixin,
    prompt: str | None,
    stop: int,
    max_tokens: int | None,
    mark: str,
    *,
    question: str,
    lead: str = "",
) -> SuffixProcessor:
    """The processor of a model that is no chat model: its own processor puts image and prompt together.

    Args:
        processor: The model's processor.
        prompt: What the user asks, or ``None``.
        stop: Token at which the model stops.
        max_tokens: Longest caption in tokens.
        mark: What the processor takes for the place of the image in a text.
        question: The text that the processor is given with the image.
        lead: What stands between this and a caption.

    Raises:
        ValueError: If the prompt has a place for an image.
    """
    _check_text_alone(prompt, mark)
    return SuffixProcessor(
        tokenizer=processor.tokenizer,
        image_processor=processor.image_processor,
        end_token_id=stop,
        max_caption_tokens=max_tokens,
        add_special_tokens=False,
        processor=processor,
        prompt=prompt,
        question=question,
        lead=lead,
    )


def _check_text_alone(prompt: str | None, mark: str) -> None:
    if prompt is not None and mark in prompt:
        raise ValueError(
            f"Got prompt={prompt!r}, but a prompt is text alone, and the place of the image is written before it; "
            f"leave {mark} out"
        )


def _written(processor: ProcessorMixin, messages: list[dict[str, Any]], *, ask: bool) -> str:
    """Messages as the chat template writes them, and with ``ask`` what an answer begins with."""
    chat: Any = processor
    try:
        text: str = chat.apply_chat_template(messages, add_generation_prompt=ask, tokenize=False)
    except (TypeError, TemplateError) as error:
        raise ValueError(
            f"the chat template of the {type(processor).__name__} cannot write a message whose content is a list of "
            f"an image and a text ({type(error).__name__}: {error}). Templates of models without images often add "
            "message['content'] as one text; set processor.chat_template to one that goes through its parts"
        ) from error
    return text


def _space_to_caption(tokenizer: PreTrainedTokenizerBase, question: str, lead: str) -> tuple[str, str]:
    """Question and lead, where a tokenizer joins a space at the question's end with the first word behind it.

    The space then counts to the caption. With the space in the question, captions would begin with a token that never
    stands behind a space, or behind two spaces.
    """
    texts = [question, f"{question}{lead}a"]  # a word that every vocabulary has with its space
    before, behind = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    if behind[: len(before)] == before:
        return question, lead
    bare = question.rstrip(" ")
    return bare, question[len(bare) :] + lead


_warned_of: set[str] = set()


def _warn_of_image_token(token: str, caption: str) -> None:
    """Say once in a process that captions are read without image tokens."""
    if token in _warned_of:
        return
    _warned_of.add(token)
    logger.warning(
        "captions are read without %s, which the model takes for the place of an image; the first one that has it "
        "is %r",
        token,
        caption,
    )
