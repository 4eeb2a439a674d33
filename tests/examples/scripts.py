"""What the tests of the examples share."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from datasets import DatasetDict

EXAMPLES = Path(__file__).parents[2] / "examples"

TINY = "--images 48 --start-steps 3 --steps 2 --batch-size 8".split()
"""Sizes that learn nothing: to see whether everything works."""

LN_4 = 1.386294
"""The loss of equal models."""


def load_script(name: str) -> ModuleType:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def write_parquet(data: DatasetDict, folder: Path) -> Path:
    """Splits as users have them on disk."""
    folder.mkdir()
    for split, rows in data.items():
        rows.to_parquet(folder / f"{split}.parquet")
    return folder
