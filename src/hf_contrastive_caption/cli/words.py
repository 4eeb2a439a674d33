"""From dataclasses to the words of a command, and help that shows options in groups."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

from typer.core import TyperCommand, TyperOption

Options = TypeVar("Options")

_WIDEST = 30
"""Width of a name in the help; the help of a longer one begins on the next line."""


class GroupedCommand(TyperCommand):
    """Shows options below the titles that they name as ``rich_help_panel``: as plain text, without frames."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, options without a title, and then the groups in the order of their first options."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                title = "Arguments" if param.param_type_name == "argument" else "Options"
                if isinstance(param, TyperOption) and param.rich_help_panel is not None:
                    title = param.rich_help_panel
                sections.setdefault(title, []).append(record)
        names = [len(name) for records in sections.values() for name, _ in records]
        width = max((length for length in names if length <= _WIDEST), default=0)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl([(name.ljust(width), text) for name, text in records])


def takes(options: type[Options]) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """Turn a function that takes a dataclass into one that takes its fields by name, as typer reads commands.

    So the table of a command's words is the type that its work is done with.

    Args:
        options: A dataclass whose fields are annotated as typer wants parameters: with ``typer.Option`` or
            ``typer.Argument``.
    """
    hints = get_type_hints(options, include_extras=True)
    parameters = [
        inspect.Parameter(
            entry.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if entry.default is dataclasses.MISSING else entry.default,
            annotation=hints[entry.name],
        )
        for entry in dataclasses.fields(options)  # type: ignore[arg-type]  # a dataclass has no type of its own
    ]

    def with_fields(function: Callable[[Options], None]) -> Callable[..., None]:
        def command(**words: Any) -> None:
            function(options(**words))

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what inspect looks at first
        command.__annotations__ = hints
        return command

    return with_fields
