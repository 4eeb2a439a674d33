"""Annotations and a folder of images in, parquet files out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hf_contrastive_caption.data.convert.annotations import AnnotatedImage, read_annotations
from hf_contrastive_caption.data.convert.pictures import ImageFolder, image_bytes
from hf_contrastive_caption.data.convert.shards import ParquetFolder
from hf_contrastive_caption.data.images import BadImageError

DEFAULT_SHARD_BYTES = 500 * 10**6


@dataclass(frozen=True)
class Conversion:
    """What was converted.

    Attributes:
        kind: What the annotation file was taken for.
        images: Images written, by split.
        captions: Captions written, by split.
        empty_captions: Captions of nothing but white space, which were left out.
        without_captions: Images that were left out because they have no caption.
        missing: Images without a file, which were left out.
        broken: Images that do not open, which were left out.
    """

    kind: str
    images: dict[str, int]
    captions: dict[str, int]
    empty_captions: int
    without_captions: int
    missing: int
    broken: int


def convert_captions(
    annotations: Path,
    images: Path,
    out: Path,
    *,
    split: str | None = None,
    restval: bool = True,
    image_column: str | None = None,
    caption_column: str | None = None,
    image_size: int | None = None,
    skip_missing: bool = False,
    skip_broken: bool = False,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    advance: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Write a captioning data set as parquet files that hold the images themselves.

    The files have the columns ``image``, ``captions`` (a list) and ``image_id`` (a string) and are named by their
    split, so that ``load_dataset("parquet", data_dir=out)`` and all commands here read them. Texts are held in memory,
    images only until their row group is written (32 MB or 256 images).

    Args:
        annotations: See :func:`read_annotations`.
        images: The folder with the images.
        out: The folder for the parquet files. They appear when all of them are complete.
        split: The split that all images belong to; said by the annotations if not given.
        restval: Whether Karpathy's ``restval`` joins ``train``; else it is left out.
        image_column: The column of a table that names the image; found by its name if not given.
        caption_column: The column with the caption; found by its name if not given.
        image_size: Make images whose longest side has more pixels smaller.
        skip_missing: Leave out images that have no file, instead of stopping.
        skip_broken: Leave out images that do not open, instead of stopping.
        shard_bytes: About how large a file may be.
        advance: Called with the number of images that are done and of all.

    Raises:
        ValueError: If the annotations cannot be read, files of a split are there already, an image is missing
            (``skip_missing``) or nothing is left.
        BadImageError: If an image does not open (``skip_broken``).
    """
    _check_sizes(image_size, shard_bytes)
    folder = ImageFolder(images)
    kind, annotated = read_annotations(
        annotations, split=split, restval=restval, image_column=image_column, caption_column=caption_column
    )
    empty = _drop_empty_captions(annotated)
    captioned = [image for image in annotated if image.captions]
    files = folder.find_all([image.path for image in captioned])
    missing = [image.path for image, file in zip(captioned, files, strict=True) if file is None]
    if missing and not skip_missing:
        raise ValueError(
            f"{len(missing)} of {len(captioned)} images are not in {images}: {', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}. Give the folder that has them, or leave them out with "
            "--skip-missing"
        )
    there = [(image, file) for image, file in zip(captioned, files, strict=True) if file is not None]
    numbers: Counter[str] = Counter()
    captions: Counter[str] = Counter()
    broken = 0
    with ParquetFolder(out, sorted({image.split for image, _ in there}), shard_bytes) as parquet:
        for number, (image, file) in enumerate(there):
            try:
                content = image_bytes(file, image_size)
            except BadImageError as error:
                if not skip_broken:
                    raise BadImageError(f"{file}: {error}. Leave such images out with --skip-bad") from error
                broken += 1
            else:
                parquet.add(image.split, content, file.name, image.captions, image.image_id)
                numbers[image.split] += 1
                captions[image.split] += len(image.captions)
            if advance is not None:
                advance(number + 1, len(there))
        if not numbers:
            raise ValueError(f"nothing is left of {annotations}: {len(missing)} images are missing, {broken} broken")
    without = len(annotated) - len(captioned)
    return Conversion(kind, dict(numbers), dict(captions), empty, without, len(missing), broken)


def _check_sizes(image_size: int | None, shard_bytes: int) -> None:
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size is {image_size}, but must be at least 1 pixel")
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes is {shard_bytes}, but must be at least 1")


def _drop_empty_captions(images: list[AnnotatedImage]) -> int:
    """Take white space off the ends of captions, and out those that have nothing else; count these."""
    empty = 0
    for image in images:
        kept = [caption.strip() for caption in image.captions if caption.strip()]
        empty += len(image.captions) - len(kept)
        image.captions = kept
    return empty
