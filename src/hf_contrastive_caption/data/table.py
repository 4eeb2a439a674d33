"""The captions of a data set as flat arrays: whose they are, what they say, and their tokens.

Captions are numbered through the whole data set, row by row. Everything here is made once, with ``datasets``, and
kept in files beside the data set's own cache; nothing needs memory that grows with the number of rows.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets.fingerprint import get_temporary_cache_files_directory
from numpy.typing import NDArray

from hf_contrastive_caption.data.arrays import FlatArrays, store_arrays
from hf_contrastive_caption.data.identity import bytes_key, image_id_key, text_key
from hf_contrastive_caption.data.images import file_states
from hf_contrastive_caption.data.schema import CaptionColumns, captions_of
from hf_contrastive_caption.processing import CaptionProcessor

logger = logging.getLogger(__name__)

#: Part of every fingerprint: a change of what the arrays mean makes a new one.
_FORMAT = 3


class CaptionIndex:
    """Whose captions there are, and which of them say the same.

    Args:
        texts: ``row_start``, the number of the first caption of each row and the number of captions at the end,
            (n_rows + 1,) int64; ``caption_row``, the row of each caption, (n_captions,) uint32; ``text_key``, the hash
            of each caption's normalised text, (n_captions,) uint64.
        images: ``image_key``, the hash of each row's image id, or of its image, (n_rows,) uint64; ``None`` when no
            negatives are drawn.
    """

    def __init__(self, texts: FlatArrays, images: FlatArrays | None = None) -> None:
        self._texts = texts
        self._images = images

    @classmethod
    def from_arrays(
        cls, row_start: NDArray[np.int64], text_key: NDArray[np.uint64], image_key: NDArray[np.uint64] | None = None
    ) -> CaptionIndex:
        """Make an index of arrays in memory: (n_rows + 1,), (n_captions,) and (n_rows,)."""
        images = None if image_key is None else FlatArrays({"image_key": image_key}, {})
        caption_row = np.repeat(np.arange(len(row_start) - 1, dtype=np.uint32), np.diff(row_start))
        return cls(FlatArrays({"row_start": row_start, "caption_row": caption_row, "text_key": text_key}, {}), images)

    @property
    def row_start(self) -> NDArray[np.int64]:
        """Number of the first caption of each row, and the number of captions, (n_rows + 1,)."""
        return self._texts["row_start"]

    @property
    def text_key(self) -> NDArray[np.uint64]:
        """Hash of each caption's normalised text, (n_captions,)."""
        return self._texts["text_key"]

    @property
    def image_key(self) -> NDArray[np.uint64]:
        """Hash of each row's image, (n_rows,)."""
        if self._images is None:
            raise ValueError("This index was built without image keys, for training without negatives.")
        return self._images["image_key"]

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.row_start) - 1

    @property
    def n_captions(self) -> int:
        """Number of captions of all rows together."""
        return len(self.text_key)

    def rows(self, captions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows that captions belong to.

        Args:
            captions: Caption numbers, of any shape.

        Returns:
            Row numbers, of the same shape.
        """
        # A stored table: to search row_start would take fifty times as long when there are ten million rows.
        return self._texts["caption_row"][captions].astype(np.int64)

    def image_keys(self, captions: NDArray[np.int64]) -> NDArray[np.uint64]:
        """The image keys of captions, of the same shape."""
        return self.image_key[self.rows(captions)]


class TokenStore:
    """The tokens of all captions of a data set.

    Args:
        stored: ``tokens``, the token ids of all captions behind each other, (n_tokens,) int32; ``offsets``, where each
            caption begins and n_tokens at the end, (n_captions + 1,) int64.
    """

    def __init__(self, stored: FlatArrays) -> None:
        self._stored = stored

    @property
    def n_cut(self) -> int:
        """How many captions were longer than the processor's limit and are cut."""
        return self._stored.totals["n_cut"]

    def arrays(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """All token ids, (n_tokens,), and where each caption begins, (n_captions + 1,)."""
        return self._stored["tokens"], self._stored["offsets"]

    def gather(self, captions: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Collect the tokens of some captions.

        Equals ``np.concatenate([tokens[offsets[c]:offsets[c + 1]] for c in captions])``.

        Args:
            captions: Caption numbers, (n,).

        Returns:
            ``input_ids``: their token ids behind each other, (sum of lengths,); ``lengths``: (n,).
        """
        offsets = self._stored["offsets"]
        starts = offsets[captions]  # (n,)
        lengths = offsets[captions + 1] - starts  # (n,)
        return self._stored["tokens"][ragged_ranges(starts, lengths)], lengths


def ragged_ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ranges behind each other: equals ``np.concatenate([np.arange(s, s + n) for s, n in zip(starts, lengths)])``.

    Args:
        starts: First number of each range, (n,).
        lengths: Length of each range, (n,).

    Returns:
        The numbers, (sum of lengths,).
    """
    before = np.cumsum(lengths) - lengths  # (n,) how many numbers stand before each range
    return np.asarray(np.arange(lengths.sum()) + np.repeat(starts - before, lengths))


def build_index(
    dataset: datasets.Dataset, columns: CaptionColumns, with_images: bool = True, num_proc: int | None = None
) -> CaptionIndex:
    """Number the captions and hash texts and images.

    Args:
        dataset: One split.
        columns: Its columns.
        with_images: Whether image keys are needed. Without an image-id column, every image's bytes are read for them
            (not decoded), once.
        num_proc: Processes to use.

    Returns:
        The index, memory-mapped from beside the data set's cache when the data set is on disk.

    Raises:
        ValueError: An empty caption, a row without captions or without image id; the row is named.
    """
    texts = store_arrays(
        _folder(dataset, "texts", columns.captions),
        {"row_start": np.int64, "caption_row": np.uint32, "text_key": np.uint64},
        partial(_text_pieces, dataset, columns, num_proc),
    )
    if not with_images:
        return CaptionIndex(texts)
    if columns.image_id is not None:
        by = [columns.image_id]
    else:  # a path is not what stands behind it
        by = [columns.image, "bytes", digest([], file_states(dataset.data.column(columns.image)))]
    images = store_arrays(
        _folder(dataset, "images", by), {"image_key": np.uint64}, partial(_image_pieces, dataset, columns, num_proc)
    )
    return CaptionIndex(texts, images)


def build_tokens(
    dataset: datasets.Dataset, columns: CaptionColumns, processor: CaptionProcessor, num_proc: int | None = None
) -> TokenStore:
    """Tokenize all captions, once.

    Args:
        dataset: One split.
        columns: Its columns.
        processor: Tokenizes the captions. Its ``text_fingerprint`` decides whether stored tokens are still right.
        num_proc: Processes to use.

    Returns:
        The tokens, memory-mapped from beside the data set's cache when the data set is on disk. Captions that had to
        be cut are counted and reported once, as a warning.
    """
    stored = store_arrays(
        _folder(dataset, "tokens", [*columns.captions, processor.text_fingerprint()]),
        {"tokens": np.int32, "offsets": np.int64},
        partial(_token_pieces, dataset, columns, processor, num_proc),
    )
    tokens = TokenStore(stored)
    if tokens.n_cut:
        logger.warning(
            "%d of %d captions are longer than max_caption_tokens=%d and were cut; they keep their end token.",
            tokens.n_cut,
            len(stored["offsets"]) - 1,
            processor.max_caption_tokens,
        )
    return tokens


def _text_pieces(
    dataset: datasets.Dataset,
    columns: CaptionColumns,
    num_proc: int | None,
    scratch: Path | None,
    totals: dict[str, int],
) -> Iterator[dict[str, NDArray[Any]]]:
    features = {"text_key": datasets.List(datasets.Value("uint64"))}
    function = partial(_text_rows, columns=columns)
    mapped = _map(dataset, columns.captions, function, features, num_proc, scratch, "Numbering captions")
    row, start = 0, 0
    yield {"row_start": np.zeros(1, np.int64)}
    for table in mapped.with_format("arrow").iter(batch_size=10_000):
        keys, lengths = _ragged(table["text_key"])
        row_ends = start + np.cumsum(lengths)
        rows = np.repeat(np.arange(row, row + len(lengths), dtype=np.uint32), lengths)
        row, start = row + len(lengths), int(row_ends[-1])
        yield {"row_start": row_ends, "caption_row": rows, "text_key": keys}


def _image_pieces(
    dataset: datasets.Dataset,
    columns: CaptionColumns,
    num_proc: int | None,
    scratch: Path | None,
    totals: dict[str, int],
) -> Iterator[dict[str, NDArray[Any]]]:
    column = columns.image_id if columns.image_id is not None else columns.image
    key = bytes_key if columns.image_id is None else image_id_key
    function = partial(_image_rows, column=column, key=key)
    features = {"image_key": datasets.Value("uint64")}
    mapped = _map(dataset, (column,), function, features, num_proc, scratch, "Telling images apart", batch_size=64)
    for table in mapped.with_format("arrow").iter(batch_size=10_000):
        yield {"image_key": table["image_key"].to_numpy()}


def _token_pieces(
    dataset: datasets.Dataset,
    columns: CaptionColumns,
    processor: CaptionProcessor,
    num_proc: int | None,
    scratch: Path | None,
    totals: dict[str, int],
) -> Iterator[dict[str, NDArray[Any]]]:
    features = {"input_ids": datasets.List(datasets.Value("int32")), "cut": datasets.Value("bool")}
    function = partial(_token_rows, columns=columns, processor=processor)
    mapped = _map(dataset, columns.captions, function, features, num_proc, scratch, "Tokenizing captions")
    start, totals["n_cut"] = 0, 0
    yield {"offsets": np.zeros(1, np.int64)}
    for table in mapped.with_format("arrow").iter(batch_size=10_000):
        tokens, lengths = _ragged(table["input_ids"])
        ends = start + np.cumsum(lengths)
        start = int(ends[-1])
        totals["n_cut"] += int(table["cut"].to_numpy().sum())
        yield {"offsets": ends, "tokens": tokens}


def _text_rows(
    batch: dict[str, list[Any]], rows: list[int], columns: CaptionColumns
) -> dict[str, list[NDArray[np.uint64]]]:
    # As NumPy arrays: pyarrow takes plain integers for signed ones, and half of the keys do not fit.
    texts = _captions(batch, rows, columns)
    return {"text_key": [np.asarray([text_key(text) for text in row_texts], np.uint64) for row_texts in texts]}


def _image_rows(
    batch: dict[str, list[Any]], rows: list[int], column: str, key: Callable[[Any, int], int]
) -> dict[str, NDArray[np.uint64]]:
    keys = [key(value, row) for value, row in zip(batch[column], rows, strict=True)]
    return {"image_key": np.array(keys, dtype=np.uint64)}


def _token_rows(
    batch: dict[str, list[Any]], rows: list[int], columns: CaptionColumns, processor: CaptionProcessor
) -> dict[str, list[Any]]:
    """One output row per caption."""
    return processor.tokenize([text for texts in _captions(batch, rows, columns) for text in texts])._asdict()


def _captions(batch: dict[str, list[Any]], rows: list[int], columns: CaptionColumns) -> Iterator[list[str]]:
    for place, row in enumerate(rows):
        yield captions_of({name: batch[name][place] for name in columns.captions}, columns, row)


def _map(
    dataset: datasets.Dataset,
    read: Sequence[str],
    function: Callable[..., dict[str, Any]],
    features: dict[str, Any],
    num_proc: int | None,
    scratch: Path | None,
    description: str,
    batch_size: int = 1000,
) -> datasets.Dataset:
    """Run a function over some columns only, without decoding; the result goes to the scratch folder."""
    return undecoded(dataset, read).map(
        function,
        batched=True,
        batch_size=batch_size,
        with_indices=True,
        remove_columns=list(read),
        features=datasets.Features(features),
        num_proc=num_proc,
        desc=description,
        keep_in_memory=scratch is None,
        cache_file_name=None if scratch is None else str(scratch / "map.arrow"),
        load_from_cache_file=False,
        new_fingerprint=digest([dataset._fingerprint, description]),  # the function need not be hashed
    )


def undecoded(dataset: datasets.Dataset, columns: Sequence[str]) -> datasets.Dataset:
    """Some columns of a data set as plain Python values, images as their bytes or paths."""
    selected = dataset.with_format(None).select_columns(list(columns))
    for name in columns:
        if isinstance(selected.features[name], datasets.Image):
            selected = selected.cast_column(name, datasets.Image(decode=False))
    return selected


def _ragged(column: pa.ChunkedArray) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The values of a column of lists behind each other, and how many each list has."""
    lists = column.combine_chunks()
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    return lists.flatten().to_numpy(zero_copy_only=False), lengths


def _folder(dataset: datasets.Dataset, kind: str, parts: Sequence[str]) -> Path | None:
    """Where arrays of a data set belong; ``None`` for a data set that is in memory itself."""
    if not dataset.cache_files:
        return None
    # The fingerprint identifies the content of a data set; `map` builds on it in the same way.
    name = "contrastive-captions-" + digest([_FORMAT, dataset._fingerprint, kind, *parts])
    if not datasets.is_caching_enabled():
        return Path(get_temporary_cache_files_directory()) / name
    beside = Path(dataset.cache_files[0]["filename"]).parent
    if os.access(beside, os.W_OK):
        return beside / name
    return Path(datasets.config.HF_DATASETS_CACHE) / name


def digest(parts: Sequence[Any], *contents: bytes) -> str:
    """A hash of what JSON can hold, and of bytes."""
    whole = hashlib.blake2b(json.dumps(list(parts)).encode(), digest_size=16)
    for content in contents:
        whole.update(content)
    return whole.hexdigest()
