"""Files that are whole or not there."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4


def write_whole(path: Path, text: str) -> None:
    """Write a text file in UTF-8 beside where it shall be and move it there, so that a kill leaves the old one.

    Args:
        path: The file; one that is there is replaced. What is no file, such as ``/dev/stdout``, is written to.
        text: Its content.
    """
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    path = path.resolve()  # behind a link
    # Another process may write the same; and a name that is as long as names may be has no room for more.
    unfinished = path.with_name(f".unfinished-{uuid4().hex}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
