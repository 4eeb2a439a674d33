"""Quotients that the documentation states beside its tables, from what is stored and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hf_contrastive_caption.evaluation.measures import aligned_table
from studies.plan import ROWS
from studies.summary import LABELS, Summary, control_of, data_sets, shared_seeds, summaries

COMPARED = ("recall_at_1", "judged_recall_at_1", "cider_d", "invented")


def shares(results: Path, seed: int | None = None, *, of: str) -> dict[str, str]:
    """What part of a row's differences to the control every other row of its model has, in per cent, by data set.

    Each on the seeds that the two and the control have. Below 0 is a difference to the other side.

    Args:
        results: Folder of the results.
        seed: Of one seed alone.
        of: Name of the row that is the whole.

    Raises:
        ValueError: If the results of a data set cannot be compared with each other, or there is nothing to compare.
    """
    found: dict[str, str] = {}
    for data in data_sets(results):
        rows = summaries(results, data, seed=seed)
        control = control_of(ROWS[of], rows)
        if of not in rows or control is None:
            continue
        lines = [[f"% of {of}", "seeds", *(LABELS[name].removesuffix(" (%)") for name in COMPARED)]]
        for summary in rows.values():
            seeds = shared_seeds([summary, rows[of], control])
            if seeds and summary.row.is_tuning and summary.row.model == control.row.model and summary.row.name != of:
                three = [one.among(seeds) for one in (summary, rows[of], control)]
                cells = [_share(*(one.mean(name) for one in three)) for name in COMPARED]
                lines.append([summary.row.name, ", ".join(map(str, seeds)), *cells])
        if len(lines) > 1:
            found[data] = aligned_table(lines)
    if not found:
        raise ValueError(f"{results} has no row to compare with {of!r} and a control of the same seed")
    return found


def durations(results: Path, seed: int | None = None) -> dict[str, str]:
    """How many times as long as that of the control of its seed the training of every row took: a table by data set.

    As many steps on as many images, but on machines that did other work as well: read a column, not a number.

    Args:
        results: Folder of the results.
        seed: Of one seed alone.

    Raises:
        ValueError: If the results of a data set cannot be compared with each other, or there is nothing to compare.
    """
    found: dict[str, str] = {}
    for data in data_sets(results):
        rows = summaries(results, data, seed=seed)
        trained = list(_trained_beside_a_control(rows))
        seeds = sorted({one for pair in trained for one in shared_seeds(pair)})
        lines = [["× control", *(f"seed {one}" for one in seeds)]]
        for pair in trained:
            cells = [_duration(*pair, one) if one in shared_seeds(pair) else "-" for one in seeds]
            lines.append([pair[0].row.name, *cells])
        if seeds:
            found[data] = aligned_table(lines)
    if not found:
        raise ValueError(f"{results} has no row to compare with a control of the same seed")
    return found


def _trained_beside_a_control(rows: dict[str, Summary]) -> Iterator[tuple[Summary, Summary]]:
    """Every row with a tuning of its own, and the control of its model."""
    for summary in rows.values():
        control = control_of(summary.row, rows)
        if summary.row.is_tuning and summary.row.objective != "interpolated" and control is not None:
            yield summary, control


def _share(part: float, whole: float, control: float) -> str:
    return f"{100 * (part - control) / (whole - control):.0f}" if whole != control else "-"


def _duration(summary: Summary, control: Summary, seed: int) -> str:
    ours, theirs = (row.results[seed]["training_seconds"] for row in (summary, control))
    return f"{ours / theirs:.2f}"
