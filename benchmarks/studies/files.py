"""Where the studies keep what they made: results, which are small and documented, and captioners, which are not."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from studies.plan import Scale, Unit


@dataclass(frozen=True)
class Place:
    """Folders of one data set.

    Attributes:
        data: Name of the data set.
        source: ``None`` for drawn scenes, else a folder with the splits.
        scale: Sizes of everything.
        results: Folder of the results, one JSON file for each unit.
        output: Folder of the captioners.
    """

    data: str
    source: Path | None
    scale: Scale
    results: Path
    output: Path

    @property
    def contents(self) -> str | None:
        """A hash of the data set's files; drawn scenes follow from the scale."""
        return None if self.source is None else _contents(self.source)

    def result(self, unit: Unit) -> Path:
        """The file of a unit's result; it is there when the unit is finished."""
        return self.results / self.data / f"{unit.key}.json"

    def captioner(self, unit: Unit) -> Path:
        """The folder of a unit's captioner, whichever split is captioned."""
        return self.output / self.data / f"{unit.row.name}-seed{unit.seed}"

    def claim(self, unit: Unit) -> Path:
        """The file that says what a unit's captioner is made of; who makes or measures it holds a lock on it."""
        return self.output / self.data / f"{unit.row.name}-seed{unit.seed}.made_of.json"

    def log(self, unit: Unit) -> Path:
        """The file that gets what a unit prints."""
        return self.output / self.data / f"{unit.key}.log"

    def load(self, unit: Unit) -> dict[str, Any] | None:
        """A unit's result, ``None`` if it is not finished.

        Raises:
            ValueError: If it was made with other settings or of other data, or is damaged.
        """
        file = self.result(unit)
        if not file.exists():
            return None
        found = read_json(file)
        if found.get("contents", self.contents) != self.contents:
            raise ValueError(f"{file} was made of other data than {self.source}. Delete it, or choose other folders.")
        wanted = json.loads(json.dumps(unit.settings(self.scale)))
        if found["settings"] != wanted:
            other = {
                name: found["settings"].get(name) for name in wanted if found["settings"].get(name) != wanted[name]
            }
            raise ValueError(f"{file} was made with {other}. Delete it, or choose other folders.")
        return found


@contextmanager
def claimed(place: Place, unit: Unit) -> Iterator[None]:
    """Keep other processes off the captioner of a unit, and off one that is made of something else.

    Raises:
        ValueError: If another process has it, or it was made with other settings or of other data.
    """
    file, folder = place.claim(unit), place.captioner(unit)
    settings = unit.settings(place.scale)
    del settings["split"]  # the same captioner is measured on both
    wanted = json.dumps({"settings": settings, "contents": place.contents}, sort_keys=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+", encoding="utf-8") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is at {folder}; wait until it has ended, or end it") from None
        held.seek(0)
        found = held.read()
        if found != wanted and (found or folder.exists()):
            raise ValueError(
                f"{folder} was made with other settings or of other data, as {file} says, or nothing says what it was "
                "made of. Delete both, or choose another folder for the captioners."
            )
        if not found:
            held.write(wanted)
            held.flush()
        yield


@cache
def _contents(source: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        digest.update(f"{file.relative_to(source)} {file.stat().st_size} ".encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "blake2b").digest())
    return digest.hexdigest()


def read_json(file: Path) -> dict[str, Any]:
    """Read what :func:`write_json` wrote.

    Raises:
        ValueError: If the file is damaged.
    """
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}. Delete it; what it held is then made again.") from error
    return found


def write_json(file: Path, content: Any) -> None:
    """Write a JSON file that is there whole or not at all; numbers of one list stand in one line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.name}.unfinished")
    lines = [f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in content.items()]
    unfinished.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    os.replace(unfinished, file)
