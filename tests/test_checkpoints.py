"""Checkpoints: whole at any moment, the best one known, errors that say the way out, logs that go on."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import HPSearchBackend, get_last_checkpoint

from hf_contrastive_caption import ContrastiveCaptionTrainer
from hf_contrastive_caption.checkpoint_folders import damage, publish, remove, rotate, tidy
from hf_contrastive_caption.reference.versions import VERSIONS
from tests import tiny
from tests.training import arguments, logged, trainer

FILES = ("model.safetensors", "optimizer.pt", "trainer_state.json")


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


class KillAt:
    """Lets the n-th change in the file system be the last one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, change: int) -> None:
        self.left = change
        for name in ("rename", "unlink", "rmdir", "mkdir"):
            monkeypatch.setattr(os, name, self.counted(getattr(os, name)))

    def counted(self, function: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any, **kwargs: Any) -> None:
            if self.left == 0:
                raise Killed
            self.left -= 1
            function(*args, **kwargs)

        return call


def checkpoint(folder: Path, content: str) -> Path:
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_text(content)
    return folder


def content(folder: Path) -> str:
    """What a checkpoint holds; fails if it is not all there."""
    (found,) = {(folder / name).read_text() for name in FILES}
    return found


def replace(run: Path) -> None:
    publish(run / "_unfinished-4" / "checkpoint-4", run / "checkpoint-4")


def publish_and_rotate(run: Path) -> None:
    replace(run)
    rotate(run, 1, [run / "checkpoint-4"])


def end_with_the_best(run: Path) -> None:
    rotate(run, 1, [run / "checkpoint-2"])


@pytest.mark.parametrize(
    ("before", "work", "allowed", "after"),
    [
        ({"checkpoint-4": "old", "_unfinished-4/checkpoint-4": "new"}, replace, {"old", "new"}, ["checkpoint-4"]),
        ({"checkpoint-2": "old", "_unfinished-4/checkpoint-4": "new"}, replace, {"old", "new"},
         ["checkpoint-2", "checkpoint-4"]),
        ({"checkpoint-2": "old", "_unfinished-4/checkpoint-4": "new"}, publish_and_rotate, {"old", "new"},
         ["checkpoint-4"]),
        ({"checkpoint-2": "best", "checkpoint-4": "last"}, end_with_the_best, {"best", "last"}, ["checkpoint-2"]),
    ],
)  # fmt: skip
def test_the_newest_checkpoint_is_whole_wherever_the_process_is_killed(
    tmp_path: Path, before: dict[str, str], work: Callable[[Path], None], allowed: set[str], after: list[str]
) -> None:
    seen = set()
    for change in range(100):
        run = tmp_path / str(change)
        for name, text in before.items():
            checkpoint(run / name, text)
        with pytest.MonkeyPatch.context() as patch:
            KillAt(patch, change)
            try:
                work(run)
                finished = True
            except Killed:
                finished = False
        if not (run / "_replaced-4").exists():  # between two renames a reader has to wait for the next start
            assert content(Path(get_last_checkpoint(str(run)))) in allowed
        tidy(run)
        seen.add(content(Path(get_last_checkpoint(str(run)))))
        assert not list(run.glob("_*"))
        assert all(content(path) for path in run.iterdir())
        if finished:
            break
    assert seen == allowed and change >= 2
    assert sorted(path.name for path in run.iterdir()) == after


def test_what_other_runs_left_stays(tmp_path: Path) -> None:
    others = ["run-1/_unfinished-4", "_unfinished-of-mine", "_mine", "logs"]
    for name in (*others, "_unfinished-4/checkpoint-4", "_deleted-abc/checkpoint-2", "_replaced-6"):
        checkpoint(tmp_path / name, name)
    (tmp_path / "checkpoint-8").mkdir()  # as enable_jit_checkpoint begins
    (tmp_path / "checkpoint-8" / "checkpoint-is-incomplete.txt").write_text("in progress")
    tidy(tmp_path)
    assert all((tmp_path / name / FILES[0]).exists() for name in others)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "_mine", "_unfinished-of-mine", "checkpoint-6", "logs", "run-1",
    ]  # fmt: skip
    assert content(tmp_path / "checkpoint-6") == "_replaced-6"


def test_rotation_keeps_the_newest_and_the_best_by_any_spelling_of_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (2, 4, 6, 8, 10):
        path = checkpoint(tmp_path / "run" / f"checkpoint-{number}", str(number))
        os.utime(path, (number * 100, number * 100))
    os.utime(tmp_path / "run" / "checkpoint-10", (0, 0))  # of an earlier run
    monkeypatch.chdir(tmp_path)
    rotate(tmp_path / "run", 3, ["run/../run/checkpoint-8", "run/checkpoint-2", None])
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoint-2", "checkpoint-6", "checkpoint-8",
    ]  # fmt: skip
    rotate(tmp_path / "run", 1, ["run/checkpoint-8", "run/checkpoint-2"])
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-2", "checkpoint-8"]
    remove(tmp_path / "run" / "checkpoint-2")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-8"]


