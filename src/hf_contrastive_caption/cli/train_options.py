"""The options of ``contrastive-caption train``: one for each field of the config, and those of the run itself."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NoReturn, get_type_hints

from transformers import HfArgumentParser, Seq2SeqTrainingArguments

from hf_contrastive_caption.cli.errors import WrongUseError
from hf_contrastive_caption.config import ContrastiveCaptionConfig
from hf_contrastive_caption.config_checks import REFUSED_OPTIONS

PROGRAM = "contrastive-caption train"


@dataclass
class RunOptions:
    """What ``train`` takes beside the config; ``None`` is not given."""

    model: str | None = field(default=None, metadata={"help": "Captioner to tune: a folder, or a name on the Hub."})
    data: str | None = field(
        default=None,
        metadata={
            "help": "Folder of parquet files or of images with a metadata.jsonl or .csv, one parquet file, or a data "
            "set on the Hub."
        },
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str | None = field(
        default=None,
        metadata={
            "help": "Split for evaluations, which --eval-strategy asks for, and for the comparison at the end.",
            "shown": "validation, if there is one",
        },
    )
    report_images: int = field(
        default=200,
        metadata={
            "help": "At the end the captioner is compared with its reference on so many images of the evaluation "
            "split, drawn by the seed, if there is such a split and one process; 0 for no comparison."
        },
    )
    card_images: int = field(
        default=12,
        metadata={"help": "How many of these the model card shows that --push-to-hub publishes, at most 12."},
    )
    reference_model: str | None = field(
        default=None, metadata={"help": "Another captioner as the reference.", "shown": "the model as it begins"}
    )
    lora_r: int | None = field(
        default=None, metadata={"help": "Train a LoRA adapter of this rank.", "shown": "train all weights"}
    )
    lora_alpha: float | None = field(
        default=None, metadata={"help": "Scale of the adapter, divided by its rank.", "shown": "2 x rank"}
    )
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Modules that get the adapter, by the ends of their names.", "shown": "all-linear"},
    )
    resume: bool | str | None = field(
        default=None, metadata={"help": "Go on from the newest checkpoint in the output folder, or from a given one."}
    )
    accelerate_config: str | None = field(
        default=None,
        metadata={"help": "Run in several processes: ddp, fsdp2, zero2, zero3, or a config file of Accelerate."},
    )
    num_processes: int | None = field(
        default=None, metadata={"help": "How many, with --accelerate-config.", "shown": "one per GPU"}
    )


OWN_GROUPS: dict[str, tuple[str, ...]] = {
    "The run": ("model", "data", "output_dir", "config", "resume", "accelerate_config", "num_processes"),
    "Data": (
        "train_split", "image_column", "caption_columns", "image_id_column", "captions_per_image",
        "max_caption_tokens", "prompt", "on_bad_image", "dataset_num_proc", "reservoir_size", "stream_sharding",
    ),
    "Method": (
        "objective", "loss_type", "num_negatives", "noise_ratio", "beta", "loss_terms", "mle_weight", "packing",
        "max_logits_bytes",
    ),
    "Hard negatives": (
        "negatives", "hard_negative_share", "hard_negative_schedule", "hard_negative_source", "hard_negative_encoder",
        "hard_negative_pool", "hard_negative_threshold", "hard_negative_index",
    ),
    "Reference": (
        "reference_model", "reference_prompt", "freeze_vision_encoder", "cache_vision_states",
        "precompute_reference", "precomputed_dir", "reference_refresh", "reference_mixup",
    ),
    "Adapter": ("lora_r", "lora_alpha", "lora_target_modules"),
    "Training": (
        "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
        "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "bf16", "activation_checkpointing",
        "dataloader_num_workers", "seed", "use_cpu", "model_init_kwargs",
    ),
    "Evaluation": (
        "eval_strategy", "eval_steps", "eval_split", "report_images", "per_device_eval_batch_size", "eval_captions",
        "eval_retrieval_pool", "eval_score", "generation_num_beams", "generation_max_length",
        "metric_for_best_model", "load_best_model_at_end",
    ),
    "Logging, checkpoints and the Hub": (
        "logging_steps", "report_to", "run_name", "save_strategy", "save_steps", "save_total_limit", "push_to_hub",
        "hub_model_id", "hub_private_repo", "hub_strategy", "card_images",
    ),
}  # fmt: skip
"""What ``--help`` shows, in this order."""

_OTHERS = "Other options of transformers' Trainer"
_GROUP_OF = {name: title for title, names in OWN_GROUPS.items() for name in names}
_RENAMED = {"debug": "trainer_debug"}
"""``--debug`` shows the traceback of an error in all commands."""
_CHANGES: dict[str, dict[str, Any]] = {
    "captions_per_image": {"type": str, "metavar": "N|all"},
    "reference_refresh": {"metavar": "N|epoch"},
    "report_to": {"nargs": "+"},
    "resume": {"type": str, "nargs": "?", "const": True, "metavar": "CHECKPOINT"},
}
"""Where HfArgumentParser takes one type of several, and what is more than a value."""
_WITHOUT_MEANING = ("do_train", "do_eval", "do_predict", "local_rank")
"""Trainer has them for scripts that ask for them."""
_HELP = {
    "output_dir": "Folder for the tuned captioner and the checkpoints.",
    "per_device_train_batch_size": "Images in a batch of a process.",
    "num_train_epochs": "How often each image is seen.",
    "max_steps": "Steps of training, instead of epochs; -1 for epochs.",
    "learning_rate": "The highest learning rate.",
    "lr_scheduler_type": "How the learning rate falls: linear, cosine, constant, ...",
    "warmup_steps": "Steps until the learning rate is reached; below 1 a share of all steps.",
    "weight_decay": "Of all weights but biases and those of norms.",
    "gradient_accumulation_steps": "Batches in a step.",
    "activation_checkpointing": "Less memory for about a fifth more time.",
    "seed": "Of order, captions, negatives and new weights.",
    "use_cpu": "Leave a GPU alone.",
    "dataloader_num_workers": "Processes that open images; 0 for none beside the training.",
    "eval_strategy": "When to evaluate.",
    "eval_steps": "Steps between evaluations, with --eval-strategy steps; --logging-steps if not given.",
    "per_device_eval_batch_size": "Images scored or captioned at once at an evaluation.",
    "generation_num_beams": "Beams of the captions at an evaluation; 3 if not given.",
    "generation_max_length": "Longest of these captions in tokens; 64, or what the decoder holds, if not given.",
    "metric_for_best_model": "Such as score, cider_d or recall_at_1; see --eval-captions.",
    "load_best_model_at_end": "Save the best checkpoint at the end, and not the last.",
    "report_to": "Trackers such as tensorboard or wandb, 'all' or 'none'.",
    "run_name": "What trackers call the run.",
    "save_strategy": "When to save a checkpoint.",
    "save_steps": "Steps between checkpoints; below 1 a share of all steps.",
    "save_total_limit": "Keep so many checkpoints, and the best.",
    "push_to_hub": "Upload what is saved to the Hub.",
    "hub_model_id": "Repository on the Hub, such as me/my-captioner; the folder's name if not given.",
    "hub_private_repo": "Make the repository private.",
    "hub_strategy": "What is uploaded, and when.",
}
"""In short what Trainer says at length, or with options in mind that are refused here."""
_METAVARS = {int: "N", float: "X", str: "TEXT"}
_SHOWN_CHOICES = 5


class TrainParser(HfArgumentParser):
    """Reads the words of the command line; options that are not given are not in what :meth:`parse` returns.

    Args:
        everything: Let the help show all options, and not the most used alone.
    """

    def __init__(self, *, everything: bool = False) -> None:
        self.everything = everything
        self._found: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        super().__init__(
            [RunOptions, ContrastiveCaptionConfig],  # type: ignore[list-item]  # typed as NewType, which none is
            prog=PROGRAM,
            usage=f"{PROGRAM} --model MODEL --data DATA --output-dir FOLDER [OPTION]...",
            description="Tune a captioner on your images and captions, and save it with its processing. Options may "
            "also stand in a YAML file (--config run.yaml, with lines such as 'num_negatives: 5'); those on the "
            "command line win. Ctrl-C ends the step, saves a checkpoint and says how to go on.",
            epilog=None if everything else "--help-all shows the other options of transformers' Trainer as well.",
            formatter_class=_Formatter,
            add_help=False,
            allow_abbrev=False,
        )
        self.add_argument("--config", type=str, help="YAML file with options.", metavar="FILE")
        others = [name for name in self._found if name not in _GROUP_OF]
        for title, names in {**OWN_GROUPS, _OTHERS: tuple(others)}.items():
            group = self.add_argument_group(title)
            for name in names:
                for option, kwargs in self._found.get(name, ()):  # an older release may not have it
                    group.add_argument(option, dest=name, **kwargs)

    def add_argument(self, *names: str, **kwargs: Any) -> Any:
        """Called by HfArgumentParser for each field; keeps it for its group, with type and default in short."""
        name = kwargs.pop("dest", None) or names[0].removeprefix("--")
        negated = kwargs.get("action") == "store_false"
        shown = kwargs.pop("shown", None) or _shown(kwargs.get("default"))
        kwargs = {**kwargs, "default": argparse.SUPPRESS, **_CHANGES.get(name, {})}
        if not negated:
            kwargs = {**kwargs, **_as_words(kwargs)}
        known = name in _GROUP_OF or self.everything
        if negated or name in REFUSED_OPTIONS or name in _WITHOUT_MEANING or not known:
            kwargs["help"] = argparse.SUPPRESS
        else:
            about = re.sub("%+", "%%", " ".join((_HELP.get(name) or kwargs.get("help") or "").split()))
            kwargs["help"] = f"{about} (default: {shown})" if shown else about
        option = f"--{'no-' if negated else ''}{_RENAMED.get(name, name).replace('_', '-')}"
        self._found.setdefault(name, []).append((option, kwargs))

    def parse(self, words: Sequence[str]) -> dict[str, Any]:
        """The options that are given, by the names of their fields.

        Args:
            words: The words behind the command; dashes and underscores in names of options are the same.

        Raises:
            WrongUseError: For an unknown option or a value of a wrong type.
        """
        given, unknown = self.parse_known_args([_dashed(word) for word in words])
        if unknown:
            raise WrongUseError(self._unknown_message(unknown[0]))
        return vars(given)

    def error(self, message: str) -> NoReturn:
        """See ``ArgumentParser``, which would print it below the usage and exit."""
        raise WrongUseError(f"{message}\n({PROGRAM} --help lists the options)")

    def _unknown_message(self, word: str) -> str:
        if not word.startswith("-"):
            return f"{word!r} belongs to no option; {PROGRAM} --help lists them"
        given = word.partition("=")[0]
        options = [option for options in self._found.values() for option, _ in options]
        return f"there is no option {given}{nearest(given, options)}; {PROGRAM} --help-all lists all"


def nearest(given: str, known: Sequence[str]) -> str:
    """A question after the known name that a wrong one is most like; nothing if there is none."""
    found = difflib.get_close_matches(given, known, n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def option_types() -> dict[str, Any]:
    """The types of all options, by name."""
    return {**get_type_hints(RunOptions), **get_type_hints(ContrastiveCaptionConfig)} | {"config": str}


def run_names() -> frozenset[str]:
    """Names of the options that are not the config's."""
    return frozenset(entry.name for entry in dataclasses.fields(RunOptions))


