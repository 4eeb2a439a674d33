"""The scripts of the studies, and a folder for what they store."""

from __future__ import annotations

import importlib

import pytest

from tests.benchmarks.study.stored import BENCHMARKS, room


@pytest.fixture(scope="module", autouse=True)
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("study")


@pytest.fixture
def place(tmp_path):
    return room("files").Place("scenes", None, room("plan").SCALES["tiny"], tmp_path / "results", tmp_path / "runs")
