"""What a trainer says of a training and of an evaluation belongs to that one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hf_contrastive_caption.evaluation.in_training import EvaluationPool
from tests import tiny
from tests.training import logged, trainer


def test_arguments_of_an_evaluation_are_those_of_all_its_data_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    evaluate = EvaluationPool.evaluate

    def watched(self: Any, captioner: Any, batch_size: int, **arguments: Any) -> Any:
        seen.append(arguments)
        return evaluate(self, captioner, batch_size, **arguments)

    monkeypatch.setattr(EvaluationPool, "evaluate", watched)
    data = {name: tiny.caption_dataset(6, seed=seed) for seed, name in enumerate(("a", "b"))}
    run = trainer(tmp_path, options={"eval_captions": 4, "eval_retrieval_pool": 0}, eval_dataset=data)
    given = {"num_beams": 1, "max_new_tokens": 5}
    found = [run.evaluate(**given), run.evaluate(data, metric_key_prefix="test", **given)]
    assert seen == [given] * 4
    for name in data:
        assert found[0][f"eval_{name}_positive_log_prob"] == found[1][f"test_{name}_positive_log_prob"]
        assert found[0][f"eval_{name}_cider_d"] == found[1][f"test_{name}_cider_d"]


def test_the_start_of_a_training_that_logged_nothing_is_not_logged_by_the_next(tmp_path: Path) -> None:
    """The second training starts with other models, and does not check that they are equal."""
    run = trainer(tmp_path, options={"max_steps": 1, "logging_steps": 5})
    run.train()
    assert logged(run, "start_log_ratio") == []
    run.args.logging_steps = run.state.logging_steps = 1
    run.train()
    assert len(logged(run, "loss")) == 1 and logged(run, "start_log_ratio") == []


def test_a_loss_that_is_not_finite_says_where(tmp_path: Path) -> None:
    run = trainer(tmp_path, eval_dataset=tiny.caption_dataset(8, seed=3))
    with torch.no_grad():
        run.model.decoder.transformer.h[0].mlp.c_fc.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"nan in an evaluation, rows \[.*Look whether all weights") as told:
        run.evaluate()
    assert "step" not in str(told.value) and "Training stops" not in str(told.value)
    with pytest.raises(FloatingPointError, match=r"nan in step 1, rows .*Training stops here"):
        run.train()
