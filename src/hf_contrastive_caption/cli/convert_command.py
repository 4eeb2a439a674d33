"""The words of ``contrastive-caption convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_SPLITS = ("train", "validation", "test")


def _split(value: str | None) -> str | None:
    if value is not None and value not in _SPLITS:
        raise typer.BadParameter(f"{value!r} is none of {', '.join(_SPLITS)}")
    return value


def convert(
    annotations: Annotated[
        Path,
        typer.Argument(
            exists=True,
            dir_okay=False,
            help="Karpathy's JSON, COCO's captions JSON, or a table: captions.txt, CSV, TSV, Flickr30k's results.csv.",
            show_default=False,
        ),
    ],
    images: Annotated[
        Path, typer.Option(exists=True, file_okay=False, help="Folder with the images.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the parquet files.", show_default=False)],
    split: Annotated[
        str | None,
        typer.Option(
            help="Put all images into one split: train, validation or test.",
            callback=_split,
            show_default="as the file says; train for a table without a column 'split'",
        ),
    ] = None,
    restval: Annotated[
        bool, typer.Option(help="Let the images that Karpathy calls restval join train, or leave them out.")
    ] = True,
    image_column: Annotated[
        str | None, typer.Option(help="Column of a table that names the image.", show_default="found by its name")
    ] = None,
    caption_column: Annotated[
        str | None, typer.Option(help="Column of a table with the caption.", show_default="found by its name")
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(min=1, help="Shrink images to so many pixels on their longest side.", show_default="as they are"),
    ] = None,
    skip_missing: Annotated[bool, typer.Option("--skip-missing", help="Leave out images without a file.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out images that do not open.")] = False,
    shard_mb: Annotated[int, typer.Option(min=1, help="About how large a file may be, in megabytes.")] = 500,
) -> None:
    """Turn a captioning data set into parquet files with its images.

    Reads what captioning data sets come in, and a folder of images; writes one or more files for each split, with the
    columns image, captions and image_id, for train, evaluate and load_dataset. They appear when all are complete.
    """
    from hf_contrastive_caption.cli import convert as command

    command.convert(
        annotations,
        images,
        out,
        shard_bytes=shard_mb * 10**6,
        split=split,
        restval=restval,
        image_column=image_column,
        caption_column=caption_column,
        image_size=image_size,
        skip_missing=skip_missing,
        skip_broken=skip_bad,
    )
