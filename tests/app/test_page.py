"""The real command in a browser: images go in, captions and their ranking come out, and what is too large does not."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests import tiny
from tests.app.command import Running, running, save_captioners
from tests.browser import SCREENS, open_page

MEGAPIXELS = 0.01


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The page of two tiny captioners with narrow limits; the last test of this file ends it."""
    folder = tmp_path_factory.mktemp("app")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--max-images", 4, "--max-upload-mb", 0.1, "--max-megapixels", MEGAPIXELS, "--port", port]
    with running(folder / "run", *save_captioners(folder), *words) as found:
        yield found


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two images that are taken."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    for number, image in enumerate(tiny.images(2)):
        paths.append(str(folder / f"photo-{number}.png"))
        image.save(paths[-1])
    return paths


def upload(page, paths) -> None:
    page.locator("#images input[type=file]").first.set_input_files(paths)


def write(page, images: int) -> None:
    page.locator(f"#images img >> nth={images - 1}").wait_for()
    page.get_by_role("button", name="Write captions").click()
    page.locator(f"#captions .cc-card >> nth={images - 1}").wait_for()


@pytest.mark.parametrize(("scheme", "width"), SCREENS)
def test_two_images_are_captioned_and_ranked(app: Running, pictures, tmp_path: Path, scheme, width):
    with open_page(app.url, width=width, scheme=scheme) as page:
        page.get_by_role("button", name="Write captions").wait_for()
        upload(page, pictures)
        page.get_by_role("button", name="How captions are written").click()
        page.get_by_label("number input for Longest caption in tokens").fill("8")
        write(page, 2)
        assert page.locator("#captions .cc-caption").count() == 4
        assert page.locator("#captions .cc-caption b").all_inner_texts() == ["before", "after"] * 2
        assert page.locator("#captions .word[title]").count() > 4
        assert page.locator("#ranking .cc-matrix tbody tr").count() == 4
        assert page.locator("#ranking .cc-cell").count() == 8
        assert page.locator("#ranking .cc-own-image").count() == 4

        page.locator("#own textarea, #own input").first.fill("a red dog <b>runs</b> ${1+1} {{value}}")
        page.keyboard.press("Enter")
        page.locator("#ranking tr.cc-own").wait_for()
        assert "a red dog <b>runs</b> ${1+1} {{value}} ⏎" in page.locator("#captions .cc-own").first.inner_text()
        assert "a red dog <b>runs</b> ${1+1} {{value}}" in page.locator("#ranking tr.cc-own").inner_text()
        page.get_by_label("their log-ratio").check()
        page.get_by_text("Ranked by their log-ratio.").wait_for()

        ink = page.evaluate("getComputedStyle(document.querySelector('#captions .cc-app')).color")
        assert ink == {"light": "rgb(36, 41, 47)", "dark": "rgb(230, 237, 243)"}[scheme]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        picture = tmp_path / "page.png"
        page.screenshot(path=str(picture), full_page=True)
        with Image.open(picture) as shown:
            assert shown.width == width and shown.height > 900


def test_an_example_is_captioned_by_one_click_and_sampling_has_its_own_settings(app: Running):
    with open_page(app.url) as page:
        page.get_by_role("button", name="How captions are written").click()
        page.get_by_label("number input for Beams").wait_for()
        page.get_by_label("sampling").check()
        page.get_by_label("number input for Temperature").wait_for()
        page.locator("text=Beams").wait_for(state="hidden")
        page.get_by_label("number input for Longest caption in tokens").fill("6")
        page.get_by_role("button", name="one scene").click()
        # The scenes have more pixels than this page takes.
        page.get_by_text("one-scene-1.png has 256 × 256 pixels, 0.0655 megapixels; at most 0.01 are taken").wait_for()


def test_an_image_with_too_many_pixels_is_refused_by_name_and_the_others_stay(app: Running, pictures, tmp_path: Path):
    large = tmp_path / "large & <i>wide.png"
    Image.new("RGB", (200, 100)).save(large)
    with open_page(app.url) as page:
        page.get_by_role("button", name="Write captions").wait_for()
        upload(page, [pictures[0], str(large)])
        page.get_by_text("has 200 × 100 pixels, 0.02 megapixels; at most 0.01 are taken. Make it smaller.").wait_for()
        write(page, 1)
        assert page.locator("#images img").count() == 1
        assert not page.locator("#ranking .cc-matrix").count()


