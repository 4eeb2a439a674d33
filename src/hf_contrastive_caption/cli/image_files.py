"""Image files that a command line names: files, folders, patterns and addresses."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from hf_contrastive_caption.cli.errors import WrongUseError

SUFFIXES = frozenset(".jpg .jpeg .jpe .png .webp .gif .bmp .tif .tiff .avif .jp2 .ppm .pgm".split())
"""What counts as an image in a folder."""


def check_named(words: Iterable[str]) -> None:
    """Whether there is something for each word.

    Raises:
        WrongUseError: If there is no such file, or nothing fits a pattern, or no image is in a folder.
    """
    for word in words:
        if next(images_of(word), None) is None:
            raise WrongUseError(
                f"there are no images in the folder {word!r}"
                if os.path.isdir(word)
                else f"there is no image {word!r}; give files, folders, patterns such as 'photos/*.jpg', or addresses"
            )


def images_of(word: str) -> Iterator[str]:
    """The image files that a word names, in the order of their names; found while they are asked for.

    A file that is named counts whatever its name ends with, in folders only those in :data:`SUFFIXES`.
    """
    if "://" in word or os.path.isfile(word):
        yield word
    elif os.path.isdir(word):
        yield from _below(word)
    elif glob.has_magic(word):
        for path in sorted(glob.iglob(word, recursive=True)):
            if os.path.isfile(path):
                yield path


def _below(folder: str) -> Iterator[str]:
    for path, folders, files in os.walk(folder):
        folders.sort()  # os.walk goes on in this order
        for name in sorted(files):
            if Path(name).suffix.lower() in SUFFIXES:
                yield os.path.join(path, name)
