"""Where the configs for ``accelerate launch`` are. Nothing heavy is imported, for a command line that starts fast."""

from __future__ import annotations

import os
from pathlib import Path

_CONFIGS = Path(__file__).parent / "configs"


def shipped_configs() -> list[str]:
    """The names of the configs in this package: ``ddp``, ``fsdp2``, ``zero2`` and ``zero3``."""
    return sorted(path.stem for path in _CONFIGS.glob("*.yaml"))


def accelerate_config(name_or_path: str | os.PathLike[str]) -> Path:
    """The config file for ``accelerate launch --config_file``.

    Args:
        name_or_path: The name of a config in this package, or the path of a file of one's own.

    Raises:
        ValueError: If it is neither.
    """
    given = os.fspath(name_or_path)
    if given in shipped_configs():
        return _CONFIGS / f"{given}.yaml"
    path = Path(given).expanduser()
    if path.is_file():
        return path.resolve()
    what = "is a folder" if path.is_dir() else "is neither one of them nor a file"
    raise ValueError(
        f"there is no Accelerate config {given!r}: it {what}. Give {', '.join(shipped_configs())}, or the path of a "
        "config file such as `accelerate config` writes"
    )
