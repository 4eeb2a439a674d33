"""Empty environments for the tests that install the package."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "src" / "hf_contrastive_caption"
CONSTRAINTS = REPOSITORY / "constraints.txt"
LOWEST = REPOSITORY / "constraints-lowest.txt"


def clean_environment() -> dict[str, str]:
    """The variables of this process without those that would let Python find this checkout or this environment."""
    hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST"}
    return {name: value for name, value in os.environ.items() if name not in hidden}


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command and return what it printed; an exit status other than 0 is an assertion with all of it."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def build_distributions(folder: Path) -> tuple[Path, Path]:
    """Build the sdist from this checkout and the wheel from the sdist; returns both paths, the wheel first."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, REPOSITORY, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    return wheel, sdist


def install(folder: Path, *requirements: str | Path, constraints: Path) -> Path:
    """Install into a new environment in ``folder`` and return its folder of programs.

    The constraints pin torch: without them pip may ask for another build of it.
    """
    venv.create(folder, with_pip=True)
    programs = folder / ("Scripts" if sys.platform == "win32" else "bin")
    pip = [programs / "python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    run(*pip, "-c", constraints, *requirements, cwd=folder)
    return programs
