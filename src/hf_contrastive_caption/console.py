"""What commands print: pleasant in a terminal, plain text and Markdown tables where it is piped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Protocol

import datasets
from PIL import Image
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.style import Style
from rich.table import Table
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging as transformers_logging

from hf_contrastive_caption.evaluation.measures import aligned_table


class Advance(Protocol):
    """Says how far a stage is."""

    def __call__(self, done: int, about: str = "", total: int | None = None, /) -> None:
        """Take the number of steps that are done, a word about them, and how many there are if that was not known."""


_PREVIEW = 24
"""Width of a picture in characters."""


class CommandConsole:
    """Headings, progress bars, one table and pictures.

    Args:
        console: Where to print; standard output if not given.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = Console(highlight=False) if console is None else console

    @property
    def is_terminal(self) -> bool:
        """Whether people look at it while it is printed."""
        return self._console.is_terminal

    def say(self, text: str = "", style: str | None = None) -> None:
        """Print a line, without markup; it is wrapped in a terminal only."""
        self._console.print(Text(text, style=style or ""), soft_wrap=not self._console.is_terminal)

    def code(self, lines: str) -> None:
        """Print lines of Python that can be copied: never wrapped, never cut."""
        self._console.print(Text(lines, style="cyan"), soft_wrap=True)

    @contextmanager
    def stage(self, title: str, steps: int) -> Iterator[Advance]:
        """Show the progress of a stage of ``steps`` steps, and afterwards how long it took."""
        start = perf_counter()
        note = ""
        if not self._console.is_terminal:
            self.say(f"{title} ...")
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        hidden = not self._console.is_terminal
        with Progress(*columns, console=self._console, transient=True, disable=hidden) as progress:
            task = progress.add_task(title, total=steps, note="")

            def advance(done: int, about: str = "", total: int | None = None, /) -> None:
                nonlocal note
                note = about or note
                progress.update(task, completed=done, note=note, total=total)

            yield advance
        after = f", {note}" if note else ""
        self.say(f"{title}: {perf_counter() - start:.0f} s{after}")

    def table(self, rows: Sequence[Sequence[str]], *, last_stands_out: bool = False) -> None:
        """Print a table, the first row its heading; all columns but the first hold numbers."""
        if not self._console.is_terminal:
            self.say(aligned_table(rows))
            return
        table = Table(box=box.ROUNDED, header_style="bold")
        for number, column in enumerate(rows[0]):
            table.add_column(Text(column), justify="right" if number else "left")
        for row in rows[1:]:
            stands_out = last_stands_out and row is rows[-1]
            table.add_row(*map(Text, row), style="bold green" if stands_out else "")
        self._console.print(table)

    def picture(self, picture: Image.Image, lines: Sequence[tuple[str, str]]) -> None:
        """Print what was said of a picture, next to the picture where the terminal has colours."""
        if not (self._console.is_terminal and self._console.color_system == "truecolor"):
            width = max(len(who) for who, _ in lines) + 2
            for who, what in lines:
                self.say(f"{who:{width}}{what}")
            return
        said = Table.grid(padding=(0, 1))
        for who, what in lines:
            said.add_row(Text(who, style="dim"), Text(what))
        grid = Table.grid(padding=(0, 2))
        grid.add_row(_half_blocks(picture, _PREVIEW), said)
        self._console.print(grid)


def _half_blocks(picture: Image.Image, width: int) -> Text:
    """A picture of ``width`` columns and half as many lines: a character shows two pixels, one above the other."""
    small = picture.convert("RGB").resize((width, width // 2 * 2), Image.Resampling.BOX)
    text = Text()
    for y in range(0, small.height, 2):
        for x in range(small.width):
            above, below = ("#{:02x}{:02x}{:02x}".format(*small.getpixel((x, y + row))) for row in (0, 1))  # type: ignore[misc]
            text.append("▀", Style(color=above, bgcolor=below))
        text.append("\n" if y + 2 < small.height else "")
    return text


class StepProgress(TrainerCallback):
    """Passes the steps and the loss of a trainer on to :meth:`CommandConsole.stage`."""

    def __init__(self, advance: Advance) -> None:
        self.advance = advance

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """See ``TrainerCallback``."""
        self.advance(state.global_step, "")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """See ``TrainerCallback``."""
        if logs and "loss" in logs:
            self.advance(state.global_step, f"loss {float(logs['loss']):.3f}")


@contextmanager
def no_other_progress_bars() -> Iterator[None]:
    """Keep the progress bars of datasets and transformers out of the way of the command's own."""
    of_datasets = datasets.is_progress_bar_enabled()
    of_transformers = transformers_logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if of_datasets:
            datasets.enable_progress_bars()
        if of_transformers:
            transformers_logging.enable_progress_bar()
