"""The example of a sweep: what it computes once, what it keeps, and which settings it recommends."""

from __future__ import annotations

import csv
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples.scripts import TINY, load_script

GRID = "--num-negatives 1 2 --noise-ratio 0.5 2".split()
NAMES = ["reference", "K=1, nu=0.5", "K=1, nu=2", "K=2, nu=0.5", "K=2, nu=2"]


@pytest.fixture(scope="module")
def example():
    return load_script("sweep")


@pytest.fixture(scope="module")
def finished(example, tmp_path_factory):
    output = tmp_path_factory.mktemp("sweep")
    return output, example.main(["--output", str(output), *TINY, *GRID])


def test_every_setting_is_in_the_tables(example, finished):
    output, reports = finished
    assert [report.name for report in reports] == NAMES
    with (output / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["setting"] for row in rows] == NAMES
    for row, report in zip(rows, reports, strict=True):
        assert float(row["recall_at_1"]) == report["recall_at_1"] and float(row["cider_d"]) == report["cider_d"]
    assert [row["setting"] for row in rows if row["edge"] == "True"] == example.edge(reports) != []


def test_the_reference_is_scored_once_for_each_number_of_negatives(finished):
    output, _ = finished
    assert len(list((output / "scores").iterdir())) == 2


def test_a_stopped_sweep_goes_on(example, finished, capsys):
    output, reports = finished
    files = {file: file.stat().st_mtime_ns for file in (output / "runs").iterdir()}
    assert {file.name for file in files} == {
        "reference.json", "K1_nu0.5.json", "K1_nu2.json", "K2_nu0.5.json", "K2_nu2.json"
    }  # fmt: skip
    lost = output / "runs" / "K2_nu0.5.json"
    lost.unlink()
    again = example.main(["--output", str(output), *TINY, *GRID])
    assert "4 of 5: K=2, nu=0.5" in capsys.readouterr().out.splitlines()
    assert [report.to_dict() for report in again] == [report.to_dict() for report in reports]
    assert {file for file, time in files.items() if file.stat().st_mtime_ns != time} == {lost}


def test_runs_with_other_settings_are_not_mixed(example, finished):
    output, _ = finished
    with pytest.raises(SystemExit, match="runs with other settings"):
        example.main(["--output", str(output), *TINY, *GRID, "--seed", "1"])


class Point(dict):
    """What ``edge`` asks of a report."""

    def __init__(self, name: str, recall: float, cider: float) -> None:
        super().__init__(recall_at_1=recall, cider_d=cider)
        self.name = name


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8))
def test_the_edge_is_that_of_the_definition(example, points):
    reports = [Point(str(number), *point) for number, point in enumerate(points)]
    expected = set(range(len(points)))
    for (one, (r, c)), (_, (other_r, other_c)) in product(enumerate(points), repeat=2):
        if (other_r >= r and other_c > c) or (other_r > r and other_c >= c):
            expected.discard(one)
    assert example.edge(reports) == [str(number) for number in sorted(expected)]
