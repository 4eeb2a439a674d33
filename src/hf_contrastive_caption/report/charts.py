"""Charts as matplotlib figures: pictures for a model card, or SVG whose colours follow the page around them.

Needs matplotlib, which is in the extra ``report``.
"""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from hf_contrastive_caption.evaluation.bootstrap import Floats
from hf_contrastive_caption.evaluation.retrieval.ranking import Ranks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
R = TypeVar("R")

INK, FAINT, REFERENCE, TARGET = "#24292f", "#8c959f", "#b35900", "#0969da"
_ROLES = {INK: "ink", FAINT: "faint", REFERENCE: "reference", TARGET: "target"}
"""Each colour of a chart by the CSS variable that it becomes in a page."""

_STYLE: dict[str, Any] = {
    "font.size": 9.0,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "text.parse_math": False,  # names of captioners may have dollar signs
    "svg.fonttype": "none",  # text stays text: it can be found, read aloud, and takes the page's font
    "svg.hashsalt": "hf-contrastive-caption",  # equal charts are equal files
}

_TICKS = tuple(digit * 10**power for power in range(6) for digit in (1, 2, 5))

_CURVES = (
    ("Loss", ("loss", "eval_loss")),
    ("Log-ratio of a caption to its own image, over other images", ("margin", "eval_margin")),
    ("Right caption ranked first", ("ranked_first", "eval_ranked_first")),
    ("Log-ratio of a caption for its own image to others", ("image_margin", "eval_image_margin")),
    ("Own image ranked first", ("own_image_first", "eval_own_image_first")),
    ("Caption finds its image (R@1)", ("eval_recall_at_1",)),
    ("CIDEr-D", ("eval_cider_d",)),
    ("Learning rate", ("learning_rate",)),
)
"""What is drawn of a training: titles, and the names in the log, of training and of evaluation."""


def charts_available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def _styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Draw in this module's style, which is left at the end."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            import matplotlib
        except ImportError as error:
            raise ImportError(
                "charts are drawn by matplotlib, which is not installed: pip install 'hf-contrastive-caption[report]'"
            ) from error
        style: Any = _STYLE  # typed by a list of all names there are
        with matplotlib.rc_context(style):
            return draw(*args, **kwargs)

    return drawn


@_styled
def recall_chart(reference: Ranks, target: Ranks, names: tuple[str, str]) -> Figure:
    """Recall@k over k, on a logarithmic axis.

    Args:
        reference: Where the own images of the one captioner's captions stand.
        target: The same of the other.
        names: What the legend calls the two.
    """
    figure, (axes,) = _figure(1, 1)
    size = target.pool_size
    k = np.unique(np.geomspace(1, size, 120).round().astype(int))
    for ranks, name, color in ((reference, names[0], REFERENCE), (target, names[1], TARGET)):
        axes.plot(k, [100 * float(ranks.recall(int(number)).mean()) for number in k], color=color, label=_short(name))
    axes.plot(k, 100 * k / size, color=FAINT, linestyle=":", label="chance")
    axes.set(
        xscale="log",
        xlim=(1, max(size, 2)),
        ylim=(0, 100),
        xlabel="k",
        ylabel=f"found among the first k of {size}, in %",
    )
    axes.set_xticks([tick for tick in _TICKS if tick <= size], minor=False)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.legend()
    return figure


@_styled
def log_ratio_chart(positives: Floats, negatives: Floats) -> Figure:
    """Histograms of log-ratios, of people's captions with their own image and with others.

    Args:
        positives: ln p_target - ln p_reference of captions with their own images, in nats.
        negatives: The same with images that they were not written for.
    """
    figure, (axes,) = _figure(1, 1)
    together = np.concatenate([positives, negatives])
    low, high = np.quantile(together, [0.002, 0.998])
    bins = np.linspace(low, high, 61) if high > low else np.linspace(low - 1, low + 1, 61)
    for values, name, color in ((negatives, "of other images", REFERENCE), (positives, "of this image", TARGET)):
        shares = np.full(len(values), 100 / max(1, len(values)))
        axes.hist(values.clip(low, high), bins.tolist(), weights=shares, color=color, alpha=0.55, label=name)
    axes.axvline(0, color=FAINT, linewidth=0.8)
    axes.set(xlabel="log-ratio in nats: target minus reference", ylabel="% of captions")
    axes.legend()
    return figure


@_styled
def training_chart(log_history: Sequence[Mapping[str, Any]]) -> Figure | None:
    """The curves of a training, side by side; ``None`` if the log has none.

    Args:
        log_history: ``trainer.state.log_history``, or the same from ``trainer_state.json``.
    """
    curves = []
    for title, names in _CURVES:
        lines = {name: _curve(log_history, name) for name in names}
        lines = {name: line for name, line in lines.items() if len(line)}
        if any(len(line) > 1 for line in lines.values()):
            curves.append((title, lines))
    if not curves:
        return None
    columns = min(3, len(curves))
    figure, every = _figure(-(-len(curves) // columns), columns)
    for axes, (title, lines) in zip(every, curves, strict=False):
        for name, line in lines.items():
            evaluated = name.startswith("eval_")
            style: dict[str, Any] = {"marker": "o", "markersize": 3} if evaluated else {}
            color = REFERENCE if evaluated and len(lines) > 1 else TARGET
            axes.plot(line[:, 0], line[:, 1], color=color, label="evaluation" if evaluated else "training", **style)
        axes.set_title(title, wrap=True)
        axes.set_xlabel("step")
        if len(lines) > 1:
            axes.legend()
    for axes in every[len(curves) :]:
        axes.remove()
    return figure


@_styled
def to_svg(figure: Figure, title: str) -> str:
    """A chart as an ``<svg>`` element whose colours are CSS variables, with a title for those who cannot see it."""
    written = io.StringIO()
    figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Title": title})
    text = written.getvalue()
    text = text[text.index("<svg") :]
    for color, role in _ROLES.items():
        text = re.sub(re.escape(color), f"var(--{role}, {color})", text)
    return re.sub(r'<svg ([^>]*?)width="[^"]*"', r'<svg role="img" \1width="100%"', text, count=1).replace(
        ' height="', ' data-height="', 1
    )


@_styled
def to_png(figure: Figure, path: Path) -> None:
    """Write a chart on white to a file."""
    figure.savefig(path, format="png", dpi=150, facecolor="white")


def _short(name: str, longest: int = 32) -> str:
    """A name that leaves room for the chart, and that a legend shows: it passes over what begins with ``_``."""
    name = f" {name}" if name.startswith("_") else name
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def _curve(log_history: Sequence[Mapping[str, Any]], name: str) -> Floats:
    """Steps and values of a name in the log, (n, 2); of several entries of a step, as after a resume, the last."""
    found = {row["step"]: row[name] for row in log_history if name in row and "step" in row}
    return np.array(sorted(found.items()), dtype=np.float64).reshape(-1, 2)


def _figure(rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * columns, 2.9 * rows), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)
