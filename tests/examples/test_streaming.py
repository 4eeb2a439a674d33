"""The example of a stream: a run that was stopped gives the weights of one that was not."""

from __future__ import annotations

import shutil

import datasets
import pytest
import torch
from safetensors.torch import load_file

from tests.examples.scripts import LN_4, load_script

WORDS = (
    "--images 48 --start-steps 3 --batch-size 8 --steps 8 --save-steps 4 --reservoir-size 64 --shuffle-buffer 16"
).split()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    """``datasets`` rests five seconds behind every pass over several files, against a crash as Python ends."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


def test_goes_on_with_the_same_weights(tmp_path):
    example = load_script("streaming")
    tuned = tmp_path / "tuned"
    whole = example.main(["--output", str(tmp_path), *WORDS])
    assert whole.state.log_history[0]["loss"] == pytest.approx(LN_4, abs=1e-5)
    assert whole.train_dataset.reservoir_size == 64
    expected = load_file(tuned / "model.safetensors")
    shutil.rmtree(tuned / "checkpoint-8")  # as if it had been stopped after four steps, in the first round of six
    (tuned / "model.safetensors").unlink()
    resumed = example.main(["--output", str(tmp_path), *WORDS, "--resume"])
    assert [entry["step"] for entry in resumed.state.log_history][-1] == 8
    found = load_file(tuned / "model.safetensors")
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)


def test_own_shards(tmp_path):
    """A pattern of files, and a captioner that is there already."""
    example = load_script("streaming")
    first = example.main(["--output", str(tmp_path / "drawn"), *WORDS])
    given = ["--data", str(tmp_path / "drawn" / "shards" / "*.parquet"), "--model", str(tmp_path / "drawn" / "start")]
    second = example.main(["--output", str(tmp_path / "own"), *given, *WORDS, "--learning-rate", "2e-4"])
    losses = [[entry.get("loss") for entry in run.state.log_history] for run in (first, second)]
    assert losses[0] == losses[1]
    assert not (tmp_path / "own" / "shards").exists()
