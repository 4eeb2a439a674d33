"""A stand-in for the Hub to which the client of this process speaks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_server import Hub, point_client_to, serve


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve() as running:
        point_client_to(running, monkeypatch, tmp_path / "cache")
        yield running