def test_a_file_that_is_too_large_does_not_reach_the_page(app: Running, tmp_path: Path):
    heavy = tmp_path / "heavy.png"
    heavy.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(150_000))
    # Gradio says it in the console too, and asks how far the upload is that it did not begin.
    expected = ("Failed to load resource: the server responded with a status of 404 (Not Found)", "Response")
    with open_page(app.url, expected=expected) as page:
        page.get_by_role("button", name="Write captions").wait_for()
        upload(page, [str(heavy)])
        page.get_by_text('File(s) exceed the maximum allowed size of 102.4 Kb: "heavy.png"').wait_for()
        assert page.locator("#images img").count() == 0


def test_too_many_images_are_refused_and_the_first_ones_stay(app: Running, tmp_path: Path):
    paths = []
    for number, image in enumerate(tiny.images(6)):
        paths.append(str(tmp_path / f"{number}.png"))
        image.save(paths[-1])
    with open_page(app.url) as page:
        page.get_by_role("button", name="Write captions").wait_for()
        upload(page, paths)
        page.get_by_text("6 images were given; at most 4 are taken at once.").wait_for()
        page.locator("#images img >> nth=4").wait_for(state="hidden")
        assert page.locator("#images img").count() == 4


def test_the_gate_lets_through_what_the_page_needs(app: Running, pictures):
    api = f"{app.url}gradio_api/"
    with httpx.Client(trust_env=False) as client:
        page = client.get(app.url)
        assert page.status_code == 200 and "connect-src 'self'" in page.headers["content-security-policy"]
        for path in ("info", "openapi.json", "proxy=http://example.org/", "runs", "vibe-code/", "deep_link"):
            assert client.get(api + path).status_code == 404
        assert client.get(f"{app.url}monitoring").status_code == 404
        assert client.get(f"{api}file=/etc/hostname").status_code in (403, 404)
        for path in ("component_server", "process_recording", "vibe-edit", "call/written", "stream/1"):
            assert client.post(api + path, json={}).status_code == 404
        assert client.post(f"{api}upload", content=iter([b"a"])).status_code == 411
        assert client.post(f"{api}upload", content=b"a" * 500_000).status_code == 413
        assert client.post(f"{api}queue/join", content=b"a" * 1_000_001).status_code == 413
        for origin, code in (("http://example.org", 403), (app.url.rstrip("/"), 413), ("null", 403)):
            sent = client.post(f"{api}upload", content=b"a" * 500_000, headers={"Origin": origin})
            assert sent.status_code == code
        # Gradio would download it.
        address = {"path": "http://example.org/a.png", "meta": {"_type": "gradio.FileData"}}
        asked = {"data": [[{"image": address, "caption": None}]], "fn_index": 0, "session_hash": "a"}
        assert client.post(f"{api}queue/join", json=asked).status_code == 400


def test_nothing_is_written_outside_of_the_temporary_folder_and_it_goes(app: Running, pictures):
    with open_page(app.url) as page:
        page.get_by_role("button", name="Write captions").wait_for()
        upload(page, pictures)
        write(page, 2)
    written = app.files()
    assert sum(name.endswith(("photo-0.png", "photo-1.png")) for name in written) == 2
    assert {Path(name).parts[0] for name in written} == {"tmp"}
    assert all(Path(name).parts[1].startswith("contrastive-caption-") for name in written)
    code, shown = app.stop()
    assert code == 130 and "The page has ended." in shown and "Traceback" not in shown
    assert app.files() == [] and list((app.folder / "tmp").iterdir()) == []


@pytest.mark.slow
def test_sigterm_ends_it_as_well(tmp_path: Path):
    with running(tmp_path / "run", *save_captioners(tmp_path)) as app:
        assert int(app.url.rsplit(":", 1)[1].strip("/")) >= 7860
        assert app.files()
        code, shown = app.stop(signal.SIGTERM)
        assert code == 143 and "Traceback" not in shown
        assert list((app.folder / "tmp").iterdir()) == []
