"""The command of the studies."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from tests import tiny
from tests.benchmarks.study.stored import store


class TestCommand:
    @pytest.mark.parametrize("option", ["--jobs", "--seeds"])
    def test_numbers_begin_at_one(self, scripts, option, capsys):
        with pytest.raises(SystemExit):
            scripts.main(["run", option, "0"])
        assert "'0' is no number of at least 1" in capsys.readouterr().err

    def test_a_page_has_differences_to_the_control(self, scripts, place):
        store(place, "control", seeds=[0])
        words = ["table", "--write", "docs/results.md", "--against", "contrastive", "--results", str(place.results)]
        with pytest.raises(SystemExit, match="leave out --against, or --write"):
            scripts.main(words)

    def test_seeds_begin_where_they_are_told_to(self, scripts, place, capsys):
        folders = ["--results", str(place.results), "--output", str(place.output)]
        scripts.main(["run", "--list", "--only", "control", "--seeds", "2", "--from-seed", "3", *folders])
        units = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "(to run)" in line]
        assert units == ["reference-seed3", "control-seed3", "reference-seed4", "control-seed4"]
        with pytest.raises(SystemExit):
            scripts.main(["run", "--from-seed", "-1"])
        assert "'-1' is no number of at least 0" in capsys.readouterr().err

    @pytest.mark.parametrize("action", ["table", "quotients", "plots"])
    def test_a_folder_without_results_is_told(self, scripts, action, tmp_path):
        with pytest.raises(SystemExit, match="nowhere has no results; study.py run makes them"):
            scripts.main([action, "--results", str(tmp_path / "nowhere")])

    def test_data_that_is_not_there_is_told_before_anything_runs(self, scripts, tmp_path):
        folders = ["--results", str(tmp_path / "results"), "--output", str(tmp_path / "runs")]
        with pytest.raises(SystemExit, match="photographs does not exist"):
            scripts.main(["run", "--data", str(tmp_path / "photographs"), *folders])
        (tmp_path / "photographs").mkdir()
        tiny.caption_dataset(4).to_parquet(tmp_path / "photographs" / "train.parquet")
        with pytest.raises(SystemExit, match="photographs has no split called validation or test, but train"):
            scripts.main(["run", "--data", str(tmp_path / "photographs"), *folders])
        assert not (tmp_path / "runs").exists()

    def test_a_stop_by_hand_says_how_to_go_on(self, scripts, monkeypatch, tmp_path):
        def stop(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(scripts, "run_units", stop)
        folders = ["--results", str(tmp_path / "results"), "--output", str(tmp_path / "runs")]
        with pytest.raises(SystemExit, match="stopped; the same command goes on"):
            scripts.main(["run", "--scale", "tiny", *folders])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_command_runs_measures_and_tells(scripts, tmp_path, capsys):
    """Real units at sizes that learn nothing: one of every objective, in processes of their own."""
    names = ["contrastive", "introspective", "gan", "nca", "moving-average", "dpo", "dpo-part-0.5"]
    folders = ["--output", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    words = ["run", "--scale", "tiny", "--seeds", "1", "--jobs", "2", *folders, "--only", "control", *names]
    scripts.main(words)
    scripts.main(words)
    assert "9 units, 9 of them finished" in capsys.readouterr().out
    results = {file.stem: json.loads(file.read_text()) for file in (tmp_path / "results" / "scenes").glob("*.json")}
    assert sorted(results) == sorted(f"{name}-seed0" for name in ["reference", "control", *names])
    reference = results["reference-seed0"]
    assert reference["learned"]["loss"] == pytest.approx(2 * np.log(2), abs=1e-5)
    for name in names:
        found = results[f"{name}-seed0"]
        others = {"dpo": results["dpo-seed0"]["weights"]} if name == "dpo-part-0.5" else {}
        assert found["made_of"] == {"reference": reference["weights"], **others}
        assert found["weights"] not in found["made_of"].values()
        assert len(found["ranks"]["reference"]["better"]) == found["images"] == 12
    scripts.main(["table", "--results", str(tmp_path / "results")])
    assert "| NCA" in capsys.readouterr().out
    assert sys.modules["studies.plan"].SCALES["tiny"].steps == 2
