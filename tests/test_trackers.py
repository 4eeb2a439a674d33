"""The table of images and captions in Weights & Biases, by a module that stands in for it."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from transformers import TrainerCallback
from transformers.integrations.integration_utils import WandbCallback

from hf_contrastive_caption.trackers import log_caption_table


class Table:
    def __init__(self, columns: list[str]) -> None:
        self.columns, self.data = columns, []

    def add_data(self, *row: Any) -> None:
        self.data.append(row)


@pytest.mark.parametrize("running", [True, False])
def test_weights_and_biases(monkeypatch: pytest.MonkeyPatch, running: bool) -> None:
    logged: list[dict[str, Any]] = []
    stand_in = SimpleNamespace(
        run=object() if running else None, Table=Table, Image=lambda image: image.size, log=logged.append
    )
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    callback = WandbCallback.__new__(WandbCallback)
    images = [Image.new("RGB", (3, 2)), Image.new("RGB", (5, 4))]
    log_caption_table([TrainerCallback(), callback], 7, "eval/captions", images, ["a", "b"], [("x", "y"), ()])
    if not running:
        assert logged == []
        return
    assert len(logged) == 1 and logged[0]["train/global_step"] == 7
    table = logged[0]["eval/captions"]
    assert table.columns == ["image", "caption", "references"]
    assert table.data == [((3, 2), "a", "x / y"), ((5, 4), "b", "")]
