"""Captions for images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from os import PathLike
from typing import Any

import torch
from peft import PeftModel
from PIL import Image
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from hf_contrastive_caption.captioners.determinism import evaluation_mode
from hf_contrastive_caption.captioners.registry import Processing, captioner_for
from hf_contrastive_caption.data.images import open_image
from hf_contrastive_caption.processing import CaptionProcessor

NUM_BEAMS = 3
MAX_NEW_TOKENS = 64
"""Longest caption in tokens that is generated unless told otherwise; fewer where the processor says so."""

_LENGTH_ARGUMENTS = ("max_new_tokens", "max_length", "generation_config")


def caption_images(
    model: nn.Module,
    processor: CaptionProcessor | Processing,
    images: Any,
    *,
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
        batch_size: Images that are captioned at once.
        progress: Whether to show a progress bar.
        **generate_kwargs: Arguments of ``model.generate``. Unless given, captions come from a beam search with three
            beams, without sampling, and have at most 64 tokens, or as many as ``processor`` allows.

    Returns:
        One caption for each image, in their order. One image gives a list of one.

    Raises:
        ValueError: If ``batch_size`` is less than 1, several captions per image are asked for, or an image does not
            open.
        TypeError: If the model cannot generate, or ``images`` is not what is accepted.
    """
    captioner = _with_generate(model)
    if batch_size < 1:
        raise ValueError(f"Got batch_size={batch_size}. Accepted: 1 or more.")
    if generate_kwargs.get("num_return_sequences", 1) != 1:
        raise ValueError(
            f"Got num_return_sequences={generate_kwargs['num_return_sequences']}, but each image gets one caption "
            "here. Call model.generate for more."
        )
    if not isinstance(processor, CaptionProcessor):
        processor = captioner_for(model, processor).processor
    arguments = _generate_arguments(processor, generate_kwargs)
    items = _as_iterable(images)
    captions: list[str] = []
    with evaluation_mode(captioner), torch.no_grad():
        with tqdm(total=_length(items), desc="captions", disable=not progress) as bar:
            for batch in _batches(items, batch_size):
                opened = [_open(image, len(captions) + offset) for offset, image in enumerate(batch)]
                inputs = _placed(processor.process_images(opened), captioner)
                sequences = captioner.generate(**inputs, **arguments)  # (n_images, n_tokens)
                captions += processor.decode(sequences)
                bar.update(len(batch))
    return captions


def _with_generate(model: nn.Module) -> Any:
    """The transformers model itself, adapters of PEFT inside of it; ``Any``, as ``generate`` types its ``self``."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not (isinstance(base, PreTrainedModel) and base.can_generate()):
        raise TypeError(f"Got a {type(base).__name__}. Captions need a transformers model that has generate().")
    return base


def _placed(images: dict[str, torch.Tensor], model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """On the model's device, and pixels in its dtype, which not every encoder sees to."""
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in images.items()
    }


def _generate_arguments(processor: CaptionProcessor, given: dict[str, Any]) -> dict[str, Any]:
    arguments = dict(given)
    if "generation_config" not in given:
        arguments = {"num_beams": NUM_BEAMS, "do_sample": False, "eos_token_id": processor.end_token_id, **arguments}
        padding = processor.tokenizer.pad_token_id
        arguments.setdefault("pad_token_id", processor.end_token_id if padding is None else padding)
    if not any(name in given for name in _LENGTH_ARGUMENTS):
        arguments["max_new_tokens"] = min(MAX_NEW_TOKENS, processor.max_caption_tokens or MAX_NEW_TOKENS)
    return arguments


def _as_iterable(images: Any) -> Iterable[Any]:
    if isinstance(images, (Image.Image, str, bytes, bytearray, dict, PathLike)):
        return [images]
    if isinstance(images, Iterable):
        return images
    raise TypeError(
        f"Got a {type(images).__name__} as images. Accepted: a PIL image, a path or address, the bytes of a file, a "
        "list of these, or the image column of a data set, as in dataset['image']."
    )


def _length(items: Iterable[Any]) -> int | None:
    try:
        return len(items)  # type: ignore[arg-type]  # an iterator has none
    except TypeError:
        return None


def _batches(items: Iterable[Any], batch_size: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while batch := list(islice(rest, batch_size)):
        yield batch


def _open(image: Any, number: int) -> Image.Image:
    if isinstance(image, dict) and "bytes" not in image and "path" not in image:
        raise TypeError(
            f"Image {number} is a row with the columns {', '.join(map(str, image))}. Pass the image column of the "
            "data set, as in dataset['image']."
        )
    try:
        return open_image(image)
    except ValueError as error:
        raise ValueError(f"Image {number} of the images to caption: {error}") from error
