"""The page of the examples names all of them, with commands that their docstrings have."""

from __future__ import annotations

import ast
import re

from tests.examples.scripts import EXAMPLES

PAGE = (EXAMPLES.parent / "docs" / "examples.md").read_text(encoding="utf-8")


def test_every_example_is_on_the_page():
    named = re.findall(r"^\| `(\w+\.(?:py|ipynb))` \|", PAGE, flags=re.MULTILINE)
    assert sorted(named) == sorted(file.name for file in EXAMPLES.iterdir() if file.is_file())


def test_every_command_is_that_of_a_docstring():
    commands = re.findall(r"^python (examples/(\w+\.py).*)$", PAGE, flags=re.MULTILINE)
    assert {file for _, file in commands} == {file.name for file in EXAMPLES.glob("*.py")}
    for command, file in commands:
        docstring = ast.get_docstring(ast.parse((EXAMPLES / file).read_text(encoding="utf-8")))
        assert f"python {command}" in [line.strip() for line in docstring.splitlines()]
