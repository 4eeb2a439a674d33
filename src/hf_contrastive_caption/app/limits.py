"""What the page takes: how many images of which kinds and sizes, checked before any is decoded."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields

from PIL import Image

from hf_contrastive_caption.data.images import BadImageError, to_rgb

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""What is opened: formats of photographs, and none whose reader starts another program, such as EPS."""

_UNREADABLE = (OSError, SyntaxError, ValueError, LookupError, ArithmeticError, TypeError, Image.DecompressionBombError)


class RefusedError(ValueError):
    """What a person gave the page is not taken. The message says what was given, what is accepted and the way out."""


@dataclass(frozen=True)
class AppLimits:
    """What one visitor may ask of the page.

    Args:
        max_images: Images at once.
        max_upload_mb: Size of an image file in MB of 2**20 bytes.
        max_megapixels: Width times height of an image in millions of pixels. An image takes 3 bytes for each while
            it is captioned, whatever the size of its file.
        max_beams: Beams of the search.
        max_queue: Visitors' requests that wait for the captioners; further ones are refused.
        max_characters: Length of a caption that is typed.

    Raises:
        ValueError: If one of them is not above 0.
    """

    max_images: int = 12
    max_upload_mb: float = 20.0
    max_megapixels: float = 40.0
    max_beams: int = 8
    max_queue: int = 16
    max_characters: int = 500

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name} is {getattr(self, field.name)}, but must be above 0")

    @property
    def max_upload_bytes(self) -> int:
        """Size of an image file in bytes."""
        return int(self.max_upload_mb * 2**20)

    def check_number(self, number: int) -> None:
        """Refuse too many images.

        Raises:
            RefusedError: If there are more than :attr:`max_images`.
        """
        if number > self.max_images:
            raise RefusedError(f"{number} images were given; at most {self.max_images} are taken at once.")


def check_file(path: str, limits: AppLimits) -> None:
    """Refuse an image by the size of its file and by its header; no pixel is decoded.

    Raises:
        RefusedError: If it is too large, has too many pixels, or is no image of a known format.
    """
    _opened(path, limits).close()


def open_files(paths: Sequence[str], limits: AppLimits) -> list[Image.Image]:
    """Open images as RGB, after all of them were checked.

    Args:
        paths: Image files, (n_images,).
        limits: What is taken.

    Raises:
        RefusedError: As for :func:`check_file`, or if there are too many, or an image is damaged.
    """
    limits.check_number(len(paths))
    for path in paths:
        check_file(path, limits)
    return [_decoded(path, limits) for path in paths]


def _decoded(path: str, limits: AppLimits) -> Image.Image:
    with _opened(path, limits) as image:
        try:
            return to_rgb(image)
        except (*_UNREADABLE, BadImageError) as error:
            raise RefusedError(
                f"{_name(path)} is damaged: it begins as {image.format}, but cannot be read."
            ) from error


def _opened(path: str, limits: AppLimits) -> Image.Image:
    """An image of which the header alone is read, if it is small enough."""
    try:
        size = os.path.getsize(path)
    except OSError as error:
        raise RefusedError(f"{_name(path)} is no longer here; drop it again.") from error
    if size > limits.max_upload_bytes:
        raise RefusedError(
            f"{_name(path)} has {size / 2**20:.1f} MB; at most {limits.max_upload_mb:g} MB are taken. Make it smaller."
        )
    Image.init()
    known = tuple(name for name in FORMATS if name in Image.OPEN)  # AVIF only since Pillow 11.3
    try:
        with warnings.catch_warnings():  # the limit here is ours
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=known)
    except Image.DecompressionBombError as error:
        raise RefusedError(
            f"{_name(path)} has too many pixels; at most {limits.max_megapixels:g} megapixels are taken. "
            "Make it smaller."
        ) from error
    except _UNREADABLE as error:
        raise RefusedError(f"{_name(path)} is no image; taken are {', '.join(known)}.") from error
    pixels = image.width * image.height
    if pixels > limits.max_megapixels * 1e6:
        image.close()
        raise RefusedError(
            f"{_name(path)} has {image.width} × {image.height} pixels, {pixels / 1e6:.3g} megapixels; at most "
            f"{limits.max_megapixels:g} are taken. Make it smaller."
        )
    return image


def _name(path: str) -> str:
    return os.path.basename(path)
