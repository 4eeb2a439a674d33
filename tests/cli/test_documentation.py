"""What ``docs/cli.md`` says: its commands and options exist, its file of options is one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from hf_contrastive_caption.cli.errors import WrongUseError
from hf_contrastive_caption.cli.run_file import read_run_file
from hf_contrastive_caption.cli.train import make_config, read_request
from hf_contrastive_caption.cli.train_options import TrainParser, option_types
from tests.cli.commands import run

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    lines = "\n".join(blocks("sh")).splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("contrastive-caption ")]


def test_options_in_commands_exist(capsys):
    assert len(commands()) >= 11
    seen = set()
    for words in commands():
        seen.add(words[0])
        if words[0] == "train":
            TrainParser().parse([word for word in words[1:] if word != "[OPTION]..."])
            continue
        assert run(*([] if words[0].startswith("-") else words[:1]), "--help") == 0
        shown = set(capsys.readouterr().out.split())
        assert {word for word in words if word.startswith("--")} <= shown
    assert seen >= {"train", "caption", "convert", "compare"}


@pytest.mark.parametrize("command", ["caption", "convert"])
def test_options_in_the_text_exist(command, capsys):
    text = PAGE.partition(f"\n## {command}\n")[2].partition("\n## ")[0]
    named = set(re.findall(r"--[a-z][a-z-]+", text))
    assert run(command, "--help") == 0
    shown = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))
    assert named <= shown
    assert shown - named <= {"--help", "--images", "--out", "--model", "--restval"}


def test_the_file_of_options(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(blocks("yaml")[0], encoding="utf-8")
    config = make_config(read_request(["--config", str(file), "--use-cpu", "--learning-rate", "2e-5"]))
    assert (config.num_negatives, config.learning_rate, config.warmup_steps) == (5, 2e-5, 0.1)
    assert config.score_weights == {"cider_d": 1.0, "recall_at_1": 2.0} and config.load_best_model_at_end


def test_the_errors_that_are_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = [line.removeprefix("error: ") for line in blocks("text")[0].splitlines()]
    for wrong, message in zip(("num_negative: 5", "num_negatives: many"), shown, strict=True):
        Path("run.yaml").write_text(blocks("yaml")[0].replace("num_negatives: 5 ", wrong + " "), encoding="utf-8")
        with pytest.raises(WrongUseError) as caught:
            read_run_file(Path("run.yaml"), option_types())
        assert str(caught.value) == message
