"""Which image has which captions, as the usual annotation files say it.

All texts of a file are held in memory, and no image.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

SPLITS = ("train", "validation", "test")
_SPLIT_NAMES = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation"}
_SPLIT_NAMES |= {"dev": "validation", "test": "test"}
_IMAGE_COLUMNS = ("image", "image_name", "file_name", "filename", "file", "image_path", "filepath", "path", "img")
_CAPTION_COLUMNS = ("caption", "captions", "comment", "sentence", "raw", "text", "title")
_TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".token")
_IMAGE_SUFFIX = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?)$", re.IGNORECASE)
_NUMBERED = re.compile(r"#\d+$")
"""The number of a caption behind an image's name, as in ``Flickr8k.token.txt``."""


@dataclass
class AnnotatedImage:
    """An image and what is said of it.

    Attributes:
        path: Where its file is, relative to the folder of images.
        image_id: What the data set calls it.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        captions: Its captions as they stand in the file, empty ones among them.
    """

    path: str
    image_id: str
    split: str
    captions: list[str] = field(default_factory=list)


def read_annotations(
    file: Path,
    *,
    split: str | None = None,
    restval: bool = True,
    image_column: str | None = None,
    caption_column: str | None = None,
) -> tuple[str, list[AnnotatedImage]]:
    """Read an annotation file of any known kind.

    Args:
        file: Karpathy's JSON (``dataset_coco.json``, ``dataset_flickr8k.json``), COCO's captions JSON
            (``captions_train2017.json``), or a table of images and captions: ``captions.txt``, CSV, TSV,
            Flickr30k's ``results.csv`` with ``|`` between columns, ``Flickr8k.token.txt``.
        split: The split that all images belong to; said by the file if not given.
        restval: Whether the images that Karpathy calls ``restval`` join ``train``; else they are left out.
        image_column: Which column of a table names the image; found by its name if not given.
        caption_column: Which column holds the caption; found by its name if not given.

    Returns:
        What kind of file it is, in words, and the images in their order in the file.

    Raises:
        ValueError: If the file is of no known kind, or broken. The message names the place.
    """
    if not file.is_file():
        raise ValueError(f"there is no annotation file {str(file)!r}")
    if split is not None and split not in SPLITS:
        raise ValueError(f"the split is {split!r}, but must be one of {', '.join(SPLITS)}")
    if file.suffix.lower() == ".json":
        if image_column is not None or caption_column is not None:
            raise ValueError(f"{file.name} is JSON and has no columns to name; they are for CSV and TSV files")
        return _read_json(file, split, restval)
    if file.suffix.lower() not in _TEXT_SUFFIXES:
        raise ValueError(
            f"{file.name} is of no known kind; give Karpathy's or COCO's captions JSON, or a table with an image and "
            f"a caption in each line ({', '.join(_TEXT_SUFFIXES)})"
        )
    return "table of captions", _read_table(file, split, image_column, caption_column)


# JSON ----------------------------------------------------------------------------------------------------------------


def _read_json(file: Path, split: str | None, restval: bool) -> tuple[str, list[AnnotatedImage]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # also for bytes that are no UTF-8
        raise ValueError(f"{file.name} is no JSON: {error}") from error
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not images:
        raise ValueError(f"{file.name} has no list of images; Karpathy's and COCO's captions JSON have one")
    try:
        if "annotations" in content:
            return "COCO captions", _read_coco(file, content, split)
        if isinstance(images[0], dict) and "sentences" in images[0]:
            return "Karpathy's splits", _read_karpathy(file, images, split, restval)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file.name} is broken: {type(error).__name__}: {error}") from error
    raise ValueError(
        f"{file.name} is JSON with images, but without captions: Karpathy's files have 'sentences' in each image, "
        "COCO's a list of 'annotations'"
    )


def _read_karpathy(file: Path, images: list[Any], split: str | None, restval: bool) -> list[AnnotatedImage]:
    found = []
    for image in images:
        name = image["split"]
        if name == "restval" and not restval:
            continue
        found.append(
            AnnotatedImage(
                path=str(PurePosixPath(image.get("filepath", ""), image["filename"])),
                image_id=str(image.get("cocoid", image.get("imgid", image["filename"]))),
                split=split or ("train" if name == "restval" else _split_name(name, file)),
                captions=[_text(sentence["raw"]) for sentence in image["sentences"]],
            )
        )
    return found


def _read_coco(file: Path, content: dict[str, Any], split: str | None) -> list[AnnotatedImage]:
    chosen = split or split_of_name(file.stem)
    if chosen is None:
        raise ValueError(f"the name of {file.name} does not say which split it is; say --split train, for one")
    found = {
        image["id"]: AnnotatedImage(str(image["file_name"]), str(image["id"]), chosen) for image in content["images"]
    }
    for number, annotation in enumerate(content["annotations"]):
        if "caption" not in annotation:
            raise ValueError(f"annotation {number} of {file.name} has no caption; give COCO's captions_*.json")
        if annotation["image_id"] not in found:
            raise ValueError(f"annotation {number} of {file.name} is for an image {annotation['image_id']} not in it")
        found[annotation["image_id"]].captions.append(_text(annotation["caption"]))
    return list(found.values())


