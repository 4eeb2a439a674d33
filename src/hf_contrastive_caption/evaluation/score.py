"""A score of one's own: a weighted sum of measures, such as ``"cider_d + 2 * recall_at_1"``."""

from __future__ import annotations

import re
from collections.abc import Mapping

MEASURES = ("cider_d", "rouge_l", "invented", "distinct_share", "mean_length", "mean_reciprocal_rank", "median_rank")
"""What captions give at an evaluation during training, besides ``recall_at_K`` for any K."""

LOWER_IS_BETTER = ("invented", "median_rank")
NEED_RETRIEVAL = ("mean_reciprocal_rank", "median_rank")

_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)(?:e\d+)?"
_TERM = re.compile(rf"(?:(?P<before>{_NUMBER})\s*\*\s*)?(?P<name>[a-z][a-z0-9_]*)(?:\s*\*\s*(?P<after>{_NUMBER}))?")


def parse_score(formula: str) -> dict[str, float]:
    """Read a weighted sum of measures.

    Args:
        formula: Names of measures joined by + and -, each with a factor if wanted: ``"cider_d + 0.5 * recall@1"``.
            ``recall@1`` is another way to write ``recall_at_1``.

    Returns:
        The weights by name.

    Raises:
        ValueError: If it is no such sum, or a name is not known.
    """
    text = formula.strip().replace("@", "_at_")
    signed = text if text.startswith(("+", "-")) else f"+{text}"
    pieces = re.split(r"([+-])", signed)
    weights: dict[str, float] = {}
    for sign, piece in zip(pieces[1::2], pieces[2::2], strict=True):
        term = _TERM.fullmatch(piece.strip())
        if term is None or (term["before"] and term["after"]):
            raise ValueError(
                f"{formula!r} is no weighted sum of measures: {piece.strip()!r} cannot be read. Write for example "
                "'cider_d + 2 * recall_at_1 - 0.5 * invented'"
            )
        name = check_name(term["name"])
        weight = float(term["before"] or term["after"] or 1)
        weights[name] = weights.get(name, 0.0) + (weight if sign == "+" else -weight)
    return weights


def check_name(name: str) -> str:
    """The name of a measure, if it is one.

    Raises:
        ValueError: If it is not.
    """
    if name not in MEASURES and recall_number(name) is None:
        raise ValueError(f"there is no measure {name!r}; there are recall_at_K, {', '.join(MEASURES)}")
    return name


def recall_number(name: str) -> int | None:
    """The K of ``recall_at_K``, or ``None`` for another name."""
    found = re.fullmatch(r"recall_at_([1-9]\d*)", name)
    return int(found[1]) if found else None


def needs_retrieval(name: str) -> bool:
    """Whether a measure comes from self-retrieval."""
    return name in NEED_RETRIEVAL or recall_number(name) is not None


def weighted_sum(weights: Mapping[str, float], values: Mapping[str, float]) -> float:
    """The score of some values."""
    return sum(weight * values[name] for name, weight in weights.items())
