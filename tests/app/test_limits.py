"""What the page refuses, before anything is decoded."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_contrastive_caption.app.limits import AppLimits, RefusedError, check_file, open_files

LIMITS = AppLimits(max_images=2, max_upload_mb=0.05, max_megapixels=0.01)


def saved(folder: Path, name: str, size: tuple[int, int], mode: str = "RGB", **options) -> str:
    path = folder / name
    Image.new(mode, size, 255 if mode == "L" else (10, 200, 30, 0)[: len(mode)]).save(path, **options)
    return str(path)


def png_header(folder: Path, width: int, height: int) -> str:
    """A PNG of a few bytes that says it has so many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    path = folder / "bomb.png"
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    return str(path)


def test_images_are_opened_as_rgb(tmp_path):
    paths = [saved(tmp_path, "a.png", (10, 20), "RGBA"), saved(tmp_path, "b.jpg", (100, 100))]
    opened = open_files(paths, LIMITS)
    assert [(image.mode, image.size) for image in opened] == [("RGB", (10, 20)), ("RGB", (100, 100))]
    assert opened[0].getpixel((0, 0)) == (255, 255, 255)  # what is transparent stands on white


@pytest.mark.parametrize("size", [(101, 100), (20_000, 5_000), (60_000, 60_000)])
def test_too_many_pixels(tmp_path, size):
    with pytest.raises(RefusedError, match=r"bomb\.png has (too many pixels|.* megapixels); at most 0\.01"):
        check_file(png_header(tmp_path, *size), LIMITS)


def test_pixels_are_counted_before_any_image_is_decoded(tmp_path, monkeypatch):
    def decode(*arguments, **named):
        raise AssertionError("decoded")

    good = saved(tmp_path, "a.png", (10, 10))
    monkeypatch.setattr(Image.Image, "load", decode)
    with pytest.raises(RefusedError, match="megapixels"):
        open_files([good, png_header(tmp_path, 500, 500)], LIMITS)


def test_a_file_that_is_too_large(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (99, 99, 7), dtype=np.uint8)
    (tmp_path / "a.bin").write_bytes(noise.tobytes())
    with pytest.raises(RefusedError, match=r"^a\.bin has 0\.1 MB; at most 0\.05 MB are taken\. Make it smaller\.$"):
        check_file(str(tmp_path / "a.bin"), LIMITS)


def test_too_many_images(tmp_path):
    path = saved(tmp_path, "a.png", (4, 4))
    with pytest.raises(RefusedError, match="^3 images were given; at most 2 are taken at once.$"):
        open_files([path] * 3, LIMITS)


def test_what_is_no_image(tmp_path):
    (tmp_path / "a.png").write_text("<svg xmlns='http://www.w3.org/2000/svg'></svg>")
    saved(tmp_path, "b.eps", (4, 4))  # its reader starts another program
    saved(tmp_path, "c.ppm", (4, 4))
    for name in ("a.png", "b.eps", "c.ppm"):
        with pytest.raises(RefusedError, match=rf"{name} is no image; taken are .*JPEG, PNG"):
            check_file(str(tmp_path / name), LIMITS)
    with pytest.raises(RefusedError, match=r"gone\.png is no longer here; drop it again"):
        check_file(str(tmp_path / "gone.png"), LIMITS)


def test_a_damaged_image(tmp_path):
    path = Path(saved(tmp_path, "a.png", (90, 90)))
    path.write_bytes(path.read_bytes()[:60])
    check_file(str(path), LIMITS)
    with pytest.raises(RefusedError, match=r"a\.png is damaged: it begins as PNG, but cannot be read"):
        open_files([str(path)], LIMITS)


@pytest.mark.parametrize("name", ["max_images", "max_upload_mb", "max_megapixels", "max_beams", "max_queue"])
def test_limits_are_above_0(name):
    with pytest.raises(ValueError, match=f"{name} is 0, but must be above 0"):
        AppLimits(**{name: 0})
