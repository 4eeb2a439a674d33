"""The flat arrays: right against the naive lists, cached, shared, and safe to build twice at once."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hf_contrastive_caption.data import identity, table
from hf_contrastive_caption.data.arrays import store_arrays
from hf_contrastive_caption.data.identity import text_key
from hf_contrastive_caption.data.images import image_hash
from hf_contrastive_caption.data.schema import find_columns
from hf_contrastive_caption.data.table import CaptionIndex, build_index, build_tokens, ragged_ranges

from .conftest import WORDS, features, make_columns, make_processor


def build(dataset, processor, **options):
    columns = find_columns(dataset.features)
    return build_index(dataset, columns, **options), build_tokens(dataset, columns, processor)


def texts_of(dataset):
    return [list(row) for row in dataset["captions"]]


@pytest.mark.parametrize("where", ["memory_dataset", "disk_dataset"])
def test_arrays_equal_the_lists(where, processor, request):
    dataset = request.getfixturevalue(where)
    index, tokens = build(dataset, processor)
    texts = texts_of(dataset)
    flat = [text for row in texts for text in row]
    raw = dataset.cast_column("image", datasets.Image(decode=False))["image"]
    assert (index.n_rows, index.n_captions) == (12, len(flat))
    assert index.row_start.tolist() == np.cumsum([0, *map(len, texts)]).tolist()
    assert index.text_key.tolist() == [text_key(text) for text in flat]
    assert index.image_key.tolist() == [image_hash(value) for value in raw]
    owners = [row for row, row_texts in enumerate(texts) for _ in row_texts]
    np.testing.assert_array_equal(index.rows(np.arange(len(flat))), owners)
    shuffled = np.random.default_rng(0).permutation(len(flat)).reshape(-1, 2)
    np.testing.assert_array_equal(index.rows(shuffled), np.asarray(owners)[shuffled])
    np.testing.assert_array_equal(index.image_keys(shuffled), index.image_key[np.asarray(owners)[shuffled]])

    wanted = np.asarray([3, 3, 0, len(flat) - 1])
    input_ids, lengths = tokens.gather(wanted)
    expected = processor.tokenize([flat[number] for number in wanted]).input_ids
    assert input_ids.tolist() == [token for ids in expected for token in ids]
    assert lengths.tolist() == [len(ids) for ids in expected]
    assert tokens.n_cut == 0


def test_arrays_on_disk_lie_beside_the_data_set(disk_dataset, processor, tmp_path):
    build(disk_dataset, processor)
    folders = sorted((tmp_path / "stored").glob("contrastive-captions-*"))
    names = sorted(file.name for folder in folders for file in folder.iterdir() if file.suffix == ".npy")
    assert names == ["caption_row.npy", "image_key.npy", "offsets.npy", "row_start.npy", "text_key.npy", "tokens.npy"]
    assert not list((tmp_path / "stored").glob(".contrastive*")), "a scratch folder was left"
    for folder in folders:
        for file in folder.glob("*.npy"):
            assert np.load(file, mmap_mode="r").ndim == 1


def count_maps(monkeypatch):
    calls = []
    original = datasets.Dataset.map

    def counted(self, *arguments, **options):
        calls.append(options["desc"])
        return original(self, *arguments, **options)

    monkeypatch.setattr(datasets.Dataset, "map", counted)
    return calls


def test_nothing_is_built_twice(disk_dataset, processor, tmp_path, monkeypatch):
    calls = count_maps(monkeypatch)
    first = build(disk_dataset, processor)
    assert calls == ["Numbering captions", "Telling images apart", "Tokenizing captions"]
    again = datasets.load_from_disk(str(tmp_path / "stored"))
    processor.tokenizer(["w1", "w2 w3"], padding=False, truncation=True, max_length=1)  # changes the tokenizer's state
    second = build(again, processor)
    assert len(calls) == 3
    np.testing.assert_array_equal(first[0].text_key, second[0].text_key)

    build(disk_dataset, make_processor(max_caption_tokens=3))
    build(disk_dataset, make_processor([*WORDS, "new"]))
    assert calls[3:] == ["Tokenizing captions"] * 2
    build(disk_dataset.select(range(5)), processor)
    build(
        disk_dataset.map(lambda row: {"captions": [text + " more" for text in row["captions"]]}, desc="x"), processor
    )
    assert calls[5:] == [*calls[:3], "x", *calls[:3]]


def test_another_process_finds_the_arrays(disk_dataset, processor, tmp_path):
    build(disk_dataset, processor)
    script = (
        "import sys, datasets\n"
        "from tests.data.conftest import make_processor\n"
        "from tests.data.test_table import build\n"
        "dataset = datasets.load_from_disk(sys.argv[1])\n"
        "def refuse(*a, **k): raise SystemExit('map was run')\n"
        "datasets.Dataset.map = refuse\n"
        "print(build(dataset, make_processor())[0].n_captions)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "stored")],
        capture_output=True,
        text=True,
        cwd=root,
        env={"PYTHONPATH": f"{root / 'src'}:{root}", "HOME": str(tmp_path), "PATH": ""},
        check=False,
    )
    assert done.stdout.strip() == "24", done.stderr


def test_a_data_set_with_indices_and_several_processes(disk_dataset, processor):
    shuffled = disk_dataset.shuffle(seed=3).select(range(7))
    index, tokens = build(shuffled, processor, num_proc=2)
    flat = [text for row in texts_of(shuffled) for text in row]
    assert index.text_key.tolist() == [text_key(text) for text in flat]
    assert index.n_rows == 7
    ids, _ = tokens.gather(np.arange(len(flat)))
    assert ids.tolist() == [token for one in processor.tokenize(flat).input_ids for token in one]


def test_without_caching_files_are_temporary(disk_dataset, processor, tmp_path):
    datasets.disable_caching()
    try:
        index, _ = build(disk_dataset, processor)
    finally:
        datasets.enable_caching()
    assert index.n_rows == 12
    assert not list((tmp_path / "stored").glob("contrastive-captions-*"))


def test_a_folder_that_cannot_be_written(disk_dataset, processor, tmp_path, monkeypatch):
    monkeypatch.setattr(table.os, "access", lambda path, mode: False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    build(disk_dataset, processor)
    assert len(list((tmp_path / "cache").glob("contrastive-captions-*"))) == 3
    assert not list((tmp_path / "stored").glob("contrastive-captions-*"))


def test_pickles_of_arrays_on_disk_are_small(disk_dataset, memory_dataset, processor):
    index, tokens = build(disk_dataset, processor)
    assert len(pickle.dumps(index)) < 1000
    for kept in (index, build(memory_dataset, processor)[0]):
        copy = pickle.loads(pickle.dumps(kept))
        np.testing.assert_array_equal(copy.row_start, kept.row_start)
        np.testing.assert_array_equal(copy.image_key, kept.image_key)
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(tokens)).gather(np.arange(5))[0], tokens.gather(np.arange(5))[0]
    )


def test_image_ids_come_before_bytes(processor):
    columns = make_columns(4)
    for ids, kind in (([7, 8, 7, 9], "int64"), (["7", "8", "7", "9"], "string")):
        dataset = datasets.Dataset.from_dict(
            {**columns, "image_id": ids},
            features=features(captions=datasets.List(datasets.Value("string")), image_id=datasets.Value(kind)),
        )
        keys = build(dataset, processor)[0].image_key
        assert keys[0] == keys[2] and len(set(keys.tolist())) == 3


def test_equal_files_are_one_image(processor):
    columns = make_columns(4)
    columns["image"][3] = columns["image"][1]
    keys = build(datasets.Dataset.from_dict(columns, features=features()), processor)[0].image_key
    assert keys[1] == keys[3] and len(set(keys.tolist())) == 3


def test_images_are_not_read_without_need(memory_dataset, processor, monkeypatch):
    monkeypatch.setattr(identity, "image_hash", lambda value: pytest.fail("an image was read"))
    index, _ = build(memory_dataset, processor, with_images=False)
    with pytest.raises(ValueError, match="without image keys"):
        index.image_keys(np.zeros(1, np.int64))


def test_unreadable_images_wait_until_they_are_opened(processor, tmp_path):
    columns = make_columns(3)
    columns["image"][1] = {"bytes": None, "path": str(tmp_path / "missing.png")}
    columns["image"][2] = None
    keys = build(datasets.Dataset.from_dict(columns, features=features()), processor)[0].image_key
    assert len(set(keys.tolist())) == 3


def test_keys_of_files_are_those_of_the_files_as_they_are(processor, tmp_path):
    """A first run without the images, or with half of them, leaves no keys to the next one."""
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    rows = {"image": list(map(str, paths)), "captions": [[f"text {number}"] for number in range(4)]}
    datasets.Dataset.from_dict(rows).to_json(tmp_path / "rows.jsonl")

    def keys():
        loaded = datasets.load_dataset(
            "json", data_files=str(tmp_path / "rows.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
        )
        assert loaded.cache_files
        return build(loaded.cast_column("image", datasets.Image()), processor)[0].image_key.tolist()

    paths[0].write_bytes(b"")
    paths[1].write_bytes(b"")
    first = keys()
    assert first[0] == first[1] and len(set(first)) == 3  # two are missing
    for path, colour in zip(paths, (1, 2, 3, 3), strict=True):
        Image.new("RGB", (4, 4), (colour, 0, 0)).save(path)
    second = keys()
    assert second == [image_hash(str(path)) for path in paths]
    assert second[2] == second[3] and len(set(second)) == 3 and keys() == second


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("captions", ["w1", ""], "Row 2 has an empty caption in column 'captions'"),
        ("captions", [], "Row 2 has no caption in 'captions'"),
        ("image_id", None, "Row 2 has no image id"),
    ],
)
@pytest.mark.parametrize("num_proc", [None, 2])
def test_bad_rows_are_named(name, value, message, num_proc, processor):
    columns = {**make_columns(4), "image_id": [1, 2, 3, 4]}
    columns[name][2] = value
    kinds = {"captions": datasets.List(datasets.Value("string")), "image_id": datasets.Value("int64")}
    dataset = datasets.Dataset.from_dict(columns, features=features(**kinds))
    with pytest.raises(ValueError, match=message):
        build_index(dataset, find_columns(dataset.features), num_proc=num_proc)


def test_cut_captions_are_counted_and_reported_once(disk_dataset, caplog):
    short = make_processor(max_caption_tokens=4)
    n_long = sum(len(text.split()) > 3 for row in texts_of(disk_dataset) for text in row)
    with caplog.at_level(logging.WARNING, "hf_contrastive_caption"):
        tokens = build(disk_dataset, short)[1]
    assert tokens.n_cut == n_long == 12
    assert [record.getMessage() for record in caplog.records] == [
        "12 of 24 captions are longer than max_caption_tokens=4 and were cut; they keep their end token."
    ]
    ids, lengths = tokens.gather(np.arange(24))
    assert lengths.max() == 4
    assert (ids[np.cumsum(lengths) - 1] == short.end_token_id).all()


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5)), min_size=1, max_size=20))
def test_ragged_ranges_equal_the_naive_ones(ranges):
    starts, lengths = np.asarray(ranges).T
    naive = np.concatenate([np.arange(start, start + length) for start, length in ranges])
    np.testing.assert_array_equal(ragged_ranges(starts, lengths), naive)


def pieces(scratch, totals):
    totals["n"] = 5
    yield {"a": np.arange(3), "b": np.zeros(0)}
    yield {"a": np.arange(2)}


@pytest.mark.parametrize("folder", [None, "deep/stored"])
def test_stored_arrays(folder, tmp_path):
    stored = store_arrays(folder and tmp_path / folder, {"a": np.int64, "b": np.uint64}, pieces)
    assert stored["a"].tolist() == [0, 1, 2, 0, 1]
    assert stored["b"].tolist() == [] and stored["b"].dtype == np.uint64
    assert stored.totals == {"n": 5}


def test_long_arrays_keep_their_header(tmp_path):
    def many(scratch, totals):
        for _ in range(200):
            yield {"a": np.arange(10_000, dtype=np.int32)}

    stored = store_arrays(tmp_path / "x", {"a": np.int32}, many)
    assert len(stored["a"]) == 2_000_000
    assert int(stored["a"].sum()) == 200 * 10_000 * 9_999 // 2
    np.testing.assert_array_equal(np.load(tmp_path / "x" / "a.npy"), stored["a"])


def test_an_interrupted_build_leaves_nothing(tmp_path):
    def broken(scratch, totals):
        yield {"a": np.arange(3)}
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        store_arrays(tmp_path / "x", {"a": np.int64}, broken)
    assert list(tmp_path.iterdir()) == []
    assert store_arrays(tmp_path / "x", {"a": np.int64, "b": np.int64}, pieces)["a"].tolist() == [0, 1, 2, 0, 1]


def test_two_builds_at_once(tmp_path):
    """The second finds the folder of the first when it is done."""

    def slow(scratch, totals):
        yield from pieces(scratch, totals)
        store_arrays(tmp_path / "x", {"a": np.int64, "b": np.int64}, pieces)

    stored = store_arrays(tmp_path / "x", {"a": np.int64, "b": np.int64}, slow)
    assert stored["a"].tolist() == [0, 1, 2, 0, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_an_index_of_arrays():
    index = CaptionIndex.from_arrays(np.asarray([0, 2, 3]), np.asarray([5, 6, 7], np.uint64))
    assert index.rows(np.asarray([2, 0, 1])).tolist() == [1, 0, 0]
