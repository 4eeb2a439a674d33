"""Where each way lies between finding its image and being true: one picture for each data set and study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from studies.plan import STUDIES
from studies.summary import Summary, data_sets, seeds_of_study, shared_seeds, summaries

PLOTTED = ("ablation", "ways", "replacement", "knobs", "hard", "trade-off")
MARKERS = "oDsP^vX<>*hpd"
_GREY, _COLOURS = "#777777", ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def draw_plots(results: Path, folder: Path) -> list[Path]:
    """Draw R@1 against CIDEr-D for every study of several rows; needs matplotlib.

    Seeds differ more than ways do, so a picture shows the seeds that all of its rows have, and says which; there
    is no picture where they share none.

    Returns:
        The files.
    """
    files = []
    for data in data_sets(results):
        rows = summaries(results, data)
        for study in PLOTTED:
            names = dict.fromkeys(("reference", "control", *STUDIES[study]))
            there = [rows[name] for name in names if name in rows]
            if seeds_of_study(study, rows) and (seeds := shared_seeds(there)):
                files.append(folder / f"study_{data}_{study}.png")
                title = f"{data}: {study}, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
                draw_trade_off([row.among(seeds) for row in there], files[-1], title)
    return files


def draw_trade_off(there: Sequence[Summary], file: Path, title: str) -> None:
    """One point for each row: the mean over seeds, and bars of one standard deviation over seeds."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for number, summary in enumerate(there):
        across, up = summary.spread("recall_at_1"), summary.spread("cider_d")
        axes.errorbar(
            100 * summary.mean("recall_at_1"),
            summary.mean("cider_d"),
            xerr=None if across is None else 100 * across,
            yerr=up,
            marker=MARKERS[number % len(MARKERS)],
            color=_COLOURS[number % len(_COLOURS)] if summary.row.is_tuning else _GREY,
            linestyle="none",
            markersize=7,
            elinewidth=0.8,
            label=summary.row.label,
        )
    axes.set(xlabel="R@1 (%), captions that find their own image", ylabel="CIDEr-D", title=title)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    plt.close(figure)
