"""Scripts of ``benchmarks/`` run in the process of the tests: what they import is there already."""

from __future__ import annotations

import importlib
import io
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from transformers.utils import logging

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run_here(name: str, *options: str) -> str:
    """Run ``benchmarks/<name>.py`` and return what it printed; what it sets for its whole process is set back."""
    threads, verbosity = torch.get_num_threads(), logging.get_verbosity()
    printed = io.StringIO()
    try:
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
            patch.syspath_prepend(BENCHMARKS)
            patch.setattr(sys, "argv", [str(BENCHMARKS / f"{name}.py"), *options])
            importlib.import_module(name).main()
    finally:
        torch.set_num_threads(threads)
        logging.set_verbosity(verbosity)
    return printed.getvalue()
