"""The study on photographs, run small: what it stores is what the reports of its runs say."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from hf_contrastive_caption.data.scenes import scenes
from hf_contrastive_caption.evaluation.report import CaptionerReport

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = (
    "--cpu --image-size 32 --patch-size 8 --width 32 --encoder-layers 1 --decoder-layers 1 --heads 2 --mlp 64 "
    "--min-frequency 1 --reference-steps 3 --reference-batch-size 8 --steps 2 --batch-size 8 --eval-batch-size 8 "
    "--max-caption-tokens 12"
).split()


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("flickr8k")


@pytest.fixture(scope="module")
def finished(script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("flickr8k")
    for split, rows in scenes(24, 8, 12, image_size=32).items():
        (folder / "data").mkdir(exist_ok=True)
        rows.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    words = ["--data", folder / "data", "--output", folder / "runs", "--out", folder / "results.json"]
    script.main([*map(str, words), "--seeds", "0", "1", "--jobs", "2", *TINY])
    return folder


@pytest.mark.slow
def test_means_and_differences_are_those_of_the_reports(script, finished):
    stored = json.loads((finished / "results.json").read_text())
    found = stored["measurements"]
    assert found["seeds"] == 2 and found["test_images"] == 12 and found["reference_steps"] == 3
    reports = {
        model: [CaptionerReport.load(finished / "runs" / f"seed-{seed}" / f"{model}.json") for seed in (0, 1)]
        for model in script.MODELS
    }
    for name in ("recall_at_1", "cider_d", "distinct_captions"):
        for model in script.MODELS:
            values = [report[name] for report in reports[model]]
            assert found[f"{model}_{name}"] == pytest.approx(np.mean(values))
            assert [found[f"{model}_{name}_seed{seed}"] for seed in (0, 1)] == values
    pooled = {
        model: sum(report.measures["invented"].per_image[0].sum() for report in reports[model])
        / max(1, sum(report.measures["invented"].per_image[1].sum() for report in reports[model]))
        for model in script.MODELS
    }
    assert found["control_invented"] == pytest.approx(pooled["control"])
    difference = pooled["contrastive"] - pooled["control"]
    assert found["contrastive_minus_control_invented"] == pytest.approx(difference)
    assert found["contrastive_minus_control_cider_d_low"] <= found["contrastive_minus_control_cider_d"]
    ratio = found["contrastive_median_rank"] / found["control_median_rank"]
    assert stored["ratios"]["median_rank_over_control"] == pytest.approx(ratio)


@pytest.mark.slow
def test_finished_runs_are_not_run_again_and_the_table_needs_no_data(script, finished, capsys):
    before = (finished / "results.json").read_bytes()
    script.main(["--table", "--out", str(finished / "results.json")])
    table = capsys.readouterr().out
    assert table.count("| contrastive |") == 3 and "R@1 (%)" in table  # the means, and two seeds
    words = ["--data", finished / "data", "--output", finished / "runs", "--out", finished / "results.json"]
    script.main([*map(str, words), "--seeds", "0", "1", *TINY])
    shown = capsys.readouterr().out
    assert "seed 0: finished before" in shown and "seed 1: finished before" in shown and table in shown
    again = json.loads((finished / "results.json").read_text())
    assert again["measurements"] == json.loads(before)["measurements"]


def test_the_page_shows_what_is_stored(script):
    stored = json.loads((BENCHMARKS / "results" / "flickr8k.json").read_text())
    page = (BENCHMARKS.parent / "docs" / "results.md").read_text()
    for table in script.tables(stored["measurements"]):
        assert table in page


@pytest.mark.slow
def test_a_failed_run_is_named(script, tmp_path):
    words = ["--data", str(tmp_path / "missing"), "--output", str(tmp_path), "--out", str(tmp_path / "results.json")]
    with pytest.raises(SystemExit, match="seed 3 failed with 1; see .*seed-3.log"):
        script.main([*words, "--seeds", "3"])
    assert "does not exist" in (tmp_path / "seed-3.log").read_text()
