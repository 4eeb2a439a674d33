"""Captions for images."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from PIL import Image
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from hf_contrastive_caption.captioners.base import Captioner
from hf_contrastive_caption.captioners.batch import Images, caption_batch
from hf_contrastive_caption.captioners.determinism import evaluation_mode
from hf_contrastive_caption.captioners.registry import Processing, captioner_for
from hf_contrastive_caption.captioners.settings import setting, token_ids
from hf_contrastive_caption.data.images import (
    BadImageError,
    image_files,
    is_one_image,
    iterate_images,
    open_numbered,
)
from hf_contrastive_caption.processing import IMAGE_PROCESSOR_ERRORS, CaptionProcessor, refused_images
from hf_contrastive_caption.prompting import PromptProcessor

logger = logging.getLogger(__name__)

NUM_BEAMS = 3
MAX_NEW_TOKENS = 64
"""Longest caption in tokens that is generated unless told otherwise; fewer where the processor says so."""

_Opened = tuple[int, Any, Image.Image]
"""The number of an image, the image as it was given, and opened."""

_LENGTH_ARGUMENTS = ("max_new_tokens", "max_length", "generation_config")


class CaptionedImage(NamedTuple):
    """An image with its caption.

    Attributes:
        image: The image as it was given; its path, where a folder was given.
        caption: The caption.
        log_prob: ln p(caption | image) of the captioner in nats, summed over tokens with the end token; ``None`` if
            it was not asked for.
    """

    image: Any
    caption: str
    log_prob: float | None = None


class ScoredCaption(NamedTuple):
    """A caption with its likelihood.

    Attributes:
        caption: The caption.
        log_prob: ln p(caption | image) of the captioner in nats, summed over tokens with the end token.
    """

    caption: str
    log_prob: float


def caption_images(
    model: nn.Module,
    processor: CaptionProcessor | Processing,
    images: Any,
    *,
    prompt: str | None = None,
    batch_size: int = 32,
    progress: bool = False,
    **generate_kwargs: Any,
) -> list[str]:
    """Caption images.

    Args:
        model: A captioner that can ``generate`` from what its image processor gives, a ``PreTrainedModel`` or a PEFT
            model around one. It is put into evaluation mode for the call and left as it was.
        processor: Tokenizer and image processor of the model: a :class:`CaptionProcessor`, a pair of the two, or one
            processor that has both.
        images: One image or any number of them: PIL images, paths, addresses or bytes of image files, or the image
            column of a data set (``dataset["image"]``).
        prompt: What a chat model is asked, see :func:`captioner_for`; the prompt that its processor has or was saved
            with if not given.
        batch_size: Images that are captioned at once.
        progress: Whether to show a progress bar.
        **generate_kwargs: Arguments of ``model.generate``. Unless given, captions come from a beam search with three
            beams, without sampling, and have at most 64 tokens, or as many as ``processor`` allows.

    Returns:
        One caption for each image, in their order. One image gives a list of one.

    Raises:
        ValueError: If ``batch_size`` is less than 1, several captions per image or more than texts are asked for, or
            an image does not open.
        TypeError: If the model cannot generate, or ``images`` is not what is accepted.
    """
    _with_generate(model)
    _skip_none(generate_kwargs)
    captioner = captioner_for(model, processor, prompt=prompt)
    found = stream_captions(captioner, images, batch_size=batch_size, progress=progress, **generate_kwargs)
    return [one.caption for one in found]


def caption_with(
    captioner: Captioner, images: Any, *, return_log_probs: bool = False, **options: Any
) -> str | ScoredCaption | list[str] | list[ScoredCaption]:
    """See :meth:`Captioner.caption`."""
    if isinstance(images, (str, os.PathLike)) and os.path.isdir(images):
        raise ValueError(
            f"{os.fspath(images)} is a folder; captioner.stream({os.fspath(images)!r}) captions its images one after "
            "the other"
        )
    _skip_none(options)
    found = stream_captions(captioner, images, return_log_probs=return_log_probs, **options)
    if return_log_probs:
        scored = [ScoredCaption(one.caption, one.log_prob) for one in found if one.log_prob is not None]
        return scored[0] if is_one_image(images) else scored
    captions = [one.caption for one in found]
    return captions[0] if is_one_image(images) else captions


def _skip_none(options: dict[str, Any]) -> None:
    """Refuse to leave images out where captions belong to images by their place."""
    if options.pop("on_bad_image", "raise") != "raise":
        raise ValueError(
            "images are skipped by captioner.stream(images, on_bad_image='skip') alone, which gives each caption with "
            "its image; here there is one caption for each image"
        )


def stream_captions(
    captioner: Captioner,
    images: Any,
    *,
    batch_size: int = 32,
    progress: bool = False,
    return_log_probs: bool = False,
    on_bad_image: str = "raise",
    **generate_kwargs: Any,
) -> Iterator[CaptionedImage]:
    """See :meth:`Captioner.stream`; what is wrong with the arguments is said at once, and not with the first image."""
    _with_generate(captioner.model)
    if batch_size < 1:
        raise ValueError(f"Got batch_size={batch_size}. Accepted: 1 or more.")
    if on_bad_image not in ("raise", "skip"):
        raise ValueError(f"on_bad_image is {on_bad_image!r}, but must be 'raise' or 'skip'")
    if generate_kwargs.get("num_return_sequences", 1) != 1:
        raise ValueError(
            f"Got num_return_sequences={generate_kwargs['num_return_sequences']}, but each image gets one caption "
            "here. Call model.generate for more."
        )
    if generate_kwargs.get("return_dict_in_generate"):
        raise ValueError(
            "Got return_dict_in_generate=True, but captions are texts here. Call model.generate for scores and states."
        )
    arguments = generate_arguments(captioner, generate_kwargs)
    folder = isinstance(images, (str, os.PathLike)) and os.path.isdir(images)
    items = image_files(images) if folder else iterate_images(images)
    total = _length(items)
    if folder and progress:
        total = sum(1 for _ in image_files(images))
    bar = tqdm(total=total, desc="captions", unit=" images", disable=not progress)
    return _captioned(captioner, items, batch_size, on_bad_image, return_log_probs, arguments, bar)


def _captioned(
    captioner: Captioner,
    items: Iterable[Any],
    batch_size: int,
    on_bad_image: str,
    scored: bool,
    arguments: dict[str, Any],
    bar: Any,
) -> Iterator[CaptionedImage]:
    with bar:
        for batch in _batches(enumerate(items), batch_size):
            opened, pixels = _read(captioner.processor, _opened(batch, on_bad_image), on_bad_image)
            if opened:
                captions, log_probs = _written(captioner, pixels, scored, arguments)
                for (_, given, _), caption, log_prob in zip(opened, captions, log_probs, strict=True):
                    yield CaptionedImage(given, caption, log_prob)
            bar.update(len(batch))


def _opened(batch: list[tuple[int, Any]], on_bad_image: str) -> list[_Opened]:
    """The images of a batch, opened; those that do not open are left out if that is wanted."""
    opened = []
    for number, given in batch:
        try:
            opened.append((number, given, open_numbered(given, number)))
        except BadImageError as error:
            _refuse(error, on_bad_image)
    return opened


def _read(processor: CaptionProcessor, opened: list[_Opened], on_bad_image: str) -> tuple[list[_Opened], Images]:
    """What the image processor makes of images, and of which; those that it refuses are left out if that is wanted."""
    try:
        return opened, processor.process_images([picture for *_, picture in opened]) if opened else {}
    except IMAGE_PROCESSOR_ERRORS:
        refused = refused_images(processor.process_images, [picture for *_, picture in opened])
        if not refused:
            raise
    for place, why in refused.items():
        _refuse(BadImageError(f"Image {opened[place][0]}: {why}"), on_bad_image)
    return _read(processor, [one for place, one in enumerate(opened) if place not in refused], on_bad_image)


def _refuse(error: BadImageError, on_bad_image: str) -> None:
    if on_bad_image == "raise":
        raise error
    logger.warning("skipped: %s", error)


def _written(
    captioner: Captioner, pixels: Images, scored: bool, arguments: dict[str, Any]
) -> tuple[list[str], list[float] | list[None]]:
    """The captions of images, and their likelihoods if these are wanted.

    The modes of the model and of autograd are set for the call alone: a stream may be left at any image.
    """
    base, processor = captioner.base_model, captioner.processor
    with evaluation_mode(base), torch.no_grad():
        inputs = captioner.placed(pixels)
        captions = processor.decode(captioner.generate(inputs, **arguments), _stops(captioner, arguments))
        return captions, _log_probs(captioner, inputs, captions) if scored else [None] * len(captions)


def _log_probs(captioner: Captioner, inputs: Images, captions: list[str]) -> list[float]:
    """The likelihood of each caption as training and self-retrieval score it: of its text, tokenized anew."""
    tokenized = captioner.processor.tokenize(captions)
    if any(tokenized.cut):
        logger.warning(
            "%d captions have more than the %s tokens that can be scored, and only these are",
            sum(tokenized.cut),
            captioner.processor.max_caption_tokens,
        )
    batch = caption_batch(tokenized.input_ids, range(len(captions)), captioner.device)
    scores: list[float] = captioner.log_probs(captioner.model, inputs, batch).tolist()
    return scores


def describe_decoding(processor: CaptionProcessor, generate_kwargs: dict[str, Any]) -> str:
    """Say in words how :func:`caption_images` decodes with these arguments."""
    if "generation_config" in generate_kwargs:
        return "captions generated by a generation_config of the user's"
    arguments = _chosen_arguments(processor, generate_kwargs)
    beams = arguments.pop("num_beams")
    ways = {
        (False, True): "greedily",
        (False, False): f"by beam search with {beams} beams",
        (True, True): "by sampling",
        (True, False): f"by sampling with {beams} beams",
    }
    way = ways[bool(arguments.pop("do_sample")), beams == 1]
    special = ("eos_token_id", "pad_token_id")
    others = ", ".join(f"{name}={value}" for name, value in sorted(arguments.items()) if name not in special)
    asked = f", asked {processor.prompt!r}" if isinstance(processor, PromptProcessor) and processor.prompt else ""
    return f"captions generated {way}, {others}{asked}"


def _with_generate(model: nn.Module) -> None:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not (isinstance(base, PreTrainedModel) and base.can_generate()):
        raise TypeError(f"Got a {type(base).__name__}. Captions need a transformers model that has generate().")


def generate_arguments(captioner: Captioner, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of :meth:`Captioner.generate` for those that were given to :func:`caption_images`."""
    arguments = _chosen_arguments(captioner.processor, given)
    if "generation_config" not in given:
        arguments.setdefault("eos_token_id", captioner.stop_token_ids)
    return arguments


def _chosen_arguments(processor: CaptionProcessor, given: dict[str, Any]) -> dict[str, Any]:
    """How captions are decoded; where they stop is up to the captioner."""
    arguments = dict(given)
    if "generation_config" not in given:
        arguments = {"num_beams": NUM_BEAMS, "do_sample": False, **arguments}
        padding = processor.tokenizer.pad_token_id
        arguments.setdefault("pad_token_id", processor.end_token_id if padding is None else padding)
    if not any(name in given for name in _LENGTH_ARGUMENTS):
        arguments["max_new_tokens"] = min(MAX_NEW_TOKENS, processor.max_caption_tokens or MAX_NEW_TOKENS)
    return arguments


def _stops(captioner: Captioner, arguments: dict[str, Any]) -> list[int]:
    """The tokens at which ``generate`` stops with these arguments."""
    config = setting(arguments.get("generation_config"), "eos_token_id")
    return token_ids(arguments.get("eos_token_id", config)) or captioner.stop_token_ids


def _length(items: Iterable[Any]) -> int | None:
    try:
        return len(items)  # type: ignore[arg-type]  # an iterator has none
    except TypeError:
        return None


def _batches(items: Iterable[Any], batch_size: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while batch := list(islice(rest, batch_size)):
        yield batch
