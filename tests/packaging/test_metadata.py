"""What the package says of itself agrees everywhere, and importing it costs nothing."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import hf_contrastive_caption

from .environment import CONSTRAINTS, LOWEST, PACKAGE, REPOSITORY

NAME = "hf-contrastive-caption"


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]


def pins(path: Any) -> dict[str, str]:
    """Names and versions of a constraints file."""
    lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    pairs = [line.partition("==")[::2] for line in lines if line]
    assert all(version for _, version in pairs), f"{path.name} has a line that is no pin"
    return {canonicalize_name(name): version for name, version in pairs}


def test_version_is_the_same_everywhere(project: dict[str, Any]) -> None:
    version = project["version"]
    newest = re.search(r"^## \[([^]]+)\]", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert metadata.version(NAME) == version
    assert hf_contrastive_caption.__version__ == version
    assert newest is not None and newest[1] == version
    assert str(citation["version"]) == version
    assert citation["license"] == project["license"] == metadata.metadata(NAME)["License-Expression"]


def test_command_is_registered() -> None:
    (command,) = metadata.entry_points(group="console_scripts", name="contrastive-caption")
    assert command.value == "hf_contrastive_caption.cli.main:main"


def test_public_names_resolve() -> None:
    package = importlib.import_module("hf_contrastive_caption")
    names = package.__all__
    assert {"ContrastiveCaptionTrainer", "ContrastiveCaptionConfig", "contrastive_caption_loss"} <= set(names)
    assert {"Captioner", "CaptionBatch", "captioner_for"} <= set(names)
    assert len(names) == len(set(names))
    assert set(names) <= set(dir(package))
    for name in names:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = package.no_such_name


def test_import_loads_no_heavy_library() -> None:
    code = "import sys, hf_contrastive_caption; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "hf_contrastive_caption" in loaded
    heavy = {"torch", "transformers", "datasets", "accelerate", "peft", "evaluate", "numpy", "pyarrow", "PIL"}
    assert heavy.isdisjoint(loaded)


def test_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").read_bytes() == b""


#: Imported where the user has them already: a tracker that is running, weights that DeepSpeed has cut.
BROUGHT_BY_THE_USER = {"deepspeed", "wandb"}


def imported() -> dict[str, set[str]]:
    """Top-level modules of other projects that the package imports anywhere, and the files that do."""
    found: dict[str, set[str]] = {}
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            for name in names:
                found.setdefault(name.partition(".")[0], set()).add(str(file.relative_to(PACKAGE)))
    others = set(found) - set(sys.stdlib_module_names) - {"hf_contrastive_caption"}
    return {name: found[name] for name in others}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported(project: dict[str, Any]) -> None:
    """What comes with another dependency today may not tomorrow."""
    extras = project["optional-dependencies"]
    needed = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    optional = {
        canonicalize_name(Requirement(text).name) for extra in extras if extra != "dev" for text in extras[extra]
    }
    homes = {module: set(map(canonicalize_name, names)) for module, names in metadata.packages_distributions().items()}
    used = imported()
    declared = needed | optional
    assert {"torch", "PIL", "yaml", "huggingface_hub"} <= set(used)
    unknown = {
        module: files
        for module, files in used.items()
        if module not in BROUGHT_BY_THE_USER and not declared & homes.get(module, {canonicalize_name(module)})
    }
    assert unknown == {}
    assert needed - {name for module in used for name in homes.get(module, ())} == set()


def test_constraints_allow_every_dependency_and_extra(project: dict[str, Any]) -> None:
    """All that can be asked for is pinned, at a version that is asked for, and torch at the one of both files."""
    tested, lowest = pins(CONSTRAINTS), pins(LOWEST)
    assert tested["torch"] == lowest["torch"] == "2.13.0"
    for text in [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(tested[canonicalize_name(requirement.name)]), text


def test_lower_bounds_are_the_lowest_versions_that_are_tested(project: dict[str, Any]) -> None:
    lowest = pins(LOWEST)
    for text in project["dependencies"]:
        requirement = Requirement(text)
        (bound,) = (part for part in requirement.specifier if part.operator == ">=")
        if requirement.name != "torch":  # its lowest version cannot be installed without its CUDA packages
            pinned = lowest[canonicalize_name(requirement.name)]
            assert Version(pinned) == Version(bound.version), f"{text}: {pinned} is tested"
