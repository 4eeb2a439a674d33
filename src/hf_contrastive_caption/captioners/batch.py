"""The one type in which captions travel: ragged and flat, without padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

Images = dict[str, Tensor]
"""What a family's image processor gives for a batch of images, or what :meth:`Captioner.encode` made of it."""


class Padding(NamedTuple):
    """What stands in the second dimension of images that are smaller there than others of a batch.

    Attributes:
        value: The number.
        left: Whether it stands before the image's own.
    """

    value: int
    left: bool = False


def join_images(parts: Sequence[Images], padding: Mapping[str, Padding]) -> Images:
    """Put images of several batches together, along the first dimension.

    Args:
        parts: The batches, each with the same names.
        padding: What may be of different sizes in the second dimension, and what is put there.

    Raises:
        ValueError: Something else is of different sizes.
    """
    return {name: _joined(name, [part[name] for part in parts], padding.get(name)) for name in parts[0]}


def _joined(name: str, values: list[Tensor], padding: Padding | None) -> Tensor:
    if padding is not None:
        widest = max(value.shape[1] for value in values)
        values = [_widened(value, widest, padding) for value in values]
    sizes = {tuple(value.shape[1:]) for value in values}
    if len(sizes) > 1:
        raise ValueError(
            f"{name} has different sizes for different images ({', '.join(map(str, sorted(sizes)[:3]))}), and only "
            "what is of one size can be kept on disk; let the image processor make images of one size, or leave "
            "cache_vision_states out"
        )
    return torch.cat(values)


def _widened(value: Tensor, width: int, padding: Padding) -> Tensor:
    if value.shape[1] == width:
        return value
    blank = value.new_full((value.shape[0], width - value.shape[1], *value.shape[2:]), padding.value)
    return torch.cat([blank, value] if padding.left else [value, blank], dim=1)


class CaptionBatch(TypedDict):
    """Any number of captions for any number of images; at run time a plain dict of tensors.

    Being a plain dict it is moved to a device by Trainer and Accelerate as it is. 1 + K captions per image, all pairs
    of a self-retrieval and several positives per image are all the same type. Padding exists only inside a captioner
    that needs it.

    Attributes:
        input_ids: The tokens of all captions one after the other, (n_tokens,). A caption ends with its end token and
            does not contain a start token.
        lengths: Number of tokens of each caption, (n_captions,).
        image_index: Which image of the batch each caption is scored against, (n_captions,).
    """

    input_ids: Tensor
    lengths: Tensor
    image_index: Tensor


def caption_batch(
    input_ids: Sequence[Sequence[int]], image_index: Sequence[int], device: torch.device | str | None = None
) -> CaptionBatch:
    """Put tokenized captions into a :class:`CaptionBatch`.

    Args:
        input_ids: Token ids of each caption, end token included, n_captions lists.
        image_index: The image that each caption belongs to, (n_captions,).
        device: Where the tensors shall be.

    Raises:
        ValueError: If there are not as many images as captions, or a caption has no token.
    """
    if len(input_ids) != len(image_index):
        raise ValueError(
            f"caption_batch takes one image index per caption, but was given {len(input_ids)} captions and "
            f"{len(image_index)} image indices"
        )
    empty = [number for number, ids in enumerate(input_ids) if not ids]
    if empty:
        raise ValueError(f"caption {empty[0]} has no tokens; a caption has at least its end token")
    return CaptionBatch(
        input_ids=torch.tensor([token for ids in input_ids for token in ids], dtype=torch.long, device=device),
        lengths=torch.tensor([len(ids) for ids in input_ids], dtype=torch.long, device=device),
        image_index=torch.tensor(list(image_index), dtype=torch.long, device=device),
    )
