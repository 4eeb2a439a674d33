"""The studies: what is run, in which order and only once; and tables that are made of stored results alone."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests import tiny

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
        "machine": {"processor": "a small one"},
        "seconds": 2.0,
        "training_seconds": 1.5,
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

    @pytest.fixture
    def made(self, monkeypatch):
        """Stands in for training and measuring: captioners are folders with a word for their weights."""
        running = room("running")
        trained = []

        def train(unit, at, data):
            trained.append(unit.key)
            folder = at.captioner(unit)
            folder.mkdir(parents=True, exist_ok=True)
            room("files").write_json(folder / room("training").FINISHED, {"seconds": 1.0, "logged": {}})
            return {"seconds": 1.0, "logged": {}}

        monkeypatch.setattr(running, "train", train)
        monkeypatch.setattr(running, "load_data", lambda at: None)
        monkeypatch.setattr(running, "load_captioner", lambda folder, device: SimpleNamespace(model=folder))
        monkeypatch.setattr(running, "model_digest", lambda folder: "second")
        monkeypatch.setattr(running, "measure", lambda unit, at, data: {"measured": unit.key})
        return trained

    def test_a_row_of_another_reference_is_refused_before_it_is_trained(self, place, made):
        plan, running = room("plan"), room("running")
        store(place, "reference", seeds=[0], weights="first")
        unit = plan.Unit("scenes", plan.ROWS["dpo"], 0)
        with pytest.raises(ValueError, match="no finished captioner in .*reference-seed0; run reference first"):
            running.run_unit(unit, place)
        room("files").write_json(place.captioner(unit.needs()[0]) / "finished.json", {})
        here = f"with {torch.backends.cpu.get_cpu_capability()}"
        with pytest.raises(ValueError, match=rf"other weights .*\(stored: a small one, here: .+ {here}\).*delete the"):
            running.run_unit(unit, place)
        assert made == [] and not place.result(unit).exists()

    def test_a_reference_that_is_made_again_changes_nothing_stored(self, place, made, capsys):
        plan, running = room("plan"), room("running")
        unit = plan.Unit("scenes", plan.ROWS["reference"], 0)
        for weights in ("first", "second"):
            store(place, "reference", seeds=[0], weights=weights)
            stored = place.result(unit).read_bytes()
            if weights == "first":
                with pytest.raises(ValueError, match="other weights than those whose result is stored"):
                    running.run_unit(unit, place)
            else:
                running.run_unit(unit, place)
                assert "has the weights whose result is stored" in capsys.readouterr().out
            assert place.result(unit).read_bytes() == stored
        assert made == ["reference-seed0"] * 2

    def test_what_a_row_was_made_of_is_stored(self, place, made):
        plan, running = room("plan"), room("running")
        for name in ("reference", "dpo", "dpo-part-0.5"):
            running.run_unit(plan.Unit("scenes", plan.ROWS[name], 0), place)
        found = json.loads(place.result(plan.Unit("scenes", plan.ROWS["dpo-part-0.5"], 0)).read_text())
        assert found["made_of"] == {"reference": "second", "dpo": "second"}
        assert found["weights"] == "second" and found["measured"] == "dpo-part-0.5-seed0"

    def test_results_of_other_settings_are_refused(self, place):
        plan = room("plan")
        store(place, "reference", seeds=[0])
        unit = plan.Unit("scenes", plan.ROWS["reference"], 0)
        changed = json.loads(place.result(unit).read_text())
        changed["settings"]["scale"]["steps"] = 77
        room("files").write_json(place.result(unit), changed)
        with pytest.raises(ValueError, match="was made with .*77.*Delete it"):
            place.load(unit)

    def test_what_those_that_are_gone_were_made_of_is_made_again_too(self, place):
        plan, running = room("plan"), room("running")
        store(place, "reference-show-and-tell", "control-show-and-tell", seeds=[0])
        wanted = plan.units("scenes", ["contrastive-show-and-tell", "control-show-and-tell"], [0])
        needed = ["reference-adaptive-attention-seed0", "reference-show-and-tell-seed0"]
        assert [unit.key for unit in running.pending(wanted, place)] == [*needed, "contrastive-show-and-tell-seed0"]
        room("files").write_json(place.captioner(wanted[1]) / "finished.json", {})
        assert [unit.key for unit in running.pending(wanted, place)] == ["contrastive-show-and-tell-seed0"]

    def test_both_splits_are_of_the_same_captioner(self, place, made):
        plan, running = room("plan"), room("running")
        reference = plan.Unit("scenes", plan.ROWS["reference"], 0, "validation")
        running.run_unit(reference, place)
        store(place, "reference", seeds=[0], weights="first")
        with pytest.raises(ValueError, match="other weights than .*reference-seed0.json"):
            running.run_unit(plan.Unit("scenes", plan.ROWS["dpo"], 0, "validation"), place)
        place.result(reference).unlink()
        with pytest.raises(ValueError, match="other weights than .*reference-seed0.json"):
            running.run_unit(reference, place)
        assert made == ["reference-seed0-validation"] * 2

    def test_a_captioner_of_other_settings_or_data_is_not_used(self, place, made, tmp_path):
        plan, running, files = room("plan"), room("running"), room("files")
        unit = plan.Unit("scenes", plan.ROWS["reference"], 0)
        running.run_unit(unit, place)
        place.result(unit).unlink()
        larger = files.Place("scenes", None, plan.SCALES["scenes"], place.results, place.output)
        with pytest.raises(ValueError, match="reference-seed0 was made with other settings or of other data"):
            running.run_unit(unit, larger)
        running.run_unit(unit, place)  # nothing has changed
        place.claim(unit).unlink()
        with pytest.raises(ValueError, match="or nothing says what it was made of"):
            running.run_unit(unit, place)
        source = tmp_path / "photographs"
        source.mkdir()
        (source / "train.parquet").write_bytes(b"one")
        first = files.Place("photographs", source, place.scale, place.results, place.output)
        unit = plan.Unit("photographs", plan.ROWS["reference"], 0)
        running.run_unit(unit, first)
        (tmp_path / "other" / "photographs").mkdir(parents=True)
        (tmp_path / "other" / "photographs" / "train.parquet").write_bytes(b"two")
        second = files.Place(
            "photographs", tmp_path / "other" / "photographs", place.scale, place.results, place.output
        )
        with pytest.raises(ValueError, match="was made of other data than .*other/photographs"):
            second.load(unit)
        first.result(unit).unlink()
        with pytest.raises(ValueError, match="made with other settings or of other data"):
            running.run_unit(unit, second)
        assert len(made) == 3

    def test_two_processes_do_not_make_one_captioner(self, place, made):
        plan, running = room("plan"), room("running")
        unit, other = (plan.Unit("scenes", plan.ROWS[name], 0) for name in ("reference", "control"))
        with (
            room("files").claimed(place, unit),
            room("files").claimed(place, other),
            pytest.raises(ValueError, match="another process is at .*reference-seed0"),
        ):
            running.run_unit(unit, place)
        running.run_unit(unit, place)
        assert made == ["reference-seed0"]

    def test_damaged_files_are_named_and_unfinished_ones_are_none(self, place):
        plan, running = room("plan"), room("running")
        store(place, "main", seeds=[0])
        wanted = plan.units("scenes", ["main"], [0])
        unfinished = place.result(wanted[0]).with_name(f"{wanted[0].key}.json.unfinished")
        unfinished.write_text('{"settings"')
        assert running.cost(wanted, place)[0] == 6.0 and len(room("summary").summaries(place.results, "scenes")) == 3
        place.result(wanted[0]).write_text('{"settings"')
        for work in (
            lambda: running.pending(wanted, place),
            lambda: running.cost(wanted, place),
            lambda: room("tables").render(place.results),
        ):
            with pytest.raises(ValueError, match=r"reference-seed0\.json is damaged: .* Delete it"):
                work()

    def test_cost_by_what_was_run(self, place):
        plan, running = room("plan"), room("running")
        store(place, "reference", "contrastive", seeds=[0])
        unit = plan.Unit("scenes", plan.ROWS["contrastive"], 0, "validation")
        stored = {**fake_result(unit, place), "seconds": 0.5}  # measured only: its captioner was there
        room("files").write_json(place.result(unit), stored)
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

    def test_rows_of_different_seeds_say_which(self, place):
        store(place, "main", seeds=[0])
        store(place, "dpo", seeds=[2])
        store(place, "dpo", seeds=[1], better=[0, 0, 0, 0, 3, 4])
        store(place, "main", seeds=[1], better=[0, 0, 1, 2, 3, 4])
        rows = room("summary").summaries(place.results, "scenes")
        dpo, control = rows["dpo"], rows["control"]
        assert room("summary").shared_seeds([dpo, control]) == (1,)
        assert dpo.among([0, 1]).mean("recall_at_1") == dpo.of_seed("recall_at_1", 1) != dpo.mean("recall_at_1")
        lines = [line for line in room("tables").render(place.results)["scenes ways"].splitlines() if "DPO" in line]
        cells = [[cell.strip() for cell in line.split("|")] for line in lines]
        # Image 1 is tied with one other: 3.5 images of 6 against 1.5.
        assert [row[2] for row in cells] == ["1, 2", "1", "1, 2"] and cells[1][3] == "2.33"

    def test_a_study_shows_the_seeds_of_its_own_rows(self, place):
        store(place, "main", seeds=[0])
        store(place, "main", seeds=[1], better=[0, 0, 1, 2, 3, 4])
        store(place, "dpo", seeds=[1])
        tables = room("tables").render(place.results)
        control = {
            name: [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if "control (MLE)" in line]
            for name, text in tables.items()
        }
        assert control["scenes main"][0][2:4] == ["0, 1", f"{100 * (1 + 1.5) / 12:.1f} ± {100 * 0.5 / 6 / 2**0.5:.1f}"]
        assert control["scenes ways"][0][2:4] == ["1", f"{100 * 1.5 / 6:.1f}"]
        assert set(tables) == {"scenes main", "scenes ways"}

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
        page.write_text("no place\n", encoding="utf-8")
        with pytest.raises(ValueError, match="page.md has no place for a table"):
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

    def test_one_seed_alone(self, place):
        plan, tables = room("plan"), room("tables")
        store(place, "main")
        store(place, "dpo", seeds=[1])
        for unit in plan.units("scenes", ["dpo"], [0], "validation"):
            room("files").write_json(place.result(unit), fake_result(unit, place))
        names = ["scenes main", "scenes main validation", "scenes ways validation"]
        assert list(tables.render(place.results, seed=0)) == names
        assert list(tables.render(place.results, seed=1)) == ["scenes main", "scenes ways"]
        dpo = room("summary").summaries(place.results, "scenes")["dpo"]
        line = next(line for line in tables.render(place.results, seed=1)["scenes ways"].splitlines() if "DPO" in line)
        cells = [cell.strip() for cell in line.split("|")]
        assert cells[2] == "1" and cells[3] == f"{100 * dpo.of_seed('recall_at_1', 1):.1f}" and "±" not in line

    def test_plots_are_drawn(self, place, tmp_path):
        pytest.importorskip("matplotlib")
        store(place, "ablation", "ways")
        files = room("plots").draw_plots(place.results, tmp_path / "pictures")
        assert [file.name for file in files] == ["study_scenes_ablation.png", "study_scenes_ways.png"]
        assert all(file.read_bytes()[:4] == b"\x89PNG" for file in files)


class TestCommand:
    @pytest.mark.parametrize("option", ["--jobs", "--seeds"])
    def test_numbers_begin_at_one(self, scripts, option, capsys):
        with pytest.raises(SystemExit):
            scripts.main(["run", option, "0"])
        assert "'0' is no number of at least 1" in capsys.readouterr().err

    def test_seeds_begin_where_they_are_told_to(self, scripts, place, capsys):
        folders = ["--results", str(place.results), "--output", str(place.output)]
        scripts.main(["run", "--list", "--only", "control", "--seeds", "2", "--from-seed", "3", *folders])
        units = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "(to run)" in line]
        assert units == ["reference-seed3", "control-seed3", "reference-seed4", "control-seed4"]
        with pytest.raises(SystemExit):
            scripts.main(["run", "--from-seed", "-1"])
        assert "'-1' is no number of at least 0" in capsys.readouterr().err

    @pytest.mark.parametrize("action", ["table", "plots"])
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
