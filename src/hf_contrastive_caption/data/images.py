"""Opening images of any kind as RGB.

Captioners take RGB. What people have is palettes with a transparent colour, scans with 16 bits a pixel, CMYK prints
and telephone photographs that lie on their side; ``PIL.Image.convert("RGB")`` alone turns transparency black, clips
16 bits at 255 and forgets the rotation.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms

#: What Pillow's decoders raise on damaged files.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    ArithmeticError,
    LookupError,
    TypeError,
    EOFError,
    RuntimeError,  # of AVIF
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

#: How pixels are turned for an EXIF orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

IMAGE_ENDINGS = frozenset(
    ".apng .avif .bmp .gif .ico .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif .tiff .webp".split()
)
"""Endings of the names of files that are taken for images in a folder."""


class BadImageError(ValueError):
    """An image does not open. The message names the row, as far as it is known, and what is wrong."""


def open_image(value: Any) -> Image.Image:
    """Open an image as RGB.

    Args:
        value: What an image column holds: a ``PIL.Image``, the bytes of a file, a path, or the
            ``{"bytes": ..., "path": ...}`` of ``datasets.Image(decode=False)``, where the path may be remote.

    Returns:
        The image in mode RGB, upright.

    Raises:
        BadImageError: The value is none of these, the file is missing, or it cannot be decoded.
    """
    try:
        if isinstance(value, Image.Image):
            return to_rgb(value)
        with _open_file(value) as image:
            return to_rgb(image)
    except BadImageError:
        raise
    except _DECODER_ERRORS as error:
        raise BadImageError(f"{describe(value)} does not open: {type(error).__name__}: {error}") from error


def open_numbered(value: Any, number: int) -> Image.Image:
    """Open one of several images, as :func:`open_image` does.

    Raises:
        TypeError: The value is a row of a data set.
        BadImageError: The image does not open; the message has its number.
    """
    if isinstance(value, dict) and "bytes" not in value and "path" not in value:
        raise TypeError(
            f"Image {number} is a row with the columns {', '.join(map(str, value))}. Pass the image column of the "
            "data set, as in dataset['image']."
        )
    try:
        return open_image(value)
    except BadImageError as error:
        raise BadImageError(f"Image {number}: {error}") from error


def iterate_images(images: Any) -> Iterable[Any]:
    """One image or any number of them as something to iterate over.

    Raises:
        TypeError: For anything that holds no images.
    """
    if is_one_image(images):
        return [images]
    if isinstance(images, Iterable):
        return images
    raise TypeError(
        f"Got a {type(images).__name__} as images. Accepted: a PIL image, a path or address, the bytes of a file, a "
        "list of these, or the image column of a data set, as in dataset['image']."
    )


def is_one_image(images: Any) -> bool:
    """Whether a value stands for one image, and not for any number of them."""
    return isinstance(images, (Image.Image, str, bytes, bytearray, dict, os.PathLike))


def image_files(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """The image files in a folder and the folders in it, by their endings, in the order of their names.

    The names of one folder at a time are held. What begins with a dot is passed over.

    Raises:
        ValueError: If there is no such folder.
    """
    top = Path(folder)
    if not top.is_dir():
        raise ValueError(f"there is no folder {str(top)!r}")
    for path, folders, names in os.walk(top):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_ENDINGS:
                yield Path(path) / name


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB, upright.

    Transparency is laid on white. Of the modes with more than 8 bits, ``I;16`` is scaled by 255/65535. ``I`` and ``F``
    do not say their range, so the values decide: within [0, 255] they are kept (``F`` within [0, 1] is multiplied by
    255), ``I`` within [0, 65535] is scaled as 16 bits, everything else is stretched from its minimum and maximum.

    Args:
        image: An image in any of Pillow's modes.

    Returns:
        A new image in mode RGB, rotated as its EXIF orientation says.

    Raises:
        BadImageError: The image has no pixels.
    """
    if 0 in image.size:
        raise BadImageError(f"an image of {image.width} × {image.height} pixels; it must have at least one pixel")
    image = _upright(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if image.mode == "LAB":
        return _lab_to_rgb(image)
    premultiplied = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
    if premultiplied is not None:
        image = image.convert(premultiplied)
    if image.mode in ("RGBA", "LA", "PA") or _has_transparent_colours(image):
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.copy() if image.mode == "RGB" else image.convert("RGB")


def image_hash(value: Any) -> int:
    """Hash an image without decoding it, so that rows with the same file have the same number.

    Args:
        value: As for :func:`open_image`. Bytes and local files are hashed by their bytes, ``PIL`` images by their
            pixels, remote files by their address (they are not downloaded for this).

    Returns:
        An unsigned 64-bit number.

    Raises:
        BadImageError: There is nothing to hash: no value, or a local file that cannot be read.
    """
    if isinstance(value, Image.Image):
        return hash64(repr((value.mode, value.size)).encode() + value.tobytes())
    content, path = _content(value)
    if content is None and path is not None:
        if not _is_local(path):
            return hash64(path.encode())
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise BadImageError(f"{describe(value)} cannot be read: {type(error).__name__}: {error}") from error
    assert content is not None
    return hash64(content)


def file_states(column: pa.ChunkedArray) -> bytes:
    """Path, size and time of change of every local image file that a column names without holding its bytes.

    Args:
        column: Images as ``datasets`` stores them, or paths. A file that is missing counts as missing.
    """
    found = []
    for chunk in column.chunks:
        paths = chunk
        if pa.types.is_struct(chunk.type):
            paths = pc.struct_field(chunk, "path").filter(pc.is_null(pc.struct_field(chunk, "bytes")))
        for path in (
            paths.to_pylist() if pa.types.is_string(paths.type) or pa.types.is_large_string(paths.type) else ()
        ):
            if path is not None and _is_local(path):
                found.append(f"{path} {_file_state(path)}")
    return "\n".join(found).encode()


def hash64(content: bytes) -> int:
    """Hash bytes to an unsigned 64-bit number (BLAKE2b)."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def describe(value: Any) -> str:
    """Name the value of an image column in a few words, for error messages."""
    if isinstance(value, dict):
        content, path = value.get("bytes"), value.get("path")
        if content is None:
            return f"the file {path!r}" if path else "an empty image value"
        return f"an image of {len(content)} bytes" + (f" ({path})" if path else "")
    if isinstance(value, (bytes, bytearray)):
        return f"an image of {len(value)} bytes"
    if isinstance(value, (str, os.PathLike)):
        return f"the file {os.fspath(value)!r}"
    return "an empty image value" if value is None else f"a value of type {type(value).__name__}"


def _content(value: Any) -> tuple[bytes | None, str | None]:
    """The bytes and the path that a value holds, at least one of them."""
    content: bytes | None = None
    path: str | None = None
    if isinstance(value, dict):
        content, path = value.get("bytes"), value.get("path")
    elif isinstance(value, (bytes, bytearray)):
        content = bytes(value)
    elif isinstance(value, (str, os.PathLike)):
        path = os.fspath(value)
    if content is None and not path:
        raise BadImageError(
            f"{describe(value)} is no image: accepted are PIL images, bytes of an image file, paths, and the "
            "{'bytes', 'path'} values of a datasets.Image column"
        )
    return content, path


def _open_file(value: Any) -> Image.Image:
    content, path = _content(value)
    if content is not None:
        return Image.open(BytesIO(content))
    assert path is not None
    if _is_local(path):
        return Image.open(path)
    image: Image.Image = datasets.Image().decode_example({"bytes": None, "path": path})
    return image


def _is_local(path: str) -> bool:
    return "://" not in path


def _file_state(path: str) -> str:
    try:
        state = os.stat(path)
    except (OSError, ValueError):  # a path that the system cannot even look for
        return "missing"
    return f"{state.st_size} {state.st_mtime_ns}"


def _upright(image: Image.Image) -> Image.Image:
    """The pixels turned as the EXIF orientation says.

    The other EXIF entries are not touched: damaged ones, which ``ImageOps.exif_transpose`` writes anew and raises on,
    are no reason to refuse good pixels.
    """
    image.load()  # an orientation may stand behind the pixels
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except _DECODER_ERRORS:
        return image
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _has_transparent_colours(image: Image.Image) -> bool:
    """Whether some colours of an image without an alpha channel are see-through."""
    if image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A"):
        return True
    return "transparency" in image.info and image.mode in ("1", "L", "P", "RGB")


def _eight_bits(image: Image.Image) -> NDArray[np.uint8]:
    pixels = np.asarray(image)  # (height, width)
    if image.mode.startswith("I;16"):
        return ((pixels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    values = np.nan_to_num(pixels.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 65535 or (image.mode == "F" and high > 255):
        values = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    elif image.mode == "F" and high <= 1:
        values = values * 255
    elif high > 255:
        values = values * (255 / 65535)
    return np.rint(values).astype(np.uint8)


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    converted = ImageCms.profileToProfile(
        image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert converted is not None
    return converted