def _text(caption: Any) -> str:
    if not isinstance(caption, str):
        raise TypeError(f"{caption!r} is no caption")
    return caption


def split_of_name(name: str) -> str | None:
    """The split that a file's name speaks of, as ``captions_val2017`` does; ``None`` if it does not."""
    for word in re.findall(r"[a-z]+", name.lower()):
        if word in _SPLIT_NAMES:
            return _SPLIT_NAMES[word]
    return None


def _split_name(name: str, file: Path) -> str:
    if name.strip().lower() not in _SPLIT_NAMES:
        raise ValueError(
            f"{file.name} has a split {name!r}; known are {', '.join(_SPLIT_NAMES)}. Put all of its images into one "
            "with --split train, for one"
        )
    return _SPLIT_NAMES[name.strip().lower()]


# Tables --------------------------------------------------------------------------------------------------------------


def _read_table(
    file: Path, split: str | None, image_column: str | None, caption_column: str | None
) -> list[AnnotatedImage]:
    try:
        rows = _rows(file)
        first = next(rows, None)
        if first is None:
            raise ValueError(f"{file.name} is empty")
        return _group_rows(file, first[1], rows, split, _columns(file, first[1], image_column, caption_column))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file.name} is no UTF-8 text: {error}") from error
    except csv.Error as error:
        raise ValueError(f"{file.name} is no table: {error}") from error


def _group_rows(
    file: Path,
    first: list[str],
    rows: Iterator[tuple[int, list[str]]],
    split: str | None,
    columns: tuple[int, int] | None,
) -> list[AnnotatedImage]:
    """Captions of an image may stand in any lines; an image has a place in each split that it is listed for."""
    split_column = None
    if columns is None:  # the first line holds an image and a caption already
        columns, rows = (0, len(first) - 1), chain([(1, first)], rows)
    elif split is None:
        split_column = next((place for place, name in enumerate(first) if name.strip().lower() == "split"), None)
    found: dict[tuple[str, str], AnnotatedImage] = {}
    for line, row in rows:
        if len(row) != len(first):
            raise ValueError(
                f"line {line} of {file.name} has {len(row)} columns, but the first line {len(first)}; with commas or "
                "semicolons between columns a caption that has one stands in quotes, with tabs or | a caption can "
                "have neither that mark nor a line break"
            )
        path = _NUMBERED.sub("", row[columns[0]].strip())
        if not path:
            raise ValueError(f"line {line} of {file.name} names no image")
        chosen = split or ("train" if split_column is None else _split_name(row[split_column], file))
        image = found.setdefault((path, chosen), AnnotatedImage(path, path, chosen))
        image.captions.append(row[columns[1]])
    return list(found.values())


def _rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows that hold something, with the numbers of their lines."""
    with file.open(encoding="utf-8-sig", newline="") as text:
        first = text.readline()
        delimiter = next((mark for mark in ("\t", "|") if mark in first), ",")
        if delimiter == "," and ";" in first and "," not in first:
            delimiter = ";"
        text.seek(0)
        if delimiter in "\t|":  # captions there have bare quotes
            reader = csv.reader(text, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)
        else:
            reader = csv.reader(text, delimiter=delimiter, strict=True)
        for row in reader:
            if any(cell.strip() for cell in row):
                plain = [_unquoted(cell) for cell in row] if delimiter in "\t|" else row
                yield reader.line_num, _repaired(plain) if delimiter == "|" else plain


def _unquoted(cell: str) -> str:
    """A cell as it was before a writer of CSV put it in quotes; others, with bare quotes in them, as they are."""
    quoted = re.fullmatch(r'\s*"((?:[^"]|"")*)"\s*', cell)
    return cell if quoted is None else quoted[1].replace('""', '"')


def _repaired(row: list[str]) -> list[str]:
    """One line of Flickr30k's ``results.csv`` has no mark between the caption's number and the caption."""
    if len(row) == 2 and (missing := re.fullmatch(r"\s*(\d+)\s+(.*)", row[1], re.DOTALL)):
        return [row[0], missing[1], missing[2]]
    return row


def _columns(
    file: Path, header: list[str], image_column: str | None, caption_column: str | None
) -> tuple[int, int] | None:
    """The columns of image and caption; ``None`` for a file without a header."""
    lower = [name.strip().lower() for name in header]
    headless = len(header) > 1 and _IMAGE_SUFFIX.search(_NUMBERED.sub("", header[0].strip())) is not None
    if headless and image_column is None and caption_column is None:
        return None
    found = []
    for what, given, known in (("image", image_column, _IMAGE_COLUMNS), ("caption", caption_column, _CAPTION_COLUMNS)):
        wanted = known if given is None else (given.lower(),)
        place = next((lower.index(name) for name in wanted if name in lower), None)
        if place is None:
            told = f"no column {given!r}" if given is not None else f"no column called {', '.join(known)}"
            raise ValueError(
                f"{file.name} has {told}; its columns are {', '.join(map(str.strip, header))}. Name the right one "
                f"with --{what}-column"
            )
        found.append(place)
    return found[0], found[1]
