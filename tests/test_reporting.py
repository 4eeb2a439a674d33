"""What a trainer says of a training and of an evaluation belongs to that one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_contrastive_caption.evaluation.in_training import EvaluationPool
from tests import tiny
from tests.training import trainer


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
