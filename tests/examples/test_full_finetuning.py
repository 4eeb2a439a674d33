"""The example of full fine-tuning, with what it is given and without."""

from __future__ import annotations

import pytest

from hf_contrastive_caption import Captioner, scenes
from tests.examples.scripts import LN_4, TINY, load_script, write_parquet
from tests.hub.conftest import hub  # noqa: F401  # a fixture
from tests.hub_server import Hub


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    output = tmp_path_factory.mktemp("drawn")
    return output, load_script("full_finetuning").main(["--output", str(output), *TINY])


def test_tunes_beside_a_control_and_compares(drawn):
    output, comparison = drawn
    assert comparison.log_history[0]["loss"] == pytest.approx(LN_4, abs=1e-5)
    assert comparison.log_history[-1]["step"] == 2
    assert len(comparison.images) == comparison.target.num_images == 10
    assert (output / "report" / "index.html").stat().st_size > 10_000
    images = scenes(48, 2, 10)["test"]["image"]
    for folder, report in (("start", comparison.reference), ("contrastive", comparison.target)):
        assert Captioner.from_pretrained(output / folder).caption(images) == list(report.captions)
    weights = [(output / name / "model.safetensors").read_bytes() for name in ("start", "control", "contrastive")]
    assert len(set(weights)) == 3


def test_own_data_and_a_captioner_that_is_published(drawn, tmp_path, hub: Hub, capsys):  # noqa: F811
    output, _ = drawn
    data = write_parquet(scenes(24, 2, 8), tmp_path / "photographs")
    given = ["--data", str(data), "--model", str(output / "start"), "--push-to-hub", "me/tuned"]
    comparison = load_script("full_finetuning").main(["--output", str(tmp_path / "run"), *given, *TINY])
    shown = capsys.readouterr().out
    table = [line.split("|")[1].strip() for line in shown.splitlines() if line.startswith("|")]
    assert table[2:5] == ["reference", "control", "tuned"]
    assert comparison.target.num_images == 8 and not (tmp_path / "run" / "start").exists()
    assert comparison.log_history[0]["loss"] == pytest.approx(LN_4, abs=1e-5)
    files = hub["me/tuned"].files
    assert files["model.safetensors"] == (tmp_path / "run" / "contrastive" / "model.safetensors").read_bytes()
    card = files["README.md"].decode()
    assert f"{100 * comparison.target['recall_at_1']:.1f}" in card and "contrastive-caption" in card
    assert [path for path in files if path.startswith("card/")] == []  # no image of the data


def test_learning_rates_fit_what_is_tuned():
    parse = load_script("full_finetuning").parse
    assert parse(["--output", "o"]).learning_rate == 2e-4
    assert parse(["--output", "o", "--data", "d"]).learning_rate == 1e-5
    assert parse(["--output", "o", "--data", "d", "--learning-rate", "3e-5"]).learning_rate == 3e-5
