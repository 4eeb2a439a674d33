"""The data set and its collator: right captions with right images, drawn as pure functions of (seed, epoch, row)."""

from __future__ import annotations

import pickle
import random

import datasets
import numpy as np
import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from PIL import Image, ImageOps
from torch.utils.data import DataLoader

from hf_contrastive_caption.captioners import captioner_for
from hf_contrastive_caption.data import (
    BadImageError,
    CaptionCollator,
    ContrastiveCaptionDataset,
    EpochSampler,
    SampleKey,
)
from hf_contrastive_caption.processing import CaptionProcessor
from tests import tiny
from tests.families.qwen_vl import qwen_model, qwen_processing

from .conftest import WORDS, features, make_columns, make_dataset, make_processor


def flat_texts(dataset):
    return [text for row in dataset["captions"] for text in row]


def texts_in(tokens, processor):
    """The captions of an example, decoded by hand; every caption must end with the end token."""
    pieces = np.split(tokens.input_ids, np.cumsum(tokens.lengths)[:-1])
    assert all(piece[-1] == processor.end_token_id and 0 not in piece[:-1] for piece in pieces)
    return [" ".join(processor.tokenizer.convert_ids_to_tokens(piece[:-1].tolist())) for piece in pieces]


def same_batches(one, other):
    one, other = list(one), list(other)
    assert len(one) == len(other) > 0
    for left, right in zip(one, other, strict=True):
        assert_same(left, right)


def assert_same(left, right):
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert list(left) == list(right)
        for name in left:
            assert_same(left[name], right[name])
    else:
        assert left.dtype == right.dtype
        assert torch.equal(left, right)


@pytest.mark.parametrize("where", ["memory_dataset", "disk_dataset"])
@pytest.mark.parametrize("captions_per_image", [1, 2, "all"])
def test_examples_hold_positives_and_negatives(where, captions_per_image, processor, request):
    source = request.getfixturevalue(where)
    data = ContrastiveCaptionDataset(source, [processor], 3, captions_per_image=captions_per_image)
    assert len(data) == 12 and data.n_captions == 24
    for row in range(12):
        own = source["captions"][row]
        example = data[row]
        texts = np.asarray(texts_in(example.tokens[0], processor)).reshape(-1, 4)  # (n_positives, 1 + K)
        n_positives = len(own) if captions_per_image == "all" else min(len(own), captions_per_image)
        assert len(set(texts[:, 0])) == len(texts) == n_positives
        assert set(texts[:, 0]) <= set(own)
        assert not set(texts[:, 1:].ravel()) & set(own)
        assert (example.row, example.epoch, example.weight) == (row, 0, 1.0)
        assert np.asarray(example.open_image()).tolist() == [[[row, 0, 7]] * 8] * 8
        drawn, counts = data.draw(np.asarray([row]), 0)
        assert counts.tolist() == [n_positives]
        assert data.caption_texts(drawn) == texts.ravel().tolist()
    assert data.captions_of([3, 0]) == [source["captions"][3], source["captions"][0]]


def test_a_batch_equals_its_examples(memory_dataset, processor):
    data = ContrastiveCaptionDataset(memory_dataset, [processor], 2, captions_per_image=2)
    keys = [SampleKey(4, 3), SampleKey(0, 3), SampleKey(4, 0, 0.0), SampleKey(1, 11), SampleKey(4, 3)]
    for key, together in zip(keys, data.__getitems__(keys), strict=True):
        alone = data[key]
        assert (together.row, together.epoch, together.weight) == (key.row, key.epoch, key.weight)
        assert together.image == alone.image
        for left, right in zip(together.tokens, alone.tokens, strict=True):
            np.testing.assert_array_equal(left.input_ids, right.input_ids)
            np.testing.assert_array_equal(left.lengths, right.lengths)


