"""Finding the files of images, and their bytes."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath

from PIL import Image

from hf_contrastive_caption.data.images import open_image

_JPEG_QUALITY = 95


class ImageFolder:
    """The files below a folder, found by the names that annotations have for them.

    Args:
        root: The folder.

    Raises:
        ValueError: If there is no such folder.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise ValueError(f"there is no folder of images {str(root)!r}")
        self.root = root
        self._by_name: dict[str, list[Path]] | None = None

    def find_all(self, paths: Sequence[str]) -> list[Path | None]:
        """The file of each image, ``None`` where there is none.

        One that is found by its name alone has no file where an image of another path is found in the same: of
        ``cat/1.png`` and ``dog/1.png`` one is missing if there is a single ``1.png``.

        Args:
            paths: As for :meth:`find`.

        Raises:
            ValueError: As :meth:`find` does.
        """
        files = [self.find(path) for path in paths]
        shared_by: dict[Path, set[PurePosixPath]] = {}
        for path, file in zip(paths, files, strict=True):
            if file is not None:
                shared_by.setdefault(file, set()).add(_relative(path))
        return [
            file if file is None or len(shared_by[file]) == 1 or file == self.root / _relative(path) else None
            for path, file in zip(paths, files, strict=True)
        ]

    def find(self, path: str) -> Path | None:
        """The file of an image, or ``None`` if there is none.

        It is looked for under its whole path first, then under its name right in the folder, then by its name in all
        folders below.

        Args:
            path: As in the annotations, with slashes or backslashes between folders.

        Raises:
            ValueError: If several files below the folder have the name, or the path leads out of the folder.
        """
        relative = _relative(path)
        if not relative.parts or relative.is_absolute() or ".." in relative.parts or ":" in relative.parts[0]:
            raise ValueError(f"the image {path!r} is not inside of a folder; paths must be relative, without '..'")
        for candidate in (self.root / relative, self.root / relative.name):
            if candidate.is_file():
                return candidate
        if self._by_name is None:
            self._by_name = self._all_files()
        found = {os.path.realpath(file): file for file in self._by_name.get(_normal(relative.name), [])}
        if len(found) > 1:
            told = ", ".join(str(file.relative_to(self.root)) for file in list(found.values())[:3])
            raise ValueError(
                f"the image {path!r} is not at this place in {self.root}, and {len(found)} files have its name "
                f"({told}); give the folder that the paths of the annotations start from"
            )
        return next(iter(found.values()), None)

    def _all_files(self) -> dict[str, list[Path]]:
        names: dict[str, list[Path]] = {}
        entered = set()
        for folder, folders, files in os.walk(self.root, followlinks=True):
            folders.sort()
            real = os.path.realpath(folder)
            if real in entered:  # by a link, which may lead round for ever
                folders.clear()
                continue
            entered.add(real)
            for name in files:
                names.setdefault(_normal(name), []).append(Path(folder, name))
        return names


def image_bytes(file: Path, longest_side: int | None = None) -> bytes:
    """The bytes of an image file that is known to open.

    Args:
        file: The image.
        longest_side: Larger images are made smaller, to so many pixels, upright and in RGB: as JPEG if they were, else
            as PNG. All others stay as they are.

    Raises:
        BadImageError: If the image does not open.
    """
    content = file.read_bytes()
    opened = open_image({"bytes": content, "path": file.name})
    if longest_side is None or max(opened.size) <= longest_side:
        return content
    with Image.open(BytesIO(content)) as original:
        jpeg = original.format in ("JPEG", "MPO")  # what telephones write is a JPEG with more behind it
    opened.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    if jpeg:
        opened.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    else:
        opened.save(buffer, "PNG")
    return buffer.getvalue()


def _relative(path: str) -> PurePosixPath:
    return PurePosixPath(path.replace("\\", "/"))


def _normal(name: str) -> str:
    """Letters with marks have two forms in Unicode, and archives made on macOS have the other one."""
    return unicodedata.normalize("NFC", name)
