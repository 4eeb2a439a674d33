"""The commands and YAML files in the README and in the documentation are ones: programs, options and keys exist."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from hf_contrastive_caption.cli.errors import WrongUseError
from hf_contrastive_caption.cli.main import app
from hf_contrastive_caption.cli.train import make_config, read_request
from hf_contrastive_caption.cli.train_options import TrainParser
from tests.pages import PAGES, ROOT, Block, blocks

UsageError = typer.BadParameter.__mro__[1]  # click's, or that of typer's own copy of click
OTHERS = {"torchrun", "hf", "apt-get", "accelerate", "jupyter"}
"""Programs of others, whose options are not looked at."""


def lines_of(block: Block) -> list[list[str]]:
    """The words of each command in a block, without comments."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


SHELL_BLOCKS = [block for page in PAGES for block in blocks(page, "sh", "bash")]
COMMANDS = [(block.page, words) for block in SHELL_BLOCKS for words in lines_of(block)]
YAML_BLOCKS = [block for page in PAGES for block in blocks(page, "yaml")]


def check_own(words: list[str]) -> None:
    """Read the words of ``contrastive-caption`` as it would, without running the command."""
    group: Any = typer.main.get_command(app)
    if words[0].startswith("-"):
        assert words[0] in {name for option in group.params for name in option.opts}
    elif words[0] == "train":
        TrainParser().parse([word for word in words[1:] if word != "[OPTION]..."])
    else:
        try:
            group.commands[words[0]].make_context(words[0], words[1:])
        except typer.BadParameter as error:
            if not str(error).endswith("does not exist."):  # the reader's files and folders
                raise


def check_script(words: list[str]) -> None:
    """The script is in the repository, and it, or a script that it passes its words on to, has the options."""
    if words[0] in ("-m", "train.py"):  # a module, or the reader's own script
        return
    source = (ROOT / words[0]).read_text(encoding="utf-8")
    others = [
        ROOT / "benchmarks" / "common.py",
        *(ROOT / "examples" / name for name in re.findall(r"\w+\.py", source)),
    ]
    source += "".join(other.read_text(encoding="utf-8") for other in others if other.exists())
    assert [word for word in words if word.startswith("--") and f'"{word}"' not in source] == []


def check_install(words: list[str]) -> None:
    """The extras that are asked for exist."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert words[0] == "install"
    asked = [name for word in words for found in re.findall(r"\[(.*?)\]", word) for name in found.split(",")]
    assert set(asked) <= set(extras)


def check_make(words: list[str]) -> None:
    """The target stands in the Makefile."""
    targets = re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {word for word in words if "=" not in word} <= set(targets)


CHECKS = {"contrastive-caption": check_own, "python": check_script, "pip": check_install, "make": check_make}


@pytest.mark.parametrize("page", sorted({page for page, _ in COMMANDS}))
def test_commands_exist(page: str) -> None:
    for program, *words in (words for other, words in COMMANDS if other == page):
        assert program in CHECKS or program in OTHERS, f"{page}: {program} is not checked"
        if program in CHECKS:
            CHECKS[program](words)


def test_wrong_commands_are_seen() -> None:
    for check, error, words in (
        (check_own, UsageError, "compare one two --data d --no-such-option"),
        (check_own, UsageError, "compare one --data d"),
        (check_own, UsageError, "caption photo.jpg --model m --num-beams many"),
        (check_own, KeyError, "no-such-command"),
        (check_own, AssertionError, "--no-such-option"),
        (check_own, WrongUseError, "train --model m --data d --output-dir o --no-such-option 1"),
        (check_script, AssertionError, "benchmarks/training_step.py --no-such-option"),
        (check_script, FileNotFoundError, "benchmarks/no_such_script.py"),
        (check_install, AssertionError, "install .[no-such-extra]"),
        (check_make, AssertionError, "no-such-target"),
    ):
        with pytest.raises(error):
            check(words.split())


def test_most_commands_are_looked_at() -> None:
    """So that a change of the pages' form does not make the tests above pass for want of commands."""
    assert len([words for _, words in COMMANDS if words[0] == "contrastive-caption"]) >= 25


@pytest.mark.parametrize("block", YAML_BLOCKS, ids=lambda block: block.page)
def test_yaml_is_a_file_of_options(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(block.text, encoding="utf-8")
    config = make_config(read_request(["--config", str(file), "--use-cpu"]))
    for name, value in yaml.safe_load(block.text).items():
        if hasattr(config, name) and name not in ("learning_rate", "output_dir"):
            assert str(getattr(config, name)).lower().endswith(str(value).lower())
    assert YAML_BLOCKS
