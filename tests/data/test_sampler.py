"""The order of an epoch, its padding, and how the epoch gets there under Accelerate."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard, SkipBatchSampler, prepare_data_loader
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, Dataset

from hf_contrastive_caption.data.sampler import EpochSampler, SampleKey, SharedEpoch


class Keys(Dataset):
    """Returns the keys that it is asked for."""

    def __init__(self, n_rows):
        self.n_rows = n_rows
        self._epoch = SharedEpoch()

    def __len__(self):
        return self.n_rows

    def __getitem__(self, key):
        return key

    @property
    def epoch(self):
        return self._epoch.get()

    def set_epoch(self, epoch):
        self._epoch.set(epoch)


def as_lists(examples):
    return [tuple(key) for key in examples]


@given(st.integers(1, 200), st.integers(1, 40), st.booleans(), st.integers(0, 3))
@settings(deadline=None)
def test_an_epoch_has_every_row_once(n_rows, pad_to, shuffle, epoch):
    dataset = Keys(n_rows)
    sampler = EpochSampler(dataset, seed=1, shuffle=shuffle, pad_to=pad_to)
    sampler.set_epoch(epoch)
    keys = list(sampler)
    assert len(keys) == len(sampler) and len(keys) % pad_to == 0 and len(keys) - n_rows < pad_to
    assert sum(key.weight for key in keys) == n_rows
    assert sorted(key.row for key in keys if key.weight) == list(range(n_rows))
    assert {key.weight for key in keys[n_rows:]} <= {0.0}
    assert {key.epoch for key in keys} == {epoch}
    if not shuffle:
        assert [key.row for key in keys[:n_rows]] == list(range(n_rows))


def test_orders_are_functions_of_seed_and_epoch():
    def order(seed, epoch):
        sampler = EpochSampler(Keys(10_000), seed=seed)
        sampler.set_epoch(epoch)
        return [key.row for key in sampler]

    assert order(0, 0) == order(0, 0)
    for other in (order(0, 1), order(1, 0), list(range(10_000))):
        assert (np.asarray(order(0, 0)) == np.asarray(other)).mean() < 0.002


@pytest.mark.parametrize("pad_to", [0, -3])
def test_padding_to_nothing_is_refused(pad_to):
    with pytest.raises(ValueError, match=f"pad_to={pad_to}; give the number of examples"):
        EpochSampler(Keys(3), pad_to=pad_to)


def test_a_sample_key_counts_one():
    assert SampleKey(3, 7) == (3, 7, 1.0)


def loader_of(dataset, batch_size, n_processes, process, **options):
    sampler = EpochSampler(dataset, seed=5, pad_to=batch_size * n_processes)
    loader = DataLoader(dataset, batch_size=batch_size, sampler=sampler, collate_fn=as_lists, **options)
    return prepare_data_loader(loader, num_processes=n_processes, process_index=process, put_on_device=False)


@pytest.mark.parametrize("n_processes", [1, 2, 3])
def test_processes_share_an_epoch_and_weights_sum_to_its_rows(n_processes):
    parts = [loader_of(Keys(23), 4, n_processes, process) for process in range(n_processes)]
    for epoch in (0, 1):
        keys = []
        for part in parts:
            part.set_epoch(epoch)
            batches = list(part)
            assert {len(batch) for batch in batches} == {4}
            keys += [key for batch in batches for key in batch]
        assert sum(weight for _, _, weight in keys) == 23
        assert sorted(row for _, row, weight in keys if weight) == list(range(23))
        assert {key[0] for key in keys} == {epoch}


@pytest.mark.parametrize("n_processes", [1, 2])
@pytest.mark.parametrize("workers", [{}, {"num_workers": 1, "persistent_workers": True}])
def test_a_resume_within_an_epoch_goes_on_with_the_same_keys(n_processes, workers):
    """As the trainer resumes: a new loader, the first batches skipped, then set_epoch."""
    whole = loader_of(Keys(23), 4, n_processes, n_processes - 1, **workers)
    whole.set_epoch(3)
    expected = list(whole)
    resumed = skip_first_batches(loader_of(Keys(23), 4, n_processes, n_processes - 1, **workers), 2)
    resumed.set_epoch(3)
    assert list(resumed) == expected[2:]
    assert expected[0][0][0] == 3


def test_a_resume_of_two_processes_reaches_the_data_set_only():
    """The trap that made the sampler keep its epoch in the data set; when this fails, it could keep its own."""
    dataset = Keys(8)
    sampler = torch.utils.data.SequentialSampler(dataset)
    heard = []
    sampler.set_epoch = heard.append
    shards = BatchSamplerShard(BatchSampler(sampler, 2, False), 2, 0)
    loader = DataLoaderShard(dataset, batch_sampler=SkipBatchSampler(shards, 1))
    loader.set_epoch(3)
    assert heard == []
    assert dataset.epoch == 3


def test_the_shared_epoch_can_be_pickled_and_is_shared_again():
    copy = pickle.loads(pickle.dumps(SharedEpoch(4)))
    assert copy.get() == 4
    assert copy._value.is_shared()
