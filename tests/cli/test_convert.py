"""``contrastive-caption convert``: what is printed, and how it ends."""

from __future__ import annotations

from hf_contrastive_caption.data.files import load_splits
from tests import tiny
from tests.cli.commands import run


def test_a_table_becomes_a_folder_that_the_other_commands_read(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for name, image in zip("abc", tiny.images(3), strict=True):
        image.save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "images" / "bad.png").write_bytes(b"no image")
    table = tmp_path / "captions.txt"
    names = ("a.png", "b.png", "c.png", "bad.png", "gone.png")
    table.write_text("image,caption\n" + "".join(f"{name},about {name}\n" for name in names) + "a.png, \n")
    words = ["convert", table, "--images", tmp_path / "images", "--out", tmp_path / "out", "--split", "validation"]
    assert run(*words) == 1
    assert "1 of 5 images are not in" in capsys.readouterr().err
    assert run(*words, "--skip-missing", "--skip-bad", "--image-size", 16) == 0
    shown = capsys.readouterr().out
    assert "| validation | 3 | 3 |" in " ".join(shown.split())
    for line in ("1 images have no file", "1 images do not open", "1 captions are empty"):
        assert f"left out: {line}" in shown
    assert f"--data {tmp_path / 'out'}" in shown
    data = load_splits(tmp_path / "out")["validation"]
    assert [max(image.size) for image in data["image"]] == [16, 16, 16]
    assert run(*words, "--skip-missing", "--skip-bad") == 1
    assert "already" in capsys.readouterr().err


def test_wrong_use(tmp_path, capsys):
    (tmp_path / "captions.txt").touch()
    words = ["convert", tmp_path / "captions.txt", "--out", tmp_path / "out"]
    assert run(*words, "--images", tmp_path / "gone") == 2
    assert run(*words, "--images", tmp_path, "--split", "dev") == 2
    assert "'dev' is none of train, validation, test" in capsys.readouterr().err
    assert run(*words, "--images", tmp_path) == 1
    assert "captions.txt is empty" in capsys.readouterr().err
