"""An answer as HTML: cards with shaded words, and the matrix of captions and images; everything is escaped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from hf_contrastive_caption.app.ranking import JUDGES, FoundImages, SideRanking, rank_captions, rank_own_caption
from hf_contrastive_caption.app.work import SIDES, Answer
from hf_contrastive_caption.report.comparison import ShownCaption
from hf_contrastive_caption.report.page import ShadedWord, scale_of, shaded_words
from hf_contrastive_caption.report.style import word_style
from hf_contrastive_caption.report.thumbnails import data_uri
from hf_contrastive_caption.report.words import Word

OWN_NAME = "your caption"


class Line(NamedTuple):
    """A caption as a card shows it.

    Attributes:
        side: ``reference``, ``target`` or ``own``.
        name: Who says it.
        words: Its words.
        total: Its log-ratio in nats.
        rank: Expected rank of its own image, if that is known.
    """

    side: str
    name: str
    words: list[ShadedWord]
    total: float
    rank: float | None


class Row(NamedTuple):
    """A caption as the matrix shows it.

    Attributes:
        side: ``reference``, ``target`` or ``own``.
        name: Who says it.
        text: The caption.
        own: Number of its image; the best one for a caption that belongs to none.
        found: What it finds.
    """

    side: str
    name: str
    text: str
    own: int
    found: FoundImages


def style() -> str:
    """The style sheet of answers: the report's colours and words, and what is the page's own."""
    colours = word_style(".cc-app", ".dark .cc-app")
    return colours + files("hf_contrastive_caption.app").joinpath("templates", "app.css").read_text(encoding="utf-8")


def render_answer(answer: Answer, judge: str, names: tuple[str, str]) -> tuple[str, str]:
    """An answer as HTML.

    Args:
        answer: What was computed.
        judge: Who ranks, one of :data:`~hf_contrastive_caption.app.ranking.JUDGES`.
        names: What reference and target are called.

    Returns:
        The captions of the images, and which images they find; the second is empty for one image.
    """
    called = dict(zip(SIDES, names, strict=True))
    rankings = rank_captions(answer, judge)
    scale = scale_of(answer.all_words())
    pictures = [data_uri(thumbnail) for thumbnail in answer.thumbnails]
    cards = [
        (picture, list(_lines(answer, number, rankings, called, scale))) for number, picture in enumerate(pictures)
    ]
    captions = _environment().get_template("captions.html.j2").render(cards=cards, scale=f"{scale:.1f}")
    if len(pictures) == 1:
        return captions, ""
    ranking = _environment().get_template("ranking.html.j2")
    return captions, ranking.render(
        pictures=pictures,
        rows=list(_rows(answer, judge, rankings, called)),
        summaries=[_summary(side, called[side], ranking) for side, ranking in rankings.items()],
        judge=JUDGES[judge],
        no_scores=answer.no_scores,
    )


def render_header(names: tuple[str, str]) -> str:
    """The heading of the page and its style."""
    return _environment().get_template("header.html.j2").render(names=names, style=style())


def _lines(
    answer: Answer, number: int, rankings: Mapping[str, SideRanking], called: Mapping[str, str], scale: float
) -> Iterator[Line]:
    for side in SIDES:
        rank = rankings[side].found[number].rank if rankings else None
        yield _line(side, called[side], answer.captions[side][number], answer.words[side][number], scale, rank)
    if answer.own is not None:
        yield _line("own", OWN_NAME, answer.own.text, answer.own.words[number], scale, None)


def _line(side: str, name: str, text: str, words: tuple[Word, ...], scale: float, rank: float | None) -> Line:
    shown = ShownCaption(text, words, rank, invented=())
    return Line(side, name, shaded_words(shown, scale), shown.log_ratio, rank)


def _rows(answer: Answer, judge: str, rankings: Mapping[str, SideRanking], called: Mapping[str, str]) -> Iterator[Row]:
    for side, ranking in rankings.items():
        for number, found in enumerate(ranking.found):
            yield Row(side, called[side], answer.captions[side][number], number, found)
    own = rank_own_caption(answer, judge) if rankings else None
    if answer.own is not None and own is not None:
        yield Row("own", OWN_NAME, answer.own.text, own.rival, own)


def _summary(side: str, name: str, ranking: SideRanking) -> dict[str, Any]:
    """How many of a side's captions find their images, expected over ties."""
    ranks = ranking.ranks
    return {
        "side": side,
        "name": name,
        "first": f"{ranks.recall(1).sum():.3g}",
        "pool": ranks.pool_size,
        "reciprocal": f"{ranks.reciprocal_rank().mean():.2f}",
    }


def _environment() -> Environment:
    loader = PackageLoader("hf_contrastive_caption.app")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
