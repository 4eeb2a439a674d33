"""A metric that chooses the best model is there at an evaluation, or it is said when the trainer is made."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from hf_contrastive_caption import ContrastiveCaptionConfig
from tests import tiny
from tests.training import arguments, trainer

EVALUATED = {"eval_strategy": "steps", "eval_steps": 2}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mle_weight": 0.5, "on_bad_image": "skip"},
        {"objective": "introspective", "mle_weight": 0.5},
        {"objective": "mle", "eval_captions": 6, "eval_score": "cider_d + recall_at_3"},
        {"objective": "mle", "eval_captions": 6, "eval_retrieval_pool": 0},
    ],
    ids=str,
)
def test_the_names_are_those_of_an_evaluation(tmp_path: Path, options: dict[str, Any]) -> None:
    run = trainer(tmp_path, options=options, eval_dataset=tiny.caption_dataset(8, seed=3))
    found = run.evaluate()
    measured = {name.removeprefix("eval_") for name in found} - {"epoch", "model_preparation_time"}
    names = run._metric_names(run.eval_dataset)
    assert len(names) == len(set(names))
    assert set(names) == measured


def sets() -> dict[str, Any]:
    return {name: tiny.caption_dataset(4, seed=seed) for seed, name in enumerate(("birds", "cars"))}


@pytest.mark.parametrize(
    ("metric", "options", "named", "message"),
    [
        ("margin", {"objective": "mle"}, False, "objective='mle'.*it gives: eval_loss, eval_positive_log_prob$"),
        ("eval_log_ratio_loss", {}, False, "is 'eval_log_ratio_loss', which .* mle_weight=0.0"),
        ("skipped_images", {}, False, "on_bad_image='raise'"),
        ("recall_at_7", {"eval_captions": 8}, False, "eval_recall_at_1, eval_recall_at_5$"),
        (None, {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 2}, True,
         "is 'loss', .* and 2 data sets; .*eval_birds_loss, .*eval_cars_loss, "),
        ("birds_margin", {"objective": "mle"}, True, "eval_birds_loss, eval_birds_positive_log_prob, eval_cars_loss"),
    ],
)  # fmt: skip
def test_a_metric_that_will_not_be_there_is_an_error_at_the_start(
    tmp_path: Path, metric: str | None, options: dict[str, Any], named: bool, message: str
) -> None:
    data = sets() if named else tiny.caption_dataset(8, seed=3)
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, options={**EVALUATED, **options, "metric_for_best_model": metric}, eval_dataset=data)


def test_a_metric_that_is_there_or_may_come_from_elsewhere_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="hf_contrastive_caption.metric_names"):
        for metric in ("margin", "eval_loss", "eval_runtime"):
            options = {**EVALUATED, "metric_for_best_model": metric}
            trainer(tmp_path, options=options, eval_dataset=tiny.caption_dataset(4))
        trainer(tmp_path, options={**EVALUATED, "metric_for_best_model": "eval_cars_margin"}, eval_dataset=sets())
        trainer(tmp_path, options={"metric_for_best_model": "own_metric"}, eval_dataset=tiny.caption_dataset(4))
        assert caplog.text == ""
        options = {**EVALUATED, "metric_for_best_model": "own_metric"}
        trainer(tmp_path, options=options, eval_dataset=tiny.caption_dataset(4))
    assert "'own_metric', which is none of the metrics of an evaluation here: eval_loss, eval_pos" in caplog.text


@pytest.mark.parametrize(
    ("metric", "greater"),
    [
        ("margin", True),
        ("own_image_first", True),
        ("positive_log_prob", True),
        ("loss", False),
        ("eval_negative_log_ratio", False),
        ("birds_negative_log_prob", False),
        ("distractor_log_prob", False),
        ("skipped_images", False),
        ("runtime", False),
    ],
)
def test_which_way_is_better_is_known(tmp_path: Path, metric: str, greater: bool) -> None:
    assert arguments(tmp_path, metric_for_best_model=metric).greater_is_better is greater
    given = ContrastiveCaptionConfig(
        str(tmp_path), use_cpu=True, metric_for_best_model=metric, greater_is_better=not greater
    )
    assert given.greater_is_better is not greater
