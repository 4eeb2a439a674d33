"""Small benchmarks: they count what there is to count, change what they say, and run at toy sizes."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_contrastive_caption.captioners import caption_batch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_padding_is_counted_as_the_decoder_lays_captions_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    script = importlib.import_module("length_buckets")
    captions = caption_batch([[5] * length for length in (2, 3, 4, 2)], [0, 0, 1, 1])  # 11 tokens
    batch = {"images": {"pixel_values": torch.zeros(2, 3, 8, 8)}, "captions": captions}
    assert script.width_over_tokens([batch], packed=True) == pytest.approx(2 * 6 / 11)
    assert script.width_over_tokens([batch, batch], packed=False) == pytest.approx(4 * 4 / 11)


def test_switches_act_on_all_blocks_and_change_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    script = importlib.import_module("switches")
    size = script.QUICK_SIZES["small"]
    plain, checkpointed = script.build(size), script.checkpointed(script.build(size))
    assert len(list(script.layers(plain.model))) == 2  # one of each
    checkpointed.scorer("packed")  # with forwards of its own
    calls = []
    for layer in script.layers(checkpointed.model):
        next(iter(layer.children())).register_forward_hook(lambda *given: calls.append(1))
    losses = [script.WAYS["packed"](bench) for bench in (plain, checkpointed)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert len(calls) == 2 * 2  # every layer twice
    shorter = script.shorter(plain)
    assert [len(ids) for ids in shorter.captions] == [len(ids) - 1 for ids in plain.captions]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "n_ratios"),
    [
        ("stream_memory", ["--rows", "300", "--reservoir-size", "40", "--batch", "10"], 2),
        ("length_buckets", ["--rows", "32", "--threads", "1"], 3),
        ("switches", ["--quick", "--repeats", "2", "--threads", "1"], 3),
    ],
)
def test_the_scripts_run(tmp_path: Path, name: str, options: list[str], n_ratios: int) -> None:
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *options, "--out", str(tmp_path / "found.json")]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["ratios"]) == n_ratios and all(ratio > 0 for ratio in found["ratios"].values())
    if name == "stream_memory":
        measured = found["measurements"]
        quotient = measured["one_worker_at_100_percent_mb"] / measured["one_worker_at_10_percent_mb"]
        assert found["ratios"]["one_worker_memory_at_100_over_10_percent"] == quotient
        assert measured["no_worker_at_1_percent_mb"] > 50 and measured["no_worker_rows_per_s"] > 1
