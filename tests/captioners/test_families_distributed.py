"""Captioners of every family on two real processes (gloo) train as on one: the same losses and gradients.

All families in one launch of each number of processes, since starting takes longer than training.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from hf_contrastive_caption import register_captioner
from tests import recurrent, tiny
from tests.captioners import test_simple
from tests.families import FAMILIES
from tests.processes import torchrun
from tests.test_distributed import Recorder
from tests.training import logged, trainer

STEPS = 3
OWN = "a user's own"


class Pair(NamedTuple):
    """A target and a reference that differ, with the options and the processing class of the target."""

    name: str
    model: Any
    reference: Any
    processing_class: Any
    options: dict[str, Any]


def pairs() -> Iterator[Pair]:
    """Every family, and a user's own, against itself with other weights; the recurrent kinds against each other."""
    for family in FAMILIES:
        model = family.model(0.0)
        yield Pair(family.name, model, moved(model), family.processing(), dict(family.options))
    for kind, other in zip(recurrent.KINDS, reversed(recurrent.KINDS), strict=True):
        reference = recurrent.captioner_model(other, vision="vit", seed=1)
        yield Pair(kind, recurrent.captioner_model(kind), reference, tiny.processing(), {})
    register_captioner(test_simple.OwnConfig, test_simple.EncodingCaptioner)
    yield Pair(OWN, test_simple.recurrent(), moved(test_simple.recurrent()), tiny.processing(), {})


def moved(model: torch.nn.Module) -> torch.nn.Module:
    """A copy with somewhat other weights."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.005 * torch.randn(weight.shape, generator=generator))
    return other


def run(folder: Path, batch_size: int) -> None:
    """Train each pair for some steps, and write what was seen."""
    seen: dict[str, Any] = {}
    for pair in pairs():
        recorder = Recorder()
        run = trainer(
            folder / pair.name,
            pair.model,
            tiny.caption_dataset(8),
            {"per_device_train_batch_size": batch_size, "max_steps": STEPS, **pair.options},
            reference_model=pair.reference,
            processing_class=pair.processing_class,
            callbacks=[recorder],
        )
        run.train()
        seen[pair.name] = {
            "world": run.args.world_size,
            "losses": logged(run, "loss"),
            "gradients": torch.stack(recorder.gradients).double(),
        }
    torch.save(seen, folder / f"rank{run.args.process_index}.pt")


def launch(folder: Path, processes: int, batch_size: int) -> list[dict[str, Any]]:
    folder.mkdir()
    torchrun("tests.captioners.test_families_distributed", folder, batch_size, processes=processes, timeout=600)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(processes)]


@pytest.mark.slow
@pytest.mark.timeout(1300)
def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    one = launch(tmp_path / "one", 1, 4)[0]
    two = launch(tmp_path / "two", 2, 2)
    names = [family.name for family in FAMILIES] + [*recurrent.KINDS, OWN]
    assert list(one) == names
    for name in names:
        expected = one[name]
        assert expected["world"] == 1
        for rank in two:
            assert rank[name]["world"] == 2
            assert rank[name]["losses"] == pytest.approx(expected["losses"], abs=1e-5), name
        assert len(expected["losses"]) == len(expected["gradients"]) == STEPS
        assert torch.equal(two[0][name]["gradients"], two[1][name]["gradients"]), name
        assert expected["gradients"].norm(dim=1).min() > 0.1, name
        off = (two[0][name]["gradients"] - expected["gradients"]).norm(dim=1) / expected["gradients"].norm(dim=1)
        assert off.max() < 1e-4, name


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), int(sys.argv[2]))