def test_positives_are_drawn_anew_and_uniformly(processor):
    source = make_dataset(40, 5)
    data = ContrastiveCaptionDataset(source, [processor], 1)
    picks = np.stack([data.draw(np.arange(40), epoch)[0][:, 0] for epoch in range(250)])  # (250, 40)
    counts = np.bincount(picks.ravel(), minlength=200)
    assert counts.reshape(40, 5).sum(axis=1).tolist() == [250] * 40
    assert ((counts - 50) ** 2 / 40).sum() < 200 + 5 * np.sqrt(400)
    two = ContrastiveCaptionDataset(source, [processor], 1, captions_per_image=2)
    pairs, counts = two.draw(np.arange(40), 0)
    np.testing.assert_array_equal(pairs[::2, 0], picks[0])  # asking for more begins with the same
    assert counts.tolist() == [2] * 40


def test_evaluation_draws_the_same_in_every_epoch(memory_dataset, processor):
    data = ContrastiveCaptionDataset(memory_dataset, [processor], 2, evaluation=True)
    draws = [data.draw(np.arange(12), epoch)[0].tolist() for epoch in (0, 1, 7)]
    assert draws[0] == draws[1] == draws[2]
    training = ContrastiveCaptionDataset(memory_dataset, [processor], 2)
    assert training.draw(np.arange(12), 0)[0].tolist() != draws[0]


def test_rows_as_python_indexes_them(memory_dataset, processor):
    data = ContrastiveCaptionDataset(memory_dataset, [processor], 1)
    assert data[-1].row == 11
    assert data[np.int64(5)].row == 5
    for row in (12, -13):
        with pytest.raises(IndexError, match=f"no row {row}; the data set has 12 rows"):
            data[row]
    data.set_epoch(6)
    assert (data.epoch, data[0].epoch, data[SampleKey(2, 0)].epoch) == (6, 6, 2)


def loader(data, batch_size=5, workers=0, pad_to=1, **options):
    collator = CaptionCollator(options.pop("processors"), data.num_negatives)
    sampler = EpochSampler(data, seed=2, pad_to=pad_to)
    return DataLoader(data, batch_size, sampler=sampler, collate_fn=collator, num_workers=workers, **options)


def test_workers_change_nothing(disk_dataset, processor):
    data = ContrastiveCaptionDataset(disk_dataset, [processor], 3)
    alone = loader(data, processors=[processor])
    two = loader(data, workers=2, processors=[processor])
    persistent = loader(data, workers=2, persistent_workers=True, processors=[processor])
    batches = []
    for epoch in (0, 1):
        data.set_epoch(epoch)
        batches.append(list(alone))
        assert [len(batch["rows"]) for batch in batches[-1]] == [5, 5, 2]
        same_batches(batches[-1], two)
        same_batches(batches[-1], persistent)
    assert batches[0][0]["rows"].tolist() != batches[1][0]["rows"].tolist()


def test_plain_indices_reach_persistent_workers_with_their_epoch(memory_dataset, processor):
    data = ContrastiveCaptionDataset(memory_dataset, [processor], 3)
    collator = CaptionCollator([processor], 3)
    running = DataLoader(data, 4, collate_fn=collator, num_workers=1, persistent_workers=True)
    for epoch in (0, 5):
        data.set_epoch(epoch)
        same_batches(running, DataLoader(data, 4, collate_fn=collator))


def test_spawned_workers_change_nothing(disk_dataset, processor):
    data = ContrastiveCaptionDataset(disk_dataset, [processor], 2, augment=ImageOps.mirror)
    data.set_epoch(3)
    alone = list(loader(data, processors=[processor]))
    spawned = loader(data, workers=1, multiprocessing_context="spawn", processors=[processor])
    same_batches(alone, spawned)
    copy = pickle.loads(pickle.dumps(data))
    assert copy.epoch == 3
    same_batches(alone, loader(copy, processors=[processor]))


