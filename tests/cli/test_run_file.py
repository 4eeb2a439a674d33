"""Options in a YAML file: what they become, and where errors are."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_contrastive_caption.cli.errors import WrongUseError
from hf_contrastive_caption.cli.run_file import as_type, read_run_file
from hf_contrastive_caption.cli.train_options import option_types

TYPES = option_types()


def read(folder: Path, text: str):
    file = folder / "run.yaml"
    file.write_text(text, encoding="utf-8")
    return read_run_file(file, TYPES)


def test_values_have_the_types_of_their_options(tmp_path):
    found = read(
        tmp_path,
        "# a comment\n"
        "model: me/model\n"
        "learning-rate: 1e-4  # text in YAML\n"
        "weight_decay: 1\n"
        "captions_per_image: all\n"
        "reference_refresh: 50\n"
        "bf16: false\n"
        "caption_columns: [a, b]\n"
        "lora_target_modules: all-linear\n"
        "report_to: tensorboard\n"
        "lr_scheduler_type: cosine\n"
        "model_init_kwargs: {dtype: bfloat16}\n"
        "debug: underflow_overflow\n"
        "resume: true\n"
        "save_strategy: no  # false in YAML\n"
        "prompt: null\n",
    )
    assert found.values == {
        "model": "me/model", "learning_rate": 1e-4, "weight_decay": 1, "captions_per_image": "all",
        "reference_refresh": 50, "bf16": False, "caption_columns": ["a", "b"], "lora_target_modules": ["all-linear"],
        "report_to": "tensorboard", "lr_scheduler_type": "cosine", "model_init_kwargs": {"dtype": "bfloat16"},
        "debug": "underflow_overflow", "resume": True, "save_strategy": "no", "prompt": None,
    }  # fmt: skip
    assert type(found.values["learning_rate"]) is float
    assert found.places["learning_rate"] == f"{tmp_path / 'run.yaml'}:3"


@pytest.mark.parametrize("text", ["", "# nothing\n"])
def test_an_empty_file_gives_nothing(tmp_path, text):
    assert read(tmp_path, text).values == {}


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("model: a\nnum_negative: 5\n", 2, r"no option 'num_negative' \(did you mean num_negatives\?\)"),
        ("model: a\n\nnum-negatives: many\n", 3, "num_negatives is the text 'many', but must be a whole number"),
        ("num_negatives: 2.5\n", 1, "num_negatives is 2.5, but must be a whole number"),
        ("num_negatives: true\n", 1, "num_negatives is true, but must be a whole number"),
        ("num_negatives:\n", 1, "num_negatives is empty, but must be a whole number"),
        ("learning_rate: fast\n", 1, "learning_rate is the text 'fast', but must be a number"),
        ("bf16: 1\n", 1, "bf16 is 1, but must be true or false"),
        ("prompt: [a]\n", 1, "prompt is a list, but must be text"),
        ("caption_columns: [a, 3]\n", 1, r"caption_columns is a list, but must be a list \(text\)"),
        ("seed: 1\nbeta: 1\nseed: 2\n", 3, "seed stands in .*run.yaml:1 already"),
        ("seed: 1\nmodel: [a\nbeta: 2\n", 3, "this is no YAML"),
        ("- seed\n", 1, "write lines such as"),
        ("seed: !!python/object:os.system x\n", 1, "seed has a value that is not read"),
        ("config: other.yaml\n", 1, "no option 'config'"),
        ("save_strategy: [steps]\n", 1, "save_strategy is a list, but must be one of no, steps, epoch, best or text"),
    ],
)
def test_errors_name_the_file_and_the_line(tmp_path, text, line, message):
    with pytest.raises(WrongUseError, match=message) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'run.yaml'}:{line}: ")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(WrongUseError, match="none.yaml' of --config cannot be read"):
        read_run_file(tmp_path / "none.yaml", TYPES)


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        ("3", int | str, "3"),
        (3, int | str, 3),
        (3, float, 3),
        ("a", list[str] | None, ["a"]),
        (None, int | None, None),
    ],
)
def test_types(value, kind, expected):
    found = as_type(value, kind)
    assert found == expected and type(found) is type(expected)
