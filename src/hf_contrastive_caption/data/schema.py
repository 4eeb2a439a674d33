"""Which columns of a data set hold the image, its captions, and the image's id.

Columns are found by the type of their feature. Where the types leave a choice the names decide, and where the names
leave one too, an error lists the candidates and asks for the name.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
from PIL import Image

logger = logging.getLogger(__name__)

_STRINGS = ("string", "large_string")
_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
#: A string column with one of these words in its name is about the image or the row; it is not taken for a caption.
_NO_CAPTION_WORDS = frozenset(
    "id ids imgid cocoid key file files filename filenames filepath path paths url urls uri split license licence "
    "source dataset label labels category class md5 sha1 sha256 hash phash date lang language author user".split()
)
_IMAGE_ID_NAMES = ("image_id", "imageid", "img_id", "imgid", "cocoid")


@dataclass(frozen=True)
class CaptionColumns:
    """The columns that are used.

    Args:
        image: The image column.
        captions: The caption columns: one column of strings or of lists of strings, or several string columns.
        image_id: A column that says which rows show the same image; ``None`` to tell by the image's bytes.
    """

    image: str
    captions: tuple[str, ...]
    image_id: str | None = None

    @property
    def names(self) -> list[str]:
        """All of them, each once."""
        return list(dict.fromkeys(_named(self.image, self.captions, self.image_id)))


def find_columns(
    features: Mapping[str, Any],
    image_column: str | None = None,
    caption_columns: str | Sequence[str] | None = None,
    image_id_column: str | None = None,
    *,
    captions_required: bool = True,
) -> CaptionColumns:
    """Find the image, caption and image-id columns by the types of their features.

    Args:
        features: The ``features`` of a data set split.
        image_column: Name of the image column; found when ``None``: the only one of type ``Image``.
        caption_columns: Name or names of the caption columns. Found when ``None``: the only string or list-of-strings
            column whose name is not that of an id, path, licence and the like; columns that differ in a number at the
            end (``caption_0``, ``caption_1``) count as one; among several candidates one called ``caption`` or
            ``captions`` wins.
        image_id_column: Name of a string or integer column; found when ``None``: one called ``image_id``,
            ``img_id``, ``imgid`` or ``cocoid``.
        captions_required: Whether there must be captions; if not, ``captions`` may be empty.

    Returns:
        The columns.

    Raises:
        ValueError: No column or several columns fit, a name does not exist, or a named column has the wrong type.
    """
    if isinstance(features, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        raise ValueError(splits_message(features))
    for name in _named(image_column, caption_columns, image_id_column):
        if name not in features:
            raise ValueError(no_column_message(name, features))
    image = image_column if image_column is not None else _find_image(features)
    if caption_columns is None:
        captions = _find_captions(features, image, captions_required)
    else:
        captions = (caption_columns,) if isinstance(caption_columns, str) else tuple(caption_columns)
        _check_captions(features, captions)
    image_id = image_id_column if image_id_column is not None else _find_image_id(features)
    if image_id is not None and _dtype(features[image_id]) not in _STRINGS + _INTEGERS:
        raise ValueError(
            f"The image-id column {image_id!r} has type {_type_name(features[image_id])}; it must hold strings or "
            "integers. Name another one with image_id_column=..., or remove it: the bytes of the images then tell "
            "which rows show the same image."
        )
    return CaptionColumns(image, captions, image_id)


def no_column_message(name: str, columns: Iterable[str]) -> str:
    """The error message for a column that is not there."""
    return f"There is no column {name!r}; the columns are {_listed(columns)}."


def captions_of(example: Mapping[str, Any], columns: CaptionColumns, row: int | None = None) -> list[str]:
    """Collect the captions of one example.

    Args:
        example: A row of the data set.
        columns: The columns, from :func:`find_columns`.
        row: The row's number, for error messages.

    Returns:
        The captions, at least one. ``None`` where a caption could stand is passed over: rows may have different
        numbers of captions.

    Raises:
        ValueError: A caption is empty or not a string, or there is none.
    """
    where = "A row" if row is None else f"Row {row}"
    captions: list[str] = []
    for name, caption in _given(example, columns):
        if not isinstance(caption, str):
            raise ValueError(f"{where} has a caption of type {type(caption).__name__} in {name!r}; write strings.")
        if not caption.strip():
            raise ValueError(
                f"{where} has an empty caption in column {name!r}. Remove it, or the row, for example with "
                "dataset.filter(...); None stands for a caption that is not there."
            )
        captions.append(caption)
    if not captions:
        raise ValueError(
            f"{where} has no caption in {_listed(columns.captions)}; every image needs at least one. Remove the row, "
            "for example with dataset.filter(...)."
        )
    return captions


def references_of(example: Mapping[str, Any], columns: CaptionColumns) -> list[str]:
    """The captions of one example that are there: none for an image without, and empty ones are passed over."""
    return [caption for _, caption in _given(example, columns) if isinstance(caption, str) and caption.strip()]


def features_of_examples(examples: Iterable[Mapping[str, Any]]) -> datasets.Features:
    """Guess the features of a stream that does not know them from its first examples.

    Args:
        examples: Examples; the first, and then those that are needed until every column has held something.

    Returns:
        Features of the images, strings, lists of strings and integers in them; other columns have type ``null``.
    """
    found: dict[str, Any] = {}
    for example in examples:
        for name, value in example.items():
            if name not in found or found[name] is None:
                nothing = value is None or (isinstance(value, (list, tuple)) and not value)
                found[name] = None if nothing else _feature_of(value)
        if None not in found.values():
            break
    unknown = datasets.Value("null")
    return datasets.Features({name: unknown if feature is None else feature for name, feature in found.items()})


def check_split(dataset: Any) -> None:
    """Refuse everything that is not one split of a data set.

    Raises:
        ValueError: A ``DatasetDict`` was given instead of one of its splits.
        TypeError: It is no data set of the ``datasets`` library.
    """
    if isinstance(dataset, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        raise ValueError(splits_message(dataset))
    if not isinstance(dataset, (datasets.Dataset, datasets.IterableDataset)):
        raise TypeError(
            f"Got a data set of type {type(dataset).__name__}; accepted are datasets.Dataset and "
            "datasets.IterableDataset, for example from datasets.load_dataset(..., split='train') or "
            "datasets.Dataset.from_dict({'image': [...], 'captions': [...]})."
        )


def splits_message(splits: Mapping[Any, Any]) -> str:
    """The error message for a dictionary of splits."""
    names = [str(name) for name in splits]
    choose = f"dataset[{names[0]!r}]" if names else "one of them"
    return f"Got a {type(splits).__name__} with the splits {_listed(names)}; give one split: {choose}."


def _given(example: Mapping[str, Any], columns: CaptionColumns) -> Iterator[tuple[str, Any]]:
    """What stands in the caption columns, but ``None``, each with the name of its column."""
    for name in columns.captions:
        value = example[name]
        for caption in value if isinstance(value, (list, tuple)) else [value]:
            if caption is not None:
                yield name, caption


def _find_image(features: Mapping[str, Any]) -> str:
    found = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"Several columns hold images: {_listed(found)}. Choose one with image_column=...")
    strings = [name for name, feature in features.items() if _is_text(feature)]
    hint = (
        f' If one of {_listed(strings)} holds paths, cast it: dataset.cast_column("{strings[0]}", datasets.Image()).'
        if strings
        else ""
    )
    raise ValueError(
        f"No column has the type datasets.Image; the columns are {_typed(features)}.{hint} A column of bytes is cast "
        'the same way, cast_column("image", Image()).'
    )


def _find_captions(features: Mapping[str, Any], image: str, required: bool) -> tuple[str, ...]:
    strings = [name for name, feature in features.items() if name != image and _is_caption_type(feature)]
    candidates: dict[str, list[str]] = {}
    for name in strings:
        if not _NO_CAPTION_WORDS & set(_words(name)):
            numbered = re.fullmatch(r"(.*?)[_\-. ]?(\d+)", name)
            stem = numbered[1] if numbered and _is_text(features[name]) else name
            candidates.setdefault(stem, []).append(name)
    if not candidates and not required:
        return ()
    if not candidates:
        left_out = f" Not taken, because of their names: {_listed(strings)}." if strings else ""
        raise ValueError(
            f"No column holds captions (strings or lists of strings); the columns are {_typed(features)}.{left_out}"
            f"{_nested_hint(features)} Name the caption column with caption_columns=..."
        )
    chosen = list(candidates)
    if len(chosen) > 1:
        chosen = [stem for stem in candidates if stem.casefold() in ("caption", "captions")]
        if len(chosen) != 1:
            raise ValueError(
                f"Several columns could hold the captions: {_listed(sum(candidates.values(), []))}. Choose with "
                "caption_columns='...', or a list of names where several string columns hold captions of one image."
            )
        others = [name for stem, names in candidates.items() if stem != chosen[0] for name in names]
        logger.info("Captions are taken from %s, not from %s.", _listed(candidates[chosen[0]]), _listed(others))
    return tuple(sorted(candidates[chosen[0]], key=_number_at_end))


def _nested_hint(features: Mapping[str, Any]) -> str:
    """How to get at captions in a column of dictionaries, such as the JSON files of a tar file."""
    for name, fields in features.items():
        for key in fields if isinstance(fields, dict) else ():
            if _is_caption_type(fields[key]) and not _NO_CAPTION_WORDS & set(_words(key)):
                return (
                    f" Those in field {key!r} of {name!r} become a column with dataset.map(lambda row: "
                    f'{{"captions": row["{name}"]["{key}"]}}); for a stream give map its features too.'
                )
    return ""


def _find_image_id(features: Mapping[str, Any]) -> str | None:
    for wanted in _IMAGE_ID_NAMES:
        for name in features:
            if name.casefold() == wanted:
                return name
    return None


def _check_captions(features: Mapping[str, Any], captions: tuple[str, ...]) -> None:
    if not captions:
        raise ValueError("caption_columns is empty; name at least one column, or leave it out to have it found.")
    for name in captions:
        if not _is_caption_type(features[name]):
            raise ValueError(
                f"The caption column {name!r} has type {_type_name(features[name])}; captions are strings or lists "
                f"of strings. The columns are {_typed(features)}."
            )


def _named(image: str | None, captions: str | Sequence[str] | None, image_id: str | None) -> list[str]:
    several = [captions] if isinstance(captions, str) else list(captions or ())
    return [name for name in (image, *several, image_id) if name is not None]


def _dtype(feature: Any) -> str:
    return feature.dtype if isinstance(feature, datasets.Value) else ""


def _is_text(feature: Any) -> bool:
    return _dtype(feature) in _STRINGS


def _is_caption_type(feature: Any) -> bool:
    if isinstance(feature, (datasets.Sequence, datasets.LargeList)):  # a List is a Sequence
        return _is_text(feature.feature)
    return _is_text(feature)


def _words(name: str) -> list[str]:
    """The words of a column's name: ``imageURL`` and ``image_url`` both give image, url."""
    return re.findall(r"[a-z]+[0-9]*", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).casefold())


def _number_at_end(name: str) -> tuple[int, str]:
    number = re.search(r"\d+$", name)
    return (int(number[0]) if number else -1, name)


def _listed(names: Any) -> str:
    return ", ".join(repr(str(name)) for name in names) or "none"


def _typed(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{name!r} ({_type_name(feature)})" for name, feature in features.items()) or "none"


def _type_name(feature: Any) -> str:
    if isinstance(feature, datasets.Value):
        return str(feature.dtype)
    if isinstance(feature, (datasets.Sequence, datasets.LargeList)):
        return f"list of {_type_name(feature.feature)}"
    return type(feature).__name__


def _feature_of(value: Any) -> Any:
    if isinstance(value, Image.Image) or (isinstance(value, dict) and set(value) == {"bytes", "path"}):
        return datasets.Image()
    if isinstance(value, bool):
        return datasets.Value("bool")
    if isinstance(value, int):
        return datasets.Value("int64")
    if isinstance(value, str):
        return datasets.Value("string")
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, str) for item in value):
        return datasets.List(datasets.Value("string"))
    return datasets.Value("null")
