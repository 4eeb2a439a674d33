"""What the studies run, in which order and only once."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest
import torch

from tests.benchmarks.study.stored import fake_result, room, store


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

    @pytest.mark.parametrize("computes", [True, False])
    def test_references_are_made_in_bfloat16_where_the_processor_has_it(self, tmp_path, monkeypatch, computes):
        plan, training = room("plan"), room("training")
        monkeypatch.setattr(training, "processor_computes_in", lambda dtype: computes)
        made = {}
        for name in ("photographs", "scenes"):
            unit = plan.Unit(name, plan.ROWS["reference"], 0)
            made[name] = training._reference_arguments(unit, plan.SCALES[name], tmp_path).bf16
        assert made == {"photographs": computes or torch.cuda.is_available(), "scenes": False}


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
