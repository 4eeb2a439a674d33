"""Drawn scenes with captions: the data set that is always there.

One to three coloured shapes stand in the cells of a 2x2 grid, and five annotators caption each picture as people do:
most say something safe that fits many pictures ("two shapes"), some name the colours, few say all that tells this
picture from its neighbours. A captioner trained on them by maximum likelihood learns the safe thing, which makes the
scenes a small model of the problem that the contrastive loss solves (Dai and Lin, NIPS 2017, arXiv 1710.02534).

Every scene is a pure function of (seed, split, index). Only ``random.Random.random`` is drawn from, whose numbers
Python promises to keep, so captions and pixels are the same in every process and on every machine. The PNG files can
differ in their compression between builds of zlib; the pixels in them do not.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from datasets import Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as PILImage
from PIL import ImageChops, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Point = tuple[float, float]
T = TypeVar("T")

SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "moon")
COLOURS: dict[str, Colour] = {
    "red": (226, 61, 61),
    "orange": (245, 138, 44),
    "yellow": (246, 200, 52),
    "green": (52, 168, 96),
    "blue": (50, 122, 224),
    "purple": (140, 86, 208),
    "pink": (243, 128, 178),
    "brown": (146, 98, 64),
}
"""Name and RGB value (0 to 255) of the colours of shapes."""
BACKGROUNDS: dict[str, Colour] = {
    "white": (252, 252, 250),
    "grey": (214, 218, 224),
    "beige": (242, 226, 200),
    "black": (44, 48, 60),
}
"""Name and RGB value (0 to 255) of the backgrounds; no shape has one of these colours."""
SIZES: dict[str, float] = {"large": 0.84, "small": 0.48}
"""Name of a size and the width of such a shape as a share of its cell."""
CAPTIONS_PER_SCENE = 5
SHARE_LITTLE = 0.45
"""Share of captions that say little: "two shapes"."""
SHARE_COLOURS = 0.35
"""Share of captions that name colours; all others name sizes and relations too."""

_SHARE_USUAL = 0.35
_SHARE_BACKGROUND = 0.2
_SUPERSAMPLING = 8
_NUMBERS = ("no", "one", "two", "three")
_POSITIONS = (("top left", "top right"), ("bottom left", "bottom right"))
_LITTLE = (
    ("a shape", "one shape", "a single shape", "there is a shape", "a picture of a shape", "an object"),
    (
        "two shapes",
        "two objects",
        "a pair of shapes",
        "there are two shapes",
        "a picture of two shapes",
        "some shapes",
    ),
    (
        "three shapes",
        "three objects",
        "a few shapes",
        "there are three shapes",
        "three different shapes",
        "some shapes",
    ),
)


@dataclass(frozen=True)
class SceneObject:
    """A shape of a scene: its looks, its cell (row and column, 0 or 1) and its offset in shares of the cell."""

    shape: str
    colour: str
    size: str
    row: int
    column: int
    offset: Point = (0.0, 0.0)


@dataclass(frozen=True)
class Scene:
    """What is to be seen in one picture."""

    background: str
    objects: tuple[SceneObject, ...]


def scenes(
    num_train: int = 6000, num_validation: int = 500, num_test: int = 500, *, seed: int = 0, image_size: int = 64
) -> DatasetDict:
    """Draw scenes and caption them.

    Args:
        num_train: Scenes in the split ``train``.
        num_validation: Scenes in the split ``validation``.
        num_test: Scenes in the split ``test``.
        seed: Another seed gives other scenes. A scene does not depend on how many scenes are asked for.
        image_size: Width and height of the pictures in pixels.

    Returns:
        The three splits, without those of size 0, each with the columns ``image_id`` (string), ``image`` (an ``Image``
        feature) and ``captions`` (five strings).

    Raises:
        ValueError: If a split is smaller than 0, all are 0, or the pictures are smaller than 16 pixels.
    """
    sizes = {"train": num_train, "validation": num_validation, "test": num_test}
    if min(sizes.values()) < 0 or not any(sizes.values()):
        given = ", ".join(f"num_{name}={size}" for name, size in sizes.items())
        raise ValueError(f"Got {given}. Give each split 0 or more scenes, and at least one of them more than 0.")
    if image_size < 16:
        raise ValueError(f"Got image_size={image_size}. The shapes need pictures of at least 16 pixels.")
    features = Features({"image_id": Value("string"), "image": Image(), "captions": List(Value("string"))})
    return DatasetDict(
        {
            split: Dataset.from_list(
                [_row(seed, split, index, image_size) for index in range(size)], features=features, split=split
            )
            for split, size in sizes.items()
            if size
        }
    )


def sample_scene(seed: int, split: str, index: int) -> tuple[Scene, list[str]]:
    """Draw what is to be seen in a picture, and what five annotators say about it.

    Args:
        seed: The seed of the data set.
        split: Name of the split.
        index: Row in the split.

    Returns:
        The scene and its five captions.
    """
    rng = random.Random(f"hf-contrastive-caption scene {seed} {split} {index}")
    cells = _shuffled(rng, [(row, column) for row in (0, 1) for column in (0, 1)])
    looks: list[tuple[str, str]] = []
    objects = []
    for row, column in cells[: _below(rng, 3) + 1]:
        look = (_choice(rng, SHAPES), _choice(rng, tuple(COLOURS)))
        while look in looks:  # "the red star" must mean one shape
            look = (_choice(rng, SHAPES), _choice(rng, tuple(COLOURS)))
        looks.append(look)
        offset = ((rng.random() - 0.5) * 0.12, (rng.random() - 0.5) * 0.12)
        objects.append(SceneObject(*look, _choice(rng, tuple(SIZES)), row, column, offset))
    scene = Scene(_choice(rng, tuple(BACKGROUNDS)), tuple(objects))
    return scene, [caption_scene(rng, scene) for _ in range(CAPTIONS_PER_SCENE)]


def draw_scene(scene: Scene, image_size: int = 64) -> PILImage.Image:
    """Draw a scene.

    Args:
        scene: What is to be seen.
        image_size: Width and height in pixels.

    Returns:
        The picture in mode RGB.
    """
    picture = _backdrop(scene.background, image_size).copy()
    cell = image_size / 2
    for item in scene.objects:
        width = max(4, round(SIZES[item.size] * cell))
        mask, shadow = _masks(item.shape, width)
        box = (
            round((item.column + 0.5 + item.offset[0]) * cell - mask.width / 2),
            round((item.row + 0.5 + item.offset[1]) * cell - mask.height / 2),
        )
        strength = round(width / 18)
        picture.paste((24, 24, 36), (box[0] + strength // 2, box[1] + strength), shadow)
        picture.paste(_paint(item.colour, mask.height), box, mask)
    return picture


def _row(seed: int, split: str, index: int, image_size: int) -> dict[str, object]:
    scene, captions = sample_scene(seed, split, index)
    file = io.BytesIO()
    draw_scene(scene, image_size).save(file, format="PNG")
    image_id = f"{split}-{index:06d}"
    return {"image_id": image_id, "image": {"bytes": file.getvalue(), "path": f"{image_id}.png"}, "captions": captions}


# --- random choices that are the same in every version of Python -----------------------------------------------------


def _below(rng: random.Random, limit: int) -> int:
    return int(rng.random() * limit)


def _choice(rng: random.Random, items: Sequence[T]) -> T:
    return items[_below(rng, len(items))]


def _shuffled(rng: random.Random, items: Sequence[T]) -> list[T]:
    rest = list(items)
    return [rest.pop(_below(rng, len(rest))) for _ in items]


# --- what annotators say ---------------------------------------------------------------------------------------------


def caption_scene(rng: random.Random, scene: Scene) -> str:
    """Say something about a scene, as one annotator does.

    Args:
        rng: What decides how much is said, and how; only its ``random`` is called.
        scene: What is to be seen.
    """
    level = rng.random()
    if level < SHARE_LITTLE:
        usual, *others = _LITTLE[len(scene.objects) - 1]
        return usual if rng.random() < _SHARE_USUAL else _choice(rng, others)
    text = _say_colours(rng, scene) if level < SHARE_LITTLE + SHARE_COLOURS else _say_details(rng, scene)
    return f"{text} on a {scene.background} background" if rng.random() < _SHARE_BACKGROUND else text


def _say_colours(rng: random.Random, scene: Scene) -> str:
    objects = _shuffled(rng, scene.objects)
    names = [f"{item.colour} {item.shape}" for item in objects]
    if len(objects) == 1:
        return _choice(
            rng, (_a(names[0]), f"one {names[0]}", f"there is {_a(names[0])}", f"a picture of {_a(names[0])}")
        )
    if rng.random() < 0.25:  # one object only
        others = "another shape" if len(objects) == 2 else "two other shapes"
        return _choice(rng, (_a(names[0]), f"{_a(names[0])} and {others}", f"one of the shapes is {_a(names[0])}"))
    everything = _enumerate([_a(name) for name in names])
    if len({item.shape for item in objects}) == len(objects) and rng.random() < 0.25:
        return _enumerate([f"the {item.shape} is {item.colour}" for item in objects])
    return _choice(
        rng,
        (everything, everything, f"there is {everything}", f"{_NUMBERS[len(objects)]} shapes, {everything}"),
    )


def _say_details(rng: random.Random, scene: Scene) -> str:
    objects = _shuffled(rng, scene.objects)
    first = objects[0]
    sized = [f"{item.size} {item.colour} {item.shape}" for item in objects]
    if len(objects) == 1 or rng.random() < 0.2:  # one object only
        where = _POSITIONS[first.row][first.column]
        return _choice(rng, (_a(sized[0]), f"{_a(sized[0])} at the {where}", f"{_a(sized[0])} in the {where} corner"))
    second = objects[1]
    names = [f"{item.colour} {item.shape}" for item in (first, second)]
    relation = _relation(first, second)
    everything = _enumerate([_a(name) for name in sized])
    related = f"{_a(sized[0])} {relation} {_a(sized[1])}"
    return _choice(rng, (everything, related, related, f"the {names[0]} is {relation} the {names[1]}"))


def _relation(first: SceneObject, second: SceneObject) -> str:
    """Where ``first`` stands, seen from ``second``."""
    if first.row != second.row:
        return "above" if first.row < second.row else "below"
    return "left of" if first.column < second.column else "right of"


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _enumerate(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


# --- how a scene is drawn --------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _backdrop(background: str, image_size: int) -> PILImage.Image:
    """A background that is a little darker at the bottom, (image_size, image_size) pixels."""
    backdrop = PILImage.new("RGB", (1, image_size))
    for y in range(image_size):
        backdrop.putpixel((0, y), _scaled(BACKGROUNDS[background], 100 - 7 * y // max(1, image_size - 1)))
    return backdrop.resize((image_size, image_size), PILImage.Resampling.NEAREST)


@lru_cache(maxsize=256)
def _paint(colour: str, width: int) -> PILImage.Image:
    """The paint of a shape: its colour, brighter at the top and darker at the bottom."""
    paint = PILImage.new("RGB", (1, width))
    for y in range(width):
        paint.putpixel((0, y), _scaled(COLOURS[colour], 108 - 20 * y // max(1, width - 1)))
    return paint.resize((width, width), PILImage.Resampling.NEAREST)


def _scaled(colour: Colour, percent: int) -> Colour:
    red, green, blue = (min(255, channel * percent // 100) for channel in colour)
    return red, green, blue


@lru_cache(maxsize=256)
def _masks(shape: str, width: int) -> tuple[PILImage.Image, PILImage.Image]:
    """Coverage of a shape's pixels and of its soft shadow (mode L), in a square with a margin around the shape."""
    scale = width * _SUPERSAMPLING
    margin = max(2, width // 6)
    side = scale + 2 * margin * _SUPERSAMPLING
    canvas = PILImage.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)

    def pixels(points: Sequence[Point]) -> list[Point]:
        return [(round(side / 2 + x * scale / 2), round(side / 2 + y * scale / 2)) for x, y in points]

    if shape == "circle":
        draw.ellipse(_flat(pixels([(-0.94, -0.94), (0.94, 0.94)])), fill=255)
    elif shape == "square":
        draw.rounded_rectangle(_flat(pixels([(-0.84, -0.84), (0.84, 0.84)])), radius=scale // 12, fill=255)
    elif shape == "moon":
        draw.ellipse(_flat(pixels([(-0.94, -0.94), (0.94, 0.94)])), fill=255)
        bite = PILImage.new("L", (side, side))
        ImageDraw.Draw(bite).ellipse(_flat(pixels([(-0.34, -1.04), (1.42, 0.72)])), fill=255)
        canvas = ImageChops.subtract(canvas, bite)
    else:
        draw.polygon(pixels(_outline(shape)), fill=255)
    mask = canvas.reduce(_SUPERSAMPLING)
    shadow = mask.filter(ImageFilter.GaussianBlur(width / 14)).point([level * 40 // 100 for level in range(256)])
    return mask, shadow


def _flat(corners: Sequence[Point]) -> tuple[float, float, float, float]:
    (left, top), (right, bottom) = corners
    return left, top, right, bottom


def _outline(shape: str) -> list[Point]:
    """The corners of a shape in a square from -1 to 1; y grows downwards."""
    if shape == "triangle":
        return [(0.0, -0.94), (0.98, 0.8), (-0.98, 0.8)]
    if shape == "diamond":
        return [(0.0, -1.0), (0.78, 0.0), (0.0, 1.0), (-0.78, 0.0)]
    if shape == "cross":
        arm, end = 0.34, 0.94
        quarter = [(-arm, -end), (arm, -end), (arm, -arm)]
        return [_turned(point, turns) for turns in range(4) for point in quarter]
    if shape == "star":
        radii = (1.04, 0.46)
        angles = [math.pi * (corner / 5 - 0.5) for corner in range(10)]
        return [(radii[i % 2] * math.cos(a), radii[i % 2] * math.sin(a) + 0.06) for i, a in enumerate(angles)]
    heart = []
    for step in range(72):
        t = 2 * math.pi * step / 72
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        heart.append((0.98 * math.sin(t) ** 3, -(y + 2.5) / 15.5))
    return heart


def _turned(point: Point, turns: int) -> Point:
    """A point turned by quarter turns around the middle."""
    for _ in range(turns):
        point = (-point[1], point[0])
    return point
