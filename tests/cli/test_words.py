"""Commands that are made from dataclasses: the same words, defaults and checks as a function that names each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from hf_contrastive_caption.cli.words import GroupedCommand, takes


@dataclass(frozen=True, kw_only=True)
class Base:
    number: Annotated[int, typer.Option(min=1, rich_help_panel="Second")] = 3

    def __post_init__(self) -> None:
        if self.number == 13:
            raise typer.BadParameter("not this one", param_hint="--number")


@dataclass(frozen=True, kw_only=True)
class Words(Base):
    names: Annotated[list[str], typer.Argument(help="Names.")]
    a_switch: Annotated[bool, typer.Option("--on", rich_help_panel="First")] = False


seen: list[Words] = []


@takes(Words)
def from_dataclass(options: Words) -> None:
    """Do it."""
    seen.append(options)


def by_hand(
    *,
    number: Annotated[int, typer.Option(min=1, rich_help_panel="Second")] = 3,
    names: Annotated[list[str], typer.Argument(help="Names.")],
    a_switch: Annotated[bool, typer.Option("--on", rich_help_panel="First")] = False,
) -> None:
    """Do it."""
    seen.append(Words(number=number, names=names, a_switch=a_switch))


def ran(function, *words: str) -> tuple[int, str]:
    app = typer.Typer(rich_markup_mode=None)
    app.command("do", cls=GroupedCommand)(function)
    done = CliRunner().invoke(app, list(words))
    return done.exit_code, done.output


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["a"], 0),
        (["a", "b", "--on", "--number", "5"], 0),
        (["a", "--number", "0"], 2),
        (["a", "--number", "x"], 2),
        (["a", "--number", "13"], 2),
        ([], 2),
        (["--help"], 0),
    ],
)
def test_it_is_the_command_that_one_would_write(words, code):
    seen.clear()
    first, second = ran(from_dataclass, *words), ran(by_hand, *words)
    assert first == second and first[0] == code
    assert len(set(map(repr, seen))) <= 1 and len(seen) in (0, 2)


def test_groups_come_after_what_has_none_in_the_order_of_their_options():
    _, shown = ran(from_dataclass, "--help")
    titles = [line[:-1] for line in shown.splitlines() if line.endswith(":")]
    assert titles == ["Arguments", "Options", "Second", "First"]
    assert "--on" in shown.partition("First:")[2] and "--number" not in shown.partition("First:")[2]
