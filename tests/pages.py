"""The code blocks of the README, of CONTRIBUTING and of the documentation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")))

_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)


class Block(NamedTuple):
    """A block between two fences.

    Attributes:
        page: The file, from the repository's root.
        language: What stands behind the first fence.
        text: What stands between them.
        reason: Why it is not run, from a comment right above it: ``<!-- not run: it needs a network -->``.
    """

    page: str
    language: str
    text: str
    reason: str | None


def blocks(page: str, *languages: str) -> list[Block]:
    """The blocks of a page, of some languages or of all."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = [Block(page, part["language"], part["text"], part["reason"]) for part in _BLOCK.finditer(text)]
    assert 2 * len(found) == len(re.findall(r"^\s*```", text, re.MULTILINE)), f"{page} has a fence that is not read"
    return [block for block in found if not languages or block.language in languages]


def python_blocks(page: str) -> list[str]:
    """The Python blocks of a page that are to be run."""
    return [block.text for block in blocks(page, "python") if block.reason is None]
