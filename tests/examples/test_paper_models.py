"""The example of the paper's models, at sizes that learn nothing: it runs, and its files can be used."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

SCRIPT = Path(__file__).parents[2] / "examples" / "paper_models.py"


@pytest.mark.slow
def test_trains_compares_and_saves(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("paper_models", SCRIPT)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    sys.modules["paper_models"] = example
    spec.loader.exec_module(example)
    sizes = "--train-images 24 --test-images 6 --reference-steps 2 --steps 2 --batch-size 8".split()
    picture = tmp_path / "looks.png"
    found = example.main([*sizes, "--output", str(tmp_path), "--picture", str(picture)])
    assert {kind: [row.name for row in rows] for kind, rows in found.items()} == {
        kind: ["reference", "control", "contrastive"] for kind in ("show-and-tell", "adaptive-attention")
    }
    stored = json.loads((tmp_path / "results.json").read_text())
    for kind, rows in found.items():
        assert stored["models"][kind]["contrastive"]["margin"] == rows[2].margin
        model = AutoModelForImageTextToText.from_pretrained(tmp_path / f"{kind}-contrastive")
        assert model.config.model_type == kind
    given, told = (
        AutoModelForImageTextToText.from_pretrained(tmp_path / f"{kind}-{stage}").vision.state_dict()
        for kind, stage in (("adaptive-attention", "reference"), ("show-and-tell", "contrastive"))
    )
    assert given.keys() == told.keys() and all(torch.equal(given[name], told[name]) for name in given)
    assert picture.read_bytes()[:4] == b"\x89PNG"
