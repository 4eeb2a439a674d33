"""``contrastive-caption convert``: runs the conversion and says what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_contrastive_caption.console import CommandConsole
from hf_contrastive_caption.data.convert import Conversion, convert_captions


def convert(
    annotations: Path, images: Path, out: Path, *, console: CommandConsole | None = None, **options: Any
) -> Conversion:
    """Convert a data set, with a progress bar, and print what was written and what was left out.

    Args:
        annotations: The annotation file.
        images: The folder of images.
        out: The folder for the parquet files.
        console: Where to print.
        **options: Those of :func:`convert_captions`.
    """
    console = CommandConsole() if console is None else console
    with console.stage("Converting images", 1) as advance:
        done = convert_captions(
            annotations, images, out, advance=lambda number, total: advance(number, "", total), **options
        )
    rows = [["split", "images", "captions"]]
    rows += [[split, f"{count:,}", f"{done.captions[split]:,}"] for split, count in done.images.items()]
    console.table(rows)
    left_out = {
        "images have no file": done.missing,
        "images do not open": done.broken,
        "images have no caption": done.without_captions,
        "captions are empty": done.empty_captions,
    }
    for what, number in left_out.items():
        if number:
            console.say(f"left out: {number:,} {what}", style="yellow")
    console.say(f"Read as {done.kind}. The files are in {out}; train on them with --data {out}")
    return done
