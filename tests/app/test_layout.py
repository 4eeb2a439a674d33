"""What happens when something is pressed or typed, without a browser."""

from __future__ import annotations

import gradio as gr
import pytest

from hf_contrastive_caption.app.layout import _Page, _told
from hf_contrastive_caption.app.limits import AppLimits, RefusedError
from hf_contrastive_caption.app.work import Decoding


@pytest.fixture
def page(captioners) -> _Page:
    return _Page(captioners, ("old", "new"), AppLimits(max_images=3, max_characters=20))


@pytest.fixture
def gallery(images, tmp_path) -> list[tuple[str, None]]:
    """Two images as a gallery gives them."""
    paths = [str(tmp_path / f"{number}.png") for number in range(2)]
    for image, path in zip(images, paths, strict=False):
        image.save(path)
    return [(path, None) for path in paths]


def test_pressing_the_button_decodes_as_was_set(page, gallery, captioners, images):
    settings = {
        ("beam search", 2, 5, 0.7, 0.9, 3): Decoding(num_beams=2, max_new_tokens=5),
        ("sampling", 2, 5, 1.7, 0.9, 3): Decoding(sample=True, max_new_tokens=5, temperature=1.7, top_p=0.9, seed=3),
    }
    for given, decoding in settings.items():
        captions, several, ranking, shown = page.written(gallery, "a red star", "writer", *given)
        plain = captioners.answer(images[:2], decoding, "a red star")
        assert shown.answer.captions == plain.captions and shown.answer.own.text == "a red star"
        assert captions.count("cc-card") >= 2 and "cc-matrix" in ranking and several["visible"] is True


def test_a_typed_caption_keeps_the_captions_that_are_shown(page, gallery):
    *_, shown = page.written(gallery, "", "writer", "beam search", 1, 5, 1, 1, 0)
    captions, _, ranking, after = page.scored(gallery, "a red star", "target", shown)
    assert after.answer.captions is shown.answer.captions and after.answer.own.text == "a red star"
    assert captions.count("your caption") == 2 and ranking.count("your caption") == 1
    by_ratio = page.ranked("log_ratio", after)
    assert by_ratio[1] != ranking and "Ranked by their log-ratio" in by_ratio[1]
    assert "come here" in page.ranked("target", None)[0]


def test_what_is_not_taken_is_said(page, gallery):
    *_, shown = page.written(gallery[:1], "", "writer", "beam search", 1, 5, 1, 1, 0)
    with pytest.raises(RefusedError, match="There is no image yet"):
        page.written(None, "", "writer", "beam search", 1, 5, 1, 1, 0)
    with pytest.raises(RefusedError, match="Your caption has 21 letters; at most 20"):
        page.written(gallery, "a" * 21, "writer", "beam search", 1, 5, 1, 1, 0)
    for state in (None, shown):  # the images are others by now
        with pytest.raises(RefusedError, match="Press Write captions first"):
            page.scored(gallery, "a red star", "writer", state)
    with pytest.raises(RefusedError, match="4 images were given"):
        page.written(gallery * 2, "", "writer", "beam search", 1, 5, 1, 1, 0)


def test_errors_reach_the_visitor_as_text():
    def fail() -> None:
        raise ValueError("<b>no</b>")

    with pytest.raises(gr.Error) as caught:
        _told(fail)()
    assert caught.value.message == "&lt;b&gt;no&lt;/b&gt;" and caught.value.print_exception is False
