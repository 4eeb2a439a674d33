"""The wheel, installed into an empty environment away from the checkout, is whole and runs."""

from __future__ import annotations

import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from .environment import CONSTRAINTS, PACKAGE, REPOSITORY, build_distributions, install, run

pytestmark = pytest.mark.slow

LOOK = """
import json, pathlib
import hf_contrastive_caption as package

root = pathlib.Path(package.__file__).parent
files = [path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
names = [name for name in package.__all__ if getattr(package, name) is not None]
print(json.dumps([str(root), names, [path.relative_to(root.parent).as_posix() for path in files]]))
"""


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Wheel and sdist."""
    return build_distributions(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def programs(distributions: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment in which the wheel and what it needs are installed, and nothing else."""
    return install(tmp_path_factory.mktemp("empty") / "venv", distributions[0], constraints=CONSTRAINTS)


def package_files() -> set[str]:
    """Every file of the package in the checkout, package data included."""
    return {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_wheel_has_the_package_and_nothing_else(distributions: tuple[Path, Path]) -> None:
    names = set(zipfile.ZipFile(distributions[0]).namelist())
    about = {name for name in names if name.partition("/")[0].endswith(".dist-info")}
    assert names - about == package_files()
    assert "hf_contrastive_caption/py.typed" in names
    assert any(name.endswith("/licenses/LICENSE") for name in about)


def test_sdist_has_what_its_tests_need(distributions: tuple[Path, Path]) -> None:
    with tarfile.open(distributions[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"src/{name}" for name in package_files()} <= names
    assert {"LICENSE", "CHANGELOG.md", "CITATION.cff", "Makefile", "constraints.txt"} <= names
    assert {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "tests").rglob("*.py")} <= names


def test_installed_package_is_whole(programs: Path, tmp_path: Path) -> None:
    script = tmp_path / "look.py"
    script.write_text(LOOK)
    root, names, files = json.loads(run(programs / "python", script, cwd=tmp_path).splitlines()[-1])
    assert Path(root).is_relative_to(programs.parent)
    assert "ContrastiveCaptionTrainer" in names
    assert set(files) == package_files()


def test_installed_command_runs(programs: Path, tmp_path: Path) -> None:
    assert "demo" in run(programs / "contrastive-caption", "--help", cwd=tmp_path)


def test_installed_requirements_agree(programs: Path, tmp_path: Path) -> None:
    assert "No broken requirements" in run(programs / "python", "-m", "pip", "check", cwd=tmp_path)
