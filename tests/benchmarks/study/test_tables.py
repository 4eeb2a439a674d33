"""Tables and pictures of the studies, made of stored results alone."""

from __future__ import annotations

import pytest

from tests.benchmarks.study.stored import BENCHMARKS, fake_result, room, store


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
        assert [row[2] for row in cells] == ["1, 2", "1", "1, 2"] and cells[1][3:5] == ["2.33", "2.33"]

    def test_differences_to_another_row(self, place):
        store(place, "main", seeds=[0], better=[0, 0, 1, 2, 3, 4])  # image 1 is tied: 1.5 of 6
        store(place, "dpo", seeds=[0], better=[0, 0, 0, 0, 3, 4])
        text = room("tables").render(place.results, against="dpo")["scenes ways"]
        lines = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
        (head,) = [number for number, cells in enumerate(lines) if "minus DPO" in cells]
        assert lines[head + 2][1:5] == ["contrastive", "0", f"{1.5 / 3.5:.2f}", f"{1.5 / 3.5:.2f}"]
        assert lines[head + 2][5].startswith(f"{-200 / 6:.1f} (") and lines[head + 3] == [""]

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
        assert set(tables) == {"scenes main", "scenes ways", "scenes overview"}

    def test_a_control_that_another_study_needed_is_not_in_the_main_one(self, place):
        store(place, "reference", "control")
        assert " 0, 1 |" in room("tables").render(place.results)["scenes main"]
        store(place, "contrastive", seeds=[0])
        text = room("tables").render(place.results)["scenes main"]
        lines = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if "control (MLE)" in line]
        assert [line[2] for line in lines] == ["0", "0"] and "0, 1" not in text

    def test_the_overview_has_every_way_with_all_of_its_seeds(self, place):
        for seed, better in ((0, [0, 1, 2, 3, 4, 5]), (1, [0, 0, 1, 2, 3, 4])):  # image 1 is tied: 1 and 1.5 of 6
            store(place, "main", seeds=[seed], better=better)
        store(place, "dpo", seeds=[1], better=[0, 0, 0, 0, 3, 4])
        store(place, "nca", seeds=[2], better=[0, 0, 0, 0, 3, 4])
        text = room("tables").render(place.results)["scenes overview"]
        lines = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
        assert lines[0][1:4] == ["minus control", "seeds", "R@1 ×"]
        assert [line[1:4] for line in lines[2:]] == [
            ["contrastive", "0, 1", "1.00"],
            ["NCA", "-", "-"],  # there is no control of that seed
            ["DPO", "1", f"{3.5 / 1.5:.2f}"],
        ]

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
        assert list(room("tables").render(place.results)) == ["scenes main validation", "scenes overview validation"]

    def test_one_seed_alone(self, place):
        plan, tables = room("plan"), room("tables")
        store(place, "main")
        store(place, "dpo", seeds=[1])
        for unit in plan.units("scenes", ["dpo"], [0], "validation"):
            room("files").write_json(place.result(unit), fake_result(unit, place))
        names = ["scenes main", "scenes overview", "scenes main validation", "scenes ways validation"]
        assert list(tables.render(place.results, seed=0)) == names
        assert list(tables.render(place.results, seed=1)) == ["scenes main", "scenes ways", "scenes overview"]
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


class TestQuotients:
    def lines(self, scripts, place, capsys, *words):
        scripts.main(["quotients", *words, "--results", str(place.results)])
        lines = capsys.readouterr().out.splitlines()
        return {
            cells[1]: cells[2:-1] for line in lines if len(cells := [cell.strip() for cell in line.split("|")]) > 1
        }

    def test_parts_of_a_gain_by_hand(self, scripts, place, capsys):
        # Image 1 is tied: 1, 1.5, 2.5 and 3.5 of six images are found.
        store(place, "control", "reference", better=[0, 1, 2, 3, 4, 5])
        store(place, "contrastive", seeds=[1], better=[0, 0, 1, 2, 3, 4])
        store(place, "dpo", better=[0, 0, 0, 0, 3, 4])
        store(place, "nca", seeds=[0], better=[0, 0, 0, 1, 1, 5])
        store(place, "infonce", seeds=[2], better=[0, 0, 0, 0, 3, 4])
        found = self.lines(scripts, place, capsys, "--of", "dpo")
        assert found["% of dpo"] == ["seeds", "R@1", "R@1 by reference", "CIDEr-D", "invented"]
        assert found["contrastive"][:3] == ["1", "20", "20"] and found["nca"][:3] == ["0", "60", "60"]
        assert found["nca"][4] == "-"  # DPO invents as many words as the control, so there is no whole
        assert "infonce" not in found and "control" not in found and "dpo" not in found

    def test_how_long_trainings_took(self, scripts, place, capsys):
        store(place, "control", "dpo-part-0.5")
        unit = room("plan").Unit("scenes", room("plan").ROWS["dpo"], 1)
        room("files").write_json(place.result(unit), {**fake_result(unit, place), "training_seconds": 2.4})
        found = self.lines(scripts, place, capsys)
        assert found["× control"] == ["seed 0", "seed 1"] and found["dpo"] == ["1.00", "1.60"]
        assert "dpo-part-0.5" not in found and "reference" not in found and "control" not in found
        assert self.lines(scripts, place, capsys, "--seed", "1")["dpo"] == ["1.60"]

    def test_nothing_to_compare_is_told(self, scripts, place):
        store(place, "main", seeds=[0])
        for words, message in (
            (["--of", "dpo"], "no row to compare with 'dpo'"),
            (["--seed", "3"], "no row to compare"),
        ):
            with pytest.raises(SystemExit, match=message):
                scripts.main(["quotients", *words, "--results", str(place.results)])