def by_row(batches, num_negatives):
    """The caption tokens of each row."""
    found = {}
    for batch in batches:
        captions = batch["captions"]
        pieces = captions["input_ids"].split(captions["lengths"].tolist())
        for place, row in enumerate(batch["rows"].tolist()):
            own = (captions["image_index"] == place).nonzero()[:, 0].tolist()
            if batch["weights"][place]:
                found[row] = [pieces[number].tolist() for number in own]
    return found


def test_batch_size_and_processes_change_nothing(memory_dataset, processor):
    data = ContrastiveCaptionDataset(memory_dataset, [processor], 3, captions_per_image=2)
    data.set_epoch(2)
    expected = by_row(loader(data, 12, processors=[processor]), 3)
    assert sorted(expected) == list(range(12))
    assert by_row(loader(data, 5, processors=[processor]), 3) == expected
    parts = []
    for process in range(2):
        copy = pickle.loads(pickle.dumps(data))
        plain = loader(copy, 5, pad_to=10, processors=[processor])
        part = prepare_data_loader(plain, num_processes=2, process_index=process, put_on_device=False)
        part.set_epoch(2)
        parts += list(part)
    assert [len(batch["rows"]) for batch in parts] == [5] * 4
    assert sum(batch["weights"].sum().item() for batch in parts) == 12
    assert by_row(parts, 3) == expected


def test_a_resume_in_mid_epoch_changes_nothing(memory_dataset, processor):
    data = ContrastiveCaptionDataset(memory_dataset, [processor], 3)
    prepared = prepare_data_loader(loader(data, 5, processors=[processor]), put_on_device=False)
    prepared.set_epoch(4)
    expected = list(prepared)
    fresh = pickle.loads(pickle.dumps(data))
    fresh.set_epoch(0)
    resumed = skip_first_batches(prepare_data_loader(loader(fresh, 5, processors=[processor]), put_on_device=False), 1)
    resumed.set_epoch(4)
    same_batches(expected[1:], resumed)


def test_the_layout_of_a_batch(memory_dataset, processor):
    data = ContrastiveCaptionDataset(memory_dataset, [processor], 2, captions_per_image="all")
    examples = data.__getitems__([SampleKey(0, 2), SampleKey(0, 0, 0.0), SampleKey(0, 1)])  # 3, 1 and 2 captions
    batch = CaptionCollator([processor], 2)(examples)
    assert list(batch) == ["images", "captions", "rows", "weights", "skipped"]
    assert list(batch["captions"]) == ["input_ids", "lengths", "image_index"]
    assert batch["images"]["pixel_values"].shape == (3, 3, 8, 8)
    expected = processor.process_images([example.open_image() for example in examples])
    assert torch.equal(batch["images"]["pixel_values"], expected["pixel_values"])
    captions = batch["captions"]
    assert {value.dtype for value in captions.values()} == {torch.int64}
    assert captions["image_index"].tolist() == [0] * 9 + [1] * 3 + [2] * 6
    assert captions["lengths"].tolist() == [n for one in examples for n in one.tokens[0].lengths.tolist()]
    assert captions["input_ids"].tolist() == [t for one in examples for t in one.tokens[0].input_ids.tolist()]
    assert batch["rows"].tolist() == [2, 0, 1] and batch["rows"].dtype == torch.int64
    assert batch["weights"].tolist() == [1.0, 0.0, 1.0] and batch["weights"].dtype == torch.float32
    assert batch["skipped"].tolist() == [False] * 3 and batch["skipped"].dtype == torch.bool


