"""Fill the tables of docs/benchmarks.md from benchmarks/results/*.json, so that no figure is copied by hand.

    python benchmarks/page.py

It can be run again at any time; a test checks that it has nothing to change.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
PREFIXES = ("small", "base", "smolvlm", "llava", "smolvlm_frozen", "smolvlm_5")
COLUMNS = {"": "{}", **{f"`{prefix}`": f"{prefix}_{{}}" for prefix in PREFIXES}}
"""Headings of columns that hold figures, and how the key of the row becomes that of the JSON."""


def filled(page: str, stored: dict[str, dict[str, Any]]) -> str:
    """The page with every figure that is stored. A table's first heading names the section of the JSON."""
    script, section, headings, lines = "", "", [""], []
    for line in page.splitlines():
        if found := re.match(r"`benchmarks/(\w+)\.py`", line):
            script = found[1]
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else [""]
        if cells[0] in ("`ratios`", "`measurements`"):
            section, headings = cells[0].strip("`"), cells
        elif re.fullmatch(r"`\w+`", cells[0]) and len(cells) == len(headings) and script in stored:
            for place, heading in enumerate(headings):
                key = COLUMNS.get(heading, "").format(cells[0].strip("`"))
                if key in stored[script][section]:
                    cells[place] = shown(stored[script][section][key])
            line = "| " + " | ".join(cells) + " |"
        lines.append(line)
    return "\n".join(lines) + "\n"


def shown(value: float) -> str:
    """Three digits."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3g}"


def main() -> None:
    results = (ROOT / "benchmarks" / "results").glob("*.json")
    stored = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in results}
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), stored), encoding="utf-8")


if __name__ == "__main__":
    main()
