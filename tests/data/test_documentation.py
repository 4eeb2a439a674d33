"""The code blocks of docs/data.md run as they stand, one after the other."""

from __future__ import annotations

import re
from pathlib import Path


def test_the_page_about_data_runs(capsys):
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, object] = {"__name__": "docs"}
    for block in blocks:
        exec(compile(block, "docs/data.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "Row 3: an image of 12 bytes (cat.jpg) does not open" in printed
    assert "[4, 5, 5, 5] [1.0, 1.0, 0.0, 0.0]" in printed