def test_two_processors(memory_dataset, processor):
    """The same captions in both vocabularies; images twice only where the image processors differ."""
    reversed_words = make_processor(WORDS[::-1])
    data = ContrastiveCaptionDataset(memory_dataset, [processor, reversed_words], 2)
    examples = data.__getitems__([0, 1, 2])
    for example in examples:
        assert texts_in(example.tokens[0], processor) == texts_in(example.tokens[1], reversed_words)
    batch = CaptionCollator([processor, reversed_words], 2)(examples)
    assert list(batch) == ["images", "captions", "reference_captions", "rows", "weights", "skipped"]
    assert not torch.equal(batch["captions"]["input_ids"], batch["reference_captions"]["input_ids"])
    assert torch.equal(batch["captions"]["lengths"], batch["reference_captions"]["lengths"])

    larger = make_processor(size=16)
    batch = CaptionCollator([processor, larger], 2)(examples)
    assert list(batch)[:4] == ["images", "captions", "reference_images", "reference_captions"]
    assert batch["reference_images"]["pixel_values"].shape == (3, 3, 16, 16)


def test_without_negatives(memory_dataset, processor):
    data = ContrastiveCaptionDataset(memory_dataset.select([0]), [processor], 0, captions_per_image="all")
    assert texts_in(data[0].tokens[0], processor) == memory_dataset["captions"][0]
    assert CaptionCollator([processor], 0)([data[0]])["captions"]["image_index"].tolist() == [0]


def test_collator_and_data_set_must_agree(memory_dataset, processor):
    data = ContrastiveCaptionDataset(memory_dataset, [processor], 2)
    with pytest.raises(ValueError, match="made with 1 processors, the collator with 2"):
        CaptionCollator([processor, processor], 2)([data[0]])
    with pytest.raises(ValueError, match=r"3 captions, which is no multiple of 1 \+ num_negatives = 5"):
        CaptionCollator([processor], 4)([data[0]])


@pytest.fixture
def broken_dataset():
    columns = make_columns(4)
    columns["image"][2] = {"bytes": b"no image", "path": "cat.jpg"}
    return datasets.Dataset.from_dict(columns, features=features())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_names_its_row(broken_dataset, processor, workers):
    data = ContrastiveCaptionDataset(broken_dataset, [processor], 1)
    message = r"Row 2: an image of 8 bytes \(cat.jpg\) does not open.*on_bad_image='skip'"
    with pytest.raises(BadImageError, match=message):
        list(loader(data, workers=workers, processors=[processor]))


def test_an_image_that_the_image_processor_refuses_counts_as_broken():
    """Qwen's takes none that is 200 times as wide as high."""
    processor = captioner_for(qwen_model(), qwen_processing(), prompt="picture").processor
    pictures = tiny.images(4)
    pictures[2] = Image.new("RGB", (900, 4))
    columns = {"image": pictures, "caption": tiny.texts(4)}
    dataset = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    strict = ContrastiveCaptionDataset(dataset, [processor], 1)
    with pytest.raises(BadImageError, match="Row 2: the image processor takes no image of 900 × 4 pixels: .*skip"):
        CaptionCollator([processor], 1)(strict.__getitems__([1, 2, 3]))
    skipping = ContrastiveCaptionDataset(dataset, [processor], 1, on_bad_image="skip")
    batch = CaptionCollator([processor], 1)(skipping.__getitems__([1, 2, 3]))
    assert batch["skipped"].tolist() == [False, True, False] and batch["weights"].tolist() == [1.0, 0.0, 1.0]
    alone = processor.process_images([pictures[3]])["pixel_values"]
    of_third = batch["images"]["pixel_values"][2]
    assert torch.equal(of_third[: alone.shape[1]], alone[0])


class TakesNothing(CaptionProcessor):
    def process_images(self, images):
        raise ValueError("no backend")


def test_an_image_processor_that_takes_no_image_is_not_blamed_on_the_images(memory_dataset, processor):
    broken = TakesNothing(processor.tokenizer, processor.image_processor, processor.end_token_id)
    data = ContrastiveCaptionDataset(memory_dataset, [broken], 1, on_bad_image="skip")
    with pytest.raises(ValueError, match="^no backend$"):
        CaptionCollator([broken], 1)(data.__getitems__([0, 1]))


