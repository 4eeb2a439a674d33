"""Drawn scenes: the same everywhere, and captioned as method.md's trial was."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from hf_contrastive_caption.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    Scene,
    SceneObject,
    draw_scene,
    sample_scene,
    scenes,
)

DETAILS = {"large", "small", "left", "right", "above", "below", "top", "bottom"}


def pixel_hash(image: Image.Image) -> str:
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()[:16]


def summary() -> dict[str, list[object]]:
    """Pixels and captions of a few rows of every split, as JSON takes them."""
    data = scenes(3, 1, 1, seed=7)
    return {
        split: [[row["image_id"], pixel_hash(row["image"]), row["captions"]] for row in rows]
        for split, rows in data.items()
    }


def test_pixels_and_captions_are_fixed():
    rows = summary()
    assert [row[1] for split in ("train", "validation", "test") for row in rows[split]] == PIXELS
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16] == EVERYTHING


def test_another_process_with_another_hash_seed_draws_the_same():
    code = "import json; from tests.data.test_scenes import summary; print(json.dumps(summary()))"
    env = {**os.environ, "PYTHONHASHSEED": "123", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert json.loads(done.stdout) == json.loads(json.dumps(summary()))


def test_splits_have_their_sizes_and_columns():
    data = scenes(5, 4, 3, image_size=32)
    assert data.num_rows == {"train": 5, "validation": 4, "test": 3}
    for split in data.values():
        assert split.column_names == ["image_id", "image", "captions"]
        assert {row["image"].size for row in split} == {(32, 32)}
        assert {len(row["captions"]) for row in split} == {5}
    ids = [row["image_id"] for split in data.values() for row in split]
    assert len(set(ids)) == 12


def test_a_scene_depends_on_seed_split_and_index_alone():
    few, many = scenes(2, 0, 0)["train"], scenes(9, 3, 0)["train"]
    assert few["captions"][:] == many[:2]["captions"]
    assert [pixel_hash(image) for image in few["image"]] == [pixel_hash(image) for image in many[:2]["image"]]
    keys = [(0, "train", 0), (1, "train", 0), (0, "test", 0), (0, "train", 1)]
    assert len({repr(sample_scene(*key)) for key in keys}) == 4


def test_the_image_column_holds_png_files():
    from datasets import Image as ImageFeature

    stored = scenes(1, 0, 0)["train"].cast_column("image", ImageFeature(decode=False))[0]["image"]
    assert stored["bytes"].startswith(b"\x89PNG") and stored["path"] == "train-000000.png"
    assert Image.open(BytesIO(stored["bytes"])).mode == "RGB"


def test_shares_of_what_annotators_say():
    captions = [caption for index in range(2000) for caption in sample_scene(0, "train", index)[1]]
    kinds: Counter[str] = Counter()
    for caption in captions:
        words = set(caption.replace(",", "").split())
        kinds["details" if words & DETAILS else "colours" if words & set(COLOURS) else "little"] += 1
    shares = {kind: number / len(captions) for kind, number in kinds.items()}
    # 10,000 captions: one standard error is at most 0.005
    assert shares == pytest.approx({"little": 0.45, "colours": 0.35, "details": 0.20}, abs=0.015)
    assert captions == [caption.lower() for caption in captions]
    assert sum("background" in caption for caption in captions) / len(captions) == pytest.approx(0.11, abs=0.012)


def test_scenes_use_all_shapes_colours_and_backgrounds_evenly():
    drawn = [sample_scene(3, "train", index)[0] for index in range(3000)]
    numbers = Counter(len(scene.objects) for scene in drawn)
    assert set(numbers) == {1, 2, 3} and min(numbers.values()) > 900
    objects = [item for scene in drawn for item in scene.objects]
    for attribute, names in (("shape", SHAPES), ("colour", COLOURS)):
        counts = Counter(getattr(item, attribute) for item in objects)
        assert set(counts) == set(names)
        assert min(counts.values()) > 0.8 * len(objects) / 8
    assert set(Counter(scene.background for scene in drawn)) == set(BACKGROUNDS)
    for scene in drawn:
        assert len({(item.row, item.column) for item in scene.objects}) == len(scene.objects)
        assert len({(item.shape, item.colour) for item in scene.objects}) == len(scene.objects)


def test_captions_are_true():
    """Colours, shapes and relations that a caption names are in the picture."""
    for index in range(500):
        scene, captions = sample_scene(5, "train", index)
        shapes = {item.shape for item in scene.objects}
        colours = {item.colour for item in scene.objects}
        looks = {f"{item.colour} {item.shape}": item for item in scene.objects}
        for caption in captions:
            words = caption.replace(",", "").split()
            assert set(words) & set(SHAPES) <= shapes and set(words) & set(COLOURS) <= colours
            for word, axis, sign in (
                ("above", "row", 1),
                ("below", "row", -1),
                ("left", "column", 1),
                ("right", "column", -1),
            ):
                if f" {word} of " in caption or (word in ("above", "below") and word in words):
                    before, after = caption.split(f" {word} ", 1)
                    first, second = ([looks[look] for look in looks if look in part] for part in (before, after))
                    assert sign * (getattr(second[0], axis) - getattr(first[0], axis)) > 0, caption


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_drawn_in_its_colour_in_its_cell(shape):
    item = SceneObject(shape, "red", "large", row=1, column=0)
    picture = np.asarray(draw_scene(Scene("white", (item,)), 64)).astype(int)
    red = (picture[..., 0] - picture[..., 1] > 90) & (picture[..., 0] - picture[..., 2] > 90)
    assert red[32:, :32].sum() > 120  # of 1,024 pixels of its cell
    assert red.sum() == red[30:, :34].sum()
    large, small = (
        np.count_nonzero(
            np.asarray(draw_scene(Scene("white", (SceneObject(shape, "red", size, 1, 0),)), 64))[..., 1] < 150
        )
        for size in ("large", "small")
    )
    assert large > 2 * small > 40


def test_edges_are_antialiased():
    picture = draw_scene(Scene("white", (SceneObject("circle", "blue", "large", 0, 0),)), 64)
    blues = np.asarray(picture)[:32, :32, 0]
    between = (blues > 70) & (blues < 200)  # neither shape (about 50) nor background (about 250)
    assert 40 < between.sum() < 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_train": -1}, "num_train=-1"),
        ({"num_train": 0, "num_validation": 0, "num_test": 0}, "at least one of them more than 0"),
        ({"image_size": 8}, "image_size=8"),
    ],
)
def test_wrong_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        scenes(**arguments)


# Of scenes(3, 1, 1, seed=7). Pixels, not PNG bytes: builds of zlib compress differently.
PIXELS = ["e7702adb4816d036", "09a4ac9b5162a33e", "bb881f0efecc2cba", "bf5856c5b5c5b7e7", "77d61518fcf45e2f"]
EVERYTHING = "9bc63c4fdb5a1616"
