"""Finding columns, and what is said when they cannot be found."""

from __future__ import annotations

import datasets
import pytest
from datasets import Image, List, Value

from hf_contrastive_caption.data.schema import (
    CaptionColumns,
    captions_of,
    check_split,
    features_of_examples,
    find_columns,
)

from .conftest import make_dataset

TEXT, TEXTS = Value("string"), List(Value("string"))


def found(**columns):
    result = find_columns(datasets.Features(columns))
    return result.image, result.captions, result.image_id


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"image": Image(), "caption": TEXT}, ("image", ("caption",), None)),
        ({"picture": Image(decode=False), "said": TEXTS}, ("picture", ("said",), None)),
        ({"image": Image(), "sentences": datasets.LargeList(TEXT)}, ("image", ("sentences",), None)),
        ({"image": Image(), "text": Value("large_string")}, ("image", ("text",), None)),
        (
            {f"caption_{number}": TEXT for number in (10, 0, 2)} | {"image": Image()},
            ("image", ("caption_0", "caption_2", "caption_10"), None),
        ),
        ({"image": Image(), "caption1": TEXT, "caption2": TEXT}, ("image", ("caption1", "caption2"), None)),
        (
            {"image": Image(), "text": TEXT, "image_id": Value("int64"), "fileName": TEXT, "coco_url": TEXT},
            ("image", ("text",), "image_id"),
        ),
        ({"image": Image(), "captions": TEXTS, "tags": TEXTS, "title": TEXT}, ("image", ("captions",), None)),
        (
            {"image": Image(), "caption": TEXT, "split": TEXT, "license": TEXT, "id": TEXT},
            ("image", ("caption",), None),
        ),
        ({"image": Image(), "text": TEXT, "ImgID": TEXT}, ("image", ("text",), "ImgID")),
        ({"image": Image(), "text": TEXT, "numbers": List(Value("int64"))}, ("image", ("text",), None)),
    ],
)
def test_columns_are_found_by_type(columns, expected):
    assert found(**columns) == expected


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"caption": TEXT, "label": Value("int64")}, r"No column has the type datasets.Image.*'label' \(int64\)"),
        ({"file": TEXT, "caption": TEXT}, r'cast it: dataset.cast_column\("file", datasets.Image\(\)\)'),
        ({"content": Value("binary")}, r'bytes is cast the same way, cast_column\("image", Image\(\)\)'),
        ({"left": Image(), "right": Image(), "caption": TEXT}, "hold images: 'left', 'right'.*image_column="),
        (
            {"image": Image(), "label": Value("int64")},
            r"No column holds captions.*'image' \(Image\).*caption_columns=",
        ),
        ({"image": Image(), "file_name": TEXT}, "Not taken, because of their names: 'file_name'"),
        (
            {"image": Image(), "text": TEXT, "title": TEXT},
            "could hold the captions: 'text', 'title'.*caption_columns=",
        ),
        ({"image": Image(), "a_1": TEXT, "a_2": TEXT, "b": TEXT}, "captions: 'a_1', 'a_2', 'b'"),
        ({"image": Image(), "caption": TEXT, "captions": TEXTS}, "'caption', 'captions'"),
        ({"image": Image(), "text": TEXT, "image_id": Value("float32")}, "'image_id' has type float32.*integers"),
    ],
)
def test_columns_that_cannot_be_found(columns, message):
    with pytest.raises(ValueError, match=message):
        found(**columns)


def test_names_override_types():
    features = datasets.Features(
        {"a": Image(), "b": Image(), "x": TEXT, "y": TEXTS, "z": Value("int32"), "file": TEXT}
    )
    assert find_columns(features, "b", "file", "z") == CaptionColumns("b", ("file",), "z")
    assert find_columns(features, "b", ["y", "x"]) == CaptionColumns("b", ("y", "x"))
    with pytest.raises(ValueError, match="no column 'c'; the columns are 'a', 'b', 'x'"):
        find_columns(features, "c")
    with pytest.raises(ValueError, match="no column 'nothing'"):
        find_columns(features, "a", ["x", "nothing"])
    with pytest.raises(ValueError, match="caption column 'z' has type int32; captions are strings or lists"):
        find_columns(features, "a", "z")
    with pytest.raises(ValueError, match="caption_columns is empty"):
        find_columns(features, "a", [])


def test_a_dictionary_of_splits_is_refused():
    splits = datasets.DatasetDict({"train": make_dataset(2), "test": make_dataset(2)})
    message = r"Got a DatasetDict with the splits 'train', 'test'; give one split: dataset\['train'\]"
    with pytest.raises(ValueError, match=message):
        check_split(splits)
    with pytest.raises(ValueError, match=message):
        find_columns(splits)
    with pytest.raises(TypeError, match="type list; accepted are datasets.Dataset and datasets.IterableDataset"):
        check_split([{"image": None}])


def test_captions_of_one_example():
    one, several = CaptionColumns("image", ("text",)), CaptionColumns("image", ("a_0", "a_1"))
    assert captions_of({"text": "a dog"}, one) == ["a dog"]
    assert captions_of({"text": ["a dog", None, "a cat"]}, one) == ["a dog", "a cat"]
    assert captions_of({"a_0": "a dog", "a_1": None}, several) == ["a dog"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "Row 7 has an empty caption in column 'text'.*filter"),
        (["a dog", " \n"], "Row 7 has an empty caption"),
        ([], "Row 7 has no caption in 'text'.*filter"),
        (None, "Row 7 has no caption"),
        ([3], "Row 7 has a caption of type int in 'text'"),
    ],
)
def test_captions_that_are_not_there(value, message):
    with pytest.raises(ValueError, match=message):
        captions_of({"text": value}, CaptionColumns("image", ("text",)), 7)
    with pytest.raises(ValueError, match="^A row has"):
        captions_of({"text": value}, CaptionColumns("image", ("text",)))


def test_features_of_an_example():
    example = {
        "image": make_dataset(1)[0]["image"],
        "raw": {"bytes": b"", "path": None},
        "text": "a",
        "texts": ["a"],
        "number": 3,
        "yes": True,
        "other": 0.5,
    }
    features = features_of_examples([example])
    assert isinstance(features["image"], Image) and isinstance(features["raw"], Image)
    kinds = {"text": TEXT, "texts": TEXTS, "number": Value("int64"), "yes": Value("bool"), "other": Value("null")}
    assert {name: features[name] for name in kinds} == kinds


def test_features_of_examples_look_on_until_every_column_held_something():
    examples = ({"a": "x", "b": value, "c": 0.5} for value in (None, [], ["y"], 7))
    assert features_of_examples(examples) == {"a": TEXT, "b": TEXTS, "c": Value("null")}
    assert next(examples)["b"] == 7  # and no further
    assert features_of_examples([{"a": None}, {"a": None}]) == {"a": Value("null")}
    assert features_of_examples([]) == {}
