"""Data sets from files."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset, DatasetDict

from hf_contrastive_caption.data.files import choose_split, load_splits
from tests import tiny


def test_a_parquet_file_and_a_folder_of_them(tmp_path):
    for name, size in (("train", 3), ("test", 2)):
        Dataset.from_dict({"caption": ["a"] * size}).to_parquet(tmp_path / f"{name}-00000-of-00001.parquet")
    assert load_splits(tmp_path).num_rows == {"train": 3, "test": 2}
    assert load_splits(str(tmp_path / "test-00000-of-00001.parquet")).num_rows == {"train": 2}


@pytest.mark.parametrize(
    ("name", "message"),
    [("missing", "does not exist"), ("captions.txt", "is no parquet file"), ("", "has neither parquet files")],
)
def test_what_is_no_data_set_is_named(tmp_path, name, message):
    (tmp_path / "captions.txt").write_text("a")
    with pytest.raises(ValueError, match=message):
        load_splits(tmp_path / name)


def test_the_split_to_evaluate_on():
    def splits(*names: str) -> DatasetDict:
        return DatasetDict({name: Dataset.from_dict({"caption": [name]}) for name in names})

    assert choose_split(splits("train", "validation", "test"))[0] == "test"
    assert choose_split(splits("train", "validation"))[0] == "validation"
    assert choose_split(splits("train"))[0] == "train"
    name, split = choose_split(splits("train", "test"), "train")
    assert name == "train" and split["caption"][:] == ["train"]
    with pytest.raises(ValueError, match="no split 'dev'; there are train, test"):
        choose_split(splits("train", "test"), "dev")
    with pytest.raises(ValueError, match="there are the splits a, b, and none called test or validation"):
        choose_split(splits("a", "b"))


@pytest.mark.parametrize("kind", ["folder of parquet files", "parquet file", "images", "images in splits"])
def test_brackets_in_a_path_are_brackets(tmp_path, kind):
    place = tmp_path / "photos [2019] *"
    place.mkdir()
    if "parquet" in kind:
        rows = Dataset.from_dict({"caption": ["one", "two"]})
        rows.to_parquet(place / "train.parquet")
        found = load_splits(place if kind.startswith("folder") else place / "train.parquet")["train"]
        assert found["caption"][:] == ["one", "two"]
        return
    folder = place if kind == "images" else place / "train"
    folder.mkdir(exist_ok=True)
    for number, image in enumerate(tiny.images(2)):
        image.save(folder / f"{number}.png")
    lines = [json.dumps({"file_name": f"{number}.png", "caption": f"number {number}"}) for number in range(2)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    assert sorted(load_splits(place)["train"]["caption"][:]) == ["number 0", "number 1"]
