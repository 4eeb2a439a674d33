"""Trainings that are killed by SIGKILL and resumed, against the same trainings left alone: every bit must be equal.

``python -m tests.test_kill_and_resume FOLDER VARIANT...`` imports once and forks a process for each training; under
torchrun, with a stage as well, the processes are those of one training.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

from hf_contrastive_caption import ContrastiveCaptionTrainer
from hf_contrastive_caption.reference.versions import VERSIONS
from tests import tiny
from tests.processes import try_torchrun
from tests.training import arguments

STEPS = 10
SETTINGS: dict[str, Any] = {
    "max_steps": STEPS,  # four steps are an epoch
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 1,
    "captions_per_image": 1,
}


def lora() -> Any:
    torch.manual_seed(0)
    targets = r".*(q_proj|query|c_attn|q_attn)"  # the names differ between releases
    return get_peft_model(tiny.captioner_model(), LoraConfig(r=4, target_modules=targets, lora_dropout=0.5))


def stream() -> Any:
    return tiny.caption_dataset(16).to_iterable_dataset(num_shards=2)


@dataclass(frozen=True)
class Variant:
    """A training: what differs from a plain one.

    ``options`` are arguments of the config, ``arguments`` makes further ones of the trainer.
    """

    options: dict[str, Any] = field(default_factory=dict)
    model: Callable[[], Any] = tiny.captioner_model
    data: Callable[[], Any] = tiny.caption_dataset
    arguments: Callable[[], dict[str, Any]] = dict


ACCUMULATED = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
QUICK = {
    "plain": Variant(),
    "workers and accumulation": Variant({"dataloader_num_workers": 2, **ACCUMULATED}),
    "dropout": Variant({"objective": "mle"}, lambda: tiny.captioner_model(dropout=0.3)),
    "adapters": Variant(model=lora),
}
SLOW = {
    "all captions": Variant({"captions_per_image": "all", "per_device_train_batch_size": 20}),
    "augmentation": Variant(arguments=lambda: {"augment": lambda image: image.rotate(90 * torch.rand(()).item())}),
    "autocast": Variant({"bf16": True}),
    "dropout, accumulation, workers": Variant(
        {"objective": "mle", "dataloader_num_workers": 1, **ACCUMULATED}, lambda: tiny.captioner_model(dropout=0.3)
    ),
    "gradient checkpointing": Variant({"gradient_checkpointing": True}),
    "introspective": Variant({"objective": "introspective", "mle_weight": 0.5, "dataloader_num_workers": 1}),
    "persistent workers": Variant({"dataloader_num_workers": 2, "dataloader_persistent_workers": True}),
    "reference of another kind": Variant(
        arguments=lambda: {
            "reference_model": tiny.captioner_model("bert", seed=1),
            "reference_processing_class": tiny.processing(),
        }
    ),
    "reference scored ahead": Variant({"precompute_reference": True}),
    "hard negatives": Variant(
        {"negatives": "mixed", "hard_negative_schedule": "linear", "hard_negative_pool": 8, **ACCUMULATED}
    ),
    "hard negatives, reference replaced": Variant({"negatives": "nearest", "reference_refresh": 3}),
    "hard negatives, scored ahead, workers": Variant(
        {"negatives": "mixed", "precompute_reference": True, "dataloader_num_workers": 2}
    ),
    "reference replaced": Variant({"reference_refresh": 3}),
    "reference replaced in part": Variant({"reference_refresh": 3, "reference_mixup": 0.5}),
    "stream": Variant({"reservoir_size": 20}, data=stream),
    "states computed ahead": Variant({"freeze_vision_encoder": True, "cache_vision_states": True}),
    "stream with workers": Variant({"reservoir_size": 20, "dataloader_num_workers": 2}, data=stream),
}


@dataclass(frozen=True)
class Kill:
    """When a training kills itself: after a step, or in the middle of a file of that step's checkpoint."""

    step: int
    file: str | None = None


STAGES = [Kill(3), Kill(6, "optimizer.pt"), Kill(8, "training_args.bin"), None]
FIRST_STEPS = [1, 3, 5, 7]
"""The first step of each stage: in mid-epoch, at the beginning of an epoch, and in mid-epoch."""


