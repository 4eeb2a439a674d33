"""benchmarks/against_trl.py: both trainers compute the same losses, on the pairs that they are said to."""

from __future__ import annotations

import importlib
import io
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("trl")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("against_trl")


@pytest.fixture
def sides(script: ModuleType) -> ModuleType:
    return importlib.import_module("trl_sides")


@pytest.mark.parametrize("setting", ["smolvlm", "smolvlm_frozen", "smolvlm_5", "llava"])
def test_losses_are_those_of_trl(script: ModuleType, sides: ModuleType, setting: str, tmp_path: Path) -> None:
    losses = {}
    for side, make in sides.SIDES.items():
        with sides.side_context(side):
            trainer = make(script.QUICK_SETTINGS[setting], tmp_path / side, 4)
            trainer.train()
        losses[side] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    found = script.compare_losses(losses)
    assert found["losses"] == 4 and found["trl_loss_difference"] <= 1e-4 >= found["trl_gpu_way_loss_difference"]
    assert losses["ours"][0] == pytest.approx(2 * math.log(2), abs=1e-5)
    assert max(abs(loss - losses["ours"][0]) for loss in losses["ours"]) > 2e-3  # the weights moved


def test_other_losses_stop_the_script(script: ModuleType) -> None:
    with pytest.raises(SystemExit, match="trl_gpu_way does not compute"):
        script.compare_losses({"ours": [1.0, 2.0], "trl": [1.0, 2.0], "trl_gpu_way": [1.0, 2.001]})


def test_pairs_are_a_caption_of_the_image_and_one_of_another(script: ModuleType, sides: ModuleType) -> None:
    setting = script.QUICK_SETTINGS["smolvlm_5"]
    captions = sides.make_captions(setting, 3)
    model, processor = sides.build(setting.size)
    processor = sides.captioner_for(model, processor, prompt=sides.PROMPT).processor
    pairs = sides.make_pairs(captions, setting, processor)
    said = [[pairs[name][row][0]["content"] for name in ("chosen", "rejected")] for row in range(len(pairs))]
    texts = captions["caption"]
    assert len(pairs) == 5 * len(texts) == 30
    assert [own for own, _ in said] == [text for text in texts for _ in range(5)]
    assert all(other in texts and other != own for own, other in said)
    assert all(8 <= len(ids) <= 20 for ids in processor.tokenize(texts).input_ids)


@linux
def test_a_worker_takes_its_turns(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {}
    for side in ("ours", "trl"):
        monkeypatch.setattr(sys, "stdin", io.StringIO("go\ngo\n"))
        script.work([script.QUICK_SETTINGS["smolvlm"]], side, 1)
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("@@ ")]
        ready, step, found[side] = (json.loads(line.removeprefix("@@ ")) for line in lines)
        assert ready["loading_s"] > 0 and step["step_s"] > 0 and step["step_cpu_s"] > 0
        assert len(found[side]["losses"]) == script.WARM_UP + 2
    assert found["trl"]["operations"] > 1.4 * found["ours"]["operations"]


def test_ratios_are_those_of_the_measurements(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    found: dict[str, Any] = {"pairs": 6, "first_loss": 1.0, "last_loss": 2.0}
    found |= {f"{side}_loss_difference": 1e-6 for side in script.PEERS}
    for place, side in enumerate(("ours", "trl", "trl_gpu_way"), 1):
        found |= {f"{side}_step_{unit}": 1.0 * place for unit in ("s", "cpu_s")}
        found |= {f"{side}_loading_{unit}": 0.5 for unit in ("s", "cpu_s")}
        found |= {f"{side}_operations_g": 10.0 * place, f"{side}_peak_mb": 100.0 + place}
    found |= script.rates_of(found, 6)
    assert found["ours_pairs_per_s"] == pytest.approx(4) and found["trl_pairs_per_cpu_s"] == pytest.approx(2.4)
    ratios = script.ratios_of(found)
    assert ratios["pairs_per_s_over_trl"] == pytest.approx(2.5 / 1.5)
    assert ratios["pairs_per_cpu_s_over_trl_gpu_way"] == pytest.approx(3.5 / 1.5)
    assert ratios["trl_step_over_step"] == pytest.approx(2)
    assert ratios["trl_gpu_way_operations_over_operations"] == pytest.approx(3)
    assert ratios["peak_over_trl_peak"] == pytest.approx(101 / 102)
    script.print_report("smolvlm", found, ratios)
    assert "goal: at least 1.5" in capsys.readouterr().out


def test_toy_figures_do_not_replace_those_of_the_page(script: ModuleType) -> None:
    assert script.parse([]).out == BENCHMARKS / "results" / "against_trl.json"
    assert script.parse(["--quick"]).out is None


@linux
@pytest.mark.slow
def test_the_whole_script_runs(script: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    script.main(["--quick", "--repeats", "1", "--settings", "smolvlm", "llava", "--out", str(out)])
    report = json.loads(out.read_text())
    assert {f"{name}_pairs_per_s_over_trl" for name in ("smolvlm", "llava")} <= report["ratios"].keys()
    assert report["measurements"]["llava_trl_gpu_way_loss_difference"] <= 1e-4 and "trl" in report["versions"]
