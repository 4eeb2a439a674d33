"""The words of ``app``, and what it says when it cannot begin."""

from __future__ import annotations

import importlib.util
import json
import socket
from dataclasses import fields

import pytest
from transformers import ViTConfig

from hf_contrastive_caption.app import AppLimits
from hf_contrastive_caption.cli import app as command
from hf_contrastive_caption.cli.app_command import AppOptions, Switch
from tests.app.command import save_captioners
from tests.cli.commands import run


def test_its_words_reach_it(monkeypatch):
    seen: list[AppOptions] = []
    monkeypatch.setattr(command, "show_app", seen.append)
    assert run("app", "old", "new") == 0
    words = [
        "--share",
        "on",
        "--host",
        "0.0.0.0",
        "--port",
        "7000",
        "--prompt",
        "Say it.",
        "--reference-prompt",
        "So.",
    ]
    limits = ["--max-images", "3", "--max-upload-mb", "1.5", "--max-megapixels", "2", "--max-beams", "4"]
    assert run("app", "old", "new", *words, *limits, "--max-queue", "5", "--device", "cpu") == 0
    assert seen == [
        AppOptions(reference="old", target="new"),
        AppOptions(
            reference="old", target="new", share=Switch.ON, host="0.0.0.0", port=7000, prompt="Say it.",
            reference_prompt="So.", device="cpu", max_images=3, max_upload_mb=1.5, max_megapixels=2.0, max_beams=4,
            max_queue=5,
        ),
    ]  # fmt: skip
    given = {field.name: getattr(seen[0], field.name) for field in fields(AppLimits) if field.name != "max_characters"}
    assert AppLimits(**given) == AppLimits()
    assert (seen[0].share, seen[0].host) == (Switch.OFF, "127.0.0.1")


@pytest.mark.parametrize(
    "words", [["--share", "maybe"], ["--port", "70000"], ["--max-images", "0"], ["--max-upload-mb", "0"], ["third"]]
)
def test_wrong_use_ends_with_2(words, capsys):
    assert run("app", "old", "new", *words) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_without_gradio_it_names_the_extra(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "gradio" else find(name, *rest)
    )
    assert run("app", "old", "new") == 1
    assert "which is not installed: pip install 'hf-contrastive-caption[app]'" in capsys.readouterr().err


def test_a_port_that_is_taken(capsys):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert run("app", "old", "new", "--port", port) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"error: port {port} of 127.0.0.1 is not free: ")
    assert "Give another one with --port" in message


def test_a_host_that_is_no_address_here(capsys):
    assert run("app", "old", "new", "--host", "192.0.2.1") == 1
    assert "no port from 7860 to 7959 of 192.0.2.1 is free" in capsys.readouterr().err


def test_what_is_no_captioner(tmp_path, capsys):
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "config.json").write_text(json.dumps(ViTConfig().to_dict()))
    reference, _ = save_captioners(tmp_path)
    assert run("app", reference, tmp_path / "vit") == 1
    assert "ViTConfig" in capsys.readouterr().err
    assert run("app", tmp_path / "gone", reference) == 1
    assert "gone is neither a folder nor the name of a repository" in capsys.readouterr().err
