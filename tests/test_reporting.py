"""What a trainer says of a training and of an evaluation belongs to that one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import IterableDatasetShard
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from torch.utils.data import DataLoader

from hf_contrastive_caption import reporting
from hf_contrastive_caption.evaluation.in_training import EvaluationPool
from tests import tiny
from tests.families.qwen_vl import qwen_model, qwen_processing
from tests.precomputed.test_ahead import broken
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


def test_images_to_caption_are_chosen_once_for_any_number_of_data_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    def counted(*arguments: Any) -> EvaluationPool:
        made.append(arguments)
        return make(*arguments)

    make = reporting.make_evaluation_pool
    monkeypatch.setattr(reporting, "make_evaluation_pool", counted)
    monkeypatch.setattr(reporting, "KEPT_POOLS", 1)
    data = {f"set{seed}": tiny.caption_dataset(4, seed=seed) for seed in range(3)}
    options = {"eval_captions": 2, "generation_num_beams": 1, "generation_max_length": 3}
    run = trainer(tmp_path, options=options, eval_dataset=data)
    for _ in range(2):
        run.evaluate()
    assert len(made) == 3


def test_an_image_that_the_image_processor_refuses_is_left_out_of_the_captions(tmp_path: Path) -> None:
    """Qwen's takes none that is 200 times as wide as high."""
    pictures = [*tiny.images(3), Image.new("RGB", (900, 4))]
    columns = {"image": pictures, "captions": [[text] for text in tiny.texts(4)]}
    data = Dataset.from_dict(columns).cast_column("image", ImageFeature())
    options = {
        "on_bad_image": "skip", "eval_captions": 4, "eval_retrieval_pool": 0, "generation_num_beams": 1,
        "generation_max_length": 3, "num_negatives": 1, "prompt": "picture",
    }  # fmt: skip
    run = trainer(tmp_path, qwen_model(), data, options=options, eval_dataset=data, processing_class=qwen_processing())
    found = run.evaluate()
    assert found["eval_skipped_images"] == 1 and 0 <= found["eval_invented"] <= 1
    compared = run.compare_with_reference(k=(), metrics=("rouge_l",))
    assert compared.target.num_images == 3


def test_skipped_images_of_a_stream_that_accelerate_has_wrapped_are_counted(tmp_path: Path) -> None:
    data = broken(tiny.caption_dataset(8), 3)
    run = trainer(tmp_path, eval_dataset=data.to_iterable_dataset(), options={"on_bad_image": "skip"})
    wrapped = IterableDatasetShard(run.eval_dataset, batch_size=4)
    loop = run.evaluation_loop(DataLoader(wrapped, batch_size=4, collate_fn=run.data_collator), "evaluation")
    assert loop.metrics["eval_skipped_images"] == 1


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
