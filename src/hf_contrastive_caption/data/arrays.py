"""Flat arrays in a folder, written piece by piece and read through memory mapping.

A data set of ten million rows has hundreds of megabytes of tokens and hashes. Memory-mapped, they belong to the
operating system's page cache, once for all processes and workers; a worker receives the folder's path.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

#: Writes the arrays piece by piece: gets a scratch folder (``None`` when all stays in memory) and a dictionary for
#: totals, yields dictionaries of one-dimensional pieces.
Pieces = Callable[[Path | None, dict[str, int]], Iterator[dict[str, NDArray[Any]]]]


class FlatArrays:
    """Named one-dimensional arrays and a few totals, in memory or memory-mapped from a folder.

    Pickled, arrays in a folder travel as the folder's path.

    Args:
        arrays: The arrays by name.
        totals: Integers that describe them.
        folder: Where they are stored, or ``None``.
    """

    def __init__(self, arrays: dict[str, NDArray[Any]], totals: dict[str, int], folder: Path | None = None) -> None:
        self.arrays = arrays
        self.totals = totals
        self.folder = folder

    @classmethod
    def load(cls, folder: Path) -> FlatArrays:
        """Map the arrays in a folder that :func:`store_arrays` wrote."""
        totals = json.loads((folder / "totals.json").read_text())
        # As plain arrays over the mapped memory: indexing a np.memmap is several times slower.
        arrays = {file.stem: _mapped(file) for file in sorted(folder.glob("*.npy"))}
        return cls(arrays, totals, folder)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """The array of that name."""
        return self.arrays[name]

    def __getstate__(self) -> dict[str, Any]:
        """The path for arrays in a folder, the arrays themselves otherwise."""
        return {"folder": self.folder} if self.folder is not None else dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the arrays again."""
        folder = state["folder"]
        self.__dict__.update(FlatArrays.load(folder).__dict__ if folder is not None else state)


def store_arrays(folder: Path | None, dtypes: dict[str, Any], pieces: Pieces) -> FlatArrays:
    """Load the arrays from a folder, or make them.

    The folder appears under its name only when it is complete, so a build that was interrupted, or two processes that
    build at the same time, leave nothing half done.

    Args:
        folder: Where the arrays are, or will be; ``None`` to keep them in memory.
        dtypes: Names and types of the arrays.
        pieces: Makes the arrays when they are not there yet.

    Returns:
        The arrays.
    """
    if folder is None:
        return _in_memory(dtypes, pieces)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            _write(scratch / "arrays", scratch, dtypes, pieces)
            try:
                (scratch / "arrays").rename(folder)
            except OSError:
                if not folder.is_dir():  # otherwise another process was first, with the same content
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return FlatArrays.load(folder)


def _write(target: Path, scratch: Path, dtypes: dict[str, Any], pieces: Pieces) -> None:
    target.mkdir()
    totals: dict[str, int] = {}
    files = {name: (target / f"{name}.npy").open("wb") for name in dtypes}
    try:
        writers = {name: _NpyWriter(file, dtypes[name]) for name, file in files.items()}
        for piece in pieces(scratch, totals):
            for name, values in piece.items():
                writers[name].append(values)
        for writer in writers.values():
            writer.finish()
    finally:
        for file in files.values():
            file.close()
    (target / "totals.json").write_text(json.dumps(totals))


def _in_memory(dtypes: dict[str, Any], pieces: Pieces) -> FlatArrays:
    totals: dict[str, int] = {}
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in dtypes}
    for piece in pieces(None, totals):
        for name, values in piece.items():
            parts[name].append(values)
    arrays = {
        name: np.concatenate(values).astype(dtypes[name], copy=False) if values else np.zeros(0, dtypes[name])
        for name, values in parts.items()
    }
    return FlatArrays(arrays, totals)


class _NpyWriter:
    """Appends to a ``.npy`` file; NumPy leaves room in the header for the length to grow."""

    def __init__(self, file: BinaryIO, dtype: Any) -> None:
        self._file = file
        self._dtype = np.dtype(dtype)
        self._length = 0
        self._file.write(self._header())

    def append(self, values: NDArray[Any]) -> None:
        self._file.write(np.ascontiguousarray(values, dtype=self._dtype).data)
        self._length += len(values)

    def finish(self) -> None:
        self._file.seek(0)
        self._file.write(self._header())

    def _header(self) -> bytes:
        header = BytesIO()
        description = {"shape": (self._length,), "fortran_order": False, "descr": self._dtype.str}
        np.lib.format.write_array_header_1_0(header, description)
        return header.getvalue()


def _mapped(file: Path) -> NDArray[Any]:
    # An empty array cannot be mapped.
    length, dtype, offset = _read_header(file)
    if length == 0:
        return np.zeros(0, dtype)
    return np.memmap(file, dtype=dtype, mode="r", offset=offset, shape=(length,)).view(np.ndarray)


def _read_header(file: Path) -> tuple[int, np.dtype[Any], int]:
    with file.open("rb") as stream:
        np.lib.format.read_magic(stream)
        (length,), _, dtype = np.lib.format.read_array_header_1_0(stream)
        return length, dtype, stream.tell()
