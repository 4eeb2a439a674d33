"""The order of an epoch that ``train_sampling_strategy`` asks for, workers, and what batches are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from hf_contrastive_caption.data.bucketing import LengthBucketSampler
from hf_contrastive_caption.data.sampler import EpochSampler
from tests import tiny
from tests.training import logged, trainer

OPTIONS = {"max_steps": 5, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


def trained(folder: Path, **options: Any) -> Any:
    run = trainer(folder, data=tiny.caption_dataset(13), options={**OPTIONS, **options})
    run.train()
    return run


def epochs(run: Any, n: int) -> list[list[int]]:
    """The rows of the first epochs, in order."""
    found, loader = [], run.get_train_dataloader()
    for epoch in range(n):
        loader.set_epoch(epoch)
        batches = [(batch["rows"], batch["weights"]) for batch in loader]
        found.append([row for rows, weights in batches for row in rows[weights > 0].tolist()])
    return found


def test_rows_as_they_stand(tmp_path: Path) -> None:
    run = trained(tmp_path, train_sampling_strategy="sequential")
    assert epochs(run, 2) == [list(range(13))] * 2
    assert logged(run, "loss") != logged(trained(tmp_path), "loss")


@pytest.mark.parametrize("packing", ["packed", "repeated"])
def test_rows_by_the_length_of_what_is_drawn(tmp_path: Path, packing: str) -> None:
    run = trained(tmp_path, train_sampling_strategy="group_by_length", packing=packing)
    sampler = run._get_train_sampler()
    assert isinstance(sampler, LengthBucketSampler)
    assert (sampler.step_size, sampler.pad_to, sampler.packed) == (4, 2, packing == "packed")
    assert type(run._get_eval_sampler(run.train_dataset)) is EpochSampler  # an evaluation keeps its order
    first, second = epochs(run, 2)
    assert sorted(first) == sorted(second) == list(range(13)) and first != second
    loader = run.get_train_dataloader()
    loader.set_epoch(1)
    lengths = []
    for batch in loader:
        per_row = batch["captions"]["lengths"].view(-1, 4)
        lengths += (per_row.sum(1) if packing == "packed" else per_row.amax(1)).tolist()
    steps = sorted(lengths[start : start + 4] for start in (0, 4, 8))
    assert all(step == sorted(step) for step in steps)
    assert max(steps[0]) <= min(steps[1]) and max(steps[1]) <= min(steps[2])


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_a_resume_and_workers_change_no_loss(tmp_path: Path, strategy: str) -> None:
    """Four steps are an epoch, the last of them with one batch only; the checkpoint lies within the second."""
    options = {"train_sampling_strategy": strategy, "max_steps": 7}
    whole = trained(tmp_path, save_strategy="steps", save_steps=5, **options)
    working = trained(tmp_path / "working", dataloader_num_workers=2, dataloader_persistent_workers=True, **options)
    assert logged(working, "loss") == logged(whole, "loss")
    resumed = trainer(tmp_path, data=tiny.caption_dataset(13), options={**OPTIONS, **options})
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert logged(resumed, "loss") == logged(whole, "loss")


def leaves(value: Any) -> list[Any]:
    return [leaf for one in value.values() for leaf in leaves(one)] if isinstance(value, dict) else [value]


def test_batches_are_dictionaries_of_tensors_all_the_way_down(tmp_path: Path) -> None:
    """PyTorch pins, and Accelerate moves, what is in dicts, and leaves what is of other types where it is."""
    batch = next(iter(trainer(tmp_path).get_train_dataloader()))
    found = leaves(batch)
    assert len(found) == 7 and all(type(leaf) is torch.Tensor and leaf.is_contiguous() for leaf in found)


def test_pytorch_pins_every_tensor_of_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the data loader's thread for pinning does to a batch; a processor alone has nothing to pin for."""
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor, device: Any = None) -> torch.Tensor:
        pinned.append(tensor)
        return tensor.clone()

    batch = next(iter(trainer(tmp_path).get_train_dataloader()))
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    copied = pin_memory(batch)
    assert [tuple(one.shape) for one in pinned] == [tuple(leaf.shape) for leaf in leaves(batch)]
    assert list(copied) == list(batch) and list(copied["captions"]) == list(batch["captions"])
    assert all(torch.equal(one, other) for one, other in zip(leaves(copied), leaves(batch), strict=True))


@pytest.mark.skipif(torch.cuda.device_count() != 1, reason="memory is pinned for a GPU")
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_pinned_and_moved(tmp_path: Path, workers: int) -> None:
    options = {"use_cpu": False, "dataloader_num_workers": workers, "dataloader_pin_memory": True, "bf16": False}
    run = trainer(tmp_path, options=options)
    loader = run.get_train_dataloader()
    assert all(leaf.device.type == "cuda" for leaf in leaves(next(iter(loader))))
    assert all(leaf.is_pinned() for leaf in leaves(next(loader.base_dataloader.__iter__())))
