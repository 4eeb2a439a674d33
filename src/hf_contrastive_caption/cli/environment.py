"""What a bug report should say about the machine."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from hf_contrastive_caption import __version__

PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "datasets",
    "accelerate",
    "peft",
    "evaluate",
    "tokenizers",
    "safetensors",
    "pillow",
    "numpy",
    "pyarrow",
    "typer",
)


def environment() -> dict[str, str]:
    """Versions of Python and of the packages that matter, and the devices that torch sees."""
    found = {
        "hf-contrastive-caption": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return {**found, **_devices()}


def _devices() -> dict[str, str]:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library does not load
        return {"devices": f"torch does not import: {error}"}
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "devices": ", ".join(["cpu", *gpus]),
        "cpu threads": str(torch.get_num_threads()),
        "cuda of torch": str(torch.version.cuda),
    }
