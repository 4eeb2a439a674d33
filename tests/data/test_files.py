"""Data sets from files."""

from __future__ import annotations

import pytest
from datasets import Dataset, DatasetDict

from hf_contrastive_caption.data.files import choose_split, load_splits


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
    with pytest.raises(ValueError, match="'a', 'b'; give one split"):
        choose_split(splits("a", "b"))
