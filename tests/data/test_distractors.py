"""Distractor images: never the caption's own, none that it is said of, and pure functions of (seed, caption)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_contrastive_caption.captioners import captioner_for
from hf_contrastive_caption.data import CaptionCollator, ContrastiveCaptionDataset
from hf_contrastive_caption.data.distractors import DistractorImages
from hf_contrastive_caption.data.sampler import SampleKey
from hf_contrastive_caption.processing import CaptionProcessor
from tests import tiny
from tests.data.test_negatives import indices, simple_index


@pytest.fixture(scope="module")
def processor() -> CaptionProcessor:
    return captioner_for(tiny.captioner_model(), tiny.processing()).processor


def naive_allowed(index):
    """Which row (column) may be a distractor of which caption (row), one pair after the other."""
    table = np.zeros((index.n_captions, index.n_rows), bool)
    for caption in range(index.n_captions):
        own = index.image_key[index.rows(np.asarray([caption]))[0]]
        for row in range(index.n_rows):
            image = index.image_key[row]
            texts = index.text_key[index.image_key[index.rows(np.arange(index.n_captions))] == image]
            table[caption, row] = image != own and index.text_key[caption] not in texts
    return table


@given(indices(), st.integers(0, 5))
@settings(max_examples=300, deadline=None)
def test_distractors_are_allowed_or_refused_at_the_start(index, seed):
    allowed = naive_allowed(index)
    if not allowed.any(axis=1).all():
        with pytest.raises(ValueError, match="can be drawn"):
            DistractorImages(index, 3, seed)
        return
    captions = np.arange(index.n_captions)
    rows = DistractorImages(index, 3, seed).rows(captions)
    assert rows.shape == (len(captions), 3) and rows.dtype == np.int64
    assert allowed[captions[:, None], rows].all()


@given(st.lists(st.integers(0, 99), min_size=1, max_size=30))
@settings(deadline=None)
def test_distractors_depend_on_their_own_caption_only(captions):
    distractors = DistractorImages(simple_index(20), 4, seed=3)
    np.testing.assert_array_equal(distractors.rows(np.asarray(captions)), distractors.rows(np.arange(100))[captions])


def test_another_seed_gives_others_and_every_other_image_is_equally_likely():
    index, captions = simple_index(10, 2000), np.arange(20_000)
    rows = DistractorImages(index, 2, seed=0).rows(captions)
    assert (rows == DistractorImages(index, 2, seed=1).rows(captions)).mean() < 0.15  # one in nine by chance
    assert (rows[:, 0] == rows[:, 1]).mean() < 0.15
    counts = np.zeros((10, 10), np.int64)
    np.add.at(counts, (np.repeat(index.rows(captions), 2), rows.reshape(-1)), 1)
    assert (np.diag(counts) == 0).all()
    others = counts[~np.eye(10, dtype=bool)]  # 4,000 draws over nine rows: 444 each, with a deviation of 20
    assert 360 < others.min() and others.max() < 530


def test_the_same_in_every_epoch_and_in_evaluations(processor):
    data = tiny.caption_dataset(12, 3)
    train, evaluation = (
        ContrastiveCaptionDataset(
            data, [processor], 2, distractors=True, captions_per_image="all", evaluation=evaluation
        )
        for evaluation in (False, True)
    )
    found = [
        [[one.row for one in example.distractors] for example in made.__getitems__([SampleKey(epoch, 3), 7])]
        for made, epoch in ((train, 0), (train, 5), (evaluation, 1))
    ]
    assert found[0] == found[1] == found[2] and [len(rows) for rows in found[0]] == [6, 6]
    assert 3 not in found[0][0] and 7 not in found[0][1]


def test_a_batch_scores_each_positive_for_its_own_image_and_for_each_distractor(processor):
    source = tiny.caption_dataset(12, 3)
    data = ContrastiveCaptionDataset(source, [processor], 2, distractors=True, captions_per_image=2)
    examples = data.__getitems__([4, 9])
    batch = CaptionCollator([processor], 2)(examples)
    pixels, captions = batch["images"]["pixel_values"], batch["captions"]
    assert captions["image_index"].view(-1, 3).tolist() == [[0, 2, 3], [0, 4, 5], [1, 6, 7], [1, 8, 9]]
    assert batch["rows"].tolist() == [4, 9] and batch["weights"].tolist() == [1.0, 1.0]
    assert not batch["skipped"].any() and len(batch["skipped"]) == 2
    drawn, counts = data.draw(np.asarray([4, 9]), 0)
    assert counts.tolist() == [2, 2] and (drawn == drawn[:, :1]).all() and drawn.shape == (4, 3)
    shown = [4, 9, *(one.row for example in examples for one in example.distractors)]
    expected = processor.process_images([source[row]["image"] for row in shown])["pixel_values"]
    assert torch.equal(pixels, expected)
    pieces = captions["input_ids"].split(captions["lengths"].tolist())
    texts = processor.decode([piece.tolist() for piece in pieces])
    assert texts == data.caption_texts(drawn)


def test_augmentation_is_that_of_the_distractors_own_row(processor):
    options = {"augment": lambda image: image.rotate(float(torch.rand(())) * 90), "captions_per_image": 1}
    data = ContrastiveCaptionDataset(tiny.caption_dataset(6), [processor], 1, distractors=True, **options)
    first = data.__getitems__([SampleKey(3, 0)])[0].distractors[0]
    itself = data.__getitems__([SampleKey(3, first.row)])[0]
    assert first.open_image().tobytes() == itself.open_image().tobytes()
    other_epoch = data.__getitems__([SampleKey(4, 0)])[0].distractors[0]
    assert other_epoch.open_image().tobytes() != first.open_image().tobytes()


def test_an_example_with_a_distractor_that_does_not_open_counts_for_nothing(processor):
    source = tiny.caption_dataset(8).cast_column("image", ImageFeature(decode=False))
    rows = list(source)
    rows[2]["image"] = {"bytes": b"no image", "path": None}
    broken = Dataset.from_list(rows, features=source.features).cast_column("image", ImageFeature())
    data = ContrastiveCaptionDataset(broken, [processor], 2, distractors=True, on_bad_image="skip")
    examples = data.__getitems__(list(range(8)))
    batch = CaptionCollator([processor], 2)(examples)
    hit = [row == 2 or any(one.row == 2 for one in example.distractors) for row, example in enumerate(examples)]
    assert 1 < sum(hit) < 8
    assert batch["weights"].tolist() == [0.0 if one else 1.0 for one in hit]
    assert batch["skipped"].tolist() == hit
    raising = ContrastiveCaptionDataset(broken, [processor], 2, distractors=True)
    with pytest.raises(ValueError, match="Row 2"):
        CaptionCollator([processor], 2)(raising.__getitems__([row for row, one in enumerate(hit) if one][:1]))


def test_an_image_with_several_rows_is_looked_at_with_all_of_them(processor):
    """The same images and captions with a caption in each row and with all of an image in one."""
    texts = [["a dog"], ["a dog", "the red cat"], ["a blue boat"]]
    rows = [(image, text) for image, of_image in enumerate(texts) for text in of_image]
    images = tiny.images(3)
    columns = {
        "rows": {"image": [images[image] for image, _ in rows], "captions": [[text] for _, text in rows]},
        "lists": {"image": images, "captions": texts},
    }
    for layout, image_of_row in (("rows", [0, 1, 1, 2]), ("lists", [0, 1, 2])):
        dataset = Dataset.from_dict(columns[layout]).cast_column("image", ImageFeature())
        data = ContrastiveCaptionDataset(dataset, [processor], 50, distractors=True)
        drawn = [image_of_row[one.row] for one in data.__getitems__([0])[0].distractors]
        assert drawn == [2] * 50


def test_what_cannot_have_distractors_is_refused(processor, tmp_path: Path):
    with pytest.raises(ValueError, match="num_negatives=0: every caption needs at least 1"):
        ContrastiveCaptionDataset(tiny.caption_dataset(4), [processor], 0, distractors=True)
    texts = [["a dog", "a cat"], ["a dog"], ["a dog", "a bird"]]
    said_of_all = Dataset.from_dict({"image": tiny.images(3), "captions": texts}).cast_column("image", ImageFeature())
    with pytest.raises(ValueError, match="No distractor image can be drawn for caption 0 of row 0: every other image"):
        ContrastiveCaptionDataset(said_of_all, [processor], 1, distractors=True)
