"""Image files that a command line names: files, folders, patterns and addresses."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator

from hf_contrastive_caption.cli.errors import WrongUseError
from hf_contrastive_caption.data.images import image_files


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

    A file that is named counts whatever its name is; what counts in a folder is up to :func:`image_files`.
    """
    if "://" in word or os.path.isfile(word):
        yield word
    elif os.path.isdir(word):
        yield from map(str, image_files(word))
    elif glob.has_magic(word):
        for path in sorted(glob.iglob(word, recursive=True)):
            if os.path.isfile(path):
                yield path
