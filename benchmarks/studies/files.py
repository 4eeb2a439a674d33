"""Where the studies keep what they made: results, which are small and documented, and captioners, which are not."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
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

    def result(self, unit: Unit) -> Path:
        """The file of a unit's result; it is there when the unit is finished."""
        return self.results / self.data / f"{unit.key}.json"

    def captioner(self, unit: Unit) -> Path:
        """The folder of a unit's captioner, whichever split is captioned."""
        return self.output / self.data / f"{unit.row.name}-seed{unit.seed}"

    def log(self, unit: Unit) -> Path:
        """The file that gets what a unit prints."""
        return self.output / self.data / f"{unit.key}.log"

    def load(self, unit: Unit) -> dict[str, Any] | None:
        """A unit's result, ``None`` if it is not finished.

        Raises:
            ValueError: If it was made with other settings.
        """
        file = self.result(unit)
        if not file.exists():
            return None
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        wanted = json.loads(json.dumps(unit.settings(self.scale)))
        if found["settings"] != wanted:
            other = {
                name: found["settings"].get(name) for name in wanted if found["settings"].get(name) != wanted[name]
            }
            raise ValueError(f"{file} was made with {other}. Delete it, or choose other folders.")
        return found


def write_json(file: Path, content: Any) -> None:
    """Write a JSON file that is there whole or not at all; numbers of one list stand in one line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"_{file.name}")
    lines = [f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in content.items()]
    unfinished.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    os.replace(unfinished, file)
