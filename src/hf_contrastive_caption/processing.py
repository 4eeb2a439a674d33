"""The text and image side of a captioner, without its model.

A :class:`CaptionProcessor` holds a tokenizer and an image processor together with the two facts about captions that
neither of them knows: which token ends a caption, and how long a caption may be. It is what data loader workers carry
(it has no weights), and what is saved beside a model so that ``from_pretrained`` brings everything back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import BaseImageProcessor, PreTrainedTokenizerBase

IMAGE_PROCESSOR_ERRORS = (ValueError, ArithmeticError, RuntimeError)
"""What image processors raise on images that they do not take."""

BLANK_SIZE = (224, 224)
"""Width and height in pixels of an image that every image processor takes."""


ReadsImages = Callable[[Sequence[Image.Image]], dict[str, torch.Tensor]]
"""Makes tensors of RGB images."""


class TokenizedCaptions(NamedTuple):
    """Token ids of captions, each ending with the end token, and which of them had to be cut."""

    input_ids: list[list[int]]
    cut: list[bool]


@dataclass(frozen=True)
class CaptionProcessor:
    """Tokenizer, image processor, and the rules by which a caption becomes the tokens that are scored.

    The tokens of a caption are those that the tokenizer makes, its own special tokens included, followed by the end
    token where the tokenizer did not already put it. These are the ``labels`` that people train the model with, so a
    score is the model's own loss times the number of tokens. The start token is not part of a caption: the captioner
    puts it in front.

    Args:
        tokenizer: The tokenizer of the text decoder.
        image_processor: The image processor of the vision encoder, of any backend.
        end_token_id: The token that ends a caption. It is scored like every other token.
        max_caption_tokens: Longest caption in tokens, the end token included. Longer ones are cut; ``None`` for no
            limit.
        add_special_tokens: Whether the tokenizer adds its own special tokens.
    """

    tokenizer: PreTrainedTokenizerBase
    image_processor: BaseImageProcessor
    end_token_id: int
    max_caption_tokens: int | None = None
    add_special_tokens: bool = True

    def tokenize(self, captions: Sequence[str]) -> TokenizedCaptions:
        """Turn captions into token ids.

        Args:
            captions: Caption texts, (n_captions,).

        Returns:
            ``input_ids``: n_captions lists of token ids, each closed by the end token; ``cut``: for each caption
            whether it was longer than ``max_caption_tokens``. A cut caption keeps its end token, as truncation by a
            tokenizer does.

        Raises:
            TypeError: If one text is given in place of a list, which would be taken for a list of letters.
        """
        if isinstance(captions, str):
            raise TypeError(f"tokenize takes a list of captions, but was given one text; pass [{captions!r}]")
        if not captions:
            return TokenizedCaptions([], [])
        input_ids, cut = [], []
        for ids in self._encode(captions):
            closed = ids if ids and ids[-1] == self.end_token_id else [*ids, self.end_token_id]
            too_long = self.max_caption_tokens is not None and len(closed) > self.max_caption_tokens
            if too_long:
                assert self.max_caption_tokens is not None
                closed = [*closed[: self.max_caption_tokens - 1], self.end_token_id]
            input_ids.append(closed)
            cut.append(too_long)
        return TokenizedCaptions(input_ids, cut)

    def _encode(self, captions: Sequence[str]) -> list[list[int]]:
        encoded: list[list[int]] = self.tokenizer(
            list(captions),
            add_special_tokens=self.add_special_tokens,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        return encoded

    @property
    def processing_class(self) -> Any:
        """What a captioner of the same tokenizer and image processor can be made of, see :func:`captioner_for`."""
        return self.tokenizer, self.image_processor

    def process_images(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """Turn RGB images into what the vision encoder takes.

        Args:
            images: RGB images, (n_images,).

        Returns:
            The image processor's tensors, in most families ``{"pixel_values": (n_images, channels, height, width)}``.
        """
        features = self.image_processor(images=list(images), return_tensors="pt")
        return {name: value for name, value in features.items() if isinstance(value, torch.Tensor)}

    def decode(
        self,
        sequences: torch.Tensor | Sequence[torch.Tensor] | Sequence[Sequence[int]],
        stop_token_ids: Collection[int] | None = None,
    ) -> list[str]:
        """Turn generated token ids into caption texts without special tokens.

        Args:
            sequences: Token ids, (n_captions, length) or ragged.
            stop_token_ids: Tokens that end a caption, which need not be special ones; the end token if not given.
        """
        stops = {self.end_token_id} if stop_token_ids is None else set(stop_token_ids)
        ids: Any = [_up_to([int(token) for token in sequence], stops) for sequence in sequences]
        texts: list[str] = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]

    def text_fingerprint(self) -> str:
        """A hash of all that decides how a caption is tokenized; it does not change as the tokenizer is used.

        ``datasets`` hashes a fast tokenizer with its truncation and padding state, which every call may change, so
        a cache keyed that way misses.
        """
        if self.tokenizer.is_fast:
            state = json.loads(self.tokenizer.backend_tokenizer.to_str())
            state = {key: value for key, value in state.items() if key not in ("truncation", "padding")}
        else:
            state = {
                "class": type(self.tokenizer).__name__,
                "vocabulary": self.tokenizer.get_vocab(),
                "arguments": {key: repr(value) for key, value in self.tokenizer.init_kwargs.items()},
            }
        rules = [self.end_token_id, self.max_caption_tokens, self.add_special_tokens]
        return _digest([state, rules])

    def image_fingerprint(self) -> str:
        """A hash of the image processor's settings."""
        return _digest(json.loads(self.image_processor.to_json_string()))

    def reads_like(self, other: CaptionProcessor) -> bool:
        """Whether the other one makes the same of captions and of images."""
        return (
            self.text_fingerprint() == other.text_fingerprint()
            and self.image_fingerprint() == other.image_fingerprint()
        )

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save tokenizer **and** image processor; ``AutoTokenizer`` and ``AutoImageProcessor`` load them again."""
        self.tokenizer.save_pretrained(save_directory, **kwargs)
        self.image_processor.save_pretrained(save_directory, **kwargs)


def read_images(
    readers: Sequence[ReadsImages], images: Sequence[Image.Image]
) -> tuple[list[dict[str, torch.Tensor]], dict[int, str]]:
    """What image processors make of images, or of white ones in the place of those that one of them does not take.

    Args:
        readers: Make tensors of images, such as :meth:`CaptionProcessor.process_images`.
        images: RGB images, (n_images,).

    Returns:
        The tensors of each reader; the numbers of the images that were not taken, with the reasons.
    """
    try:
        return [read(images) for read in readers], {}
    except IMAGE_PROCESSOR_ERRORS:
        refused = {number: why for read in readers for number, why in refused_images(read, images).items()}
        if not refused:
            raise
    white = Image.new("RGB", BLANK_SIZE, "white")
    taken = [white if number in refused else image for number, image in enumerate(images)]
    return [read(taken) for read in readers], refused


def refused_images(read: ReadsImages, images: Sequence[Image.Image]) -> dict[int, str]:
    """Which images an image processor does not take, each tried alone, and what it says of them.

    Some have limits that depend on the image, such as Qwen's of 200 times as wide as high.

    Args:
        read: Makes tensors of images.
        images: RGB images, (n_images,).
    """
    refusals = {number: _refusal(read, image) for number, image in enumerate(images)}
    refused = {number: why for number, why in refusals.items() if why is not None}
    if refused and _refusal(read, Image.new("RGB", BLANK_SIZE)) is not None:
        return {}  # it takes no image at all, which is not for the images
    return refused


def _refusal(read: ReadsImages, image: Image.Image) -> str | None:
    try:
        read([image])
    except IMAGE_PROCESSOR_ERRORS as error:
        return f"the image processor takes no image of {image.width} × {image.height} pixels: {error}"
    return None


def _up_to(ids: list[int], stops: Collection[int]) -> list[int]:
    """A sequence up to the token at which it stops; many decoders start with that same token."""
    begun = dropwhile(lambda token: token in stops, ids)
    return list(takewhile(lambda token: token not in stops, begun))


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=repr).encode(), digest_size=16).hexdigest()
