"""The package runs with the lowest versions of its dependencies that it allows (torch: see constraints-lowest.txt)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .environment import LOWEST, REPOSITORY, install, run

pytestmark = pytest.mark.slow

# What touches the libraries below: the models' forwards, the loss, the data sets and the training loop. Only the quick
# tests of these; those that need TRL skip themselves, as no TRL can be installed beside versions as low as these.
TESTS = [
    "tests/test_losses.py",
    "tests/captioners",
    "tests/data",
    "tests/evaluation",
    "tests/test_trainer.py",
    "tests/test_construction.py",
    "tests/test_checkpoints.py",
    "tests/reference",
    "tests/precomputed",
]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lowest") / "venv"
    return install(folder, REPOSITORY, "pytest", "pytest-timeout", "pytest-xdist", "hypothesis", constraints=LOWEST)


def test_the_pinned_versions_are_what_was_installed(programs: Path, tmp_path: Path) -> None:
    installed = run(programs / "python", "-m", "pip", "freeze", cwd=tmp_path).lower().splitlines()
    pinned = [line.lower() for line in LOWEST.read_text().splitlines() if "==" in line and not line.startswith("#")]
    # A build of torch for one kind of machine adds a local label to its version: 2.13.0+cpu.
    assert {re.sub(r"\+\w+$", "", line) for line in installed if "==" in line} == set(pinned)


def test_quick_tests_pass_with_the_lowest_versions(programs: Path) -> None:
    missing = [name for name in TESTS if not (REPOSITORY / name).exists()]
    assert not missing, f"these tests have moved: {missing}"
    words = ("-q", "-p", "no:cacheprovider", "-n", "logical", "--maxprocesses=4", "--dist=loadfile")
    printed = run(programs / "python", "-m", "pytest", *words, *TESTS, cwd=REPOSITORY)
    assert re.search(r"\b[1-9]\d* passed\b", printed), printed
