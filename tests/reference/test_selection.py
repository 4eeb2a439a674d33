"""What is said of a model before it becomes target and reference."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from hf_contrastive_caption.captioners import captioner_for
from hf_contrastive_caption.construction import make_captioner
from hf_contrastive_caption.reference.selection import freeze_vision, make_reference
from tests import tiny
from tests.reference.test_strategies import adapted
from tests.training import arguments, trainer


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


@pytest.mark.parametrize("given", [False, True])
def test_what_fsdp_will_shard_is_not_held_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool) -> None:
    args = arguments(tmp_path, freeze_vision_encoder=True)

    def shared() -> int:
        target = captioner_for(tiny.captioner_model(), tiny.processing())
        freeze_vision(target)
        model = tiny.captioner_model() if given else None
        reference = make_reference(target, model, tiny.processing() if given else None, args, make_captioner)
        assert reference is not None and reference.shares_vision
        own = {id(weight) for weight in target.model.parameters()}
        return len(own & {id(weight) for weight in reference.captioner.model.parameters()})

    assert shared() == len(list(tiny.captioner_model().encoder.parameters()))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert shared() == 0
