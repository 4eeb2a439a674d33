"""Recurrent captioners on two real processes (gloo) train as on one: the same losses and gradients."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import recurrent, tiny
from tests.test_distributed import Recorder
from tests.training import logged, trainer

STEPS = 3


def run(folder: Path, batch_size: int) -> None:
    """Train each kind against the other for some steps, and write what was seen."""
    seen: dict[str, Any] = {}
    for kind, other in zip(recurrent.KINDS, reversed(recurrent.KINDS), strict=True):
        recorder = Recorder()
        run = trainer(
            folder / kind,
            recurrent.captioner_model(kind),
            tiny.caption_dataset(8),
            {"per_device_train_batch_size": batch_size, "max_steps": STEPS},
            reference_model=recurrent.captioner_model(other, vision="vit", seed=1),
            callbacks=[recorder],
        )
        run.train()
        gradients = [gradient.tolist() for gradient in recorder.gradients]
        seen[kind] = {"world": run.args.world_size, "losses": logged(run, "loss"), "gradients": gradients}
    (folder / f"rank{run.args.process_index}.json").write_text(json.dumps(seen))


def launch(folder: Path, processes: int, batch_size: int) -> list[dict[str, Any]]:
    folder.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += ["-m", "tests.captioners.test_recurrent_distributed", str(folder), str(batch_size)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    one = launch(tmp_path / "one", 1, 4)[0]
    two = launch(tmp_path / "two", 2, 2)
    for kind in recurrent.KINDS:
        assert [rank[kind]["world"] for rank in two] == [2, 2]
        for rank in two:
            assert rank[kind]["losses"] == pytest.approx(one[kind]["losses"], abs=1e-5)
        for step in range(STEPS):
            ranks = [torch.tensor(rank[kind]["gradients"][step], dtype=torch.float64) for rank in two]
            assert torch.equal(ranks[0], ranks[1])
            expected = torch.tensor(one[kind]["gradients"][step], dtype=torch.float64)
            assert expected.norm() > 0.1
            assert (ranks[0] - expected).norm() / expected.norm() < 1e-4


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), int(sys.argv[2]))
