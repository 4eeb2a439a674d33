"""Data sets from what people have on disk: parquet files, or images with a list of captions."""

from __future__ import annotations

import glob
from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset


def load_splits(source: str | Path) -> DatasetDict:
    """Load a data set from a folder, a file, or the Hub.

    Args:
        source: A parquet file; a folder with parquet files; a folder of images with a ``metadata.jsonl`` or
            ``metadata.csv`` beside them ("imagefolder" of the library datasets: a column ``file_name`` and one of
            captions); or the name of a data set on the Hub. Parquet files named train, validation and test become the
            splits, and so do folders of images with these names that have a list each.

    Raises:
        ValueError: If the folder or file is none of these.
    """
    path = Path(source)
    if not path.exists():
        if isinstance(source, str) and source.count("/") == 1 and not source.startswith((".", "/", "~")):
            return DatasetDict(load_dataset(source))
        raise ValueError(
            f"{source} does not exist; give a folder, a parquet file, or the name of a data set on the Hub"
        )
    escaped = Path(glob.escape(str(path)))  # the library takes what it is given for a pattern
    if path.is_file():
        if path.suffix != ".parquet":
            raise ValueError(f"{source} is no parquet file; give one, or a folder of parquet files or images")
        return load_dataset("parquet", data_files=str(escaped))
    if any(path.rglob("*.parquet")):
        return load_dataset("parquet", data_dir=str(escaped))
    if any(path.glob("metadata.*")):  # one list for all images: one split, whatever the files are called
        return load_dataset("imagefolder", data_files={"train": str(escaped / "**")})
    if any(path.glob("*/**/metadata.*")):
        return load_dataset("imagefolder", data_dir=str(escaped))
    raise ValueError(f"{source} has neither parquet files nor a metadata.jsonl or metadata.csv beside images")


def choose_split(splits: DatasetDict, name: str | None = None) -> tuple[str, Dataset]:
    """The split with a name, or the one to evaluate on: test, else validation, else the only one there is.

    Returns:
        Its name and the split.

    Raises:
        ValueError: If there is no such split, or several and none of these.
    """
    if name is not None and name not in splits:
        raise ValueError(f"there is no split {name!r}; there are {', '.join(map(str, splits))}")
    for candidate in (name,) if name is not None else ("test", "validation", *splits):
        if candidate in splits and (candidate in (name, "test", "validation") or len(splits) == 1):
            return str(candidate), splits[candidate]
    raise ValueError(
        f"there are the splits {', '.join(map(str, splits))}, and none called test or validation; name the one to "
        "take (--split)"
    )