class Folders(TrainerCallback):
    """What is there after each checkpoint, and which one is said to be the best."""

    def __init__(self) -> None:
        self.seen: list[tuple[list[str], str, str]] = []

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        run = Path(args.output_dir)
        stored = json.loads((run / f"checkpoint-{state.global_step}" / "trainer_state.json").read_text())
        names = sorted(path.name for path in run.iterdir() if path.name != VERSIONS)
        self.seen.append((names, state.best_model_checkpoint, stored["best_model_checkpoint"]))


@pytest.mark.parametrize("strategy", ["steps", "epoch", "best"])
def test_the_best_checkpoint_is_known_by_its_final_path(
    tmp_path: Path, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The margin grows, so its smallest value is the first: the first checkpoint is the best, and stays."""
    folders, deleted, delete = Folders(), [], shutil.rmtree

    def watched(path: Any, *args: Any, **kwargs: Any) -> None:
        deleted.append(Path(path).name.partition("-")[0])
        delete(path, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", watched)
    options = {
        "max_steps": 3, "save_strategy": strategy, "save_steps": 1, "save_total_limit": 1,
        "eval_strategy": "epoch" if strategy == "epoch" else "steps", "eval_steps": 1, "load_best_model_at_end": True,
        "metric_for_best_model": "eval_margin", "greater_is_better": False, "learning_rate": 3e-3,
        "per_device_train_batch_size": 16,  # a step is an epoch
    }  # fmt: skip
    run = trainer(tmp_path, eval_dataset=tiny.caption_dataset(6), options=options, callbacks=[folders])
    run.train()
    assert logged(run, "eval_margin")[0] == min(logged(run, "eval_margin"))
    best = str(tmp_path / "checkpoint-1")
    assert folders.seen[0] == (["checkpoint-1"], best, best)
    if strategy == "best":
        assert len(folders.seen) == 1
    else:
        assert folders.seen[1:] == [(["checkpoint-1", f"checkpoint-{step}"], best, best) for step in (2, 3)]
    assert [path.name for path in tmp_path.iterdir() if path.name != VERSIONS] == ["checkpoint-1"]
    assert "checkpoint" not in deleted  # but only what has another name by then
    assert deleted.count("_deleted") == (0 if strategy == "best" else 2)
    trained, loaded = run.model.state_dict(), load_file(tmp_path / "checkpoint-1" / "model.safetensors")
    assert torch.equal(trained["decoder.lm_head.weight"], loaded["decoder.transformer.wte.weight"])


class WithExtra(ContrastiveCaptionTrainer):
    extra: list[bool]

    def save_extra(self, folder: Path) -> None:
        self.extra.append(Path(self.args.output_dir, folder.name).exists())
        (folder / "extra.txt").write_text(f"step {self.state.global_step}")


def test_a_checkpoint_is_pushed_and_has_extra_files_when_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed: list[tuple[str, bool]] = []

    def push(self: Trainer, folder: str) -> None:
        pushed.append((folder, (Path(folder) / "extra.txt").exists()))

    monkeypatch.setattr(Trainer, "_push_from_checkpoint", push)
    run = WithExtra(
        model=tiny.captioner_model(),
        args=arguments(tmp_path / "run", save_strategy="steps", save_steps=1, save_only_model=True),
        train_dataset=tiny.caption_dataset(),
        processing_class=tiny.processing(),
    )
    run.args.push_to_hub = True  # in the arguments it would ask the Hub for a repository
    run.extra = []
    run.train()
    assert pushed == [(str(tmp_path / "run" / f"checkpoint-{step}"), True) for step in (1, 2)]
    assert run.extra == [False, False]
    assert (tmp_path / "run" / "checkpoint-2" / "extra.txt").read_text() == "step 2"
    assert not (tmp_path / "run" / "checkpoint-2" / "optimizer.pt").exists()
    run.hp_search_backend, run.hp_name = HPSearchBackend.OPTUNA, None
    run._save_checkpoint(run.model, SimpleNamespace(number=3))  # a trial of a search has a folder of its own
    assert [path.name for path in (tmp_path / "run" / "run-3").iterdir()] == ["checkpoint-2"]
    assert pushed[-1] == (str(tmp_path / "run" / "run-3" / "checkpoint-2"), True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    trainer(folder, options={"save_strategy": "steps", "save_steps": 1}).train()
    return folder


def resume(folder: Path, given: Any = True) -> ContrastiveCaptionTrainer:
    run = trainer(folder, options={"max_steps": 3})
    run.train(resume_from_checkpoint=given)
    return run


def test_resuming_from_nothing_says_so(tmp_path: Path) -> None:
    for folder in (tmp_path / "missing", tmp_path):
        with pytest.raises(ValueError, match=rf"no checkpoint in the output folder '{folder}'.*leave resume_from"):
            resume(folder)
    with pytest.raises(ValueError, match="no checkpoint folder '.*nowhere'; a run writes"):
        resume(tmp_path, tmp_path / "nowhere")


def test_what_a_kill_left_is_put_in_order_before_a_checkpoint_is_looked_for(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "checkpoint-1", tmp_path / "_unfinished-3" / "checkpoint-3")
    shutil.copytree(finished / "checkpoint-2", tmp_path / "_replaced-2")
    (tmp_path / "checkpoint-3").mkdir()
    run = trainer(tmp_path, options={"max_steps": 3})
    assert run.checkpoint_to_resume(True) == str(tmp_path / "checkpoint-2")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    assert run.checkpoint_to_resume(None) is run.checkpoint_to_resume(False) is None


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", *FILES[2:]])
def test_a_file_that_was_cut_is_found(finished: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    assert damage(folder / "checkpoint-2") is None
    file = folder / "checkpoint-2" / name
    file.write_bytes(file.read_bytes()[:-100])
    whole = folder / "checkpoint-1"
    with pytest.raises(
        ValueError, match=rf"checkpoint-2' is damaged \({name}.*resume_from_checkpoint='{whole}' is wh"
    ):
        resume(folder)
    (whole / "trainer_state.json").unlink()
    with pytest.raises(ValueError, match="start anew without it"):
        resume(folder)
    with pytest.raises(ValueError, match="checkpoint-1' is damaged .trainer_state.json is missing"):
        resume(folder, whole)


def test_a_checkpoint_without_the_optimizer_is_resumed_with_a_warning(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(finished / "checkpoint-1", tmp_path / "checkpoint-1")
    with caplog.at_level(logging.WARNING):
        resume(tmp_path)
        assert "no state of the optimizer" not in caplog.text
        (tmp_path / "checkpoint-1" / "optimizer.pt").unlink()
        assert resume(tmp_path).state.global_step == 3
        assert "checkpoint-1 has no state of the optimizer" in caplog.text


LOGS = {"max_steps": 10, "logging_steps": 5, "save_strategy": "steps", "save_steps": 4}


def reference() -> Any:
    return tiny.captioner_model(seed=1)


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> ContrastiveCaptionTrainer:
    """The run with a log of every step."""
    options = {**LOGS, "logging_steps": 1, "save_strategy": "no"}
    run = trainer(tmp_path_factory.mktemp("every"), options=options, reference_model=reference())
    run.train()
    return run


def test_a_log_covers_the_steps_before_a_resume(tmp_path: Path, every: ContrastiveCaptionTrainer) -> None:
    whole = trainer(tmp_path / "whole", options=LOGS, reference_model=reference())
    whole.train()
    resumed = trainer(tmp_path / "resumed", options=LOGS, reference_model=reference())
    output = resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-8"))
    logs = [[entry for entry in run.state.log_history if "loss" in entry] for run in (whole, resumed)]
    assert [entry["step"] for entry in logs[0]] == [5, 10]
    assert logs[1] == logs[0]
    for name in ("loss", "margin"):
        assert logged(resumed, name)[-1] == pytest.approx(sum(logged(every, name)[5:]) / 5, abs=1e-5)
    assert output.training_loss == pytest.approx(sum(logged(every, "loss")[8:]) / 2, abs=1e-6)  # of this call


class SaveInMidStep(TrainerCallback):
    """As ``enable_jit_checkpoint`` may."""

    run: Any = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 8:
            self.run._save_checkpoint(self.run.model, None)


def test_a_step_that_is_taken_again_counts_once_in_the_log(tmp_path: Path, every: ContrastiveCaptionTrainer) -> None:
    callback = SaveInMidStep()
    callback.run = trainer(tmp_path, options=LOGS, callbacks=[callback], reference_model=reference())
    callback.run.train()
    shutil.rmtree(tmp_path / "checkpoint-10")
    resumed = trainer(tmp_path, options=LOGS, reference_model=reference())
    resumed.train(resume_from_checkpoint=True)
    for name in ("loss", "margin"):
        assert logged(resumed, name)[-1] == pytest.approx(sum(logged(every, name)[8:]) / 2, abs=1e-5)


@pytest.mark.parametrize(
    ("objective", "stream"),
    [("contrastive", False), ("contrastive", True), ("introspective", False), ("mle", False), ("mle", True)],
)
def test_going_on_from_the_last_checkpoint_trains_no_step(tmp_path: Path, objective: str, stream: bool) -> None:
    """The learning rate does not end at 0 here, which would hide it, and the epoch has further steps."""
    data = tiny.caption_dataset(16)
    data = data.to_iterable_dataset() if stream else data
    options = {"objective": objective, "max_steps": 3, "lr_scheduler_type": "constant", "save_strategy": "steps"}
    run = trainer(tmp_path, data=data, options={**options, "save_steps": 3})
    run.train()
    run.save_model(str(tmp_path / "ended"))
    again = trainer(tmp_path, data=data, options={**options, "save_steps": 3})
    assert again.train(resume_from_checkpoint=True).global_step == 3
    again.save_model(str(tmp_path / "again"))
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("ended", "again"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert again.state.log_history[: len(run.state.log_history) - 1] == run.state.log_history[:-1]
