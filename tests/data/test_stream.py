"""Streams: negatives from a reservoir, padding, workers, and what is said when it cannot be done."""

from __future__ import annotations

import logging
import pickle
from itertools import islice

import datasets
import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from PIL import ImageOps
from torch.utils.data import DataLoader

from hf_contrastive_caption.data import BadImageError, CaptionCollator, ContrastiveCaptionStream, examples
from hf_contrastive_caption.data.reservoir import CaptionReservoir, StreamRow

from .conftest import features, make_columns, make_dataset, make_processor
from .test_dataset import same_batches, texts_in


def make_stream(n_rows=12, captions_per_row=2, num_shards=1):
    return make_dataset(n_rows, captions_per_row).to_iterable_dataset(num_shards=num_shards)


def without_features(n_rows=6):
    def rows():
        source = make_dataset(n_rows)
        for row in range(n_rows):
            yield {"picture": source[row]["image"], "said": source[row]["captions"], "score": 0.5}

    return datasets.IterableDataset.from_generator(rows)


def all_texts(stream, processor):
    return [texts_in(example.tokens[0], processor) for example in stream]


@pytest.mark.parametrize("reservoir_size", [4, 7, 24, 5000])
@pytest.mark.parametrize("captions_per_image", [1, "all"])
def test_examples_hold_positives_and_negatives(reservoir_size, captions_per_image, processor):
    source = make_dataset(12, 2)
    stream = ContrastiveCaptionStream(
        source.to_iterable_dataset(),
        [processor],
        3,
        captions_per_image=captions_per_image,
        reservoir_size=reservoir_size,
    )
    found = list(stream)
    assert [example.row for example in found] == list(range(12))
    for example in found:
        own = source[example.row]["captions"]
        texts = np.asarray(texts_in(example.tokens[0], processor)).reshape(-1, 4)
        assert len(texts) == (1 if captions_per_image == 1 else 2)
        assert set(texts[:, 0]) <= set(own) and not set(texts[:, 1:].ravel()) & set(own)
        assert example.open_image().getpixel((0, 0)) == (example.row, 0, 7)


def test_a_pass_is_a_function_of_seed_and_epoch(processor):
    def texts(epoch=0, **options):
        stream = ContrastiveCaptionStream(make_stream(), [processor], 3, reservoir_size=9, **options)
        stream.set_epoch(epoch)
        return all_texts(stream, processor)

    assert texts() == texts()
    assert texts() != texts(epoch=1)
    assert texts() != texts(seed=1)
    assert texts(evaluation=True) == texts(evaluation=True, epoch=1) != texts()


def test_reading_ahead_is_bounded(processor):
    """The first example comes when the reservoir is full; tokens are made for 64 rows at once."""
    read = []

    def rows():
        columns = make_columns(300, 2)
        for row in range(300):
            read.append(row)
            yield {name: values[row] for name, values in columns.items()}

    source = datasets.IterableDataset.from_generator(rows, features=features())
    stream = iter(ContrastiveCaptionStream(source, [processor], 2, reservoir_size=40))
    next(stream)
    assert len(read) == 64
    list(islice(stream, 43))
    assert len(read) == 64
    next(stream)
    next(stream)
    assert len(read) == 128


def stream_row(number, n_captions=1):
    return StreamRow(
        number, None, number, np.arange(n_captions, dtype=np.uint64) + number * 10, [(np.zeros(1),)] * n_captions
    )


def test_every_caption_of_the_reservoir_serves_equally():
    """200 rows drawn 400 times each from the other 50 of a full reservoir: chi-square."""
    reservoir = CaptionReservoir(50, 0, 0)
    for number in range(50):
        assert not reservoir.full
        reservoir.add(stream_row(number))
    assert reservoir.full
    counts = np.zeros(50)
    for number in range(100, 300):
        drawn = reservoir.draw(stream_row(number), np.zeros(1, np.int64), 100)
        counts += np.bincount(drawn.ravel(), minlength=50)
    assert ((counts - 400) ** 2 / 400).sum() < 49 + 5 * np.sqrt(98)


def test_a_caption_stays_for_about_the_size_of_the_reservoir():
    reservoir = CaptionReservoir(50, 0, 0)
    for number in range(5050):
        reservoir.add(stream_row(number))
    ages = 5050 - reservoir._image_keys.astype(int)  # each place is renewed with chance 1/50 by every caption
    assert 25 < ages.mean() < 85
    assert ages.max() < 500


def test_padding_has_no_weight(processor):
    stream = ContrastiveCaptionStream(make_stream(10), [processor], 1, pad_to=8)
    found = list(stream)
    assert [example.weight for example in found] == [1.0] * 10 + [0.0] * 6
    assert len(list(ContrastiveCaptionStream(make_stream(8), [processor], 1, pad_to=8))) == 8


