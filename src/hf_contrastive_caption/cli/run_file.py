"""``--config run.yaml``: options of ``train`` in a file, whose errors are told with their lines."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml

from hf_contrastive_caption.cli.errors import WrongUseError
from hf_contrastive_caption.cli.train_options import nearest

_KINDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    dict: "a mapping",
}


@dataclass(frozen=True)
class RunFile:
    """Options from a file.

    Attributes:
        values: The options, by name.
        places: Where each of them stands: ``run.yaml:3``.
    """

    values: dict[str, Any]
    places: dict[str, str]


def read_run_file(file: Path, option_types: Mapping[str, Any]) -> RunFile:
    """Read options from a YAML file.

    Args:
        file: A mapping of names, with dashes or underscores, to values.
        option_types: The known names and their types.

    Raises:
        WrongUseError: If the file cannot be read or is no such mapping, or an option in it is unknown, stands there
            twice or has a value of a wrong type. Says the file and the line.
    """
    try:
        loader = yaml.SafeLoader(file.read_text(encoding="utf-8"))
        root = loader.get_single_node()
    except (OSError, UnicodeDecodeError) as error:
        raise WrongUseError(f"the file {str(file)!r} of --config cannot be read: {error}") from error
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark is not None else ""
        raise WrongUseError(f"{file}{line}: this is no YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise WrongUseError(f"{file}: this is no YAML: {error}") from error
    found = RunFile({}, {})
    if root is None:  # nothing but comments
        return found
    if not isinstance(root, yaml.MappingNode):
        raise WrongUseError(f"{file}:{root.start_mark.line + 1}: write lines such as 'num_negatives: 5'")
    for key, node in root.value:
        place = f"{file}:{key.start_mark.line + 1}"
        name = str(key.value).replace("-", "_")
        if name not in option_types or name == "config":
            raise WrongUseError(f"{place}: there is no option {key.value!r}{nearest(name, list(option_types))}")
        if name in found.values:
            raise WrongUseError(f"{place}: {name} stands in {found.places[name]} already")
        found.values[name] = _value(loader, node, name, place, option_types[name])
        found.places[name] = place
    return found


def _value(loader: yaml.SafeLoader, node: Any, name: str, place: str, kind: Any) -> Any:
    try:
        value = loader.construct_object(node, deep=True)
    except yaml.YAMLError as error:  # a tag such as !!python/object
        raise WrongUseError(f"{place}: {name} has a value that is not read: {error}") from error
    try:
        return as_type(value, kind)
    except TypeError:
        raise WrongUseError(f"{place}: {name} is {_words_of(value)}, but must be {describe_type(kind)}") from None


def as_type(value: Any, kind: Any) -> Any:
    """A value as an option takes it: YAML reads ``1e-5`` as text, and one item may stand for a list of one.

    Raises:
        TypeError: If the value is of another type.
    """
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    if value is None and type(None) in kinds:
        return None
    if type(value) in kinds or (type(value) is int and float in kinds):
        return value
    lists = [one for one in kinds if get_origin(one) is list]
    if isinstance(value, list) and lists:
        return [as_type(item, get_args(lists[0])[0]) for item in value]
    if isinstance(value, dict) and any(one is dict or get_origin(one) is dict for one in kinds):
        return value
    if isinstance(value, str):
        return _from_text(value, kinds, lists)
    if value is False and any("no" in _members(one) for one in kinds):
        return "no"  # which YAML reads as false
    raise TypeError(value)


def _from_text(value: str, kinds: tuple[Any, ...], lists: list[Any]) -> Any:
    for one in kinds:
        if value in _members(one):
            return value
        if one is Path:
            return Path(value)
    if float in kinds:
        try:
            return float(value)
        except ValueError:
            raise TypeError(value) from None
    if lists:
        return [as_type(value, get_args(lists[0])[0])]
    raise TypeError(value)


def _members(kind: Any) -> list[Any]:
    """What an enumeration has to choose from; nothing for another type."""
    return [member.value for member in kind] if isinstance(kind, type) and issubclass(kind, Enum) else []


def describe_type(kind: Any) -> str:
    """A type in words."""
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    told: list[str] = []
    for one in kinds:
        if get_origin(one) is list:
            told.append(f"a list ({describe_type(get_args(one)[0])})")
        elif _members(one):
            told.append(f"one of {', '.join(map(str, _members(one)))}")
        elif one is not type(None):
            told.append(_KINDS.get(get_origin(one) or one, "text"))
    return " or ".join(dict.fromkeys(told))


def _words_of(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "a mapping"
    return f"the text {value!r}" if isinstance(value, str) else repr(value)
