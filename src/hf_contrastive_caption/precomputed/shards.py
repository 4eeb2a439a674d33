"""Tensors of numbered items in a folder: written shard by shard, whole or not at all, and read item by item."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from huggingface_hub import cached_assets_path
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from hf_contrastive_caption.captioners.batch import Padding, join_images
from hf_contrastive_caption.fingerprints import json_digest
from hf_contrastive_caption.writing import write_whole

logger = logging.getLogger(__name__)

ABOUT = "about.json"


class ShardStore:
    """A folder of safetensors files, each with some neighbouring items.

    Every file says what it was computed from, and is not read if that is something else. Pickled, a store travels as
    its folder.

    Args:
        folder: Where the files are, or will be.
        key: Hash of all that the tensors depend on.
        bounds: The first item of each shard, and the number of items, (n_shards + 1,).
    """

    def __init__(self, folder: Path, key: str, bounds: NDArray[np.int64]) -> None:
        self.folder = folder
        self.key = key
        self.bounds = bounds
        self._open: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without open files."""
        return {**self.__dict__, "_open": {}}

    def missing(self) -> list[int]:
        """The shards that are not there yet."""
        return [shard for shard in range(len(self.bounds) - 1) if not self._file(shard).is_file()]

    def write(self, shard: int, tensors: dict[str, Tensor]) -> None:
        """Write a shard.

        Args:
            shard: Its number.
            tensors: Tensors with the shard's items along the first dimension.
        """
        items = int(self.bounds[shard + 1] - self.bounds[shard])
        for name, value in tensors.items():
            if value.shape[0] != items:
                raise ValueError(f"shard {shard} has {items} items, but {name} has {value.shape[0]}")
        self.folder.mkdir(parents=True, exist_ok=True)
        scratch = self.folder / f".{shard}-{uuid4().hex}"
        try:
            save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, scratch, {"key": self.key})
            scratch.replace(self._file(shard))
        finally:
            scratch.unlink(missing_ok=True)  # of a disk that is full

    def read(self, start: int, stop: int) -> dict[str, Tensor]:
        """The tensors of some neighbouring items of one shard, (stop - start, ...) each.

        Raises:
            ValueError: The shard is missing, damaged, or of something else.
        """
        shard = int(np.searchsorted(self.bounds, start, side="right")) - 1
        stored = self._opened(shard)
        offset = int(self.bounds[shard])
        return {name: stored.get_slice(name)[start - offset : stop - offset] for name in stored.keys()}  # noqa: SIM118

    def mapped(self, shard: int) -> dict[str, Tensor]:
        """The tensors of a whole shard, memory-mapped, (n_items, ...) each.

        Raises:
            ValueError: The shard is missing, damaged, or of something else.
        """
        stored = self._opened(shard)
        return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118

    def _file(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.safetensors"

    def _opened(self, shard: int) -> Any:
        if shard not in self._open:
            file = self._file(shard)
            way_out = f"Delete {self.folder} to have it computed again"
            try:
                stored = safe_open(file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise ValueError(f"{file}, which was computed ahead, cannot be read: {error}. {way_out}") from error
            key = (stored.metadata() or {}).get("key")  # type: ignore[no-untyped-call]
            if key != self.key:
                raise ValueError(
                    f"{file} was computed from other data, draws or weights than those of this run (its key is "
                    f"{key}, and this run's {self.key}): it was moved or renamed. " + way_out
                )
            self._open[shard] = stored
        return self._open[shard]


def folder_for(kind: str, depends_on: dict[str, Any], directory: str | None) -> tuple[Path, str]:
    """The folder of what is computed from certain things, and their hash.

    Args:
        kind: What it is, in a word or two.
        depends_on: All that the result depends on; JSON.
        directory: Where such folders are; the assets folder of the Hub's cache if not given.

    Returns:
        The folder, ``directory/kind-hash``, with a file that says what it was computed from; and the hash.
    """
    key = json_digest([kind, depends_on])
    parent = (
        cached_assets_path("hf-contrastive-caption", "computed") if directory is None else Path(directory).expanduser()
    )
    folder = parent / f"{kind}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    about = folder / ABOUT
    if not about.is_file():
        write_whole(about, json.dumps({"kind": kind, **depends_on}, indent=2) + "\n")
    return folder, key


def check_space(folder: Path, needed: int, what: str) -> None:
    """Refuse to begin what the disk has no room for.

    Raises:
        OSError: There is not enough room.
    """
    free = shutil.disk_usage(folder).free
    logger.info("%s: %.2f GiB in %s", what, needed / 2**30, folder)
    if needed > free:
        raise OSError(
            f"{what} need {needed / 2**30:.1f} GiB in {folder}, where {free / 2**30:.1f} GiB are free; choose another "
            "place with precomputed_dir, or leave the option out"
        )


class _Batches(Dataset[Any]):
    """Makes a batch of a list of numbers."""

    def __init__(self, make: Callable[[list[int]], Any]) -> None:
        self._make = make

    def __getitem__(self, numbers: list[int]) -> Any:
        return self._make(numbers)


def fill_shards(
    shards: Sequence[int],
    bounds: NDArray[np.int64],
    make_batch: Callable[[list[int]], Any],
    compute: Callable[[Any], dict[str, Tensor]],
    write: Callable[[int, dict[str, Tensor]], None],
    *,
    batch_size: int,
    num_workers: int,
    progress: str | None,
    padding: Mapping[str, Padding] | None = None,
) -> None:
    """Compute shards, batch by batch, and write each as soon as it is complete.

    Args:
        shards: Numbers of the shards.
        bounds: First number of each shard, and the end, (n_shards + 1,).
        make_batch: Makes a batch of some numbers, in a worker.
        compute: Makes tensors of a batch; they are put together along the first dimension.
        write: Takes the number of a shard and its tensors.
        batch_size: Numbers in a batch.
        num_workers: Workers that make batches.
        progress: What a progress bar says; ``None`` for none.
        padding: What may be of different sizes in different batches, and how it is padded.

    Raises:
        ValueError: Items have tensors of different sizes.
    """
    batches = [_cut(int(bounds[shard]), int(bounds[shard + 1]), batch_size) for shard in shards]
    loader: DataLoader[Any] = DataLoader(
        _Batches(make_batch),
        sampler=[numbers for of_shard in batches for numbers in of_shard],
        batch_size=None,
        num_workers=num_workers,
    )
    made = iter(loader)
    with tqdm(total=sum(map(len, batches)), desc=progress, unit="batch", disable=progress is None) as bar:
        for shard, of_shard in zip(shards, batches, strict=True):
            pieces: list[dict[str, Tensor]] = []
            for _ in of_shard:
                pieces.append({name: value.cpu() for name, value in compute(next(made)).items()})
                bar.update()
            write(shard, join_images(pieces, padding or {}))


def _cut(start: int, stop: int, size: int) -> list[list[int]]:
    """The numbers from start to stop in lists of a size."""
    return [list(range(first, min(first + size, stop))) for first in range(start, stop, size)]
