"""Pools of images: every way to give them, and which of them are the same picture."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from PIL import Image

from hf_contrastive_caption.data.images import BadImageError
from hf_contrastive_caption.evaluation.pool import ImagePool
from tests import tiny


def pixels(image: Image.Image) -> list[Any]:
    assert image.mode == "RGB"
    return np.asarray(image).tolist()


def png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def test_every_way_to_give_images(tmp_path: Any) -> None:
    data = tiny.caption_dataset(3)
    images = list(data["image"])
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for image, file in zip(images, files, strict=True):
        image.save(file)
    contents = [png(image) for image in images]
    stored = [{"bytes": content, "path": None} for content in contents]
    expected = [pixels(image) for image in images]
    fingerprints = set()
    for way in (data["image"], images, tuple(images), iter(images), files, list(map(str, files)), contents, stored):
        pool = ImagePool(way)
        assert len(pool) == 3
        assert [pixels(image) for image in pool] == expected
        assert [pixels(pool[number]) for number in (2, 0)] == [expected[2], expected[0]]
        fingerprints.add(pool.fingerprint)
    assert len(fingerprints) == 1
    for one in (images[0], files[0], str(files[0]), contents[0], stored[0]):
        assert [pixels(image) for image in ImagePool(one)] == expected[:1]


def test_images_are_opened_when_they_are_asked_for(tmp_path: Any) -> None:
    file = tmp_path / "late.png"
    pool = ImagePool([file, tiny.images(1)[0]])
    with pytest.raises(BadImageError, match="Image 0: the file .*late.png' does not open"):
        pool[0]
    tiny.images(1)[0].save(file)
    assert pool.distinct.tolist() == [0, 0]


def test_a_selection() -> None:
    images = tiny.images(5)
    pool = ImagePool(images)
    assert [pixels(image) for image in pool.select([4, 1])] == [pixels(images[4]), pixels(images[1])]
    assert [pixels(image) for image in pool.select(range(1, 5)).select([3, 0])] == [
        pixels(images[4]),
        pixels(images[1]),
    ]


def test_images_are_told_apart_by_their_pixels() -> None:
    first, second = tiny.images(2)
    almost = first.copy()
    almost.putpixel((39, 35), (1, 2, 3))
    pool = ImagePool([first, second, png(first), almost, first.copy(), second])
    assert pool.distinct.tolist() == [0, 1, 0, 3, 0, 1]
    assert [digest == pool.digests[0] for digest in pool.digests] == [True, False, True, False, True, False]


def test_the_same_bytes_in_another_shape_are_another_image() -> None:
    wide, high = Image.new("RGB", (4, 2)), Image.new("RGB", (2, 4))
    assert wide.tobytes() == high.tobytes()
    assert ImagePool([wide, high]).distinct.tolist() == [0, 1]


def test_what_shows_the_same_is_the_same() -> None:
    """Modes differ, the pixels as RGB do not."""
    assert ImagePool([Image.new("L", (3, 3), 7), Image.new("RGB", (3, 3), (7, 7, 7))]).distinct.tolist() == [0, 0]


def test_the_fingerprint_knows_the_order() -> None:
    first, second = tiny.images(2)
    pools = ([first, second], [second, first], [first], [first, second, first])
    assert len({ImagePool(images).fingerprint for images in pools}) == 4
    assert ImagePool([first, second]).fingerprint == ImagePool([png(first), png(second)]).fingerprint


@pytest.mark.parametrize(
    "data", [tiny.caption_dataset(2), DatasetDict(test=tiny.caption_dataset(2)), {"image": tiny.images(1)}]
)
def test_a_whole_data_set_is_refused(data: Any) -> None:
    with pytest.raises(TypeError, match=r"Got a data set as images.*dataset\['image'\]"):
        ImagePool(data)


def test_a_streamed_data_set_is_refused() -> None:
    data: Dataset = tiny.caption_dataset(2)
    with pytest.raises(TypeError, match="Got a data set as images"):
        ImagePool(data.to_iterable_dataset())


def test_what_holds_no_images_is_refused() -> None:
    with pytest.raises(TypeError, match="Got a int as images"):
        ImagePool(3)
    with pytest.raises(ValueError, match="There are no images"):
        ImagePool([])
    with pytest.raises(ValueError, match="There are no images"):
        ImagePool(iter([]))
    with pytest.raises(TypeError, match="Image 1 is a row with the columns image, captions"):
        list(ImagePool([tiny.images(1)[0], tiny.caption_dataset(1)[0]]))
    with pytest.raises(BadImageError, match="Image 1: an image of 8 bytes does not open"):
        _ = ImagePool([tiny.images(1)[0], b"no image"]).fingerprint
