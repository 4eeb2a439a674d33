"""A page in headless Chromium; tests that need one are skipped where none is installed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

SCREENS = [
    ("light", 1280),
    pytest.param("dark", 1280, marks=pytest.mark.slow),
    pytest.param("light", 390, marks=pytest.mark.slow),
]
"""Colour schemes and widths in which a page is looked at."""


def browser_path() -> str:
    """The browser that is installed, or the one that ``CHROMIUM`` names."""
    found = os.environ.get("CHROMIUM") or next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium is installed (apt-get install chromium), or CHROMIUM does not name one")
    return found


@contextmanager
def open_page(
    address: Path | str, *, width: int = 1200, scheme: Any = "light", expected: Sequence[str] = ()
) -> Iterator[Any]:
    """A page; at the end no error may stand in its console, and it may have asked nothing but where it came from.

    A file may ask for nothing at all, a page of a server for what begins with its address. ``expected`` has the errors
    that are no surprise, word by word.
    """
    api = pytest.importorskip("playwright.sync_api")
    errors: list[str] = []
    asked: list[str] = []
    url = address if isinstance(address, str) else address.resolve().as_uri()
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        yield page
        browser.close()
    assert [error for error in errors if error not in expected] == []
    others = {other for other in asked if not other.startswith(("data:", "blob:"))}
    assert url in others
    assert not [other for other in others if other != url and not (url.startswith("http") and other.startswith(url))]
