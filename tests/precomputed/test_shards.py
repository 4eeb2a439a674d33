"""Shards give back what was written, whole, and nothing that was computed from something else."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_contrastive_caption.precomputed.shards import ShardStore, fill_shards


def test_shards_give_back_what_was_written(tmp_path: Path) -> None:
    values = torch.arange(20.0).view(10, 2)
    bounds = np.array([0, 4, 8, 10])
    store = ShardStore(tmp_path, "key", bounds)
    assert store.missing() == [0, 1, 2]
    written: list[list[int]] = []

    def make(numbers: list[int]) -> torch.Tensor:
        written.append(numbers)
        return values[numbers]

    fill_shards(
        [0, 2], bounds, make, lambda batch: {"value": batch}, store.write, batch_size=3, num_workers=0, progress=None
    )
    assert written == [[0, 1, 2], [3], [8, 9]]  # no batch crosses the end of a shard
    assert store.missing() == [1]
    again = pickle.loads(pickle.dumps(store))
    for item in (0, 3, 8, 9):
        assert torch.equal(again.read(item, item + 1)["value"], values[item : item + 1])
    assert torch.equal(store.read(1, 4)["value"], values[1:4])
    with pytest.raises(ValueError, match="cannot be read"):
        store.read(5, 6)


def test_items_of_different_sizes_are_refused(tmp_path: Path) -> None:
    bounds = np.array([0, 2])
    with pytest.raises(ValueError, match=r"value has different sizes for different images \(\(3,\), \(4,\)\)"):
        fill_shards(
            [0],
            bounds,
            lambda numbers: torch.zeros(1, 3 + numbers[0]),
            lambda batch: {"value": batch},
            ShardStore(tmp_path, "key", bounds).write,
            batch_size=1,
            num_workers=0,
            progress=None,
        )


def test_a_shard_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: Any, file: Path, metadata: Any) -> None:
        file.write_bytes(b"the beginning")
        raise OSError("no space left on device")

    monkeypatch.setattr("hf_contrastive_caption.precomputed.shards.save_file", full)
    store = ShardStore(tmp_path / "store", "key", np.array([0, 2]))
    with pytest.raises(OSError, match="no space"):
        store.write(0, {"value": torch.zeros(2)})
    assert list((tmp_path / "store").iterdir()) == [] and store.missing() == [0]


def test_a_shard_of_something_else_is_refused(tmp_path: Path) -> None:
    bounds = np.array([0, 2])
    ShardStore(tmp_path, "old", bounds).write(0, {"value": torch.zeros(2)})
    with pytest.raises(ValueError, match="computed from other data, draws or weights"):
        ShardStore(tmp_path, "new", bounds).read(0, 1)
    (tmp_path / "00000.safetensors").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="Delete .* to have it computed again"):
        ShardStore(tmp_path, "old", bounds).read(0, 1)
