"""Parquet files of limited size, written as rows come in, that appear when all of them are complete."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, List, Value

FEATURES = Features({"image": Image(), "captions": List(Value("string")), "image_id": Value("string")})
_GROUP_BYTES = 32 * 2**20
_GROUP_ROWS = 256
"""Rows that are held until they are written; few enough that one can be read without reading many."""


class ParquetFolder:
    """A folder of files ``train-00000-of-00003.parquet`` and so on, one or more for each split.

    Used as a context: files get their names when it is left without an error, and are gone otherwise.

    Args:
        folder: Made if it is not there; files of other splits in it stay.
        splits: The splits that will be written.
        shard_bytes: A new file is begun when one holds so many bytes of images.

    Raises:
        ValueError: If there are files of one of these splits already.
    """

    def __init__(self, folder: Path, splits: list[str], shard_bytes: int) -> None:
        self.folder = folder
        self.shard_bytes = shard_bytes
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file; give a folder to write to")
        there = [path.name for split in splits for path in sorted(folder.glob(f"{split}-*.parquet"))]
        if there:
            raise ValueError(f"{folder} has {there[0]} already; delete it, or write to another folder")
        self._writers = {split: _SplitWriter(split) for split in splits}

    def __enter__(self) -> ParquetFolder:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        # On the same file system, so that files are renamed and not copied; hidden, so that no reader takes them.
        staging = tempfile.mkdtemp(prefix=f".{self.folder.name}-unfinished-", dir=self.folder.parent)
        self._staging = Path(staging)
        return self

    def add(self, split: str, content: bytes, name: str, captions: list[str], image_id: str) -> None:
        """Write a row."""
        row = {"image": {"bytes": content, "path": name}, "captions": captions, "image_id": image_id}
        self._writers[split].add(row, len(content), self._staging, self.shard_bytes)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        try:
            for writer in self._writers.values():
                writer.close(complete=kind is None)
            if kind is None:
                self._publish()
        finally:
            shutil.rmtree(self._staging, ignore_errors=True)

    def _publish(self) -> None:
        self.folder.mkdir(exist_ok=True)
        for writer in self._writers.values():
            for number, file in enumerate(writer.files):
                name = f"{writer.split}-{number:05d}-of-{len(writer.files):05d}.parquet"
                os.replace(file, self.folder / name)


class _SplitWriter:
    """The files of one split, under preliminary names."""

    def __init__(self, split: str) -> None:
        self.split = split
        self.files: list[Path] = []
        self._writer: pq.ParquetWriter | None = None
        self._rows: list[dict[str, Any]] = []
        self._held = self._in_file = 0

    def add(self, row: dict[str, Any], size: int, folder: Path, limit: int) -> None:
        if self._writer is not None and self._in_file + self._held + size > limit:
            self.close(complete=True)
        if self._writer is None:
            self.files.append(folder / f"{self.split}-{len(self.files)}.part")
            # Images are compressed already; the dictionaries of Parquet would hold each of them a second time.
            self._writer = pq.ParquetWriter(self.files[-1], FEATURES.arrow_schema, use_dictionary=False)
        self._rows.append(row)
        self._held += size
        if self._held >= _GROUP_BYTES or len(self._rows) >= _GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows and self._writer is not None:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=FEATURES.arrow_schema))
            self._in_file += self._held
            self._rows, self._held = [], 0

    def close(self, *, complete: bool) -> None:
        """Finish the file; the rows that are held are written only if it shall be complete."""
        if self._writer is not None:
            if complete:
                self._flush()
            self._writer.close()
        self._writer, self._in_file = None, 0
