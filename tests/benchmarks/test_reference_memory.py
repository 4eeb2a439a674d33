"""benchmarks/reference_memory.py: it runs at toy sizes, and its cost model counts what is computed."""

from __future__ import annotations

import importlib
import io
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = (
    "mle",
    "default",
    "scores_ahead",
    "shared_encoder",
    "cached_states",
    "cached_states_scores_ahead",
    "mle_adapter",
    "adapters_off",
)
linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("reference_memory")


def taken(
    script: ModuleType, strategy: str, monkeypatch: Any, capsys: Any, *, checkpointing: bool = False
) -> list[dict[str, float]]:
    """What a worker says in this process: ready, one timed step, one counted step."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("go\ngo\n"))
    script.work(strategy, script.QUICK_SIZES["small"], 1, checkpointing)
    lines = capsys.readouterr().out.splitlines()
    prefix = importlib.import_module("turns").PREFIX
    return [json.loads(line.removeprefix(prefix)) for line in lines if line.startswith(prefix)]


@linux
@pytest.mark.parametrize("strategy", NAMES)
def test_the_cost_model_counts_what_is_computed(
    script: ModuleType, strategy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    predicted = script.predict(script.QUICK_SIZES["small"], checkpointing=False)
    ready, step, end = taken(script, strategy, monkeypatch, capsys)
    assert ready["loading_s"] > 0 and step["step_s"] > 0
    assert end["operations"] / 1e9 == pytest.approx(predicted[f"{strategy}_predicted_operations_g"], rel=0.02)
    assert end["held_mb"] == pytest.approx(predicted[f"{strategy}_predicted_held_mb"], rel=0.05)
    states, scores = (predicted[f"predicted_{what}_bytes_per_image"] for what in ("states", "scores"))
    rows = 3 * script.QUICK_SIZES["small"].images
    expected = {"scores_ahead": 24 * 2, "cached_states": states, "cached_states_scores_ahead": states + 24 * 2}
    assert scores == 24 * 2
    # A file has a header, and an image a flag that says whether it opened.
    assert 0 <= end["ahead_bytes"] - rows * expected.get(strategy, 0) <= 1000


@linux
@pytest.mark.parametrize("strategy", ["default", "cached_states", "adapters_off"])
def test_the_cost_model_knows_gradient_checkpointing(
    script: ModuleType, strategy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    predicted, without = (
        script.predict(script.QUICK_SIZES["small"], checkpointing=given)[f"{strategy}_predicted_operations_g"]
        for given in (True, False)
    )
    operations = taken(script, strategy, monkeypatch, capsys, checkpointing=True)[-1]["operations"]
    assert operations / 1e9 == pytest.approx(predicted, rel=0.02)
    assert predicted > 1.1 * without


def test_the_cost_model_without_its_corrections_is_the_table(script: ModuleType) -> None:
    model = script.cost_model
    cost = model.Forwards(model.Part(3.0, 0.0, 0.0), model.Part(1.0, 0.0, 0.0))  # E = 3, D = 1
    expected = {"mle": 12, "default": 16, "scores_ahead": 12, "shared_encoder": 7, "cached_states": 4}
    expected |= {"cached_states_scores_ahead": 3, "mle_adapter": 8, "adapters_off": 12}
    assert {name: model.step_operations(name, cost) for name in NAMES} == expected
    again = dict.fromkeys(NAMES, 4) | dict.fromkeys(
        ("shared_encoder", "cached_states", "cached_states_scores_ahead"), 1
    )
    checkpointed = {name: model.step_operations(name, cost, checkpointing=True) for name in NAMES}
    assert checkpointed == {name: expected[name] + again[name] for name in NAMES}


def test_held_bytes_are_weights_gradients_and_two_states(script: ModuleType) -> None:
    held = script.cost_model.held_bytes
    assert held("mle", 100, 10) == 4 * 4 * 110
    assert held("default", 100, 10) == 4 * 5 * 110
    assert held("shared_encoder", 100, 10) == held("cached_states", 100, 10) == 4 * (100 + 5 * 10)
    assert held("cached_states_scores_ahead", 100, 10) == 4 * (100 + 4 * 10)
    assert held("adapters_off", 100, 10, 5) == held("mle_adapter", 100, 10, 5) == 4 * (110 + 4 * 5)


def test_ratios_are_those_of_the_measurements(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    found: dict[str, Any] = {"images": 3, "states_bytes_per_image": 640.0}
    for place, name in enumerate(NAMES, 1):
        found |= {f"{name}_{what}_g": 10.0 * place for what in ("operations", "predicted_operations")}
        found |= {f"{name}_{what}_mb": 100.0 + place for what in ("peak", "held", "predicted_held")}
    for number, names in enumerate(script.COMPARISONS):
        for place, name in enumerate(names, 1):
            found |= {f"comparison_{number}_{name}_step_s": 1 / place, f"comparison_{number}_{name}_loading_s": 1.0}
    ratios = script.ratios_of(found)
    assert ratios["scores_ahead_step_over_mle_step"] == pytest.approx(1 / 3)
    assert ratios["default_step_over_cached_states_step"] == pytest.approx(3)
    assert ratios["default_step_over_cached_states_step_with_loading"] == pytest.approx(2 / (1 + 1 / 3))
    assert ratios["default_step_over_cached_states_step_predicted"] == pytest.approx(20 / 50)
    assert ratios["adapters_off_peak_over_mle_adapter_peak"] == pytest.approx(108 / 107)
    assert ratios["default_peak_over_mle_peak"] == pytest.approx(102 / 101)
    assert script.GOALS.keys() <= ratios.keys()
    script.print_report("small", found, ratios)
    assert "goal: at least 2.7" in capsys.readouterr().out


@linux
@pytest.mark.slow
def test_the_whole_script_runs(script: ModuleType, tmp_path: Path) -> None:
    out, threads = tmp_path / "out.json", torch.get_num_threads()
    try:
        script.main(["--quick", "--repeats", "1", "--threads", "1", "--out", str(out)])
    finally:
        torch.set_num_threads(threads)
    report = json.loads(out.read_text())
    assert report["machine"]["torch_threads"] == 1 and report["versions"]["torch"] == torch.__version__
    assert {f"small_{label}" for label in script.GOALS} <= report["ratios"].keys()
    assert report["measurements"]["small_default_peak_mb"] > 0


def test_figures_of_other_settings_do_not_replace_those_of_the_page(script: ModuleType) -> None:
    assert script.parse([]).out == BENCHMARKS / "results" / "reference_memory.json"
    assert script.parse(["--quick"]).out is None
    assert script.parse(["--checkpointing"]).out is None
