"""Checkpoints of several trainings in one output folder: which one a resume takes, and which is the best."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from hf_contrastive_caption.checkpoint_folders import find_checkpoint, steps_before
from tests import tiny
from tests.training import trainer

OLD = [{"step": 1, "loss": 1.386}, {"step": 2, "loss": float("nan")}, {"step": 3, "loss": 1.2}]
NEW = [{"step": 1, "loss": 1.5}, {"step": 2, "loss": 1.4}, {"step": 3, "loss": 1.3}]


def checkpoint(run: Path, step: int, log: list[dict[str, Any]], time: int) -> Path:
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    state = folder / "trainer_state.json"
    state.write_text(json.dumps({"log_history": log[:step]}))
    os.utime(state, (time, time))
    return folder


def test_a_higher_number_of_an_earlier_training_is_not_gone_on_from(tmp_path: Path) -> None:
    checkpoint(tmp_path, 3, OLD, time=100)
    later = checkpoint(tmp_path, 2, NEW, time=200)
    message = rf"checkpoints of two trainings: checkpoint-3 .*checkpoint-2 was.*resume_from_checkpoint='{later}'"
    with pytest.raises(ValueError, match=message):
        find_checkpoint(str(tmp_path), True)
    assert find_checkpoint(str(tmp_path), later) == str(later)
    assert steps_before(tmp_path / "checkpoint-3") == {3}


@pytest.mark.parametrize(
    ("logs", "times"),
    [
        ((OLD, OLD, OLD), (300, 100, 200)),  # one training, of which a copy has any times
        ((NEW, OLD, OLD), (100, 200, 300)),  # the later training has passed what the earlier one left
        ((NEW, OLD, OLD), (100, 100, 100)),  # nothing is known of times
        (([], [], OLD), (200, 300, 100)),  # nothing is known of logs
    ],
)
def test_the_highest_number_is_gone_on_from_where_nothing_speaks_against_it(
    tmp_path: Path, logs: tuple[Any, ...], times: tuple[int, ...]
) -> None:
    for step, (log, time) in enumerate(zip(logs, times, strict=True), start=1):
        checkpoint(tmp_path, step, log, time)
    assert find_checkpoint(str(tmp_path), True) == str(tmp_path / "checkpoint-3")
    assert steps_before(tmp_path / "checkpoint-3") == ({2, 3} if logs[0] is NEW else {1, 2, 3})
    assert steps_before(tmp_path / "checkpoint-1") == {1}


class Decoder(TrainerCallback):
    """One weight after each step, and a metric that is the step: the first evaluation is the best."""

    def __init__(self) -> None:
        self.after: dict[int, Tensor] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.after[state.global_step] = model.decoder.lm_head.weight.detach().clone()

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        metrics["eval_step_of_test"] = float(state.global_step)


def test_a_checkpoint_of_an_earlier_training_is_not_the_best_of_this_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The earlier one saved at step 2; this one is the best there, and saves at steps 4 and 8 alone."""
    trainer(tmp_path, options={"save_strategy": "steps", "save_steps": 2}).train()
    options = {
        "save_strategy": "steps", "save_steps": 4, "max_steps": 4, "eval_strategy": "steps", "eval_steps": 2,
        "load_best_model_at_end": True, "metric_for_best_model": "step_of_test", "greater_is_better": False,
    }  # fmt: skip
    for resume in (False, str(tmp_path / "checkpoint-4")):
        decoder = Decoder()
        if resume:
            options |= {"max_steps": 8}
        run = trainer(tmp_path, options=options, eval_dataset=tiny.caption_dataset(4, seed=3), callbacks=[decoder])
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="hf_contrastive_caption.checkpoints"):
            run.train(resume_from_checkpoint=resume)
        assert (run.state.best_global_step, run.state.best_model_checkpoint) == (2, None)
        assert "best step, by step_of_test, is 2, but this training has saved no checkpoint there" in caplog.text
        assert torch.equal(run.model.decoder.lm_head.weight, decoder.after[run.state.global_step])
