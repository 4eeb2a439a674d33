"""Negatives: never the image's own, every one equally likely, and pure functions of (seed, epoch, caption)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_contrastive_caption.data import negatives as module
from hf_contrastive_caption.data.negatives import EVALUATION_EPOCH, ShuffledNegatives
from hf_contrastive_caption.data.table import CaptionIndex


def make_index(image_of_row, captions_per_row, text_of_caption):
    row_start = np.cumsum([0, *captions_per_row])
    return CaptionIndex.from_arrays(
        row_start, np.asarray(text_of_caption, np.uint64), np.asarray(image_of_row, np.uint64)
    )


def simple_index(n_rows, captions_per_row=5):
    return make_index(range(n_rows), [captions_per_row] * n_rows, range(n_rows * captions_per_row))


@st.composite
def indices(draw):
    """Few images and few texts over several rows, so that clashes are everywhere."""
    n_rows = draw(st.integers(1, 8))
    images = draw(st.lists(st.integers(0, 4), min_size=n_rows, max_size=n_rows))
    counts = draw(st.lists(st.integers(1, 4), min_size=n_rows, max_size=n_rows))
    texts = draw(st.lists(st.integers(0, 5), min_size=sum(counts), max_size=sum(counts)))
    return make_index(images, counts, texts)


def allowed_pairs(index):
    """The naive table: which caption (column) may be a negative of which (row)."""
    everything = np.arange(index.n_captions)
    images, texts = index.image_keys(everything), index.text_key
    return (images[:, None] != images) & (texts[:, None] != texts)


@given(indices(), st.integers(0, 5), st.integers(-1, 3))
@settings(max_examples=300, deadline=None)
def test_negatives_are_allowed_or_refused_at_the_start(index, seed, epoch):
    allowed = allowed_pairs(index)
    if not allowed.any(axis=1).all():
        with pytest.raises(ValueError, match="No negatives can be drawn from this data set"):
            ShuffledNegatives(index, 3, seed)
        return
    captions = np.arange(index.n_captions)
    drawn = ShuffledNegatives(index, 3, seed).draw(captions, epoch)
    assert drawn.shape == (len(captions), 3) and drawn.dtype == np.int64
    assert allowed[captions[:, None], drawn].all()


@given(st.lists(st.integers(0, 99), min_size=1, max_size=30), st.integers(-1, 4))
@settings(deadline=None)
def test_a_draw_depends_on_its_own_caption_only(captions, epoch):
    negatives = ShuffledNegatives(simple_index(20), 4, seed=3)
    whole = negatives.draw(np.arange(100), epoch)
    np.testing.assert_array_equal(negatives.draw(np.asarray(captions), epoch), whole[captions])


def test_draws_change_with_seed_epoch_and_k():
    index, captions = simple_index(2000), np.arange(10_000)
    draws = [
        ShuffledNegatives(index, 2, seed).draw(captions, epoch)[:, k]
        for seed in (0, 1)
        for epoch in (EVALUATION_EPOCH, 0, 1)
        for k in (0, 1)
    ]
    for place, one in enumerate(draws):
        for other in draws[:place]:
            assert (one == other).mean() < 0.002


def test_a_larger_k_begins_with_the_smaller():
    index = simple_index(50)
    few, many = (ShuffledNegatives(index, k, 1).draw(np.arange(250), 2) for k in (2, 7))
    np.testing.assert_array_equal(few, many[:, :2])


def test_each_set_is_almost_a_shuffle():
    """Every caption serves K times on the average; only redrawn places (5 of 5,000) make it uneven."""
    drawn = ShuffledNegatives(simple_index(1000), 5, 0).draw(np.arange(5000), 0)
    for k in range(5):
        assert len(np.unique(drawn[:, k])) > 4970


def test_redrawn_negatives_are_uniform():
    """Two big images and a small one: most first draws are refused. Chi-square over the allowed captions."""
    index = make_index(range(3), [20, 20, 3], range(43))
    negatives = ShuffledNegatives(index, 20, 0)
    counts = np.zeros((43, 43))
    for epoch in range(150):
        drawn = negatives.draw(np.arange(43), epoch)
        np.add.at(counts, (np.arange(43)[:, None], drawn), 1)
    allowed = allowed_pairs(index)
    assert (counts[~allowed] == 0).all()
    for caption in range(43):
        seen = counts[caption, allowed[caption]]
        chi = ((seen - seen.mean()) ** 2 / seen.mean()).sum()
        assert chi < len(seen) - 1 + 5.5 * np.sqrt(2 * (len(seen) - 1))


def test_rare_negatives_are_found_and_uniform(monkeypatch):
    """A thousand captions of one image, four of another: all attempts fail, so a random order is searched."""
    monkeypatch.setattr(module, "_CHUNK", 64)
    index = make_index([1, 2], [1000, 4], range(1004))
    drawn = np.concatenate([ShuffledNegatives(index, 1, 0).draw(np.arange(0, 1000), epoch) for epoch in range(2)])
    counts = np.bincount(drawn.ravel() - 1000, minlength=4)
    assert counts.sum() == 2000 and len(counts) == 4
    assert abs(counts - 500).max() < 5 * np.sqrt(500)


ERRORS = {
    "one image": (make_index([5, 5], [2, 1], [1, 2, 3]), "all 3 captions belong to one and the same image"),
    "one text": (make_index([1, 2], [1, 2], [9, 9, 9]), "all 3 captions say the same"),
    "one row": (make_index([1], [1], [9]), "belong to one and the same image"),
    "same texts": (
        make_index([1, 2], [1, 2], [7, 7, 8]),
        "every caption of another image says the same as caption 0 of row 1",
    ),
    "one stranded": (
        make_index([1, 2, 3], [3, 1, 1], [4, 5, 6, 6, 6]),
        "every caption of another image says the same as caption 2 of row 0",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_data_sets_without_negatives_are_refused(name):
    index, message = ERRORS[name]
    with pytest.raises(ValueError, match=f"{message}.*Add images with other captions"):
        ShuffledNegatives(index, 5)


def test_two_images_with_the_same_two_texts_are_fine():
    index = make_index([1, 2], [2, 2], [7, 8, 7, 8])
    drawn = ShuffledNegatives(index, 3, 0).draw(np.arange(4), 0)
    assert drawn.tolist() == [[3] * 3, [2] * 3, [1] * 3, [0] * 3]


@pytest.mark.parametrize("num_negatives", [0, -1])
def test_k_below_one_is_refused(num_negatives):
    with pytest.raises(ValueError, match=f"num_negatives={num_negatives}: every caption needs at least 1"):
        ShuffledNegatives(simple_index(3), num_negatives)
