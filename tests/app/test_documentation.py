"""What ``docs/app.md`` says: its options and their defaults exist, and all are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from hf_contrastive_caption.app.limits import FORMATS, AppLimits
from hf_contrastive_caption.cli import app as command
from hf_contrastive_caption.cli.app_command import AppOptions
from tests.cli.commands import run

PAGE = (Path(__file__).parents[2] / "docs" / "app.md").read_text(encoding="utf-8")


def test_all_options_stand_in_the_table_with_their_defaults(capsys):
    assert run("app", "--help") == 0
    shown = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)) - {"--help"}
    table = "\n".join(line for line in PAGE.splitlines() if line.startswith("| `--"))
    assert set(re.findall(r"--[a-z][a-z-]+", table)) == shown
    defaults = AppLimits()
    for name in ("max_images", "max_upload_mb", "max_megapixels", "max_beams", "max_queue"):
        (row,) = (line for line in table.splitlines() if line.startswith(f"| `--{name.replace('_', '-')}`"))
        assert f"({getattr(defaults, name):g})" in row
    assert f"at most {defaults.max_characters} letters" in PAGE
    assert ", ".join(FORMATS[:-1]) + " and WebP are opened" in PAGE


def test_its_command_is_one(monkeypatch):
    seen: list[AppOptions] = []
    monkeypatch.setattr(command, "show_app", seen.append)
    (line,) = re.findall(r"^contrastive-caption (.*)$", PAGE, flags=re.MULTILINE)
    assert run(*shlex.split(line)) == 0
    assert (seen[0].reference, seen[0].target) == ("nlpconnect/vit-gpt2-image-captioning", "tuned")
