"""benchmarks/training_step.py: it runs at toy sizes, and what it counts is what there is to count."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_contrastive_caption.captioners.vocabulary import token_log_probs
from tests.benchmarks.scripts import BENCHMARKS, run_here

QUICK = ("--quick", "--threads", "1")
WAYS = ("one_by_one", "padded", "repeated", "packed")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("training_step")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("results") / "training_step.json"
    printed = run_here("training_step", *QUICK, "--repeats", "1", "--skip-memory", "--out", str(out))
    assert "target: at least 4" in printed and "target: at most 2.2" in printed
    return json.loads(out.read_text())


@pytest.mark.parametrize("size", ["small", "base"])
def test_ratios_are_those_of_the_measurements(report: dict[str, Any], size: str):
    assert report["script"] == "training_step.py" and "training_step.py --quick" in report["command"]
    assert report["machine"]["torch_threads"] == 1 and report["versions"]["torch"] == torch.__version__
    ratios, found = report["ratios"], report["measurements"]
    for way in WAYS[:-1]:
        expected = found[f"{size}_{way}_s"] / found[f"{size}_packed_s"]
        assert ratios[f"{size}_{way}_over_packed"] == pytest.approx(expected, rel=1e-12)
    expected = found[f"{size}_contrastive_step_s"] / found[f"{size}_mle_step_s"]
    assert ratios[f"{size}_contrastive_step_over_mle_step"] == pytest.approx(expected, rel=1e-12)
    rate = found[f"{size}_packed_operations_g"] / found[f"{size}_contrastive_step_s"]
    expected = rate / found[f"{size}_large_product_gflop_per_s"]
    assert ratios[f"{size}_step_share_of_large_product_rate"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", ["small", "base"])
def test_all_ways_compute_the_same(report: dict[str, Any], size: str):
    found = report["measurements"]
    for way in WAYS[1:]:
        assert found[f"{size}_{way}_loss_difference"] <= 1e-5
        assert found[f"{size}_{way}_gradient_difference"] <= 1e-4


def test_what_is_counted_beyond_the_products_is_the_patch_embedding(report: dict[str, Any], script: ModuleType):
    found, size = report["measurements"], script.QUICK_SIZES["small"]
    patches = (size.model["image_size"] // size.model["patch_size"]) ** 2
    forward = 2 * size.images * patches * (3 * size.model["patch_size"] ** 2) * size.model["width"]
    beyond = found["small_packed_operations_g"] - found["small_own_products_operations_g"]
    # forward of the target, forward of the reference, gradient of the weight; pixels take no gradient
    assert beyond * 1e9 == pytest.approx(3 * forward, rel=1e-6)


def test_products_of_the_vocabulary_are_counted():
    head, (tokens, width, words) = torch.nn.Linear(8, 30, bias=False), (12, 8, 30)
    hidden = torch.randn(tokens, width, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        token_log_probs(head, hidden, torch.arange(tokens), 2**20).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * tokens * width * words  # forward, and both gradients


def test_products_are_written_down_and_run_again(script: ModuleType):
    left, right = torch.randn(4, 6, requires_grad=True), torch.randn(6, 5, requires_grad=True)
    with script.Products() as products:
        (left @ right).sum().backward()
        torch.bmm(torch.randn(2, 3, 4), torch.randn(2, 4, 7))
        torch.addmm(torch.randn(5), left, right)
    assert sum(products.seen.values()) == 5
    operations, seconds = products.replay()
    assert operations == 2 * (4 * 4 * 6 * 5 + 2 * 3 * 4 * 7) and seconds > 0


def test_a_way_that_computes_something_else_stops_the_script(script: ModuleType, monkeypatch: pytest.MonkeyPatch):
    right = script.WAYS["padded"]

    def wrong(bench: Any) -> float:
        return right(bench) + 0.01

    monkeypatch.setattr(script, "WAYS", {"one_by_one": script.WAYS["one_by_one"], "wrong": wrong})
    with pytest.raises(SystemExit, match="wrong does not compute what one_by_one computes"):
        script.check_equal(script.build(script.QUICK_SIZES["base"]))


def test_captions_have_the_stated_lengths(script: ModuleType):
    size = script.Size(images=40, vocabulary=100, repeats=1, model=script.QUICK_SIZES["small"].model)
    lengths = [len(ids) for ids in script.build(size).captions]
    assert len(lengths) == 40 * 6 and min(lengths) == 8 and max(lengths) <= 20
    assert sum(lengths) / len(lengths) == pytest.approx(12, abs=0.5)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.slow
def test_peak_memory_of_one_way_holds_at_least_the_gradients(script: ModuleType):
    weights = sum(weight.numel() for weight in script.build(script.QUICK_SIZES["small"]).model.parameters())
    command = [sys.executable, str(BENCHMARKS / "training_step.py"), *QUICK, "--peak-of", "small", "packed"]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert float(finished.stdout.split()[-1]) > weights * 4 / 1e6


def test_quick_figures_do_not_replace_real_ones(script: ModuleType):
    assert script.parse([]).out == BENCHMARKS / "results" / "training_step.json"
    assert script.parse(["--quick"]).out is None
    assert script.parse(["--quick", "--out", "here.json"]).out == Path("here.json")


def test_repeats_below_one_are_refused(script: ModuleType, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        script.parse(["--repeats", "0"])
    assert "--repeats must be at least 1, but is 0" in capsys.readouterr().err
