"""What is said of a model before it becomes target and reference."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.reference.test_strategies import adapted
from tests.training import trainer


def test_a_vision_encoder_that_an_earlier_trainer_froze_is_spoken_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings(model: Any, options: dict[str, Any] | None = None, **kwargs: Any) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="hf_contrastive_caption.reference.selection"):
            trainer(tmp_path, model, options=options, **kwargs)
        return [record.message for record in caplog.records if "vision encoder" in record.message]

    model = tiny.captioner_model()
    n_weights = len(list(model.encoder.parameters()))
    freeze = {"freeze_vision_encoder": True}
    assert warnings(model) == []
    assert warnings(model, freeze) == []
    (said,) = warnings(model)
    assert f"stays so: {n_weights} weights. model.requires_grad_(True) before this lets it train" in said
    assert warnings(model, freeze) == []
    assert warnings(model, train_dataset=None) == []
    assert warnings(model.requires_grad_(True)) == []
    model.encoder.embeddings.requires_grad_(False)  # a part of it is a choice
    assert warnings(model) == []
    assert warnings(adapted()) == []