def test_a_broken_image_is_skipped(broken_dataset, processor):
    data = ContrastiveCaptionDataset(broken_dataset, [processor], 1, on_bad_image="skip")
    assert data[2].open_image() is None
    batch = CaptionCollator([processor], 1)(data.__getitems__([1, 2, 3]))
    assert batch["skipped"].tolist() == [False, True, False]
    assert batch["weights"].tolist() == [1.0, 0.0, 1.0]
    white = processor.process_images([Image.new("RGB", (8, 8), "white")])["pixel_values"][0]
    assert torch.equal(batch["images"]["pixel_values"][1], white)
    alone = CaptionCollator([processor], 1)([data[2]])
    assert torch.equal(alone["images"]["pixel_values"][0], white)


def noisy(image):
    """Uses all three kinds of random numbers."""
    channels = [random.randrange(256), np.random.randint(256), int(torch.randint(256, ()))]  # noqa: NPY002
    return Image.new("RGB", image.size, tuple(channels))


def test_augmentation_is_keyed_and_leaves_the_global_state(memory_dataset, processor):
    data = ContrastiveCaptionDataset(memory_dataset, [processor], 1, augment=noisy)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    torch.manual_seed(1)

    def colour(key, data=data):
        return data[key].open_image().getpixel((0, 0))

    first = colour(SampleKey(0, 3))
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected  # noqa: NPY002
    assert colour(SampleKey(0, 3)) == first
    other = ContrastiveCaptionDataset(memory_dataset, [processor], 1, augment=noisy, seed=1)
    colours = {first, colour(SampleKey(1, 3)), colour(SampleKey(0, 4)), colour(SampleKey(0, 3), other)}
    assert len(colours) == 4
    plain = loader(data, processors=[processor])
    same_batches(plain, loader(data, workers=2, processors=[processor]))


def test_the_state_comes_back_after_an_augmentation_that_fails(memory_dataset, processor):
    def failing(image):
        random.random()
        raise RuntimeError("augmentation failed")

    data = ContrastiveCaptionDataset(memory_dataset, [processor], 1, augment=failing)
    state = random.getstate()
    with pytest.raises(RuntimeError, match="augmentation failed"):
        data[0].open_image()
    assert random.getstate() == state


def test_an_augmentation_returns_an_image(memory_dataset, processor):
    grey = ContrastiveCaptionDataset(memory_dataset, [processor], 1, augment=ImageOps.grayscale)
    assert grey[0].open_image().mode == "RGB"
    arrays = ContrastiveCaptionDataset(memory_dataset, [processor], 1, augment=np.asarray)
    with pytest.raises(TypeError, match="augment returned ndarray for row 3; it must return a PIL image"):
        arrays[3].open_image()


def test_formats_and_indices_of_the_source_do_not_matter(disk_dataset, processor):
    expected = ContrastiveCaptionDataset(disk_dataset, [processor], 2)[4]
    formatted = ContrastiveCaptionDataset(disk_dataset.with_format("torch"), [processor], 2)[4]
    assert formatted.image == expected.image
    np.testing.assert_array_equal(formatted.tokens[0].input_ids, expected.tokens[0].input_ids)
    shuffled = disk_dataset.shuffle(seed=0)
    data = ContrastiveCaptionDataset(shuffled, [processor], 2, captions_per_image="all")
    for row in range(12):
        assert texts_in(data[row].tokens[0], processor)[::3] == shuffled[row]["captions"]
        assert data[row].open_image().tobytes() == shuffled[row]["image"].tobytes()


def test_a_transform_of_the_source_is_reported(memory_dataset, processor, caplog):
    source = memory_dataset.with_transform(lambda batch: pytest.fail("the transform was run"))
    assert ContrastiveCaptionDataset(source, [processor], 2)[4].row == 4
    assert [record.getMessage() for record in caplog.records] == [
        "The transform of the data set is not run; use augment for transforms of images."
    ]


