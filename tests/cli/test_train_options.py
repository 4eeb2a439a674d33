"""Every option of the config is an option of ``train``."""

from __future__ import annotations

import dataclasses
import re

import pytest

from hf_contrastive_caption.cli.errors import WrongUseError
from hf_contrastive_caption.cli.train_command import option_names
from hf_contrastive_caption.cli.train_options import OWN_GROUPS, TrainParser, own_names
from hf_contrastive_caption.config import ContrastiveCaptionConfig
from hf_contrastive_caption.config_checks import REFUSED_OPTIONS

FIELDS = {entry.name: entry for entry in dataclasses.fields(ContrastiveCaptionConfig)}
NEWER = {"activation_checkpointing"}
"""Not in all releases of transformers that are supported."""


@pytest.fixture(scope="module")
def parser() -> TrainParser:
    return TrainParser()


def test_every_field_is_an_option_and_what_is_not_given_is_not_there(parser):
    assert parser.parse([]) == {}
    for name in set(FIELDS) - {"debug"}:
        dashed = name.replace("_", "-")
        with pytest.raises(WrongUseError) as caught:  # a value that no option takes
            parser.parse([f"--{dashed}=1", f"--no-such-{dashed}"])
        assert f"--no-such-{dashed}" in str(caught.value) or "invalid" in str(caught.value)
    assert set(option_names()) >= set(FIELDS)


def test_words_become_values(parser):
    words = (
        "--captions-per-image all --num_negatives 3 --learning-rate=1e-4 --bf16 --no-dataloader-pin-memory "
        "--use_cpu false --caption_columns a b --report-to tensorboard wandb --lr-scheduler-type cosine --resume "
        "--reference-refresh 50 --trainer-debug underflow_overflow --lora-r 4 --prompt Say_it"
    )
    found = parser.parse(words.split())
    debug = found.pop("debug")
    assert [option.value for option in debug] == ["underflow_overflow"]
    assert found == {
        "captions_per_image": "all", "num_negatives": 3, "learning_rate": 1e-4, "bf16": True,
        "dataloader_pin_memory": False, "use_cpu": False, "caption_columns": ["a", "b"],
        "report_to": ["tensorboard", "wandb"], "lr_scheduler_type": "cosine", "resume": True,
        "reference_refresh": "50", "lora_r": 4, "prompt": "Say_it",
    }  # fmt: skip
    assert parser.parse(["--resume", "out/checkpoint-3"]) == {"resume": "out/checkpoint-3"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-negative", "3"], r"no option --num-negative \(did you mean --num-negatives\?\)"),
        (["--xyzzy"], "no option --xyzzy; "),
        (["data"], "'data' belongs to no option"),
        (["--num-negatives", "many"], "--num-negatives.*invalid int value: 'many'"),
        (["--num-negatives"], "--num-negatives.*expected one argument"),
        (["--save-strategy", "sometimes"], "--save-strategy.*'sometimes'.*steps"),
    ],
)
def test_wrong_words_are_told(parser, words, message):
    with pytest.raises(WrongUseError, match=message):
        parser.parse(words)


def test_help_shows_the_librarys_own_options_first_with_defaults():
    text = TrainParser().format_help()
    shown = re.findall(r"^  --([a-z0-9-]+)", text, re.MULTILINE)
    groups = [name for names in OWN_GROUPS.values() for name in names]
    assert shown == [name.replace("_", "-") for name in groups if name in FIELDS or name not in NEWER]
    assert own_names() | {"config"} <= set(groups)
    assert len(groups) == len(set(groups))
    flat = " ".join(text.split())
    for name in ("num_negatives", "noise_ratio", "learning_rate"):
        assert f"(default: {FIELDS[name].default})" in flat
    assert "%%" not in text and "SUPPRESS" not in text
    titles = [line[:-1] for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == list(OWN_GROUPS)


def test_all_of_the_help_leaves_out_what_is_refused():
    shown = set(re.findall(r"^  --([a-z0-9-]+)", TrainParser(everything=True).format_help(), re.MULTILINE))
    shown = {name.replace("-", "_") for name in shown}
    assert not shown & set(REFUSED_OPTIONS)
    left_out = {"do_train", "do_eval", "do_predict", "local_rank", "debug"}
    assert set(FIELDS) - shown == left_out | (set(REFUSED_OPTIONS) & set(FIELDS))
    assert "trainer_debug" in shown
