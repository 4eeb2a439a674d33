"""The example of a reference of another kind."""

from __future__ import annotations

import re

import pytest
from transformers import AutoTokenizer

from hf_contrastive_caption import Captioner, scenes
from tests.examples.scripts import LN_4, TINY, load_script


def test_captioners_without_data_are_refused(capsys):
    with pytest.raises(SystemExit):
        load_script("weak_target").parse(["--output", "o", "--model", "me/weak"])
    assert "need --data" in capsys.readouterr().err


def test_tunes_against_itself_and_against_a_stranger(tmp_path, capsys):
    reports = load_script("weak_target").main(["--output", str(tmp_path), *TINY])
    shown = capsys.readouterr().out
    assert list(reports) == ["weak", "strong", "weak, tuned against itself", "weak, tuned against strong"]
    assert {report.num_images for report in reports.values()} == {10}
    itself, stranger = (float(loss) for loss in re.findall(r"'loss': '([\d.]+)'", shown))  # of the first steps
    assert itself == pytest.approx(LN_4, abs=1e-3) and abs(stranger - LN_4) > 0.01
    described = re.findall(r"the reference is (.*)\.\n", shown)
    assert len(described) == 2 and described[0] != described[1]
    weak, strong = (AutoTokenizer.from_pretrained(tmp_path / side) for side in ("weak", "strong"))
    word = max(strong.get_vocab(), key=len)
    assert strong.tokenize(word) == [word] and len(weak.tokenize(word)) > 1
    images = scenes(48, 2, 10)["test"]["image"]
    for folder, name in (("weak", "weak"), ("against-strong", "weak, tuned against strong")):
        assert Captioner.from_pretrained(tmp_path / folder).caption(images) == list(reports[name].captions)
