"""The notebook runs from top to bottom, and is stored without what it showed.

Its cells run in one namespace, and what a cell ends with is asked for its ``_repr_html_`` or ``_repr_png_``, as
Jupyter does. A kernel (nbclient, ipykernel) would bring some thirty packages for the same.
"""

from __future__ import annotations

import ast
import html
import json
import re
from typing import Any

import pytest

from tests.examples.scripts import EXAMPLES, LN_4

NOTEBOOK = json.loads((EXAMPLES / "quick_start.ipynb").read_text(encoding="utf-8"))
SIZES = "IMAGES, STEPS = 4000, 800"


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Run a cell; what it ends with, if that is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def test_no_outputs_are_stored():
    assert NOTEBOOK["nbformat"] == 4 and NOTEBOOK["nbformat_minor"] == 5
    cells = NOTEBOOK["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
        assert cell["metadata"] == {}
    assert (EXAMPLES / "quick_start.ipynb").stat().st_size < 20_000


def test_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sources = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert "\n".join(sources).count(SIZES) == 1
    names: dict[str, Any] = {}
    shown = [run_cell(source.replace(SIZES, "IMAGES, STEPS = 200, 8"), names) for source in sources]
    captions, picture, page, caption = (value for value in shown if value is not None)
    assert len(captions) == 5
    assert picture._repr_png_()[:4] == b"\x89PNG"
    assert names["trainer"].state.log_history[0]["loss"] == pytest.approx(LN_4, abs=1e-5)
    assert names["trainer"].state.global_step == 2
    assert caption == names["after"][0]
    frame = page._repr_html_()
    inside = html.unescape(re.fullmatch(r'<iframe srcdoc="([^"]*)" sandbox="allow-scripts"[^>]*></iframe>', frame)[1])
    assert inside.count('<article class="card"') == 10
    assert inside.count('class="word') > 20
