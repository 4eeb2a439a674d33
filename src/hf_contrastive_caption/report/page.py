"""The page of a comparison: one file, without a network, in light and dark, on a screen of any width."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from hf_contrastive_caption.evaluation.metrics.tokenization import ptb_tokenize
from hf_contrastive_caption.report.charts import (
    charts_available,
    log_ratio_chart,
    recall_chart,
    to_svg,
    training_chart,
)
from hf_contrastive_caption.report.style import template_text, word_style
from hf_contrastive_caption.report.thumbnails import data_uri
from hf_contrastive_caption.report.words import Word
from hf_contrastive_caption.writing import write_whole

if TYPE_CHECKING:
    from hf_contrastive_caption.report.comparison import CaptionerComparison, ShownCaption, ShownImage


class Chart(NamedTuple):
    """A chart of the page: its heading, what to see in it, and the ``<svg>`` element."""

    title: str
    about: str
    svg: Markup
    wide: bool = False


class ShadedWord(NamedTuple):
    """A word as the page shows it.

    Attributes:
        text: The word, or a sign for the end of the caption.
        strength: From -1 (the reference likes it better) to 1 (the target does).
        ratio: The log-ratio in nats, to be read.
        invented: Whether no caption of a person has it.
    """

    text: str
    strength: float
    ratio: str
    invented: bool


def write_page(comparison: CaptionerComparison, path: Path) -> Path:
    """Write the page of a comparison to a file, whole or not at all.

    Returns:
        The file.
    """
    write_whole(path, render_page(comparison))
    return path


def render_frame(comparison: CaptionerComparison) -> str:
    """The page as an element of another page, such as a notebook: neither's styles and scripts reach the other's."""
    frame = '<iframe srcdoc="{}" sandbox="allow-scripts" style="width: 100%; height: 640px; border: 0"></iframe>'
    return frame.format(escape(render_page(comparison)))


def render_page(comparison: CaptionerComparison) -> str:
    """The page of a comparison as HTML; all that comes from models and data is escaped."""
    loader = PackageLoader("hf_contrastive_caption.report")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.lstrip_blocks = True
    scale = shading_scale(comparison)
    differences = comparison.target.compare(comparison.reference)
    shown = {image.number for image in comparison.images}
    return environment.get_template("page.html.j2").render(
        comparison=comparison,
        rows=differences.rows(intervals=True),
        about=differences.about(),
        charts=list(_charts(comparison)) if charts_available() else [],
        charts_available=charts_available(),
        cards=[_card(image, scale, shown) for image in comparison.images],
        ranked=comparison.reference.ranks is not None and comparison.target.ranks is not None,
        referenced=comparison.target.num_referenced > 0,
        scale=f"{scale:.1f}",
        version=version("hf-contrastive-caption"),
        style=Markup(
            word_style(":root", "@media (prefers-color-scheme: dark) { :root", "}") + template_text("page.css")
        ),
        script=Markup(template_text("page.js")),
    )


def shading_scale(comparison: CaptionerComparison) -> float:
    """The log-ratio in nats at which a word of a comparison has its full colour."""
    return scale_of(
        word for image in comparison.images for side in (image.reference, image.target) for word in side.words
    )


def scale_of(words: Iterable[Word]) -> float:
    """The log-ratio in nats at which a word has its full colour: nine of ten of these words have less."""
    sizes = [abs(word.log_ratio) for word in words]
    return max(float(np.quantile(sizes, 0.9)), 0.1) if sizes else 1.0


def shaded_words(caption: ShownCaption, scale: float) -> list[ShadedWord]:
    """The words of a caption as the page shows them: parted at spaces, where what is measured parts further."""
    invented = set(caption.invented)
    tokens = ptb_tokenize([word.text for word in caption.words])
    return [
        ShadedWord(
            text=word.text or "⏎",
            strength=round(float(np.clip(word.log_ratio / scale, -1, 1)), 2),
            ratio=f"{word.log_ratio:+.2f}",
            invented=not invented.isdisjoint(parts),
        )
        for word, parts in zip(caption.words, tokens, strict=True)
    ]


def _card(image: ShownImage, scale: float, shown: set[int]) -> dict[str, Any]:
    """What the template needs of an image."""
    sides = (image.reference, image.target)
    return {
        "number": image.number,
        "picture": data_uri(image.thumbnail),
        "sides": [(side, shaded_words(side, scale)) for side in sides],
        "human": image.human,
        "rivals": [number for number in image.rivals if number in shown],
        "gain": round(image.gain, 4),
        "invented": len(image.target.invented),
        "ratio": round(image.target.log_ratio, 4),
        "text": " ".join([*(side.text for side in sides), *image.human]).lower(),  # as the search does
    }


def _charts(comparison: CaptionerComparison) -> Iterator[Chart]:
    reference, target = comparison.reference, comparison.target
    if reference.ranks is not None and target.ranks is not None:
        title = "Does the caption find its image?"
        about = "The share of captions whose own image is among the k that fit them best. Higher is better."
        drawn = recall_chart(reference.ranks, target.ranks, (reference.name, target.name))
        yield Chart(title, about, Markup(to_svg(drawn, title)))
    if len(comparison.positives) and len(comparison.negatives):
        title = "What the tuning changed"
        about = (
            "By how much the target likes people's captions better than the reference does, with the image that they "
            "were written for and with others. The further apart, the better it tells images apart."
        )
        drawn = log_ratio_chart(comparison.positives, comparison.negatives)
        yield Chart(title, about, Markup(to_svg(drawn, title)))
    curves = training_chart(comparison.log_history)
    if curves is not None:
        title = "Training"
        about = f"What the training of {target.name} logged."
        yield Chart(title, about, Markup(to_svg(curves, title)), wide=True)
