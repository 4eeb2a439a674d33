"""The caption metrics as modules of the ``evaluate`` library, one folder and script for each.

``evaluate.load(module_path("cider_d"))`` loads one without a network.
"""

from __future__ import annotations

from pathlib import Path


def module_names() -> list[str]:
    """Names of the modules that this package ships, sorted."""
    return sorted(script.stem for script in Path(__file__).parent.glob("*/*.py") if script.stem == script.parent.name)


def module_path(name: str) -> str:
    """Where a module is, for ``evaluate.load``.

    Args:
        name: Name of the metric, one of :func:`module_names`.

    Returns:
        The path of its script.

    Raises:
        ValueError: If there is no such module.
    """
    if name not in module_names():
        raise ValueError(f"there is no evaluate module {name!r}; the names are {', '.join(module_names())}")
    return str(Path(__file__).parent / name / f"{name}.py")
