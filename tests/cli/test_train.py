"""``contrastive-caption train``: the same as the trainer in Python, and how it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Image
from transformers import TrainerCallback

from hf_contrastive_caption import ContrastiveCaptionConfig, ContrastiveCaptionTrainer
from hf_contrastive_caption.cli import train_comparison
from hf_contrastive_caption.cli.interruption import StopOnInterrupt
from hf_contrastive_caption.cli.train import _say_how_to_go_on, going_on, read_request
from hf_contrastive_caption.console import CommandConsole
from hf_contrastive_caption.data.files import load_splits
from hf_contrastive_caption.loading import load_captioner, load_model
from tests import tiny
from tests.cli.commands import run, workplace
from tests.training import trainer

QUICK = ("--use-cpu", "--num-negatives", 3, "--per-device-train-batch-size", 4, "--logging-steps", 1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workplace(tmp_path_factory.mktemp("train"))


def needed(place: Path, out: Path) -> tuple[object, ...]:
    return ("--model", place / "model", "--data", place / "data", "--output-dir", out, *QUICK)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(str(folder)).state_dict()


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_file_and_words_do_what_the_trainer_does_in_python(place, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(
        f"model: {place / 'model'}\ndata: {place / 'data'}\nlearning-rate: 1e-3\nmax_steps: 7\n"
        "captions_per_image: 2\neval_strategy: steps\neval_steps: 2\neval_captions: 4\n"
    )
    out = tmp_path / "out"
    assert run("train", "--config", file, "--output-dir", out, "--max_steps", 2, "--beta=0.5", *QUICK) == 0
    shown = capsys.readouterr().out
    data = load_splits(place / "data")
    twin = ContrastiveCaptionTrainer(
        model=str(place / "model"),
        args=ContrastiveCaptionConfig(
            output_dir=str(tmp_path / "twin"), learning_rate=1e-3, max_steps=2, captions_per_image=2, beta=0.5,
            use_cpu=True, num_negatives=3, per_device_train_batch_size=4, save_strategy="no", report_to="none",
            logging_steps=1,
        ),
        train_dataset=data["train"],
    )  # fmt: skip
    twin.train()
    twin.save_model()
    assert same(weights(out), weights(tmp_path / "twin"))
    assert not same(weights(out), weights(place / "model"))
    assert "16 rows of the split 'train', evaluated on 6 of 'validation'" in shown
    loss = [entry["loss"] for entry in twin.state.log_history if "loss" in entry]
    for step in (1, 2):
        assert f"step {step} of 2: loss {loss[step - 1]:.3f}" in shown
    assert "step 2 of 2, evaluation: loss" in shown and "recall@1" in shown
    assert f"contrastive-caption caption photo.jpg --model {out}" in shown
    page = out / "_report" / "index.html"
    assert f"open {page} in a browser" in shown
    assert page.read_text(encoding="utf-8").count("<article") == 6
    state = json.loads((out / "checkpoint-2" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "eval_recall_at_1" in entry] == [2]
    assert run("caption", place / "data", "--model", out) == 2  # parquet files are no images


@pytest.mark.parametrize(
    ("words", "images"),
    [
        ((), 6),
        (("--report-images", 4), 4),
        (("--report-images", 0), 0),
        (("--objective", "mle"), 6),
        (("--objective", "introspective", "--mle-weight", 0.5), 6),
        (("--precompute-reference", "--precomputed-dir", "ahead", "--max-caption-tokens", 9), 6),
    ],
)
def test_the_page_at_the_end(place, tmp_path, capsys, monkeypatch, words, images):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    assert run("train", *needed(place, out), "--max-steps", 1, *words) == 0
    shown = capsys.readouterr().out
    page = out / "_report" / "index.html"
    assert page.exists() == (images > 0)
    if images:
        assert page.read_text(encoding="utf-8").count("<article") == images
        assert "16 rows of the split 'train', compared on 6 of 'validation'" in shown
    else:
        said = f"contrastive-caption compare {place / 'model'} {out} --data {place / 'data'} --split validation"
        assert said in shown.replace("\n", " ")


def test_after_a_replacement_it_is_compared_with_what_the_training_began_from(place, tmp_path, capsys):
    out = tmp_path / "out"
    words = ("--max-steps", 3, "--learning-rate", 1e-2, "--reference-refresh", 1)
    assert run("train", *needed(place, out), *words) == 0
    before = load_captioner(place / "model").caption(list(load_splits(place / "data")["validation"]["image"]))
    compared = json.loads((out / "_report" / "comparison.json").read_text())
    assert compared["reference"]["captions"] == before
    assert compared["target"]["captions"] != before
    assert capsys.readouterr().out.count("could not be compared") == 0


def test_an_adapter_is_compared_with_the_model_without_it(place, tmp_path):
    out = tmp_path / "out"
    words = ("--max-steps", 3, "--learning-rate", 1e-2, "--reference-refresh", 1, "--lora-r", 2)
    assert run("train", *needed(place, out), *words, "--lora-target-modules", "c_attn") == 0
    images = list(load_splits(place / "data")["validation"]["image"])
    compared = json.loads((out / "_report" / "comparison.json").read_text())
    assert compared["reference"]["captions"] == load_captioner(place / "model").caption(images)
    assert compared["target"]["captions"] == load_captioner(out).caption(images)


def test_what_was_overwritten_cannot_be_compared_with_and_is_saved_all_the_same(place, tmp_path, capsys):
    shutil.copytree(place / "model", tmp_path / "model")
    words = ("--model", tmp_path / "model", "--max-steps", 1, "--objective", "mle")
    assert run("train", *needed(place, tmp_path / "model"), *words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "It could not be compared with what it was: --model and --output-dir are one folder" in shown
    assert not same(weights(tmp_path / "model"), weights(place / "model"))


def test_a_comparison_that_fails_costs_nothing_else(place, tmp_path, capsys, monkeypatch):
    def fails(*arguments):
        raise RuntimeError("an operation is not implemented")

    monkeypatch.setattr(train_comparison, "compare_in_place", fails)
    assert run("train", *needed(place, tmp_path / "out"), "--max-steps", 1, "--objective", "mle") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "It could not be compared with what it was: an operation is not implemented" in shown
    assert not same(weights(tmp_path / "out"), weights(place / "model"))


def test_images_that_do_not_open_are_skipped_at_the_end_too(place, tmp_path, capsys, caplog):
    rows = {
        name: split.cast_column("image", Image(decode=False)) for name, split in load_splits(place / "data").items()
    }
    (tmp_path / "data").mkdir()
    for name, split in rows.items():
        content = split.to_list()
        content[3]["image"] = {"bytes": b"no image", "path": None}
        damaged = Dataset.from_list(content, features=split.features)
        damaged.to_parquet(tmp_path / "data" / f"{name}-00000-of-00001.parquet")
    out = tmp_path / "out"
    words = ("--max-steps", 2, "--eval-strategy", "steps", "--eval-steps", 1, "--eval-captions", 5)
    data = ("--data", tmp_path / "data")
    assert run("train", *needed(place, out), *data, *words, "--on-bad-image", "skip") == 0
    assert (out / "_report" / "index.html").read_text(encoding="utf-8").count("<article") == 5
    assert "1 of 6 images cannot be read and are left out: Image 3: an image of 8 bytes does not open" in caplog.text
    assert run("train", *needed(place, tmp_path / "other"), *data, *words) == 1
    assert "an image of 8 bytes does not open" in capsys.readouterr().err


def test_what_can_be_compared_is_said(place, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    load_splits(place / "data")["train"].to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    words = ("--data", tmp_path / "data", "--max-steps", 1)
    assert run("train", *needed(place, tmp_path / "out"), *words) == 0
    shown = capsys.readouterr().out.replace("\n", " ")
    assert "compared on" not in shown and "on images that it was not trained on:" in shown and "OTHER_DATA" in shown


def test_an_adapter(place, tmp_path, capsys):
    out = tmp_path / "out"
    words = ("--max-steps", 1, "--lora-r", 2, "--lora-target-modules", "c_attn", "--save-strategy", "no")
    assert run("train", *needed(place, out), *words) == 0
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (2, 4, ["c_attn"])
    assert "the model with its adapters off" in capsys.readouterr().out
    tiny.images(1)[0].save(tmp_path / "photo.png")
    assert run("caption", tmp_path / "photo.png", "--model", out, "--max-new-tokens", 4) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'photo.png'}\t")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--num-negative", "3"], 2, "did you mean --num-negatives?"),
        (["--num-negatives", "0"], 2, "num_negatives must be a whole number of at least 1"),
        (["--captions-per-image", "most"], 2, "captions_per_image is 'most'"),
        (["--label-smoothing-factor", "0.1"], 2, "cannot be used for contrastive captioning"),
        (["--lora-alpha", "8"], 2, "say its rank with --lora-r"),
        (["--lora-r", "0"], 2, "a rank is at least 1"),
        (["--num-processes", "2"], 2, "--accelerate-config with it"),
        (["--eval-split", "validation", "--report-images", "0"], 2, "add --eval-strategy"),
        (["--resume", "--resume-from-checkpoint", "x"], 2, "say the same"),
        (["--card-images", "13"], 2, "a model card shows at most 12"),
        (["--train-split", "dev"], 1, "there is no split 'dev'"),
        (["--eval-strategy", "epoch", "--eval-split", "dev"], 1, "there is no split 'dev'"),
        (["--data", "no/such/folder"], 1, "no/such/folder does not exist"),
        (["--output-dir", __file__], 2, "test_train.py is a file; give a folder"),
        (["--model-init-kwargs", '{"dtype": '], 2, "--model-init-kwargs: '{\"dtype\": ' is no dictionary in JSON"),
        (["--model-init-kwargs", "bfloat16"], 2, "--model-init-kwargs: 'bfloat16' is no dictionary in JSON"),
        (["--lr-scheduler-kwargs", "[1]"], 2, "--lr-scheduler-kwargs: '[1]' is no dictionary in JSON"),
        (["--resume"], 1, "there is no checkpoint"),
        (["--accelerate-config", "fsdp3"], 1, "there is no Accelerate config 'fsdp3'"),
    ],
)
def test_errors_are_one_message(place, tmp_path, capsys, words, code, message):
    assert run("train", *needed(place, tmp_path / "out"), *words) == code
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown
    assert ("--debug" in shown) == (code == 1)


def test_options_out_of_range_in_a_file_are_placed(place, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text("model: m\nnum_negatives: 0\n")
    words = ("--data", place / "data", "--output-dir", tmp_path / "out", "--use-cpu")
    assert run("train", "--config", file, *words) == 2
    assert f"(num_negatives: {file}:2)" in capsys.readouterr().err
    assert run("train", "--config", file, *words, "--num-negatives", -1) == 2  # of the command line, not of the file
    assert "run.yaml" not in capsys.readouterr().err
    file.write_text("model: m\nmodel_init_kwargs: bfloat16\n")
    assert run("train", "--config", file, *words) == 2
    assert f"{file}:2: 'bfloat16' is no dictionary" in capsys.readouterr().err
    assert run("train", "--config", file) == 2
    assert "--data, --output-dir must be given" in capsys.readouterr().err


def test_a_folder_with_checkpoints_is_not_begun_anew(place, tmp_path, capsys):
    (tmp_path / "out" / "checkpoint-3").mkdir(parents=True)
    assert run("train", *needed(place, tmp_path / "out")) == 1
    assert "checkpoint-3 is there of an earlier run" in capsys.readouterr().err


def test_the_printed_words_win_over_a_file_and_hold_no_token(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text("model: m\ndata: d\nresume_from_checkpoint: other/checkpoint-2\n")
    out = tmp_path / "out"
    (out / "checkpoint-3").mkdir(parents=True)
    words = ["--config", str(file), "--output-dir", str(out), "--hub-token", "hf_secret", "--hub_token=hf_secret"]
    first = read_request(words)
    assert (first.run.resume, first.config["resume_from_checkpoint"]) == (None, "other/checkpoint-2")
    request = read_request(going_on(words))
    assert (request.run.resume, request.config) == (True, {"output_dir": str(out)})
    _say_how_to_go_on(first, str(out), CommandConsole())
    shown = capsys.readouterr().out
    assert "--resume" in shown and "HF_TOKEN" in shown and "secret" not in shown


def test_the_words_that_go_on():
    words = ["--model", "a b", "--resume", "out/checkpoint-2", "--data", "d", "--resume_from_checkpoint=x", "--resume"]
    assert going_on(words) == ["--model", "a b", "--data", "d", "--resume"]
    request = read_request(["--model", "m", "--data", "d", "--output-dir", "o", "--resume"])
    assert (request.run.resume, request.config) == (True, {"output_dir": "o"})


class CtrlC(TrainerCallback):
    """Presses Ctrl-C in the middle of a step."""

    def __init__(self, step: int, times: int = 1) -> None:
        self.step, self.times = step, times

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("workers", [0, 1])
def test_ctrl_c_saves_and_a_resume_is_as_if_it_had_not_been(tmp_path, capfd, workers):
    options = {"max_steps": 5, "save_strategy": "no", "dataloader_num_workers": workers}
    whole = trainer(tmp_path / "whole", options=options)
    whole.train()
    before = signal.getsignal(signal.SIGINT)
    with StopOnInterrupt() as stop:
        trainer(tmp_path / "run", options=options, callbacks=[stop, CtrlC(3)]).train()
    assert stop.stopped and signal.getsignal(signal.SIGINT) is before
    assert "Stopping after this step" in capfd.readouterr().err
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-3"]
    resumed = trainer(tmp_path / "run", options=options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 5
    assert same(resumed.model.state_dict(), whole.model.state_dict())


def test_a_second_ctrl_c_stops_at_once_and_one_in_the_last_step_is_too_late(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), StopOnInterrupt() as stop:
        trainer(tmp_path / "twice", options={"max_steps": 3}, callbacks=[stop, CtrlC(2, times=2)]).train()
    assert signal.getsignal(signal.SIGINT) is before
    assert not list((tmp_path / "twice").glob("checkpoint-*"))
    with StopOnInterrupt() as stop:
        done = trainer(tmp_path / "last", options={"max_steps": 3}, callbacks=[stop, CtrlC(3)])
        done.train()
    assert not stop.stopped and done.state.global_step == 3


def start(place: Path, out: Path, *words: object) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "hf_contrastive_caption.cli.main",
        "train",
        *map(str, (*needed(place, out), *words)),
    ]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, start_new_session=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_in_a_terminal_and_the_command_that_it_says(place, tmp_path, processes):
    out = tmp_path / "out"
    several = ("--accelerate-config", "ddp", "--num-processes", 2) if processes == 2 else ()
    process = start(place, out, "--max-steps", 10_000, "--save-strategy", "no", *several)
    assert process.stdout is not None
    shown = ""
    for line in process.stdout:
        shown += line
        if "step 4 of" in line:
            os.killpg(process.pid, signal.SIGINT)
            break
    shown += process.stdout.read()
    assert process.wait(timeout=60) == 130, shown
    assert shown.count("Stopping after this step") == 1
    (checkpoint,) = out.glob("checkpoint-*")
    step = json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]
    said = shown.rstrip().splitlines()[-1]
    assert said.startswith("contrastive-caption train --model") and said.endswith("--resume")
    assert f"The newest checkpoint is {checkpoint}. To go on:" in shown
    done = start(place, out, "--max-steps", step + 2, "--save-strategy", "steps", "--resume", *several)
    output, _ = done.communicate(timeout=120)
    assert done.returncode == 0, output
    state = json.loads((out / f"checkpoint-{step + 2}" / "trainer_state.json").read_text())
    assert state["epoch"] == pytest.approx((step + 2) / (4 / processes))  # 16 rows, 4 in a batch of each process
    assert output.count("The captioner is in") == 1


def test_a_process_that_waits_for_another_lets_it_have_the_signal(tmp_path):
    """What ``--accelerate-config`` starts gets Ctrl-C from the terminal and decides itself how it ends."""
    child = (
        "import signal, sys, time\n"
        "def end(*_):\n    time.sleep(0.6)\n    print('saved', flush=True)\n    sys.exit(3)\n"
        "signal.signal(signal.SIGINT, end)\nprint('ready', flush=True)\ntime.sleep(30)\n"
    )
    code = (
        "import sys\nfrom hf_contrastive_caption.cli.launch import run_to_its_end\n"
        f"sys.exit(run_to_its_end([sys.executable, '-c', {child!r}]))\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env, start_new_session=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    begin = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    assert process.stdout.read() == "saved\n"
    assert process.wait(timeout=10) == 130 and time.monotonic() - begin >= 0.6