class KillBetweenSteps(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def kill_while_writing(step: int, name: str) -> None:
    """Let ``torch.save`` die when half of a file is written."""
    whole_save = torch.save

    def save(content: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        if str(file).endswith(f"checkpoint-{step}/{name}"):
            buffer = io.BytesIO()
            whole_save(content, buffer)
            with open(file, "wb") as half:
                half.write(buffer.getvalue()[: len(buffer.getvalue()) // 2])
                half.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        whole_save(content, file, *args, **kwargs)

    torch.save = save


def digest(values: Any) -> str:
    """A hash of all tensors in a dict of dicts."""
    found = hashlib.sha256()
    for name in sorted(values):
        value = values[name]
        found.update(name.encode())
        if isinstance(value, Mapping):
            found.update(digest(value).encode())
        elif isinstance(value, torch.Tensor):
            found.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


class Recorded(ContrastiveCaptionTrainer):
    """Writes down each batch and its loss as they come."""

    record: Any

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        batch = digest(inputs)
        loss = super().training_step(model, inputs, num_items_in_batch)
        print(json.dumps([self.state.global_step + 1, batch, loss.item()]), file=self.record, flush=True)
        return loss


def train(folder: Path, name: str, stage: int, kill: Kill | None) -> None:
    """One process of a training; all but the first go on from the newest checkpoint."""
    torch.set_num_threads(1)
    variant = {**QUICK, **SLOW}[name]
    options = {**SETTINGS, **variant.options}
    if options.keys() & {"precompute_reference", "cache_vision_states"}:
        options["precomputed_dir"] = str(folder / "ahead")
    torch.manual_seed(stage)  # what a resume does not bring back differs
    trainer = Recorded(
        model=variant.model(),
        args=arguments(folder / "run", **options),
        train_dataset=variant.data(),
        processing_class=tiny.processing(),
        **variant.arguments(),
    )
    assert trainer.args.world_size == int(os.environ.get("WORLD_SIZE", "1"))
    rank = trainer.args.process_index
    if kill is not None and kill.file is not None:
        kill_while_writing(kill.step, kill.file)
    elif kill is not None:
        trainer.add_callback(KillBetweenSteps(kill.step))
    with open(folder / f"steps{stage}-{rank}.jsonl", "w") as trainer.record:
        trainer.train(resume_from_checkpoint=stage > 0)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    (folder / f"end-{rank}.json").write_text(json.dumps({"weights": digest(trainer.model.state_dict()), "logs": logs}))


def fork(function: Callable[..., None], *args: Any) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=function, args=args)
    process.start()
    return process


def run_stages(folder: Path, name: str, stages: list[Kill | None]) -> None:
    folder.mkdir(parents=True)
    for stage, kill in enumerate(stages):
        process = fork(train, folder, name, stage, kill)
        process.join()
        expected = 0 if kill is None else -signal.SIGKILL
        assert process.exitcode == expected, f"{name}, stage {stage}: {process.exitcode} and not {expected}"
        if kill is not None and kill.file is not None:
            assert (folder / "run" / f"_unfinished-{kill.step}" / f"checkpoint-{kill.step}" / kill.file).exists()


def run_variant(folder: Path, name: str) -> None:
    """One training left alone, and beside it one that is killed."""
    whole = fork(run_stages, folder / "whole", name, [None])
    run_stages(folder / "killed", name, STAGES)
    whole.join()
    assert whole.exitcode == 0


def launch(folder: Path, names: list[str]) -> Path:
    """Each variant in a process of its own, once left alone and once killed."""
    command = [sys.executable, "-m", "tests.test_kill_and_resume", str(folder), *names]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def steps(folder: Path, stage: int, rank: int) -> list[tuple[int, str, float]]:
    """Step, hash of the batch, and loss of every batch."""
    return [tuple(json.loads(line)) for line in (folder / f"steps{stage}-{rank}.jsonl").read_text().splitlines()]


def check(folder: Path, rank: int = 0) -> None:
    """Whether the killed training went the way of the other one, bit for bit."""
    whole = steps(folder / "whole", 0, rank)
    assert len({batch for _, batch, _ in whole}) == len(whole) and len({loss for _, _, loss in whole}) > len(whole) / 2
    for stage, first in enumerate(FIRST_STEPS):
        found = steps(folder / "killed", stage, rank)
        last = STEPS if STAGES[stage] is None else STAGES[stage].step
        assert (found[0][0], found[-1][0]) == (first, last)
        assert found == [entry for entry in whole if first <= entry[0] <= last]
    ends = [json.loads((folder / kind / f"end-{rank}.json").read_text()) for kind in ("whole", "killed")]
    assert [entry["step"] for entry in ends[0]["logs"]] == list(range(1, STEPS + 1))
    assert ends[1] == ends[0]
    left = {path.name for path in (folder / "killed" / "run").iterdir()}
    assert left - {VERSIONS} == {f"checkpoint-{STEPS}"}


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launch(tmp_path_factory.mktemp("quick"), list(QUICK))


@pytest.mark.parametrize("name", QUICK)
def test_a_killed_training_goes_on_bit_for_bit(quick: Path, name: str) -> None:
    check(quick / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_a_killed_training_of_any_kind_goes_on_bit_for_bit(tmp_path: Path, name: str) -> None:
    check(launch(tmp_path, [name]) / name)


@pytest.mark.slow
@pytest.mark.timeout(600)  # five starts of two processes
def test_two_processes_that_are_killed_go_on_bit_for_bit(tmp_path: Path) -> None:
    name = "plain"
    for kind, stages in (("whole", [None]), ("killed", STAGES)):
        (tmp_path / kind).mkdir()
        for stage, kill in enumerate(stages):
            words = (tmp_path / kind, name, stage, len(stages))
            done = try_torchrun("tests.test_kill_and_resume", *words, timeout=100)
            assert (done.returncode == 0) == (kill is None), done.stderr[-4000:]
    for rank in range(2):
        check(tmp_path, rank)


if __name__ == "__main__" and "RANK" in os.environ:
    given = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    train(*given, STAGES[given[2]] if int(sys.argv[4]) > 1 else None)
elif __name__ == "__main__":
    for variant_name in sys.argv[2:]:
        run_variant(Path(sys.argv[1]) / variant_name, variant_name)