def test_processes_share_a_stream(processor):
    rows, weights = [], 0.0
    whole = {}
    stream = ContrastiveCaptionStream(make_stream(10), [processor], 2, pad_to=6, on_bad_image="raise")
    collator = CaptionCollator([processor], 2)
    for batch in DataLoader(stream, batch_size=1, collate_fn=collator):
        whole[batch["rows"].item()] = batch["captions"]["input_ids"].tolist()
    for process in range(2):
        plain = DataLoader(stream, batch_size=3, collate_fn=collator)
        part = prepare_data_loader(
            plain, num_processes=2, process_index=process, put_on_device=False, dispatch_batches=False
        )
        for batch in part:
            assert len(batch["rows"]) == 3
            kept = batch["weights"] > 0
            rows += batch["rows"][kept].tolist()
            weights += batch["weights"].sum().item()
            pieces = batch["captions"]["input_ids"].split(batch["captions"]["lengths"].reshape(3, 3).sum(1).tolist())
            for row, piece in zip(batch["rows"].tolist(), pieces, strict=True):
                assert piece.tolist() == whole[row]
    assert sorted(rows) == list(range(10)) and weights == 10


def test_one_process_opens_no_images_of_another(processor, monkeypatch):
    opened = []
    plain_open = examples.open_image
    monkeypatch.setattr(examples, "open_image", lambda value: opened.append(value) or plain_open(value))
    stream = ContrastiveCaptionStream(make_stream(12), [processor], 1)
    loader = DataLoader(stream, batch_size=3, collate_fn=CaptionCollator([processor], 1))
    list(prepare_data_loader(loader, num_processes=2, process_index=1, put_on_device=False, dispatch_batches=False))
    assert len(opened) == 6


def test_workers_divide_the_shards(processor):
    stream = ContrastiveCaptionStream(make_stream(12, num_shards=3), [processor], 2, pad_to=2)
    collator = CaptionCollator([processor], 2)
    alone = DataLoader(stream, 2, collate_fn=collator)
    one = DataLoader(stream, 2, collate_fn=collator, num_workers=1)
    persistent = DataLoader(stream, 2, collate_fn=collator, num_workers=1, persistent_workers=True)
    two = DataLoader(stream, 2, collate_fn=collator, num_workers=2)
    for epoch in (0, 1):
        stream.set_epoch(epoch)
        same_batches(alone, one)
        same_batches(alone, persistent)
        same_batches(two, two)
        batches = list(two)
        rows = torch.cat([batch["rows"] for batch in batches])
        weights = torch.cat([batch["weights"] for batch in batches])
        assert weights.sum() == 12 and len(set(rows[weights > 0].tolist())) == 12
        reds = torch.cat([batch["images"]["pixel_values"][:, 0, 0, 0] for batch in batches])[weights > 0]
        assert len(set(reds.tolist())) == 12


def test_more_workers_than_shards(processor):
    stream = ContrastiveCaptionStream(make_stream(6), [processor], 2, pad_to=4)
    loader = DataLoader(stream, 2, collate_fn=CaptionCollator([processor], 2), num_workers=2)
    assert sum(batch["weights"].sum().item() for batch in loader) == 6


def test_a_shuffled_stream_is_shuffled_anew_each_epoch(processor):
    source = make_stream(12).shuffle(seed=1, buffer_size=20)
    stream = ContrastiveCaptionStream(source, [processor], 1)

    def reds(epoch):
        stream.set_epoch(epoch)
        return [example.open_image().getpixel((0, 0))[0] for example in stream]

    assert sorted(reds(0)) == list(range(12))
    assert reds(0) == reds(0) != reds(1)


def test_columns_of_a_stream_without_features(processor):
    found = ContrastiveCaptionStream(without_features(), [processor], 1)
    assert (found.columns.image, found.columns.captions) == ("picture", ("said",))
    named = ContrastiveCaptionStream(
        without_features(), [processor], 1, image_column="picture", caption_columns="said"
    )
    assert all_texts(found, processor) == all_texts(named, processor)
    assert len(list(named)) == 6

    mistyped = ContrastiveCaptionStream(
        without_features(), [processor], 1, image_column="picture", caption_columns="sayed"
    )
    with pytest.raises(ValueError, match="There is no column 'sayed'; the columns are 'picture', 'said', 'score'"):
        next(iter(mistyped))

    empty = datasets.IterableDataset.from_generator(lambda: iter(()))
    with pytest.raises(ValueError, match="The stream is empty"):
        ContrastiveCaptionStream(empty, [processor], 1)


def test_an_error_of_the_users_own_map_stays_what_it_is(processor):
    own = without_features().map(lambda row: {"said": row["nowhere"]})
    stream = ContrastiveCaptionStream(own, [processor], 1, image_column="picture", caption_columns="said")
    with pytest.raises(KeyError, match="nowhere"):
        next(iter(stream))


def test_a_stream_can_be_pickled(processor):
    stream = ContrastiveCaptionStream(make_stream(), [processor], 2)
    stream.set_epoch(2)
    copy = pickle.loads(pickle.dumps(stream))
    assert copy.epoch == 2
    assert all_texts(copy, processor) == all_texts(stream, processor)


def test_two_processors_without_negatives(processor):
    other = make_processor(["w0", "w1"])
    stream = ContrastiveCaptionStream(make_stream(1), [processor, other], 0, captions_per_image="all")
    (example,) = stream
    assert texts_in(example.tokens[0], processor) == ["w0 w0", "w1 w0 w59"]
    assert texts_in(example.tokens[1], other) == ["w0 w0", "w1 w0 <unk>"]


