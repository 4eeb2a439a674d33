"""``contrastive-caption caption``: lines that are what the library says, for files, folders and patterns."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from hf_contrastive_caption import caption_images, captioner_for
from hf_contrastive_caption.captioners import caption_batch
from hf_contrastive_caption.cli import caption as command
from hf_contrastive_caption.cli.errors import WrongUseError
from hf_contrastive_caption.cli.image_files import check_named, images_of
from hf_contrastive_caption.data.images import image_files
from hf_contrastive_caption.loading import load_model, load_processing
from hf_contrastive_caption.processing import CaptionProcessor
from tests import tiny
from tests.cli.commands import run, workplace

QUICK = ("--max-new-tokens", 6)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = workplace(tmp_path_factory.mktemp("caption"))
    (folder / "photos" / "b").mkdir(parents=True)
    for name, image in zip(("z.png", "b/1.JPG", "b/ü 2.png", "a.jfif"), tiny.images(4), strict=True):
        image.save(folder / "photos" / name, format="PNG")
    (folder / "photos" / "notes.txt").write_text("no image")
    (folder / "photos" / ".thumbnails").mkdir()
    for hidden in (".hidden.png", ".thumbnails/z.png"):
        tiny.images(1)[0].save(folder / "photos" / hidden)
    return folder


NAMES = ("a.jfif", "z.png", "b/1.JPG", "b/ü 2.png")
"""In the order in which a folder is read."""


def captions(place: Path, **arguments: object) -> list[str]:
    model = load_model(str(place / "model"))
    paths = [str(place / "photos" / name) for name in NAMES]
    return caption_images(model, load_processing(str(place / "model")), paths, max_new_tokens=6, **arguments)


def test_a_folder_gives_a_line_for_each_image(place, capsys):
    assert run("caption", place / "photos", "--model", place / "model", "--batch-size", 3, *QUICK) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    expected = captions(place)
    assert lines == [[str(place / "photos" / name), said] for name, said in zip(NAMES, expected, strict=True)]
    assert len(set(expected)) > 1


def test_json_with_log_probabilities_that_are_the_librarys(place, capsys):
    words = ("--json", "--log-probs", "--num-beams", 1, *QUICK)
    assert run("caption", place / "photos", "--model", place / "model", *words) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["caption"] for line in lines] == captions(place, num_beams=1)
    captioner = captioner_for(load_model(str(place / "model")).eval(), load_processing(str(place / "model")))
    for line in lines:  # one by one
        images = captioner.processor.process_images([command.open_image(line["image"])])
        tokens = captioner.processor.tokenize([line["caption"]]).input_ids
        with torch.no_grad():
            score = captioner.log_probs(captioner.model, images, caption_batch(tokens, [0])).item()
        assert line["log_prob"] == pytest.approx(score, abs=1e-4)


def test_sampling_is_repeatable_by_its_seed(place, capsys):
    words = ("caption", place / "photos", "--model", place / "model", "--sample", "--temperature", 2.0, *QUICK)
    shown = []
    for seed in (1, 1, 2):
        assert run(*words, "--seed", seed) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != shown[2]
    assert run("caption", "x", "--model", "m", "--top-p", 0.5) == 2
    assert "add --sample" in capsys.readouterr().err


def test_images_that_do_not_open(place, tmp_path, capsys):
    bad, good = tmp_path / "bad.png", place / "photos" / "z.png"
    bad.write_bytes(b"no image")
    assert run("caption", bad, good, "--model", place / "model", *QUICK) == 1
    shown = capsys.readouterr()
    assert "bad.png' does not open" in shown.err and "--skip-bad" in shown.err and shown.out == ""
    assert run("caption", bad, good, "--model", place / "model", "--skip-bad", *QUICK) == 0
    shown = capsys.readouterr()
    assert [line.split("\t")[0] for line in shown.out.splitlines()] == [str(good)]
    assert "1 of 2 images do not open" in shown.err
    assert run("caption", bad, "--model", place / "model", "--skip-bad", *QUICK) == 1
    assert "none of the images opens" in capsys.readouterr().err


def test_images_that_the_image_processor_does_not_take(place, tmp_path, capsys, monkeypatch):
    def picky(self, images):
        if any(image.width > 200 * image.height for image in images):
            raise ValueError("too wide")
        return plain(self, images)

    plain = CaptionProcessor.process_images
    monkeypatch.setattr(CaptionProcessor, "process_images", picky)
    wide, names = tmp_path / "wide.png", [place / "photos" / name for name in NAMES]
    Image.new("RGB", (900, 4)).save(wide)
    words = ("caption", *names[:2], wide, *names[2:], "--model", place / "model", *QUICK)
    assert run(*words) == 1
    shown = capsys.readouterr()
    assert f"{wide}: the image processor takes no image of 900 × 4 pixels: too wide" in shown.err
    assert "--skip-bad" in shown.err and len(shown.out.splitlines()) == 2  # those before it
    assert run(*words, "--skip-bad") == 0
    shown = capsys.readouterr()
    assert f"skipped: {wide}: " in shown.err and "1 of 5 images" in shown.err
    expected = zip(map(str, names), captions(place), strict=True)
    assert [tuple(line.split("\t")) for line in shown.out.splitlines()] == list(expected)


@pytest.mark.parametrize(
    ("device", "code", "message"),
    [
        ("sofa", 2, "--device sofa names no device; give one such as cpu"),
        ("cuda:99", 1, "cannot be put on the device 'cuda:99' of --device"),
    ],
)
def test_devices_that_are_not_there(place, capsys, device, code, message):
    assert run("caption", place / "photos", "--model", place / "model", "--device", device) == code
    assert message in capsys.readouterr().err


def test_captions_longer_than_the_decoder_holds(place, capsys):
    words = ("caption", place / "photos", "--model", place / "model", "--num-beams", 1, "--max-new-tokens")
    limit = captioner_for(load_model(str(place / "model")), load_processing(str(place / "model"))).processor
    assert limit.max_caption_tokens == 64
    assert run(*words, 64) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert run(*words, 65) == 2
    assert "--max-new-tokens is 65, but" in capsys.readouterr().err


def test_words_that_name_nothing_are_wrong_use(place, tmp_path, capsys):
    for word, message in (
        (tmp_path / "gone.png", "there is no image"),
        (tmp_path / "*.png", "there is no image"),
        (tmp_path, "there are no images in the folder"),
    ):
        assert run("caption", word, "--model", place / "model") == 2
        assert message in capsys.readouterr().err
    with pytest.raises(WrongUseError):
        check_named([str(place / "photos"), "gone.png"])


def test_what_words_name(place):
    photos = place / "photos"
    assert list(images_of(str(photos))) == [str(photos / name) for name in NAMES]
    assert list(images_of(str(photos / "*.png"))) == [str(photos / "z.png")]
    assert list(images_of(str(photos / "**" / "*.png"))) == [str(photos / "b/ü 2.png"), str(photos / "z.png")]
    assert list(images_of(str(photos))) == list(map(str, image_files(photos)))  # as Captioner.stream reads it
    assert list(images_of(str(photos / ".hidden.png"))) == [str(photos / ".hidden.png")]
    assert list(images_of(str(photos / "notes.txt"))) == [str(photos / "notes.txt")]  # named, so it is tried
    assert list(images_of("https://example.org/a.jpg")) == ["https://example.org/a.jpg"]
    odd = place / "odd[1].png"
    tiny.images(1)[0].save(odd)
    assert list(images_of(str(odd))) == [str(odd)]  # a file, though it reads like a pattern


def test_a_folder_of_any_size_is_read_a_batch_at_a_time(monkeypatch):
    """The next path is asked for when the batch before is printed."""
    asked: list[int] = []

    def endless(word: str):
        for number in range(10):
            asked.append(number)
            yield f"{number}.png"

    out = io.StringIO()
    open_at_once: list[int] = []

    def captions_of(images):
        open_at_once.append(len(images))
        assert len(asked) == out.getvalue().count("\n") + len(images)
        return [("a caption\nof two lines", None)] * len(images)

    monkeypatch.setattr(command, "images_of", endless)
    monkeypatch.setattr(command, "check_named", lambda words: None)
    monkeypatch.setattr(command, "open_image", lambda path: path)
    monkeypatch.setattr(command, "load_captions_of", lambda options: captions_of)
    assert command.caption(command.CaptionOptions(images=["x"], model="m", batch_size=4), out) == 10
    assert open_at_once == [4, 4, 2]
    assert out.getvalue().splitlines()[0] == "0.png\ta caption of two lines"


def test_names_that_are_no_utf_8_are_printed_as_they_are(place, tmp_path, monkeypatch):
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    tiny.images(1)[0].save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", name)
    printed = []
    for words in ((), ("--json",)):
        out = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="utf-8", errors="strict"))
        assert run("caption", tmp_path, "--model", place / "model", *QUICK, *words) == 0
        printed.append(out.getvalue())
        monkeypatch.undo()
    shown, _, caption = printed[0].partition(b"\t")
    found = json.loads(printed[1])
    assert shown == os.fsencode(found["image"]) == name
    assert found["caption"].split() == caption.decode().split()
