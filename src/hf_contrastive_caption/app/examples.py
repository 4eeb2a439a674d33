"""Drawn scenes to try the page with: one, several, and several that differ in one thing each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from hf_contrastive_caption.data.scenes import COLOURS, SHAPES, Scene, draw_scene, sample_scene

_SIZE = 256
"""Width and height in pixels: enough to be looked at."""


class ExampleImages(NamedTuple):
    """Images that a visitor can try.

    Attributes:
        name: What the button says.
        paths: The files.
        icon: A file with all of them, small.
    """

    name: str
    paths: tuple[str, ...]
    icon: str


def draw_examples(folder: Path, most: int) -> tuple[ExampleImages, ...]:
    """Draw scenes into a folder.

    Args:
        folder: Where the files go; it must be there.
        most: How many images the page takes at once.
    """
    several = [sample_scene(0, "example", number)[0] for number in range(4)]
    groups = {"four look-alikes": look_alikes(), "four scenes": several, "one scene": several[-1:]}
    return tuple(_group(folder, name, scenes) for name, scenes in groups.items() if len(scenes) <= most)


def _group(folder: Path, name: str, scenes: Sequence[Scene]) -> ExampleImages:
    """Scenes as files, and their icon, a square of them."""
    pictures = [draw_scene(scene, _SIZE) for scene in scenes]
    across = math.isqrt(len(pictures) - 1) + 1
    icon = Image.new("RGB", (across * _SIZE, across * _SIZE), "white")
    paths = []
    for number, picture in enumerate(pictures):
        path = folder / f"{name.replace(' ', '-')}-{number + 1}.png"
        picture.save(path)
        paths.append(str(path))
        icon.paste(picture, (number % across * _SIZE, number // across * _SIZE))
    beside = folder / f"{name.replace(' ', '-')}.png"
    icon.resize((_SIZE, _SIZE)).save(beside)
    return ExampleImages(name, tuple(paths), str(beside))


def look_alikes() -> Sequence[Scene]:
    """Four scenes that only a caption with details tells apart: a colour, a shape or a size is another."""
    scene = next(
        scene for number in range(100) for scene in [sample_scene(1, "example", number)[0]] if len(scene.objects) == 2
    )
    first, second = scene.objects
    changed = (
        first,
        replace(first, colour=_other(tuple(COLOURS), first.colour)),
        replace(first, shape=_other(SHAPES, first.shape)),
        replace(first, size="small" if first.size == "large" else "large"),
    )
    return [replace(scene, objects=(one, second)) for one in changed]


def _other(names: tuple[str, ...], name: str) -> str:
    return names[(names.index(name) + 3) % len(names)]