def own_names() -> frozenset[str]:
    """Names of the options that Trainer does not have."""
    inherited = {entry.name for entry in dataclasses.fields(Seq2SeqTrainingArguments)}
    return run_names() | {entry.name for entry in dataclasses.fields(ContrastiveCaptionConfig)} - inherited


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=38)


def _as_words(kwargs: dict[str, Any]) -> dict[str, Any]:
    """How an option's value is written in the help, and a switch without a value for all that are true or false."""
    changes: dict[str, Any] = {}
    kind = kwargs.get("type")
    if getattr(kind, "__name__", "") == "string_to_bool":
        changes = {"nargs": "?", "const": True, "metavar": "true|false"}  # also where None is the default
    elif kwargs.get("choices"):
        choices = list(kwargs["choices"])
        changes = {"choices": choices, "metavar": "|".join(choices) if len(choices) <= _SHOWN_CHOICES else "NAME"}
    elif kind in _METAVARS:
        changes = {"metavar": _METAVARS[kind]}
    return {**changes, **({"metavar": kwargs["metavar"]} if "metavar" in kwargs else {})}


def _shown(default: Any) -> str | None:
    """A default in words; ``None`` for one that says nothing."""
    if isinstance(default, Enum):
        default = default.value
    if default is None or default is dataclasses.MISSING or default == []:
        return None
    return {True: "true", False: "false"}[default] if isinstance(default, bool) else str(default)


def _dashed(word: str) -> str:
    name, equals, value = word.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}" if name.startswith("--") else word
