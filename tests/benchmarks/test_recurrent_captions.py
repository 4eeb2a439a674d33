"""benchmarks/recurrent_captions.py: it runs at toy sizes, and what it draws is what it says."""

from __future__ import annotations

import importlib
import json
import statistics
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_runs_and_writes_its_ratios(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    script = importlib.import_module("recurrent_captions")
    lengths = script.caption_lengths("coco", 2000)
    assert statistics.mean(lengths) == pytest.approx(11, abs=0.2)
    assert statistics.stdev(lengths) == pytest.approx(2.5, abs=0.2)
    assert max(script.caption_lengths("tails", 2000)) > max(lengths)
    file = tmp_path / "found.json"
    ratios = script.main(["--quick", "--repeats", "1", "--images", "2", "--out", str(file)])
    stored = json.loads(file.read_text())
    assert stored["ratios"] == ratios
    found = stored["measurements"]
    ratio = found["tails_adaptive_attention_padded_forward_s"] / found["tails_adaptive_attention_flat_forward_s"]
    assert ratios["tails_adaptive_attention_padded_over_flat_forward"] == pytest.approx(ratio)
    assert found["captions"] == 12
