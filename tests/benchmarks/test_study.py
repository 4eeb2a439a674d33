"""The studies: what is run, in which order and only once; and tables that are made of stored results alone."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
IMAGES = 6


@pytest.fixture(scope="module", autouse=True)
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("study")


def room(name):
    return importlib.import_module(f"studies.{name}")


@pytest.fixture
def place(tmp_path):
    return room("files").Place("scenes", None, room("plan").SCALES["tiny"], tmp_path / "results", tmp_path / "runs")


def fake_result(unit, place, better=None, weights="first"):
    """What a unit would store, made up from its name."""
    generator = np.random.default_rng(list(unit.key.encode()))
    better = generator.integers(0, IMAGES, IMAGES).tolist() if better is None else better
    plan, summary = room("plan"), room("summary")
    row = unit.row
    ranks = {"better": better, "equal": {"1": 1}}
    return {
        "settings": json.loads(json.dumps(unit.settings(place.scale))),
        "seconds": 2.0,
        "weights": weights,
        "made_of": {needed.row.name: weights for needed in unit.needs()},
        "images": IMAGES,
        "pool": "the same",
        "learned": dict.fromkeys(room("measuring").LEARNED, -1.5),
        "corpus": dict.fromkeys(room("measuring").CORPUS, 0.25),
        "per_image": {
            "cider_d": [generator.random(IMAGES).round(3).tolist()],
            "rouge_l": [generator.random(IMAGES).round(3).tolist()],
            "invented": [[1.0] * IMAGES, [4.0] * IMAGES],
        },
        "ranks": {"own": ranks} if row is plan.reference_row(row.model) else {"own": ranks, "reference": ranks},
        "labels": sorted(summary.LABELS),
    }


def store(place, *names, seeds=(0, 1), **others):
    plan = room("plan")
    for unit in plan.units("scenes", names, seeds):
        room("files").write_json(place.result(unit), fake_result(unit, place, **others))


class TestPlan:
    def test_rows_and_studies_fit(self):
        plan = room("plan")
        assert {name for names in plan.STUDIES.values() for name in names} == set(plan.ROWS)
        pairs = {(row.model, row.reference) for row in plan.ROWS.values() if row.objective == "contrastive"}
        assert len(pairs) == 9  # every target against every reference
        assert plan.STUDIES["ways"][2:] == ("introspective", "gan", "dpo", "infonce", "nca")

    def test_what_others_need_stands_first(self):
        found = [unit.key for unit in room("plan").units("scenes", ["show-and-tell-by-vit-gpt2"], [0, 1])]
        assert found[:4] == [
            "reference-adaptive-attention-seed0",
            "reference-show-and-tell-seed0",
            "reference-seed0",
            "show-and-tell-by-vit-gpt2-seed0",
        ]
        assert len(found) == 8 and all(key.endswith("seed1") for key in found[4:])

    def test_validation_is_kept_apart(self):
        plan = room("plan")
        test, validation = (plan.Unit("scenes", plan.ROWS["dpo"], 1, split) for split in ("test", "validation"))
        assert (test.key, validation.key) == ("dpo-seed1", "dpo-seed1-validation")
        assert {unit.split for unit in validation.needs()} == {"validation"}

    def test_an_unknown_name_is_told_with_those_there_are(self):
        with pytest.raises(ValueError, match=r"'dop'. Studies: main, ablation.*Rows: reference"):
            room("plan").units("scenes", ["main", "dop"], [0])

    def test_every_setting_is_an_argument_of_the_trainer(self, tmp_path):
        plan, training = room("plan"), room("training")
        for row in plan.ROWS.values():
            if row.objective not in ("reference", "gan", "interpolated"):
                args = training._tuning_arguments(plan.Unit("scenes", row, 3), plan.SCALES["scenes"], tmp_path)
                assert (args.seed, args.max_steps, args.per_device_train_batch_size) == (3, 400, 64)
        args = training._tuning_arguments(plan.Unit("scenes", plan.ROWS["rate-4"], 0), plan.SCALES["scenes"], tmp_path)
        assert args.learning_rate == 8e-4
        row = plan.ROWS["replaced-twice"]
        args = training._tuning_arguments(plan.Unit("scenes", row, 0), plan.SCALES["scenes"], tmp_path)
        assert args.reference_refresh == 133


class TestRunning:
    @pytest.fixture
    def processes(self, place, monkeypatch):
        """Stands in for the processes of units: stores a made-up result, or fails."""
        began, fails = [], set()

        def run(unit, at, words, slot, jobs):
            began.append(unit.key)
            time.sleep(0.01)
            if unit.key in fails:
                return 1
            room("files").write_json(at.result(unit), fake_result(unit, at))
            room("files").write_json(at.captioner(unit) / room("training").FINISHED, {"seconds": 1})
            return 0

        monkeypatch.setattr(room("running"), "_run_in_process", run)
        return began, fails

    @pytest.mark.parametrize("jobs", [1, 3])
    def test_each_is_run_once_after_what_it_needs(self, place, processes, jobs):
        plan, running = room("plan"), room("running")
        began, _ = processes
        wanted = plan.units("scenes", ["models"], [0, 1])
        running.run_units(wanted, place, [], jobs)
        assert sorted(began) == sorted(unit.key for unit in wanted) and len(set(began)) == len(began)
        for unit in wanted:
            assert all(began.index(needed.key) < began.index(unit.key) for needed in unit.needs())
        running.run_units(wanted, place, [], jobs)
        assert len(began) == len(wanted)

    def test_a_failure_stops_only_what_needs_it(self, place, processes):
        plan, running = room("plan"), room("running")
        began, fails = processes
        fails.add("reference-adaptive-attention-seed0")
        wanted = plan.units("scenes", ["main", "control-adaptive-attention"], [0])
        message = "2 units are not finished: control-adaptive-attention-seed0, reference-adaptive"
        with pytest.raises(RuntimeError, match=message):
            running.run_units(wanted, place, [], 1)
        assert "contrastive-seed0" in began and "control-adaptive-attention-seed0" not in began

    def test_a_study_that_was_stopped_gives_the_same_tables(self, place, processes, tmp_path):
        plan, running, tables = room("plan"), room("running"), room("tables")
        began, fails = processes
        wanted = plan.units("scenes", ["main", "ablation"], [0, 1])
        fails.add("contrastive-seed0")
        with pytest.raises(RuntimeError):
            running.run_units(wanted, place, [], 2)
        fails.clear()
        running.run_units(wanted, place, [], 2)
        assert began.count("contrastive-seed0") == 2 and len(began) == len(wanted) + 1
        unbroken = room("files").Place("scenes", None, place.scale, tmp_path / "other", tmp_path / "other-runs")
        running.run_units(wanted, unbroken, [], 1)
        assert tables.render(place.results) == tables.render(unbroken.results)

    def test_a_reference_whose_weights_are_gone_is_made_again(self, place, processes):
        plan, running = room("plan"), room("running")
        store(place, "reference", "control", seeds=[0])
        wanted = plan.units("scenes", ["main"], [0])
        assert [unit.key for unit in running.pending(wanted, place)] == ["reference-seed0", "contrastive-seed0"]

    def test_a_reference_of_another_machine_is_refused(self, place):
        plan, running = room("plan"), room("running")
        store(place, "reference", seeds=[0], weights="first")
        unit = plan.Unit("scenes", plan.ROWS["dpo"], 0)
        running._check_same(unit, place, {"reference": "first"})
        with pytest.raises(ValueError, match="other weights than the reference whose result is stored"):
            running._check_same(unit, place, {"reference": "second"})

    def test_results_of_other_settings_are_refused(self, place):
        plan = room("plan")
        store(place, "reference", seeds=[0])
        unit = plan.Unit("scenes", plan.ROWS["reference"], 0)
        changed = json.loads(place.result(unit).read_text())
        changed["settings"]["scale"]["steps"] = 77
        room("files").write_json(place.result(unit), changed)
        with pytest.raises(ValueError, match="was made with .*77.*Delete it"):
            place.load(unit)

    def test_cost_by_what_was_run(self, place):
        plan, running = room("plan"), room("running")
        store(place, "reference", "contrastive", seeds=[0])
        wanted = plan.units("scenes", ["reference", "contrastive", "beta-3", "dpo", "introspective"], [1, 2])
        seconds, unknown = running.cost(wanted, place)
        # beta-3 and dpo are contrastive as well; nothing is known of the introspective objective
        assert seconds == 2.0 * 2 * 4 and unknown == ["introspective"]


class TestTables:
    def test_numbers_by_hand(self, place):
        plan, summary = room("plan"), room("summary")
        store(place, "control", "reference", better=[0, 1, 2, 3, 4, 5])
        store(place, "contrastive", seeds=[0], better=[0, 0, 0, 1, 1, 5])
        for seed, better in ((0, [0, 0, 0, 1, 1, 5]), (1, [0, 5, 5, 5, 5, 5])):
            unit = plan.Unit("scenes", plan.ROWS["contrastive"], seed)
            room("files").write_json(place.result(unit), fake_result(unit, place, better))
        for seed in (0, 1):
            unit = plan.Unit("scenes", plan.ROWS["control"], seed)
            room("files").write_json(place.result(unit), fake_result(unit, place, [0, 1, 2, 3, 4, 5]))
        rows = summary.summaries(place.results, "scenes")
        ours, control = rows["contrastive"], rows["control"]
        # Image 1 is tied with one other: in the first seed it is first with probability one half.
        assert ours.of_seed("recall_at_1", 0) == pytest.approx(2.5 / 6)
        assert ours.mean("recall_at_1") == pytest.approx((2.5 + 1) / 12)
        assert ours.spread("recall_at_1") == pytest.approx(1.5 / 6 / 2**0.5)
        assert ours.of_seed("invented", 0) == 0.25 and ours.of_seed("median_rank", 0) == 1.75
        difference = ours.minus(control, "recall_at_1")
        assert difference.value == pytest.approx((2.5 + 1) / 12 - 1 / 6)
        assert difference.low <= difference.value <= difference.high
        text = room("tables").render(place.results)["scenes main"]
        assert f"{100 * 3.5 / 12:.1f} ± {100 * 0.25 / 2**0.5:.1f}" in text

    def test_rows_of_other_references_or_images_cannot_be_compared(self, place):
        plan = room("plan")
        store(place, "main", seeds=[0])
        unit = plan.Unit("scenes", plan.ROWS["control"], 0)
        room("files").write_json(place.result(unit), fake_result(unit, place, weights="second"))
        with pytest.raises(ValueError, match="control, seed 0, was made of another reference"):
            room("tables").render(place.results)
        room("files").write_json(place.result(unit), {**fake_result(unit, place), "pool": "another"})
        with pytest.raises(ValueError, match="different images"):
            room("tables").render(place.results)

    def test_a_page_gets_its_tables_and_keeps_the_rest(self, place, tmp_path):
        store(place, "main")
        page = tmp_path / "page.md"
        page.write_text("before\n<!-- study: scenes main -->\nold\n<!-- end of study -->\nafter\n", encoding="utf-8")
        tables = room("tables")
        tables.write_into(page, place.results)
        once = page.read_text(encoding="utf-8")
        assert tables.render(place.results)["scenes main"] in once and "old" not in once
        assert once.startswith("before\n<!--") and once.endswith("-->\nafter\n")
        tables.write_into(page, place.results)
        assert page.read_text(encoding="utf-8") == once
        page.write_text(once.replace("scenes main", "scenes ways"), encoding="utf-8")
        with pytest.raises(ValueError, match="'scenes ways'; there are results of scenes main"):
            tables.write_into(page, place.results)

    def test_the_documentation_holds_what_is_stored(self, tmp_path):
        stored = (BENCHMARKS.parent / "docs" / "results.md").read_bytes()
        page = tmp_path / "results.md"
        page.write_bytes(stored)
        room("tables").write_into(page, BENCHMARKS / "results" / "study")
        assert page.read_bytes() == stored and b"scenes ways" in stored

    def test_validation_has_tables_of_its_own(self, place):
        plan = room("plan")
        for unit in plan.units("scenes", ["main"], [0], "validation"):
            room("files").write_json(place.result(unit), fake_result(unit, place))
        assert list(room("tables").render(place.results)) == ["scenes main validation"]

    def test_plots_are_drawn(self, place, tmp_path):
        pytest.importorskip("matplotlib")
        store(place, "ablation", "ways")
        files = room("plots").draw_plots(place.results, tmp_path / "pictures")
        assert [file.name for file in files] == ["study_scenes_ablation.png", "study_scenes_ways.png"]
        assert all(file.read_bytes()[:4] == b"\x89PNG" for file in files)


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
