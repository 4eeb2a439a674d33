"""The documentation as a site: built strictly, every page in the navigation, formulas drawn, no other host asked."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from tests.browser import SCREENS, browser_path
from tests.pages import ROOT


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr  # links and anchors that lead nowhere, pages that are in no list
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def named_pages(part: Any) -> list[str]:
    """The files that the navigation, or a part of it, names."""
    if isinstance(part, str):
        return [part]
    return [page for one in (part.values() if isinstance(part, dict) else part) for page in named_pages(one)]


def test_every_page_stands_once_in_the_navigation() -> None:
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert all(len(section) == 1 and isinstance(*section.values(), list) for section in navigation)
    assert sorted(named_pages(navigation)) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


def test_every_page_of_the_navigation_is_named_by_the_first_one() -> None:
    first = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    missing = [page.name for page in (ROOT / "docs").glob("*.md") if f"]({page.name}" not in first]
    assert missing == ["index.md"]


def test_the_links_of_the_readme_lead_somewhere(site: Path) -> None:
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", text):
            assert (ROOT / target).exists(), target
            if anchor and target:
                page = (site / Path(target).stem / "index.html").read_text(encoding="utf-8")
                assert f'id="{anchor}"' in page, (target, anchor)
            elif anchor:
                assert anchor in [
                    heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", text, re.M)
                ]


def test_formulas_are_mathml_and_roles_are_gone(site: Path) -> None:
    method = (site / "method" / "index.html").read_text(encoding="utf-8")
    assert method.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block"') >= 2
    for page in site.rglob("*.html"):
        text = re.sub(r"<(pre|code)\b.*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert re.findall(r"<p>\s*\|", text) == [], f"{page} has a row of a table without the table"
        assert (
            re.findall(r"\\\(|\\\[|\$\$|:(?:math|class|func|meth|attr|data|mod):|\.\. math::", unescape(text)) == []
        ), page


def test_what_becomes_of_formulas_and_roles() -> None:
    hooks = pytest.importorskip("mkdocs_hooks", reason="the extra docs is not installed")
    page = SimpleNamespace(file=SimpleNamespace(src_path="page.md"))
    start = '<math xmlns="http://www.w3.org/1998/Math/MathML" display="{}"><mrow>'
    less = "<mi>a</mi><mo>&#x0003C;</mo><mi>b</mi></mrow></math>"
    for written, drawn in (
        (r'<p><span class="arithmatex">\(a &lt; b\)</span></p>', f"<p>{start.format('inline')}{less}</p>"),
        (
            '<div class="arithmatex">\n\\[\na &lt; b\n\\]\n</div>',
            f'<div class="arithmatex">{start.format("block")}{less}</div>',
        ),
        (":math:<code>a &lt; b</code>", start.format("inline") + less),
        (":class:<code>~a.B</code> and <code>c</code>", "<code>a.B</code> and <code>c</code>"),
    ):
        assert hooks.on_page_content(written, page=page) == drawn
    with pytest.raises(Exception, match=r"page\.md: latex2mathml does not know .*nosuchcommand"):
        hooks.on_page_content(r'<span class="arithmatex">\(\nosuchcommand{x}\)</span>', page=page)


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) >= 20
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?([^\"\s>]+)", text)
        loaded += re.findall(r"<link\b[^>]*\bhref=\"?([^\"\s>]+)", text)
        assert loaded and [one for one in loaded if re.match(r"(https?:)?//", one)] == []
    for style in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", style.read_text(encoding="utf-8")) == []


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "width"), SCREENS)
def test_pages_in_a_browser(scheme: Any, width: int, site: Path, address: str, tmp_path: Path) -> None:
    """No error in the console, no request to another host, no page wider than the screen, formulas with a size."""
    api = pytest.importorskip("playwright.sync_api")
    errors: list[str] = []
    asked: list[str] = []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        for name in ("", "quickstart/", "choosing/", "faq/", "trl/", "method/", "results/", "api/"):
            page.goto(f"{address}/{name}", wait_until="load")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            page.screenshot(path=tmp_path / f"{name.rstrip('/') or 'index'}_{scheme}_{width}.png")
            if name == "method/":
                heights = page.evaluate(
                    "[...document.querySelectorAll('math')].map(m => m.getBoundingClientRect().height)"
                )
                assert len(heights) >= 20 and min(heights) > 5 and max(heights) > 30
        shown = page.evaluate("getComputedStyle(document.body).backgroundColor")
        browser.close()
    assert errors == []
    assert {url for url in asked if not url.startswith((address, "data:", "blob:"))} == set()
    red = int(re.findall(r"\d+", shown)[0])
    assert red > 200 if scheme == "light" else red < 60
