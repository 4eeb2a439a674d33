"""The reference is replaced by the target, hard or as an average, and a resume knows which version it was."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import TrainerCallback

from hf_contrastive_caption.captioners import Captioner
from hf_contrastive_caption.reference.versions import RECORD, VERSIONS
from tests import tiny
from tests.reference.test_strategies import TWO_LN_TWO, adapted, lora
from tests.training import logged, trainer

EVERY = {"copy": {"reference_refresh": 3}, "average": {"reference_refresh": 2, "reference_mixup": 0.5}}


class Weights(TrainerCallback):
    """Keeps the target's and the reference's weights before every step."""

    def __init__(self) -> None:
        self.target: list[dict[str, torch.Tensor]] = []
        self.reference: list[dict[str, torch.Tensor]] = []
        self.run: Any = None

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        for kept, model in (
            (self.target, self.run.model),
            (self.reference, self.run.reference.captioner.model),
        ):
            kept.append({name: value.detach().clone() for name, value in model.state_dict().items()})


def watched(folder: Path, **options: Any) -> tuple[Any, Weights]:
    weights = Weights()
    run = trainer(folder, options={"max_steps": 8, **options})
    weights.run = run
    run.add_callback(weights)
    run.train()
    return run, weights


def test_a_copy_every_three_steps_resets_the_loss(tmp_path: Path) -> None:
    run, seen = watched(tmp_path, reference_refresh=3)
    losses = logged(run, "loss")
    for step, loss in enumerate(losses):
        assert (abs(loss - TWO_LN_TWO) < 1e-6) == (step in (0, 3, 6))
    assert logged(run, "reference_version") == [1, 2]
    assert len(logged(run, "start_log_ratio")) == 3
    for step in (3, 6):
        for name, value in seen.reference[step].items():
            assert torch.equal(value, seen.target[step][name])
    for step in (4, 5):
        assert all(torch.equal(value, seen.reference[3][name]) for name, value in seen.reference[step].items())


def test_an_average_is_the_naive_one(tmp_path: Path) -> None:
    run, seen = watched(tmp_path, reference_refresh=2, reference_mixup=0.25)
    assert logged(run, "reference_version") == [1, 2, 3]
    for step in (2, 4, 6):
        for name, value in seen.reference[step].items():
            expected = 0.75 * seen.reference[step - 1][name] + 0.25 * seen.target[step][name]
            assert torch.allclose(value, expected, atol=1e-7)
    assert all(abs(loss - TWO_LN_TWO) > 1e-4 for loss in logged(run, "loss")[1:])


def test_every_epoch_begins_with_a_new_reference(tmp_path: Path) -> None:
    run = trainer(tmp_path, options={"max_steps": -1, "num_train_epochs": 3, "reference_refresh": "epoch"})
    run.train()
    losses = logged(run, "loss")  # four steps in an epoch
    assert [step for step, loss in enumerate(losses) if abs(loss - TWO_LN_TWO) < 1e-6] == [0, 4, 8]


def test_an_adapter_becomes_the_reference(tmp_path: Path) -> None:
    run = trainer(tmp_path, adapted(), options={"max_steps": 6, "reference_refresh": 3, "learning_rate": 1e-2})
    run.train()
    losses = logged(run, "loss")
    assert [step for step, loss in enumerate(losses) if abs(loss - TWO_LN_TWO) < 1e-5] == [0, 3]


def test_a_reference_of_another_kind_cannot_be_replaced(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="they are different models"):
        trainer(tmp_path, reference_model=tiny.captioner_model("bert"), options={"reference_refresh": 1})


def test_a_given_adapter_model_cannot_be_replaced(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 1}
    given: dict[str, Any] = {"reference_model": adapted(trained=True), "reference_processing_class": tiny.processing()}
    with pytest.raises(ValueError, match="does not work with a PEFT model as reference_model"):
        trainer(tmp_path, adapted(), options={**options, "reference_refresh": 1}, **given)
    trainer(tmp_path, adapted(), options=options, **given).train()
    assert (tmp_path / "checkpoint-1" / RECORD).is_file()
    assert not (tmp_path / VERSIONS).exists()


@pytest.mark.parametrize("kind", ["copy", "average", "adapter", "adapter average", "scores", "states", "epoch"])
@pytest.mark.parametrize("at", [pytest.param(2, marks=pytest.mark.slow), 3, pytest.param(4, marks=pytest.mark.slow)])
def test_a_resume_goes_on_with_the_same_reference(tmp_path: Path, kind: str, at: int) -> None:
    options: dict[str, Any] = {"max_steps": 7, "save_strategy": "steps", "save_steps": at, **EVERY.get(kind, {})}
    if kind.startswith("adapter"):
        options |= EVERY["average" if kind.endswith("average") else "copy"]
    if kind == "epoch":
        options |= {"reference_refresh": "epoch"}
    ahead = {"precomputed_dir": str(tmp_path / "ahead")}
    if kind == "scores":
        options |= {"precompute_reference": True, **ahead}
    if kind == "states":
        options |= {"freeze_vision_encoder": True, "cache_vision_states": True, "precompute_reference": True, **ahead}

    def model() -> Any:
        return adapted() if kind.startswith("adapter") else tiny.captioner_model()

    whole = trainer(tmp_path, model(), options=options)
    whole.train()
    again = trainer(tmp_path, model(), options=options)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))
    assert logged(again, "loss") == logged(whole, "loss")
    assert len(logged(again, "loss")) == 7
    weights = dict(again.model.named_parameters())  # type: ignore[union-attr]
    for name, weight in whole.model.named_parameters():  # type: ignore[union-attr]
        assert torch.equal(weight, weights[name])


@pytest.mark.parametrize("kind", ["off", "refresh", "bias", "dora"])
def test_an_adapter_with_other_random_weights_resumes(tmp_path: Path, kind: str) -> None:
    """A new process draws other weights for a new adapter, without effect; the run's own are brought back."""
    options: dict[str, Any] = {"max_steps": 6, "save_strategy": "steps", "save_steps": 1}
    more: dict[str, Any] = {"bias": {"bias": "all"}, "dora": {"use_dora": True}}.get(kind, {})
    if kind == "refresh":
        options |= {"reference_refresh": 4, "reference_mixup": 0.5}

    def model(seed: int) -> Any:
        torch.manual_seed(seed)
        return get_peft_model(tiny.captioner_model(), lora(target_modules="all-linear", fan_in_fan_out=False, **more))

    whole = trainer(tmp_path, model(1), options=options)
    whole.train()
    for at in (2, 5):
        again = trainer(tmp_path, model(2), options=options)
        again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))
        assert logged(again, "loss") == logged(whole, "loss")


