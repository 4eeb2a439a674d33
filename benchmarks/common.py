"""What every benchmark shares: the machine, the versions, and the JSON that documentation quotes.

Scripts are run as files, ``python benchmarks/NAME.py``, so this is imported as ``common``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from hf_contrastive_caption.precision import processor_computes_in

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("hf-contrastive-caption", "torch", "transformers", "datasets", "accelerate", "trl", "numpy")


def machine() -> dict[str, Any]:
    """Name the machine: processor, cores this process may use, memory in GiB, accelerator, system, torch threads.

    Two processors of one name can differ in their vector instructions, and then round differently; and in whether they
    compute in bfloat16.
    """
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": _processor(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "bfloat16": processor_computes_in(torch.bfloat16),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": gpu,
        "system": f"{platform.system()} {platform.release()}",
        "torch_threads": torch.get_num_threads(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter; one that is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def out_argument(parser: argparse.ArgumentParser, script: str | Path) -> None:
    """Add ``--out``, the JSON file to write; ``benchmarks/results/<script>.json`` if not given."""
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS / f"{Path(script).stem}.json",
        help="JSON file to write (default: %(default)s)",
    )


def write_results(
    script: str | Path, ratios: dict[str, float], measurements: dict[str, Any], out: Path | None = None
) -> Path:
    """Write what was measured, so that a figure in the documentation can be checked by a program.

    Args:
        script: The script's file, ``__file__``.
        ratios: Flat, name to number: what is claimed. Ratios of two sides of one run, or measured value over target.
        measurements: Flat, name to value: what was measured, the unit at the end of the name.
        out: File to write; ``benchmarks/results/<script>.json`` if not given.

    Returns:
        The file.
    """
    out = RESULTS / f"{Path(script).stem}.json" if out is None else out
    out.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "script": Path(script).name,
        "command": " ".join(["python", *map(shlex.quote, sys.argv)]),
        "machine": machine(),
        "versions": versions(),
        "ratios": ratios,
        "measurements": measurements,
    }
    out.write_text(json.dumps(content, indent=2) + "\n")
    print(f"written to {out}")
    return out


def print_table(title: str, rows: list[tuple[str, str]]) -> None:
    """Print two columns, the second aligned to the right."""
    left, right = (max(len(row[side]) for row in rows) for side in (0, 1))
    print(f"\n{title}")
    for name, value in rows:
        print(f"  {name:<{left}}  {value:>{right}}")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
