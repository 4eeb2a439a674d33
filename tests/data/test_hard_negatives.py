"""Hard negatives: from the image's own list, as many as the share says, and pure functions of seed, epoch, caption."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_contrastive_caption.data.by_image import captions_by_image, same_images
from hf_contrastive_caption.data.hard_negatives import HardNegatives, HardShare
from hf_contrastive_caption.data.negatives import ShuffledNegatives
from hf_contrastive_caption.data.table import CaptionIndex

N_ROWS, PER_ROW = 20, 5


class Lists:
    """Lists in memory: one for each row."""

    refused = 0.0

    def __init__(self, lists):
        self.image_of_row = np.arange(len(lists))
        width = max(map(len, lists))
        self._table = np.asarray([[*one, *[-1] * (width - len(one))] for one in lists])

    def read(self, images):
        return self._table[images]

    def digest(self):
        return str(self._table.tolist())


def index():
    keys = np.arange(N_ROWS, dtype=np.uint64)
    return CaptionIndex.from_arrays(
        np.arange(0, N_ROWS * PER_ROW + 1, PER_ROW), np.arange(N_ROWS * PER_ROW, dtype=np.uint64), keys
    )


def lists_of(lengths):
    """For each row the captions that follow its own, as many as said."""
    total = N_ROWS * PER_ROW
    return [[(PER_ROW * (row + 1) + k) % total for k in range(length)] for row, length in enumerate(lengths)]


def hard_negatives(lengths, share, k=5, seed=0):
    return HardNegatives(ShuffledNegatives(index(), k, seed), Lists(lists_of(lengths)), share)


@given(
    st.lists(st.integers(0, 12), min_size=N_ROWS, max_size=N_ROWS).filter(any),
    st.floats(0.01, 1),
    st.integers(1, 7),
    st.integers(0, 3),
)
@settings(deadline=None)
def test_some_come_from_the_list_and_the_others_are_the_shuffled_ones(lengths, share, k, epoch):
    negatives = hard_negatives(lengths, HardShare(share), k)
    captions = np.arange(N_ROWS * PER_ROW)
    drawn = negatives.draw(captions, epoch)
    shuffled = negatives.shuffled.draw(captions, epoch)
    for caption in captions.tolist():
        row = caption // PER_ROW
        most = min(int(np.ceil(share * k)), lengths[row])
        least = min(int(np.floor(share * k)), lengths[row])
        n_hard = next((n for n in range(k + 1) if drawn[caption, n:].tolist() == shuffled[caption, n:].tolist()), k)
        assert n_hard <= most
        hard = drawn[caption, : max(n_hard, least)].tolist()
        assert set(hard) <= set(lists_of(lengths)[row]) and len(set(hard)) == len(hard)


@given(st.lists(st.integers(0, 99), min_size=1, max_size=30), st.integers(0, 4))
@settings(deadline=None)
def test_a_draw_depends_on_its_own_caption_only(captions, epoch):
    negatives = hard_negatives([10] * N_ROWS, HardShare(0.5), 4)
    whole = negatives.draw(np.arange(100), epoch)
    np.testing.assert_array_equal(negatives.draw(np.asarray(captions), epoch), whole[captions])


def test_the_share_is_kept_and_every_caption_of_a_list_is_drawn_as_often():
    """A share of 0.3 of 5 is 1 or 2 of each; 0.5 + 0.5 at 1.5 on the average. Binomial bounds of 5 deviations."""
    negatives = hard_negatives([10] * N_ROWS, HardShare(0.3), 5)
    captions = np.arange(100)
    counts, places = [], np.zeros(10)
    for epoch in range(100):
        drawn = negatives.draw(captions, epoch)
        shuffled = negatives.shuffled.draw(captions, epoch)
        hard = drawn != shuffled
        counts.append(hard.sum(1))
        distance = (drawn - PER_ROW * (captions[:, None] // PER_ROW + 1)) % 100
        np.add.at(places, distance[:, 0], 1)  # the first is always a hard one
    counts = np.concatenate(counts)
    assert set(np.unique(counts)) <= {0, 1, 2}  # 0 where the shuffled one is by chance the same
    assert counts.mean() == pytest.approx(1.5 * (1 - 1 / 95), abs=5 * 0.5 / 100)
    assert abs(places - 1000).max() < 5 * np.sqrt(900)


def test_draws_change_with_seed_and_epoch():
    draws = [
        hard_negatives([40] * N_ROWS, HardShare(1.0), 2, seed).draw(np.arange(100), epoch)
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    for place, one in enumerate(draws):
        for other in draws[:place]:
            assert (one == other).mean() < 0.1


def test_shares_of_epochs():
    assert [HardShare(0.5).at(epoch) for epoch in (0, 3, 9)] == [0.5] * 3
    linear = HardShare(0.8, "linear", 4)
    assert [linear.at(epoch) for epoch in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    assert HardShare(0.8, "linear", 1).at(0) == 0.8
    assert HardShare(0.5, "constant", 3).digest() == HardShare(0.5, "constant", 4).digest()
    assert HardShare(0.5, "linear", 3).digest() != HardShare(0.5, "linear", 4).digest()


@pytest.mark.parametrize(("given", "message"), [((0,), "above 0"), ((1.1,), "at most 1"), ((1, "steep"), "'steep'")])
def test_shares_out_of_range_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        HardShare(*given)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_rows_are_one_image_by_any_key_and_by_links(pairs):
    """The naive twin joins sets of rows until none meet."""
    keys = np.asarray(pairs, np.uint64)
    image_of_row, first_row = same_images(keys[:, 0], keys[:, 1])
    sets = [{row} for row in range(len(pairs))]
    for one in range(len(pairs)):
        for other in range(one):
            if pairs[one][0] == pairs[other][0] or pairs[one][1] == pairs[other][1]:
                joined = next(s for s in sets if one in s) | next(s for s in sets if other in s)
                sets = [s for s in sets if not s & joined] + [joined]
    expected = sorted(sorted(rows) for rows in sets)
    found = [np.flatnonzero(image_of_row == image).tolist() for image in range(len(first_row))]
    assert found == expected and first_row.tolist() == [rows[0] for rows in expected]


def test_captions_are_ordered_by_images():
    index = CaptionIndex.from_arrays(np.asarray([0, 2, 3, 6]), np.arange(6, dtype=np.uint64) + 10)
    numbers, start, text_key = captions_by_image(index, np.asarray([1, 0, 1]))
    assert numbers.tolist() == [2, 0, 1, 3, 4, 5] and start.tolist() == [0, 1, 6]
    assert text_key.tolist() == [10, 11, 12, 13, 14, 15]