def test_versions_are_found_beside_the_checkpoint(tmp_path: Path) -> None:
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 1, "reference_refresh": 2}
    whole = trainer(tmp_path / "first", options=options)
    whole.train()
    (tmp_path / "first" / VERSIONS / "a file").touch()
    again = trainer(tmp_path / "second", options=options)
    again.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-3"))
    assert logged(again, "loss") == logged(whole, "loss")
    trainer(tmp_path / "first", options={**options, "max_steps": 7}).train(resume_from_checkpoint=True)


def test_a_second_training_begins_with_the_reference_as_it_is(tmp_path: Path) -> None:
    run = trainer(tmp_path, options={"max_steps": 4, "reference_refresh": 3})
    run.train()
    assert logged(run, "reference_version") == [1]
    run.train()
    assert logged(run, "reference_version") == [2]
    assert abs(logged(run, "loss")[0] - TWO_LN_TWO) > 1e-4  # the target has moved on since the first replacement


def test_another_reference_is_refused_and_the_stored_one_is_named(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 1}
    trainer(tmp_path, options=options).train()
    half_trained = type(tiny.captioner_model()).from_pretrained(tmp_path / "checkpoint-1")
    run = trainer(tmp_path, half_trained, options=options)
    with pytest.raises(ValueError, match="trained against another reference") as caught:
        run.train(resume_from_checkpoint=True)
    stored = next((tmp_path / VERSIONS).iterdir())
    assert f"reference_model={str(stored)!r}" in str(caught.value)
    assert str(tmp_path / "checkpoint-2") in str(caught.value)
    again = trainer(tmp_path, half_trained, options={**options, "max_steps": 3}, reference_model=str(stored))
    again.train(resume_from_checkpoint=True)
    assert len(logged(again, "loss")) == 3


def test_versions_are_stored_once_and_dropped_when_no_checkpoint_needs_them(tmp_path: Path) -> None:
    options = {
        "save_strategy": "steps",
        "save_steps": 1,
        "max_steps": 7,
        "reference_refresh": 2,
        "save_total_limit": 2,
    }
    trainer(tmp_path, options=options).train()
    records = [json.loads((tmp_path / f"checkpoint-{step}" / RECORD).read_text()) for step in (6, 7)]
    assert [record["version"] for record in records] == [2, 3]
    kept = {folder.name for folder in (tmp_path / VERSIONS).iterdir()}
    assert kept == {records[0]["initial"], *(record["stored"] for record in records)}


def test_a_half_trained_model_as_reference_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer(tmp_path, options={"save_strategy": "steps", "save_steps": 1, "max_steps": 2}).train()
    middle = str(tmp_path / "checkpoint-1")
    with caplog.at_level(logging.WARNING):
        trainer(tmp_path / "end", str(tmp_path / "checkpoint-2"), processing_class=None)
        trainer(tmp_path / "said", middle, processing_class=None, reference_model=middle)
    assert "is not finished" not in caplog.text
    with caplog.at_level(logging.WARNING):
        trainer(tmp_path / "middle", middle, processing_class=None)
    assert (
        f"the reference is a copy of {middle}, a checkpoint at step 1 of 2 of a run that is not finished"
        in caplog.text
    )


