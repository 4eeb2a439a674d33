"""Batches of rows of about equal length: every row once, the same order for any division, and less padding."""

from __future__ import annotations

import numpy as np
import pytest
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from hf_contrastive_caption.data import ContrastiveCaptionDataset
from hf_contrastive_caption.data.bucketing import WINDOW_STEPS, LengthBucketSampler
from hf_contrastive_caption.data.keyed import mix
from hf_contrastive_caption.data.sampler import EpochSampler

from .conftest import make_dataset
from .test_sampler import Keys, as_lists


class Lengths(Keys):
    """Rows whose lengths, 1 to 20, are drawn anew in every epoch; keeps how many were asked for at once."""

    asked = 0

    def row_lengths(self, rows, epoch, *, packed):
        self.asked = max(self.asked, len(rows))
        return (mix(rows, epoch) % np.uint64(20)).astype(np.int64) + 1


def keys_of(sampler, epoch=0):
    sampler.set_epoch(epoch)
    return list(sampler)


@given(st.integers(1, 1500), st.integers(1, 5), st.integers(1, 4), st.integers(0, 3))
@settings(deadline=None, max_examples=50)
def test_an_epoch_has_every_row_once_and_steps_of_one_length(n_rows, batch, accumulation, epoch):
    step = batch * accumulation
    data = Lengths(n_rows)
    keys = keys_of(LengthBucketSampler(data, 7, pad_to=batch, step_size=step, packed=True), epoch)
    assert len(keys) == -(-n_rows // batch) * batch
    assert [key.weight for key in keys] == [1.0] * n_rows + [0.0] * (len(keys) - n_rows)
    rows = np.asarray([key.row for key in keys])
    assert sorted(rows[:n_rows].tolist()) == list(range(n_rows))
    assert {key.epoch for key in keys} == {epoch}
    assert data.asked <= WINDOW_STEPS * step
    # A window holds the same rows as without lengths, and within it no two steps overlap in length.
    plain = [key.row for key in keys_of(EpochSampler(data, 7, pad_to=batch), epoch)]
    for start in range(0, n_rows, WINDOW_STEPS * step):
        window = rows[start : min(start + WINDOW_STEPS * step, n_rows)]
        assert sorted(window.tolist()) == sorted(plain[start : start + len(window)])
        whole = len(window) // step * step
        lengths = data.row_lengths(window[:whole], epoch, packed=True).reshape(-1, step)
        by_first = lengths[np.lexsort((lengths[:, -1], lengths[:, 0]))]
        assert (by_first[1:, 0] >= by_first[:-1, -1]).all()


def test_the_order_of_steps_is_shuffled_and_differs_between_epochs_and_seeds():
    def first_lengths(seed, epoch):
        data = Lengths(400)
        rows = np.asarray(
            [key.row for key in keys_of(LengthBucketSampler(data, seed, step_size=8, packed=True), epoch)]
        )
        return rows.tolist(), data.row_lengths(rows, epoch, packed=True).reshape(-1, 8)[:, 0]

    rows, lengths = first_lengths(0, 0)
    assert first_lengths(0, 0)[0] == rows
    for other in (first_lengths(0, 1), first_lengths(1, 0)):
        assert (np.asarray(other[0]) == np.asarray(rows)).mean() < 0.02
    assert abs(np.corrcoef(np.arange(50), lengths)[0, 1]) < 0.5
    assert (np.diff(lengths) < 0).sum() > 15


def loader_of(n_processes, process, batch, accumulation, **workers):
    data = Lengths(101)
    pad_to = batch * n_processes
    sampler = LengthBucketSampler(data, 5, pad_to, step_size=pad_to * accumulation, packed=True)
    loader = DataLoader(data, batch_size=batch, sampler=sampler, collate_fn=as_lists, **workers)
    return prepare_data_loader(loader, num_processes=n_processes, process_index=process, put_on_device=False)


def steps_of(n_processes, batch, accumulation, **workers):
    """The rows of each optimizer step that counts, of all processes together."""
    parts = []
    for process in range(n_processes):
        loader = loader_of(n_processes, process, batch, accumulation, **workers)
        loader.set_epoch(2)
        parts.append(list(loader))
    assert len({len(part) for part in parts}) == 1
    steps = []
    for start in range(0, len(parts[0]), accumulation):
        batches = [batch for part in parts for batch in part[start : start + accumulation]]
        steps.append(sorted(row for batch in batches for _, row, weight in batch if weight))
    return steps


def test_steps_do_not_depend_on_processes_accumulation_or_workers():
    one = steps_of(1, 8, 1)
    assert [len(step) for step in one] == [8] * 12 + [5]
    for division in ((2, 4, 1), (2, 2, 2), (1, 2, 4), (4, 2, 1)):
        assert steps_of(*division) == one
    assert steps_of(2, 2, 2, num_workers=2) == one


@pytest.mark.parametrize("n_processes", [1, 2])
def test_a_resume_goes_on_with_the_same_rows(n_processes):
    whole = loader_of(n_processes, n_processes - 1, 4, 2)
    whole.set_epoch(3)
    expected = list(whole)
    resumed = skip_first_batches(loader_of(n_processes, n_processes - 1, 4, 2), 5)
    resumed.set_epoch(3)
    assert list(resumed) == expected[5:]


@pytest.mark.parametrize("captions_per_image", [1, "all"])
@pytest.mark.parametrize("num_negatives", [0, 3])
def test_lengths_are_those_of_the_examples(captions_per_image, num_negatives, processor):
    data = ContrastiveCaptionDataset(
        make_dataset(12, None), [processor], num_negatives, captions_per_image=captions_per_image
    )
    rows = np.asarray([3, 0, 11, 5, 3])
    for epoch in (0, 4):
        data.set_epoch(epoch)
        lengths = [data[row].tokens[0].lengths for row in rows.tolist()]
        assert data.row_lengths(rows, epoch, packed=True).tolist() == [int(one.sum()) for one in lengths]
        assert data.row_lengths(rows, epoch, packed=False).tolist() == [int(one.max()) for one in lengths]
    assert data.row_lengths(rows[:0], 0, packed=True).tolist() == []


def test_steps_of_nothing_are_refused():
    with pytest.raises(ValueError, match="step_size=0; give the number of rows in an optimizer step"):
        LengthBucketSampler(Lengths(3), step_size=0, packed=True)
