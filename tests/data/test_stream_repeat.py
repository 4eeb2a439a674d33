"""Streams that go round: shards divided among processes, an epoch for each round, and resumes."""

from __future__ import annotations

from itertools import islice

import datasets
import pytest
import torch
from torch.utils.data import DataLoader

from hf_contrastive_caption.data import CaptionCollator, ContrastiveCaptionStream

from .conftest import features, make_columns, make_dataset
from .test_dataset import texts_in


def uneven_stream(n_rows=(9, 3, 5, 2)):
    """One shard for each number of rows; all rows are different."""
    columns, starts = make_columns(sum(n_rows)), [sum(n_rows[:shard]) for shard in range(len(n_rows))]

    def rows(shards):
        for start, stop in shards:
            for row in range(start, stop):
                yield {name: values[row] for name, values in columns.items()}

    shards = [(start, start + n) for start, n in zip(starts, n_rows, strict=True)]
    return datasets.IterableDataset.from_generator(rows, features=features(), gen_kwargs={"shards": shards})


def red(example):
    """Which row of the data it is: :func:`make_columns` paints its number."""
    return example.open_image().getpixel((0, 0))[0]


def seen(examples, processor):
    return [(e.row, e.epoch, e.weight, red(e), texts_in(e.tokens[0], processor)) for e in examples]


def test_a_stream_that_repeats_is_one_pass_after_the_other(processor):
    source = make_dataset(7, 2).to_iterable_dataset().shuffle(seed=1, buffer_size=20)
    once = ContrastiveCaptionStream(source, [processor], 2, reservoir_size=9)
    expected = []
    for epoch in (3, 4, 5):
        once.set_epoch(epoch)
        expected += seen(once, processor)
    again = ContrastiveCaptionStream(source, [processor], 2, reservoir_size=9, repeat=True)
    again.set_epoch(3)
    assert seen(islice(again, 21), processor) == expected
    orders = [[one[3] for one in expected[start : start + 7]] for start in (0, 7, 14)]
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]


@pytest.mark.parametrize("n_processes", [2, 4])
def test_processes_read_shards_of_their_own(n_processes, processor):
    """One shard of uneven length each, or two; together the first rounds are the whole stream, once."""
    first_round, numbers = [], []
    for process in range(n_processes):
        stream = ContrastiveCaptionStream(
            uneven_stream(), [processor], 0, repeat=True, process_index=process, num_processes=n_processes
        )
        examples = list(islice(stream, 40))
        rows = [red(example) for example in examples if example.epoch == 0]
        first_round += rows
        numbers += [example.row for example in examples if example.epoch == 0]
        assert {example.row % n_processes for example in examples} == {process}
        # datasets shuffles the shards of a later epoch, the same way in all processes.
        assert [example.epoch for example in examples] == sorted(example.epoch for example in examples)
        assert all(example.weight == 1 for example in examples) and examples[-1].epoch >= 2
    assert sorted(first_round) == list(range(19))
    assert len(set(numbers)) == 19


def test_later_rounds_have_every_row_too(processor):
    """The shards of a round are shuffled by its epoch, before they are divided."""
    parts = [
        ContrastiveCaptionStream(uneven_stream(), [processor], 0, repeat=True, process_index=p, num_processes=2)
        for p in range(2)
    ]
    examples = [example for part in parts for example in islice(part, 100)]
    for epoch in (1, 2, 3):
        assert sorted(red(example) for example in examples if example.epoch == epoch) == list(range(19))


def loader_of(process, workers, processor):
    stream = ContrastiveCaptionStream(
        uneven_stream(), [processor], 2, reservoir_size=4, repeat=True, process_index=process, num_processes=2
    )
    return DataLoader(stream, 3, collate_fn=CaptionCollator([processor], 2), num_workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_go_round_at_their_own_pace_and_do_not_disturb_each_other(workers, processor):
    """Shards of 9 and 5 rows in one process: its two workers are in different epochs most of the time."""

    def batches():
        return [
            (batch["rows"].tolist(), batch["captions"]["input_ids"].tolist(), batch["weights"].tolist())
            for batch in islice(loader_of(0, workers, processor), 24)
        ]

    first = batches()
    assert first == batches() == batches()
    assert all(weights == [1.0] * 3 for _, _, weights in first)
    rows = torch.tensor([rows for rows, _, _ in first])
    if workers == 2:  # parts 0 and 1 of four, in turn
        assert set((rows[::2] % 4).flatten().tolist()) == {0} and set((rows[1::2] % 4).flatten().tolist()) == {1}


def test_more_workers_than_shards_of_a_process(processor):
    """Worker 1 has no shard and stops; the other goes on."""
    stream = ContrastiveCaptionStream(
        uneven_stream((5, 4)), [processor], 1, repeat=True, process_index=1, num_processes=2
    )
    loader = DataLoader(stream, 2, collate_fn=CaptionCollator([processor], 1), num_workers=2)
    assert {len(batch["rows"]) for batch in islice(loader, 7)} == {2}


def test_a_process_without_rows_is_an_error_and_no_hang(processor):
    def part(process):
        return ContrastiveCaptionStream(
            uneven_stream((4, 0)), [processor], 0, repeat=True, process_index=process, num_processes=2
        )

    assert len(list(islice(part(0), 9))) == 9
    with pytest.raises(ValueError, match=r"The shards of process 1 of 2 have no rows.*stream_sharding='replicate'"):
        next(iter(part(1)))


def test_a_stream_without_rows_that_all_read_ends(processor):
    assert list(ContrastiveCaptionStream(uneven_stream((0,)), [processor], 0, repeat=True)) == []


PART_ERRORS = [
    ({"repeat": True, "evaluation": True}, "evaluation is one pass"),
    ({"repeat": True, "pad_to": 4}, "pad_to=4 fills up the end of a pass"),
    ({"num_processes": 2}, "num_processes=2 without repeat=True: the shards of one process may have fewer rows"),
    ({"repeat": True, "num_processes": 2, "process_index": 2}, "process_index=2 of num_processes=2; give a number"),
    ({"repeat": True, "num_processes": 3}, "has 4 shards .* no multiple of the 3 processes; .* a multiple of 3 files"),
]


@pytest.mark.parametrize(("options", "message"), PART_ERRORS)
def test_parts_that_cannot_be(options, message, processor):
    with pytest.raises(ValueError, match=message):
        ContrastiveCaptionStream(uneven_stream(), [processor], **options)
