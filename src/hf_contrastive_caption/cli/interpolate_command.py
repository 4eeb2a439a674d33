"""The words of ``contrastive-caption interpolate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def interpolate(
    start: Annotated[
        str,
        typer.Argument(metavar="START", help="Captioner that the tuning began with.", show_default=False),
    ],
    tuned: Annotated[
        str,
        typer.Argument(metavar="TUNED", help="What it became; adapters too.", show_default=False),
    ],
    share: Annotated[
        float,
        typer.Option(min=0, max=1, metavar="SHARE", help="0 is START, 1 is TUNED.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(file_okay=False, help="New folder for the captioner.", show_default=False)],
) -> None:
    """Go back a part of the way of a tuning.

    Writes a captioner with weights between those of two. One tuning so gives captioners of all degrees; compare them
    on validation images with compare, and take the best.
    """
    from hf_contrastive_caption.cli.interpolate import write_between

    write_between(start, tuned, share, out)
