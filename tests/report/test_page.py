"""The page in a browser: no errors, sorting, searching, links between images; and what could do harm stays text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_contrastive_caption.report import CaptionerComparison
from hf_contrastive_caption.report.page import render_page, shaded_words, shading_scale
from hf_contrastive_caption.report.thumbnails import MAX_BYTES, SIZE, thumbnail
from hf_contrastive_caption.report.words import Word
from tests.browser import open_page

EVIL = "</script><script>window.harmed = 1</script><img src=x onerror='window.harmed=1'> \" onload=\"1"


def with_text(comparison: CaptionerComparison, text: str) -> CaptionerComparison:
    """The first image says something else, and so do its people."""
    first = comparison.images[0]
    words = tuple(Word(word, 0.1) for word in [*text.split(), ""])
    shown = replace(first.target, text=text, words=words, invented=("onload",))
    return replace(
        comparison,
        images=(replace(first, target=shown, human=(text,)), *comparison.images[1:]),
        target=replace(comparison.target, name=text),
    )


class Tags(HTMLParser):
    """Counts the tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append((tag, dict(attrs)))

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.seen)


def test_shading(comparison):
    scale = shading_scale(comparison)
    sizes = [abs(w.log_ratio) for i in comparison.images for side in (i.reference, i.target) for w in side.words]
    assert np.mean(np.array(sizes) <= scale) == pytest.approx(0.9, abs=0.02)
    caption = replace(
        comparison.images[0].target,
        words=(Word("A", scale / 2), Word("Dog,", -2 * scale), Word("", 0.0)),
        invented=("dog",),
    )
    assert [(word.text, word.strength, word.invented) for word in shaded_words(caption, scale)] == [
        ("A", 0.5, False),
        ("Dog,", -1.0, True),
        ("⏎", 0.0, False),
    ]


def test_what_could_do_harm_stays_text(comparison):
    plain, evil = Tags(render_page(comparison)), Tags(render_page(with_text(comparison, EVIL)))
    for tag in ("script", "img", "style"):
        assert evil.count(tag) == plain.count(tag)
    assert not [attributes for _, attributes in evil.seen if any(name.startswith("on") for name in attributes)]
    assert plain.count("article") == 12
    addresses = [attributes.get("src") or attributes.get("href") for _, attributes in plain.seen]
    assert all(address.startswith(("data:", "#")) for address in addresses if address)  # no network


def test_in_a_notebook_it_is_one_frame(comparison):
    evil = with_text(comparison, EVIL)
    outside = Tags(evil._repr_html_())
    assert [tag for tag, _ in outside.seen] == ["iframe"]
    attributes = outside.seen[0][1]
    assert attributes["srcdoc"] == render_page(evil)  # the parser takes the escapes away
    assert attributes["sandbox"] == "allow-scripts"


def test_without_matplotlib_the_page_has_no_charts_and_says_so(comparison, monkeypatch: pytest.MonkeyPatch):
    assert Tags(render_page(comparison)).count("svg") == 3
    monkeypatch.setattr("hf_contrastive_caption.report.page.charts_available", lambda: False)
    page = render_page(comparison)
    assert Tags(page).count("svg") == 0
    assert "matplotlib was not installed" in page


class TestThumbnails:
    def test_small_whatever_is_in_them(self):
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 500, 3), dtype=np.uint8))
        for image in (noise, Image.new("RGB", (4000, 2)), Image.new("RGB", (1, 1))):
            content = thumbnail(image)
            assert len(content) <= MAX_BYTES
            with Image.open(BytesIO(content)) as opened:
                assert max(opened.size) <= SIZE
                assert opened.format == "WEBP"

    def test_nothing_of_the_file_is_left(self, tmp_path: Path):
        image = Image.new("RGB", (50, 40), "red")
        exif = Image.Exif()
        exif[0x010E] = "taken at home"
        image.save(tmp_path / "a.jpg", exif=exif)
        with Image.open(tmp_path / "a.jpg") as opened:
            content = thumbnail(opened.convert("RGB"))
        assert b"taken at home" not in content
        with Image.open(BytesIO(content)) as opened:
            assert dict(opened.getexif()) == {}
            assert opened.size == (50, 40)


