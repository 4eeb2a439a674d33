"""The benchmark of neighbours runs at a toy size, and its numbers fit each other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "neighbours.py"


@pytest.mark.slow
def test_the_script_runs(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    out = tmp_path / "found.json"
    sizes = ["--images", "900", "--width", "16", "--scenes", "60", "--judged", "10"]
    finished = subprocess.run([sys.executable, str(SCRIPT), *sizes, "--out", str(out)], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    found = json.loads(out.read_text())["measurements"]
    assert found["at_900_index_recall"] == 1  # it searches all of its 30 lists
    for way in ("pixels", "words"):
        true, refused = found[f"{way}_true_share"], found[f"{way}_above_1_refused_share"]
        parts = true * found[f"{way}_above_1_refused_of_true"] + (1 - true) * found[f"{way}_above_1_refused_of_false"]
        assert refused == pytest.approx(parts) and 0 < refused < 1
        # One that is not true is never refused for its text alone: equal texts are true.
        assert found[f"{way}_above_10_refused_of_false"] == 0
