"""One number of a captioner, how sure it is, and what it is made of, so that two captioners can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_contrastive_caption.evaluation.bootstrap import STATISTICS, Bootstrap, Difference, Floats, Interval


@dataclass(frozen=True)
class Measure:
    """A number with its interval.

    Attributes:
        label: What tables call it.
        value: The number, on its natural scale; shares from 0 to 1.
        interval: Its bootstrap interval; ``None`` for a number that is not made of one number per image.
        statistic: How it is made of ``per_image``: ``"mean"``, ``"median"``, ``"ratio"`` or ``None``.
        per_image: What it is made of, arrays of (n_images,): one, or numerators and denominators of a ratio.
        better: ``"higher"``, ``"lower"``, or ``None`` where it depends.
        percent: Whether it is shown as a percentage.
        count: Whether it counts something.
    """

    label: str
    value: float
    interval: Interval | None = None
    statistic: str | None = None
    per_image: tuple[Floats, ...] = field(default=(), repr=False)
    better: str | None = "higher"
    percent: bool = False
    count: bool = False

    @classmethod
    def of(cls, bootstrap: Bootstrap, label: str, statistic: str, *per_image: Any, **others: Any) -> Measure:
        """A measure made of per-image values, with its interval."""
        arrays = tuple(np.asarray(values, dtype=np.float64) for values in per_image)
        interval = bootstrap.interval(STATISTICS[statistic], *arrays)
        return cls(label, interval.value, interval, statistic, arrays, **others)

    @property
    def heading(self) -> str:
        """The label with its unit."""
        return f"{self.label} (%)" if self.percent else self.label

    def shown(self, value: float, sign: str = "") -> str:
        """A value of this measure, or of a guess, as tables show it."""
        if self.percent:
            return f"{100 * value:{sign}.1f}"
        if self.statistic == "median" or self.count:
            return f"{value:{sign}g}"
        return f"{value:{sign}.3f}"

    def interval_text(self) -> str:
        """The interval as tables show it: ``15.0 to 21.8``."""
        assert self.interval is not None
        return f"{self.shown(self.interval.low)} to {self.shown(self.interval.high)}"

    def text(self) -> str:
        """The number with its interval: ``18.4 (15.0 to 21.8)``."""
        shown = self.shown(self.value)
        return shown if self.interval is None else f"{shown} ({self.interval_text()})"

    def numbers(self) -> float | list[float]:
        """The value, or value, lower and upper end where there is an interval."""
        return self.value if self.interval is None else list(self.interval)

    def minus(self, other: Measure, bootstrap: Bootstrap) -> Difference | None:
        """The paired difference to another captioner's number, ``None`` where there are no per-image values."""
        if self.statistic is None or other.statistic != self.statistic:
            return None
        return bootstrap.difference(STATISTICS[self.statistic], list(self.per_image), list(other.per_image))

    def difference_text(self, difference: Difference) -> str:
        """A difference as tables show it: ``+3.1 (+0.4 to +5.9)``."""
        value, low, high = (self.shown(number, sign="+") for number in difference[:3])
        return f"{value} ({low} to {high})"

    def to_dict(self, *, per_image: bool = False) -> dict[str, Any]:
        """The measure as JSON takes it."""
        content: dict[str, Any] = {
            "label": self.label,
            "value": self.value,
            "interval": None if self.interval is None else list(self.interval[1:]),
            "better": self.better,
            "percent": self.percent,
            "count": self.count,
        }
        if per_image:
            content |= {"statistic": self.statistic, "per_image": [values.tolist() for values in self.per_image]}
        return content

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Measure:
        """What :meth:`to_dict` made, per-image values included."""
        value, ends = content["value"], content["interval"]
        return cls(
            content["label"],
            value,
            None if ends is None else Interval(value, *ends),
            content["statistic"],
            tuple(np.asarray(values, dtype=np.float64) for values in content["per_image"]),
            content["better"],
            content["percent"],
            content["count"],
        )


def measures_table(title: str, measures: Mapping[str, Measure], chance: Mapping[str, float]) -> str:
    """:func:`measures_rows` as a Markdown table."""
    return aligned_table(measures_rows(title, measures, chance))


def measures_rows(title: str, measures: Mapping[str, Measure], chance: Mapping[str, float]) -> list[Sequence[str]]:
    """Measures below each other, with intervals, and what a guess would reach beside them; the heading first."""
    rows: list[Sequence[str]] = [[title, "value", "95 % interval", "chance"]]
    for name, measure in measures.items():
        interval = "" if measure.interval is None else measure.interval_text()
        guess = measure.shown(chance[name]) if name in chance else ""
        rows.append([measure.heading, measure.shown(measure.value), interval, guess])
    return rows


def aligned_table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns; the first row is the heading, all columns but the first are numbers."""
    widths = [max(3, *(len(row[column]) for row in rows)) for column in range(len(rows[0]))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))
