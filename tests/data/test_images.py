"""Images of every mode become RGB with the pixels that they show."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, features

from hf_contrastive_caption.data.images import (
    BadImageError,
    describe,
    file_states,
    image_hash,
    iterate_images,
    open_image,
    open_numbered,
    to_rgb,
)

from .conftest import png


def pixels(image):
    assert image.mode == "RGB"
    return np.asarray(image).tolist()


def encoded(image, format="PNG", **options):
    buffer = BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


GREY_CASES = {
    "1": (Image.new("1", (1, 1), 1), 255),
    "L": (Image.new("L", (1, 1), 100), 100),
    "LA": (Image.new("LA", (1, 1), (0, 0)), 255),
    "LA half": (Image.new("LA", (1, 1), (0, 127)), 128),
    "La": (Image.new("LA", (1, 1), (100, 255)).convert("La"), 100),
    "I small": (Image.new("I", (1, 1), 200), 200),
    "I 16 bit": (Image.new("I", (1, 1), 51400), 200),
    "F unit": (Image.new("F", (1, 1), 0.2), 51),
    "F bytes": (Image.new("F", (1, 1), 51.0), 51),
    "F constant outside": (Image.new("F", (1, 1), 1e6), 0),
}


@pytest.mark.parametrize("name", GREY_CASES)
def test_grey_modes(name):
    image, value = GREY_CASES[name]
    assert pixels(to_rgb(image)) == [[[value] * 3]]


COLOUR_CASES = {
    "RGB": (Image.new("RGB", (1, 1), (1, 2, 3)), (1, 2, 3)),
    "RGBX": (Image.new("RGBX", (1, 1), (1, 2, 3, 0)), (1, 2, 3)),
    "RGBA opaque": (Image.new("RGBA", (1, 1), (1, 2, 3, 255)), (1, 2, 3)),
    "RGBA clear": (Image.new("RGBA", (1, 1), (1, 2, 3, 0)), (255, 255, 255)),
    "RGBA third": (Image.new("RGBA", (1, 1), (0, 255, 0, 85)), (170, 255, 170)),
    "RGBa": (Image.new("RGBA", (1, 1), (1, 2, 3, 255)).convert("RGBa"), (1, 2, 3)),
    "CMYK": (Image.new("CMYK", (1, 1), (255, 0, 0, 0)), (0, 255, 255)),
    "YCbCr": (Image.new("YCbCr", (1, 1), (76, 85, 255)), (254, 0, 0)),
    "HSV": (Image.new("HSV", (1, 1), (0, 255, 255)), (255, 0, 0)),
    "LAB": (Image.new("LAB", (1, 1), (255, 128, 128)), (255, 255, 255)),
}


@pytest.mark.parametrize("name", COLOUR_CASES)
def test_colour_modes(name):
    image, value = COLOUR_CASES[name]
    assert np.abs(np.asarray(to_rgb(image)).astype(int) - value).max() <= (0 if name != "LAB" else 1)
    assert to_rgb(image).mode == "RGB"


def test_palette_with_and_without_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert pixels(to_rgb(image)) == [[[10, 20, 30], [40, 50, 60]]]
    stored = open_image(encoded(image, transparency=1))
    assert pixels(stored) == [[[10, 20, 30], [255, 255, 255]]]
    assert pixels(to_rgb(image.convert("PA"))) == [[[10, 20, 30], [40, 50, 60]]]
    layer = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    layer.putpixel((0, 0), (10, 20, 30, 255))
    quantised = layer.quantize()
    assert quantised.mode == "P" and "transparency" not in quantised.info
    assert pixels(to_rgb(quantised)) == [[[10, 20, 30], [255, 255, 255]]]


def test_a_transparent_colour_of_an_rgb_file_is_white():
    image = Image.new("RGB", (2, 1), (9, 8, 7))
    image.putpixel((0, 0), (1, 2, 3))
    assert pixels(open_image(encoded(image, transparency=(1, 2, 3)))) == [[[255] * 3, [9, 8, 7]]]


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_sixteen_bits_are_scaled_not_clipped(dtype):
    values = np.asarray([[0, 257, 32768, 65535]], dtype=dtype)
    expected = [[[0] * 3, [1] * 3, [128] * 3, [255] * 3]]
    mode = "I;16" if dtype == "<u2" else "I;16B"
    image = Image.frombytes(mode, (4, 1), values.tobytes())
    assert pixels(to_rgb(image)) == expected
    if mode == "I;16":
        assert pixels(open_image(encoded(image))) == expected
        assert pixels(open_image(encoded(image, "TIFF"))) == expected


def test_ranges_of_wide_modes():
    signed = Image.fromarray(np.asarray([[-100, 0, 155]], dtype=np.int32))
    assert pixels(to_rgb(signed)) == [[[0] * 3, [100] * 3, [255] * 3]]
    floats = Image.fromarray(np.asarray([[0.0, 500.0, 1000.0, np.nan]], dtype=np.float32))
    assert pixels(to_rgb(floats)) == [[[0] * 3, [128] * 3, [255] * 3, [0] * 3]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    """Each of the eight orientations, against the transpositions that the EXIF standard names."""
    image = Image.fromarray(np.arange(18, dtype=np.uint8).reshape(2, 3, 3))
    transpositions = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = image.transpose(transpositions[orientation]) if orientation in transpositions else image
    assert pixels(open_image(encoded(image, exif=exif))) == pixels(upright)


def test_damaged_exif_is_no_reason_to_refuse_good_pixels():
    image = Image.fromarray(np.arange(18, dtype=np.uint8).reshape(2, 3, 3))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Cam"
    raw = exif.tobytes()
    text_for_number = raw.replace(b"\x01\x0f\x00\x02", b"\x01\x06\x00\x02")  # what ImageOps cannot write again
    no_header = raw.replace(b"MM", b"M?")
    assert raw not in (text_for_number, no_header)
    turned = image.transpose(Image.Transpose.ROTATE_270)
    assert pixels(open_image(encoded(image, exif=text_for_number))) == pixels(turned)
    assert pixels(open_image(encoded(image, exif=no_header))) == pixels(image)


def test_a_damaged_avif_file_does_not_open():
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    good = encoded(Image.new("RGB", (32, 32), (200, 10, 10)), "AVIF")
    failed = set()
    for place in range(60, len(good), 3):
        try:
            open_image(good[:place] + bytes([good[place] ^ 255]) + good[place + 1 :])
        except BadImageError as error:
            failed.add(str(error).split(":")[0].split(" does not open")[0])
    assert failed == {f"an image of {len(good)} bytes"}


def test_states_of_files_tell_changed_missing_and_other_ones(tmp_path):
    paths = [str(tmp_path / name) for name in ("a.png", "b.png")]
    Image.new("RGB", (2, 2)).save(paths[0])
    columns = [pa.chunked_array([pa.array(paths, kind)]) for kind in (pa.string(), pa.large_string())]
    before = [file_states(column) for column in columns]
    assert before[0] == before[1] and f"{paths[1]} missing".encode() in before[0]
    Image.new("RGB", (9, 9)).save(paths[1])
    after = [file_states(column) for column in columns]
    assert after[0] == after[1] != before[0] and b"missing" not in after[0]
    assert file_states(pa.chunked_array([pa.array([b"bytes"])])) == b""


def test_every_form_of_an_image_opens(tmp_path):
    content = png((5, 6, 7), (1, 1))
    path = tmp_path / "image.png"
    path.write_bytes(content)
    forms = [
        content,
        bytearray(content),
        path,
        str(path),
        {"bytes": content, "path": None},
        {"bytes": content, "path": "elsewhere.png"},
        {"bytes": None, "path": str(path)},
        Image.open(path),
    ]
    for form in forms:
        assert pixels(open_image(form)) == [[[5, 6, 7]]]
    hashes = {image_hash(form) for form in forms[:-1]}
    assert len(hashes) == 1
    assert image_hash(png((5, 6, 8), (1, 1))) not in hashes
    assert image_hash(Image.open(path)) == image_hash(Image.new("RGB", (1, 1), (5, 6, 7)))
    assert image_hash(Image.open(path)) != image_hash(Image.new("RGB", (1, 1), (5, 6, 8)))


def test_the_image_that_was_given_is_not_changed():
    image = Image.new("RGB", (2, 2))
    to_rgb(image).putpixel((0, 0), (1, 1, 1))
    assert image.getpixel((0, 0)) == (0, 0, 0)


def test_remote_images_are_told_apart_by_their_address():
    one, other = ({"bytes": None, "path": f"https://example.org/{name}.jpg"} for name in "ab")
    assert image_hash(one) == image_hash(dict(one)) != image_hash(other)


NOISE = Image.effect_noise((64, 64), 50)
TRUNCATED = encoded(NOISE, "JPEG")[:500]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"no image", "an image of 8 bytes does not open: UnidentifiedImageError"),
        (TRUNCATED, "an image of 500 bytes does not open: OSError"),
        (encoded(NOISE)[:900], "an image of 900 bytes does not open"),
        ("missing.png", "the file 'missing.png' does not open: FileNotFoundError"),
        ({"bytes": b"xx", "path": "a.jpg"}, r"an image of 2 bytes \(a.jpg\) does not open"),
        (None, "an empty image value is no image: accepted are"),
        ({"bytes": None, "path": None}, "an empty image value is no image"),
        (17, "a value of type int is no image"),
        (Image.new("RGB", (0, 3)), "0 × 3 pixels"),
    ],
)
def test_bad_images_say_what_is_wrong(value, message):
    with pytest.raises(BadImageError, match=message):
        open_image(value)


def test_hashing_needs_something_to_hash(tmp_path):
    with pytest.raises(BadImageError, match="cannot be read: FileNotFoundError"):
        image_hash(tmp_path / "missing.png")
    with pytest.raises(BadImageError, match="empty image value"):
        image_hash({"bytes": None, "path": None})
    assert describe(3.5) == "a value of type float"


def test_one_image_or_any_number_of_them(tmp_path):
    image, content = Image.new("RGB", (1, 1), (5, 6, 7)), png((5, 6, 7), (1, 1))
    path = tmp_path / "image.png"
    for one in (image, content, bytearray(content), path, str(path), {"bytes": content, "path": None}):
        (only,) = iterate_images(one)
        assert only is one
    for several in ([image, content], (image,), iter([content]), []):
        assert iterate_images(several) is several  # not read: it may be a column of a large data set
    for nothing in (3, None, 2.5):
        with pytest.raises(TypeError, match=f"Got a {type(nothing).__name__} as images. Accepted: a PIL image"):
            iterate_images(nothing)


def test_messages_have_the_number_of_the_image():
    assert pixels(open_numbered(Image.new("L", (1, 1), 9), 4)) == [[[9] * 3]]
    with pytest.raises(BadImageError, match="Image 4: an image of 8 bytes does not open"):
        open_numbered(b"no image", 4)
    with pytest.raises(BadImageError, match="Image 0: an empty image value is no image"):
        open_numbered(None, 0)
    with pytest.raises(TypeError, match=r"Image 7 is a row with the columns image, captions. .*dataset\['image'\]"):
        open_numbered({"image": Image.new("RGB", (1, 1)), "captions": ["a"]}, 7)
