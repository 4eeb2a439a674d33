"""An answer as HTML: what it shows, and that text stays text."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

import pytest

from hf_contrastive_caption.app.ranking import rank_captions
from hf_contrastive_caption.app.rendering import render_answer, render_header
from hf_contrastive_caption.report.page import scale_of
from hf_contrastive_caption.report.words import Word

EVIL = "<script>window.harmed=1</script> <img src=x onerror='window.harmed=1'> \" onload=\"1 ${1+1} {{value}}"


class Seen(HTMLParser):
    """Tags with their attributes, and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def classes(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.tags if name in (attributes.get("class") or "").split()]


def evil(answer):
    words = tuple(Word(word, 0.1) for word in [*EVIL.split(), ""])
    texts, all_words = answer.captions["target"], answer.words["target"]
    own = replace(answer.own, text=EVIL, words=(words,) * len(texts))
    return replace(
        answer,
        own=own,
        captions={**answer.captions, "target": (EVIL, *texts[1:])},
        words={**answer.words, "target": (words, *all_words[1:])},
    )


def test_each_word_has_its_strength_and_its_number(answer):
    captions, _ = render_answer(answer, "writer", ("old", "new"))
    shown = [attributes for attributes in Seen(captions).classes("word") if "title" in attributes]
    scale = scale_of(answer.all_words())
    expected = [
        (f"--s:{round(max(-1.0, min(1.0, word.log_ratio / scale)), 2)}", f"{word.log_ratio:+.2f} nats")
        for number in range(len(answer.thumbnails))
        for words in (answer.words["reference"][number], answer.words["target"][number], answer.own.words[number])
        for word in words
    ]
    assert [(attributes["style"], attributes["title"]) for attributes in shown] == expected


def test_the_matrix_has_the_shares_and_frames_the_own_images(answer):
    _, page = render_answer(answer, "log_ratio", ("old", "new"))
    seen = Seen(page)
    count = len(answer.thumbnails)
    cells = [float(attributes["style"].removeprefix("--p:")) for attributes in seen.classes("cc-cell")]
    rankings = rank_captions(answer, "log_ratio")
    expected = [share for ranking in rankings.values() for one in ranking.found for share in one.shares]
    assert len(cells) == (2 * count + 1) * count
    assert cells[: 2 * count * count] == pytest.approx(expected, abs=5e-4)
    framed = [number for number, attributes in enumerate(seen.classes("cc-cell"))
              if "cc-own-image" in attributes["class"]]  # fmt: skip
    assert framed == [row * count + row % count for row in range(2 * count)]
    first = sum(one.rank == 1 for one in rankings["target"].found)
    assert f"new{first} of {count}" in seen.text.replace("\n", "")


def test_what_could_do_harm_stays_text(answer):
    for judge in ("writer", "log_ratio"):
        plain, harmful = (render_answer(one, judge, ("old", EVIL)) for one in (answer, evil(answer)))
        for part, other in zip(plain, harmful, strict=True):
            seen = Seen(other)
            assert [tag for tag, _ in Seen(part).tags if tag != "span"] == [t for t, _ in seen.tags if t != "span"]
            assert not [attributes for _, attributes in seen.tags if any(name.startswith("on") for name in attributes)]
            assert "window.harmed=1</script>" in seen.text
    header = Seen(render_header(("old", EVIL)))
    assert EVIL in header.text and {tag for tag, _ in header.tags} == {"style", "header", "h1", "span", "p"}


def test_one_image_has_no_matrix_and_a_refusal_is_said(answer):
    single = replace(
        answer,
        thumbnails=answer.thumbnails[:1],
        captions={side: texts[:1] for side, texts in answer.captions.items()},
        words={side: words[:1] for side, words in answer.words.items()},
        scores={},
        own=None,
    )
    captions, ranking = render_answer(single, "writer", ("old", "new"))
    assert ranking == "" and len(Seen(captions).classes("cc-card")) == 1 and not Seen(captions).classes("cc-rank")
    captions, ranking = render_answer(replace(answer, scores={}, no_scores="a <reason>"), "writer", ("old", "new"))
    assert "No ranking among the images: a <reason>" in Seen(ranking).text
    assert len(Seen(captions).classes("cc-card")) == len(answer.thumbnails)
