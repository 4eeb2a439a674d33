"""Small pictures for a page that has no other files."""

from __future__ import annotations

import base64
import io

from PIL import Image

SIZE = 224
"""Longest side in pixels."""

MAX_BYTES = 9_000
"""Largest thumbnail: 1,000 of them take 12 MB in a page, where four characters stand for three bytes."""

_QUALITIES = (72, 60, 48, 36, 24)


def thumbnail(image: Image.Image, size: int = SIZE, max_bytes: int = MAX_BYTES) -> bytes:
    """Encode an image anew and small, as WebP; nothing of the file that it came from is left, such as where it was.

    Args:
        image: An RGB image.
        size: Longest side in pixels; smaller images are not enlarged.
        max_bytes: The quality is lowered, and then the size, until the file is no larger.
    """
    small = image.copy()
    small.thumbnail((size, size))  # leaves at least a pixel of the shorter side
    while True:
        for quality in _QUALITIES:
            written = io.BytesIO()
            small.save(written, format="WEBP", quality=quality, method=4, exif=b"", icc_profile=None, xmp=b"")
            if written.tell() <= max_bytes:
                return written.getvalue()
        small = small.resize((max(1, small.width * 3 // 4), max(1, small.height * 3 // 4)))


def data_uri(content: bytes) -> str:
    """A WebP file as the address of itself."""
    return f"data:image/webp;base64,{base64.b64encode(content).decode()}"