def test_rows_of_one_image_never_serve_each_other(processor):
    """Six rows, two images: by their bytes, or by an image-id column that says otherwise."""
    columns = make_columns(6, 1)
    columns["image"] = [columns["image"][row % 2] for row in range(6)]
    data = ContrastiveCaptionDataset(datasets.Dataset.from_dict(columns, features=features()), [processor], 20)
    assert ((data.draw(np.arange(6), 0)[0] % 2).sum(axis=1) == [20, 1, 20, 1, 20, 1]).all()
    with_id = datasets.Dataset.from_dict(
        {**columns, "image_id": [0, 0, 0, 1, 1, 1]},
        features=features(captions=datasets.List(datasets.Value("string")), image_id=datasets.Value("int64")),
    )
    drawn = ContrastiveCaptionDataset(with_id, [processor], 20).draw(np.arange(6), 0)[0]
    assert ((drawn // 3)[:, 1:] != (drawn // 3)[:, :1]).all()


def test_several_caption_columns_and_paths(processor, tmp_path):
    for row in range(3):
        Image.new("RGB", (4, 4), (row, 0, 0)).save(tmp_path / f"{row}.png")
    dataset = datasets.Dataset.from_dict(
        {
            "file": [str(tmp_path / f"{row}.png") for row in range(3)],
            "caption_1": ["w3", None, "w4"],
            "caption_0": ["w0", "w1", "w2"],
        }
    )
    with pytest.raises(ValueError, match=r'cast_column\("file"'):
        ContrastiveCaptionDataset(dataset, [processor], 1)
    for data in (
        ContrastiveCaptionDataset(dataset.cast_column("file", datasets.Image()), [processor], 1),
        ContrastiveCaptionDataset(dataset, [processor], 1, image_column="file"),
    ):
        assert data.captions_of(range(3)) == [["w0", "w3"], ["w1"], ["w2", "w4"]]
        assert [data[row].open_image().getpixel((0, 0))[0] for row in range(3)] == [0, 1, 2]


def test_cut_captions_are_counted_for_each_processor(memory_dataset, processor):
    data = ContrastiveCaptionDataset(memory_dataset, [processor, make_processor(max_caption_tokens=4)], 1)
    assert data.n_cut == (0, 12)


OPTION_ERRORS = [
    ({"num_negatives": -1}, "num_negatives=-1; give at least 1, or 0"),
    ({"captions_per_image": 0}, "captions_per_image=0; give a number of at least 1, or 'all'"),
    ({"captions_per_image": "many"}, "captions_per_image='many'"),
    ({"on_bad_image": "ignore"}, "on_bad_image='ignore'; accepted are 'raise' and 'skip'"),
    ({"evaluation": True, "augment": ImageOps.mirror}, "augment is for training"),
    ({"processors": []}, "Got 0 processors; give one, the target's, or two"),
    ({"image_column": "picture"}, "There is no column 'picture'"),
]


@pytest.mark.parametrize(("options", "message"), OPTION_ERRORS)
def test_options_that_cannot_be(options, message, memory_dataset, processor):
    with pytest.raises(ValueError, match=message):
        ContrastiveCaptionDataset(memory_dataset, **{"processors": [processor], **options})


def test_things_that_are_no_data_set(memory_dataset, processor):
    with pytest.raises(TypeError, match="processors is a single CaptionProcessor; give a list"):
        ContrastiveCaptionDataset(memory_dataset, processor)
    with pytest.raises(ValueError, match="give one split"):
        ContrastiveCaptionDataset(datasets.DatasetDict({"train": memory_dataset}), [processor])
    with pytest.raises(TypeError, match="for streams there is ContrastiveCaptionStream"):
        ContrastiveCaptionDataset(memory_dataset.to_iterable_dataset(), [processor])
    with pytest.raises(ValueError, match="The data set has no rows"):
        ContrastiveCaptionDataset(memory_dataset.select([]), [processor])
    with pytest.raises(ValueError, match="belong to one and the same image"):
        ContrastiveCaptionDataset(memory_dataset.select([1]), [processor])