def test_the_digest_does_not_depend_on_where_a_model_came_from(tmp_path: Path) -> None:
    model = tiny.captioner_model()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    first = trainer(tmp_path, model).reference
    second = trainer(tmp_path, loaded).reference
    assert first is not None and second is not None
    assert first.digest() == second.digest()
    with torch.no_grad():
        next(second.captioner.model.parameters()).add_(1e-6)
    assert first.digest() != second.digest()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference_refresh": 0}, "must be 'epoch', a number of steps"),
        ({"reference_refresh": "sometimes"}, "must be 'epoch', a number of steps"),
        ({"reference_refresh": 5, "reference_mixup": 0.0}, "reference_mixup must be above 0"),
        ({"reference_mixup": 0.5}, "set reference_refresh"),
        ({"reference_refresh": 5, "precompute_reference": True}, "exclude each other"),
        ({"objective": "mle", "reference_refresh": 5}, "has no reference"),
        ({"objective": "mle", "precompute_reference": True}, "has no reference"),
        ({"cache_vision_states": True}, "set freeze_vision_encoder=True"),
        ({"precomputed_dir": "somewhere"}, "neither precompute_reference nor cache_vision_states"),
    ],
)
def test_options_that_exclude_each_other(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, options=options)


def test_reference_refresh_as_a_word_of_a_command_line(tmp_path: Path) -> None:
    assert trainer(tmp_path, options={"reference_refresh": "12"}).args.reference_refresh == 12


def test_copies_stay_apart(tmp_path: Path) -> None:
    """A model given as reference is not the target after a replacement, but has had its values."""
    reference = copy.deepcopy(tiny.captioner_model(seed=3))
    run = trainer(tmp_path, reference_model=reference, options={"reference_refresh": 1})
    assert isinstance(run.captioner, Captioner)
    run.train()
    assert logged(run, "loss")[1] == pytest.approx(TWO_LN_TWO, abs=1e-6)
    own = {id(weight) for weight in reference.parameters()}
    assert not own & {id(weight) for weight in run.captioner.model.parameters()}


def test_the_best_model_comes_back_with_its_reference(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {
        "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2,
        "load_best_model_at_end": True, "metric_for_best_model": "margin", "greater_is_better": True,
        "learning_rate": 1e-2, "reference_refresh": 3,
    }  # fmt: skip
    for peft_config in (None, lora()):
        run = trainer(
            tmp_path / f"{peft_config is None}",
            options=options,
            eval_dataset=tiny.caption_dataset(8, seed=1),
            peft_config=peft_config,
        )
        assert "is measured against the reference, and begins again with each replacement" in caplog.text
        run.train()
        best = int(str(run.state.best_model_checkpoint).rpartition("-")[2])
        margins = {entry["step"]: entry["eval_margin"] for entry in run.state.log_history if "eval_margin" in entry}
        assert margins[best] == max(margins.values())
        assert run.evaluate()["eval_margin"] == pytest.approx(margins[best], abs=1e-5)
        assert run.reference is not None and run.reference.version == (1 if best > 3 else 0)


def test_a_best_model_by_log_ratios_of_one_of_several_sets_is_spoken_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {
        "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "reference_refresh": 3,
        "load_best_model_at_end": True,
    }  # fmt: skip
    sets = {"birds": tiny.caption_dataset(8, seed=1), "cats": tiny.caption_dataset(8, seed=2)}
    for metric, warned in (("eval_birds_positive_log_prob", False), ("birds_loss", True), ("eval_cats_margin", True)):
        caplog.clear()
        trainer(tmp_path, options={**options, "metric_for_best_model": metric}, eval_dataset=sets)
        assert ("is measured against the reference, and begins again" in caplog.text) == warned


def test_a_reference_that_reads_images_otherwise_is_not_replaced(tmp_path: Path) -> None:
    words, images = tiny.processing()
    other = copy.deepcopy(images)
    other.image_mean = [0.0, 0.0, 0.0]
    given = {"reference_model": tiny.captioner_model(seed=1), "reference_processing_class": (words, other)}
    with pytest.raises(ValueError, match="the two read captions or images in different ways"):
        trainer(tmp_path, options={"reference_refresh": 1}, **given)
    heads = tiny.captioner_model(seed=1, n_head=1)
    with pytest.raises(ValueError, match="or have configs that differ"):
        trainer(tmp_path, options={"reference_refresh": 1}, reference_model=heads)
    dropout = tiny.captioner_model(seed=1, dropout=0.1)
    trainer(tmp_path, options={"reference_refresh": 1}, reference_model=dropout)