def test_broken_images(processor):
    columns = make_columns(4)
    columns["image"][2] = {"bytes": b"no image", "path": None}
    source = datasets.Dataset.from_dict(columns, features=features()).to_iterable_dataset()
    collator = CaptionCollator([processor], 1)
    with pytest.raises(BadImageError, match="Row 2: an image of 8 bytes does not open"):
        list(DataLoader(ContrastiveCaptionStream(source, [processor], 1), 2, collate_fn=collator))
    skipping = ContrastiveCaptionStream(source, [processor], 1, on_bad_image="skip")
    (batch,) = DataLoader(skipping, 4, collate_fn=collator)
    assert batch["skipped"].tolist() == [False, False, True, False]
    assert batch["weights"].tolist() == [1, 1, 0, 1]


def test_image_ids_and_texts_are_kept_apart(processor):
    columns = make_columns(6, 1) | {"image_id": ["a", "a", "a", "b", "b", "b"]}
    kinds = {"captions": datasets.List(datasets.Value("string")), "image_id": datasets.Value("string")}
    source = datasets.Dataset.from_dict(columns, features=features(**kinds)).to_iterable_dataset()
    owner = {text: name for (text,), name in zip(columns["captions"], columns["image_id"], strict=True)}
    for texts in all_texts(ContrastiveCaptionStream(source, [processor], 20), processor):
        assert {owner[text] for text in texts[1:]} == {"b" if owner[texts[0]] == "a" else "a"}


def test_rare_negatives_are_found(processor):
    columns = make_columns(200, 1)
    columns["image"] = [columns["image"][0]] * 199 + [columns["image"][199]]
    source = datasets.Dataset.from_dict(columns, features=features()).to_iterable_dataset()
    stream = ContrastiveCaptionStream(source, [processor], 2)
    texts = all_texts(stream, processor)
    assert {text for row in texts[:199] for text in row[1:]} == {columns["captions"][199][0]}


def no_negatives(change):
    columns = make_columns(6)
    change(columns)
    return datasets.Dataset.from_dict(columns, features=features()).to_iterable_dataset()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda columns: columns.update(image=columns["image"][:1] * 6), "all of them belong to the same image"),
        (lambda columns: columns.update(captions=[["w1"]] * 6), "those of other images say the same"),
    ],
)
def test_streams_without_negatives(change, message, processor):
    stream = ContrastiveCaptionStream(no_negatives(change), [processor], 1, reservoir_size=4)
    with pytest.raises(ValueError, match=rf"caption \d of row 0 .*{message}.*enlarge reservoir_size \(4\)"):
        list(stream)


def test_cut_captions_are_reported_once(processor, caplog):
    stream = ContrastiveCaptionStream(make_stream(200), [make_processor(max_caption_tokens=4)], 1)
    with caplog.at_level(logging.INFO, "hf_contrastive_caption"):
        list(stream)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "longer than max_caption_tokens=4 are cut" in messages[0]
    assert messages[1] == "200 captions of this pass over the stream were cut."
    caplog.clear()
    two = [make_processor(max_caption_tokens=3), make_processor(max_caption_tokens=4)]
    with caplog.at_level(logging.INFO, "hf_contrastive_caption"):
        list(ContrastiveCaptionStream(make_stream(200), two, 1))
    texts = [text for captions in make_dataset(200, 2)["captions"] for text in captions]
    n_cut = sum(len(text.split()) + 1 > 3 for text in texts)
    assert "max_caption_tokens=3 are cut" in caplog.text and f"{n_cut} captions of this pass" in caplog.text
    assert n_cut > 200  # those that both cut count once


def test_bad_rows_are_named(processor):
    source = no_negatives(lambda columns: columns["captions"].__setitem__(3, ["w1", " "]))
    with pytest.raises(ValueError, match="Row 3 has an empty caption"):
        list(ContrastiveCaptionStream(source, [processor], 1))


OPTION_ERRORS = [
    ({"reservoir_size": 1}, "reservoir_size=1; it must hold at least 2 captions"),
    ({"pad_to": 0}, "pad_to=0; give the number of examples"),
    ({"num_negatives": -2}, "num_negatives=-2"),
    ({"evaluation": True, "augment": ImageOps.mirror}, "augment is for training"),
    ({"caption_columns": "text"}, "There is no column 'text'"),
]


@pytest.mark.parametrize(("options", "message"), OPTION_ERRORS)
def test_options_that_cannot_be(options, message, processor):
    with pytest.raises(ValueError, match=message):
        ContrastiveCaptionStream(make_stream(), [processor], **options)


def test_things_that_are_no_stream(processor):
    with pytest.raises(TypeError, match="for those there is ContrastiveCaptionDataset"):
        ContrastiveCaptionStream(make_dataset(), [processor])
    with pytest.raises(ValueError, match="IterableDatasetDict with the splits 'train'; give one split"):
        ContrastiveCaptionStream(datasets.IterableDatasetDict({"train": make_stream()}), [processor])