def test_a_thousand_images_stay_under_20_megabytes(comparison):
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    worst = thumbnail(Image.fromarray(noise))
    first = replace(comparison.images[0], thumbnail=worst)
    words = tuple(Word("something", 0.25) for _ in range(20))
    side = replace(first.target, words=words, text=" ".join(word.text for word in words))
    people = tuple(f"{side.text[:60]} {n}" for n in range(5))
    many = [replace(first, number=n, target=side, reference=side, human=people) for n in range(1000)]
    page = render_page(replace(comparison, images=tuple(many)))
    assert Tags(page).count("article") == 1000
    assert 8e6 < len(page.encode()) < 20e6


class TestInABrowser:
    @pytest.fixture
    def page(self, comparison, tmp_path: Path) -> Iterator[Any]:
        with_text(comparison, EVIL).save(tmp_path)
        with open_page(tmp_path / "index.html") as page:
            yield page

    def numbers(self, page: Any) -> list[int]:
        return [int(card.get_attribute("data-number")) for card in page.locator(".card:not([hidden])").all()]

    def test_sorting_and_search(self, page, comparison):
        images = {image.number: image for image in comparison.images}
        assert self.numbers(page) == sorted(images)
        for name, key in (
            ("gain", lambda n: -images[n].gain),
            ("loss", lambda n: images[n].gain),
        ):
            page.select_option("#sort", name)
            assert self.numbers(page) == sorted(images, key=lambda n: (key(n), n))
        page.select_option("#sort", "number")
        word = comparison.images[3].human[0].split()[1]
        page.fill("#search", word.upper())
        holds = [
            number for number, image in images.items() if number
            and word in " ".join((image.reference.text, image.target.text, *image.human)).casefold()
        ]  # fmt: skip
        assert [number for number in self.numbers(page) if number] == holds
        assert page.locator("#count").inner_text().startswith(str(len(self.numbers(page))))
        page.fill("#search", "no such words")
        assert self.numbers(page) == []

    def test_nothing_harms_and_rivals_are_shown(self, page, comparison):
        assert page.evaluate("window.harmed") is None
        assert "<img src=x" in page.locator(".card").first.inner_text()
        number = next(image.number for image in comparison.images if image.rivals)
        details = page.locator(f"#image-{number} details")
        details.locator("summary").click()
        details.locator(".rivals img").first.wait_for()  # the browser tells of the opening a little later
        links = details.locator(".rivals a")
        assert links.count() == len(comparison.images[number].rivals)
        assert details.locator(".rivals img").count() == links.count()
        assert links.first.get_attribute("href") == f"#image-{comparison.images[number].rivals[0]}"
        colours = page.evaluate(
            "[...document.querySelectorAll('.word')].map(w => getComputedStyle(w).backgroundColor)"
        )
        assert len(set(colours)) > 5

    def test_in_the_frame_of_a_notebook(self, comparison, tmp_path: Path):
        (tmp_path / "notebook.html").write_text(f"<p>A cell</p>{with_text(comparison, EVIL)._repr_html_()}")
        with open_page(tmp_path / "notebook.html") as page:
            inside = page.frame_locator("iframe")
            inside.locator("#search").fill("no such words")
            assert inside.locator(".card:not([hidden])").count() == 0
            assert page.evaluate("window.harmed") is None

    @pytest.mark.slow
    def test_light_dark_and_on_a_telephone(self, comparison, tmp_path: Path):
        comparison.save(tmp_path)
        papers = []
        for scheme, width in (("light", 1200), ("dark", 1200), ("light", 360)):
            with open_page(tmp_path / "index.html", width=width, scheme=scheme) as page:
                papers.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                shot = tmp_path / f"{scheme}-{width}.png"
                page.screenshot(path=str(shot), full_page=True)
                with Image.open(shot) as picture:
                    assert len(set(picture.convert("RGB").resize((64, 64)).getdata())) > 100
        assert papers == ["rgb(255, 255, 255)", "rgb(13, 17, 23)", "rgb(255, 255, 255)"]


def test_invented_words_are_found_in_what_stands_between_spaces(comparison: CaptionerComparison) -> None:
    text = "the dog's \u201cball\u201d runs\u2014fast STRASSE."
    shown = replace(
        comparison.images[0].target,
        words=tuple(Word(word, 0.1) for word in [*text.split(), ""]),
        invented=("dog", "ball", "fast", "strasse"),
    )
    assert [word.invented for word in shaded_words(shown, 1.0)] == [False, True, True, True, True, False]
