"""The page within this process: what it leaves behind, and what the user's environment cannot change."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import httpx
import pytest
from gradio import networking

from hf_contrastive_caption.app import AppLimits, build_app, serve_app
from hf_contrastive_caption.app.examples import draw_examples, look_alikes
from hf_contrastive_caption.data.scenes import draw_scene

SETTINGS = {"GRADIO_TEMP_DIR": "/nowhere", "GRADIO_ALLOWED_PATHS": "/", "GRADIO_ANALYTICS_ENABLED": "True"}


@pytest.fixture
def environment(monkeypatch, tmp_path):
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_it_serves_while_the_context_lasts(environment: Path, captioners):
    with serve_app(captioners.reference, captioners.target, names=("old", "new")) as address:
        assert address.startswith("http://127.0.0.1:")
        (folder,) = environment.iterdir()
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder)
        with httpx.Client(trust_env=False) as client:
            config = client.get(f"{address}config").json()
            assert client.get(f"{address}gradio_api/file=/etc/hostname").status_code == 403
            assert client.get(f"{address}gradio_api/file={folder / 'one-scene-1.png'}").status_code == 200
        assert config["title"] == "new compared with old"
        assert config["analytics_enabled"] is False and config["enable_queue"] is True
        assert {one["api_visibility"] for one in config["dependencies"]} == {"private"}
    assert list(environment.iterdir()) == []
    assert {name: os.environ[name] for name in SETTINGS} == SETTINGS
    with pytest.raises(httpx.ConnectError):
        httpx.get(address, trust_env=False)


def test_a_public_address_that_cannot_be_made_is_an_error(environment: Path, captioners, monkeypatch, capsys):
    def refuse(*arguments, **named):
        raise RuntimeError("no way out")

    monkeypatch.setattr(networking, "setup_tunnel", refuse)
    with pytest.raises(OSError, match="could not make a public address"):
        with serve_app(captioners.reference, captioners.target, share=True):
            raise AssertionError("it began")
    assert list(environment.iterdir()) == []


def test_the_blocks_have_the_limits(captioners):
    page = build_app(captioners.reference, captioners.target, limits=AppLimits(max_beams=5, max_queue=3))
    sliders = {block.label: block for block in page.blocks.values() if block.get_block_name() == "slider"}
    assert (sliders["Beams"].minimum, sliders["Beams"].maximum) == (1, 5)
    longest = min(64, captioners.target.processor.max_caption_tokens)
    assert sliders["Longest caption in tokens"].maximum == longest
    assert page._queue.max_size == 3  # there is no public way to ask
    assert {fn.concurrency_limit for fn in page.fns.values() if fn.concurrency_id == "captioners"} == {1}
    assert page.analytics_enabled is False and page.api_open is False


def test_examples_are_drawn_as_far_as_they_are_taken(tmp_path):
    groups = draw_examples(tmp_path, 4)
    assert [(group.name, len(group.paths)) for group in groups] == [
        ("four look-alikes", 4), ("four scenes", 4), ("one scene", 1),
    ]  # fmt: skip
    assert all(Path(path).parent == tmp_path for group in groups for path in (*group.paths, group.icon))
    assert [group.name for group in draw_examples(tmp_path, 3)] == ["one scene"]


def test_look_alikes_differ_in_one_thing():
    first, *others = look_alikes()
    for other in others:
        assert other.objects[1] == first.objects[1] and other.background == first.background
        same = [getattr(first.objects[0], name) == getattr(other.objects[0], name)
                for name in ("colour", "shape", "size")]  # fmt: skip
        assert sorted(same) == [False, True, True]
    assert len({draw_scene(scene).tobytes() for scene in (first, *others)}) == 4


def test_a_saved_folder_is_loaded_by_name(tmp_path, captioners):
    captioners.target.model.save_pretrained(tmp_path / "new")
    captioners.target.processor.save_pretrained(tmp_path / "new")
    assert build_app(captioners.reference, tmp_path / "new").title == "target compared with reference"
    assert build_app(tmp_path / "new", tmp_path / "new", names=("a", "b")).title == "b compared with a"
    with pytest.raises(ValueError, match="neither a folder nor the name of a repository"):
        build_app(captioners.reference, tmp_path / "old")
