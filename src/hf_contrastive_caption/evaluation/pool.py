"""The images that an evaluation is about: opened when they are needed, and told apart by their pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, overload

import datasets
import numpy as np
import numpy.typing as npt
from PIL import Image

from hf_contrastive_caption.data.images import iterate_images, open_numbered


class ImagePool:
    """A sequence of images that are opened as RGB when they are asked for.

    Args:
        images: PIL images, paths, addresses or bytes of image files, or the image column of a data set
            (``dataset["image"]``).
        numbers: What the message calls an image that does not open, (n_images,); its place if not given.

    Raises:
        TypeError: If ``images`` is not what is accepted, or a whole data set.
        ValueError: If there is no image.
    """

    def __init__(self, images: Any, numbers: Sequence[int] | None = None) -> None:
        if isinstance(images, (datasets.Dataset, datasets.IterableDataset, dict)) and not _is_image(images):
            raise TypeError("Got a data set as images. Pass its image column, as in dataset['image'].")
        items = iterate_images(images)
        self._items: Sequence[Any] = items if isinstance(items, Sequence) else list(items)
        if not len(self._items):
            raise ValueError("There are no images; give at least one.")
        self._numbers = range(len(self._items)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, number: int) -> Image.Image:
        return open_numbered(self._items[number], self._numbers[number])

    def __iter__(self) -> Iterator[Image.Image]:
        return (self[number] for number in range(len(self)))

    def select(self, numbers: Sequence[int]) -> ImagePool:
        """Some of the images, opened when they are asked for, under the numbers that they have here."""
        return ImagePool(_Selected(self._items, list(numbers)), [self._numbers[number] for number in numbers])

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """A hash of the size and pixels of each image."""
        return tuple(
            hashlib.blake2b(repr(image.size).encode() + image.tobytes(), digest_size=16).hexdigest() for image in self
        )

    @cached_property
    def distinct(self) -> npt.NDArray[np.int64]:
        """Number of the first image with the pixels of each image, (n_images,): its own where they are new."""
        first: dict[str, int] = {}
        return np.array([first.setdefault(digest, number) for number, digest in enumerate(self.digests)])

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all images in their order."""
        return hashlib.blake2b("".join(self.digests).encode(), digest_size=16).hexdigest()


class _Selected(Sequence[Any]):
    """Some items of a sequence, looked up when they are asked for."""

    def __init__(self, items: Sequence[Any], numbers: list[int]) -> None:
        self._items, self._numbers = items, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> Any: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Any]: ...

    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, slice):
            return _Selected(self._items, self._numbers[place])
        return self._items[self._numbers[place]]


def _is_image(value: Any) -> bool:
    return isinstance(value, dict) and ("bytes" in value or "path" in value)
