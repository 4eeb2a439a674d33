"""The words of ``contrastive-caption train``, which are passed on as they are.

There is an option for each of the more than hundred of ``ContrastiveCaptionConfig``, and knowing them means importing
transformers and torch. So typer knows the command's name only, and ``cli/train_options.py`` the rest.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand


@dataclass(frozen=True)
class _Completion:
    """What shells are told of a word: the attributes that typer's completion reads."""

    value: str
    help: str | None = None
    type: str = "plain"


class TrainCommand(TyperCommand):
    """Passes all words on, ``--help`` as well, and completes the names of the options."""

    SETTINGS: ClassVar[dict[str, Any]] = {"ignore_unknown_options": True, "allow_extra_args": True}

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """The options that begin so, as click asks a command for them."""
        words = (f"--{name.replace('_', '-')}" for name in option_names())
        return [_Completion(word) for word in words if incomplete.startswith("-") and word.startswith(incomplete)]


def option_names() -> list[str]:
    """Names of the options of ``train``, read from the source of their classes: a shell that completes cannot wait."""
    package = Path(__file__).parents[1]
    transformers = find_spec("transformers")  # finds it, and imports nothing
    assert transformers is not None and transformers.origin is not None
    folder = Path(transformers.origin).parent
    files = [package / "cli" / "train_options.py", package / "config.py"]
    files += [folder / "training_args.py", folder / "training_args_seq2seq.py"]
    classes = ("RunOptions", "ContrastiveCaptionConfig", "TrainingArguments", "Seq2SeqTrainingArguments")
    names = {name: None for file in files for name in _fields(file, classes)}
    return [*names, "config", "help", "help-all", "debug"]


def _fields(file: Path, classes: tuple[str, ...]) -> Iterator[str]:
    """Names of the fields of dataclasses in a file."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name in classes:
            for statement in node.body:
                if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                    if not statement.target.id.startswith("_"):
                        yield statement.target.id


def train(ctx: typer.Context) -> None:
    """Tune a captioner on your images and captions."""
    if {"--help", "-h", "--help-all"} & set(ctx.args):  # needs the options, and not what trains
        from hf_contrastive_caption.cli.train_options import TrainParser

        print(TrainParser(everything="--help-all" in ctx.args).format_help())
        return
    from hf_contrastive_caption.cli import train as command

    raise typer.Exit(command.train(ctx.args))
