"""The figures on the documentation's page are those of the stored results."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_page_shows_what_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    page = importlib.import_module("page")
    stored = {file.stem: json.loads(file.read_text()) for file in (BENCHMARKS / "results").glob("*.json")}
    assert {"negatives", "training_step"} <= set(stored)
    text = page.PAGE.read_text()
    assert page.filled(text, stored) == text
    assert "| – |" not in text
    for result in stored.values():
        assert all(isinstance(value, float) for value in result["ratios"].values())
        assert result["machine"]["cores"] >= 1 and "torch" in result["versions"] and result["command"]
