"""``contrastive-caption train``: from words and a file to a tuned captioner in a folder."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from peft import LoraConfig
from rich.console import Console
from transformers import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from hf_contrastive_caption.cli.errors import INTERRUPTED, WrongUseError
from hf_contrastive_caption.cli.interruption import StopOnInterrupt
from hf_contrastive_caption.cli.launch import accelerate_launch, run_to_its_end
from hf_contrastive_caption.cli.run_file import RunFile, read_run_file
from hf_contrastive_caption.cli.train_comparison import compare_at_the_end, compares
from hf_contrastive_caption.cli.train_options import RunOptions, TrainParser, option_types, run_names
from hf_contrastive_caption.cli.train_progress import TrainProgress
from hf_contrastive_caption.config import ContrastiveCaptionConfig
from hf_contrastive_caption.console import CommandConsole, no_other_progress_bars
from hf_contrastive_caption.data.files import choose_split, load_splits
from hf_contrastive_caption.hub.content import MAX_EXAMPLES
from hf_contrastive_caption.trainer import ContrastiveCaptionTrainer

_LAUNCHED = "CONTRASTIVE_CAPTION_LAUNCHED"
"""Set in the processes that ``--accelerate-config`` starts, which get the same words."""

_TOKEN = "--hub-token"

_OR_A_FILE = ("accelerator_config", "fsdp_config", "deepspeed")
"""Dictionaries whose options also take the name of a file."""


@dataclass(frozen=True)
class TrainRequest:
    """What the command was asked for.

    Attributes:
        words: The words behind the command.
        run: What is not the config's.
        config: Options of the config.
        places: Where options that came from a file stand in it.
    """

    words: tuple[str, ...]
    run: RunOptions
    config: dict[str, Any]
    places: dict[str, str]


def train(words: Sequence[str], console: CommandConsole | None = None) -> int:
    """Run the command.

    Args:
        words: The words behind ``train``.
        console: Where to print.

    Returns:
        The exit code: 0, 130 after a Ctrl-C, or that of the processes that were started.

    Raises:
        WrongUseError: For options that are unknown, of a wrong type, missing or out of their range.
    """
    request = read_request(words)
    if request.run.accelerate_config is not None and _LAUNCHED not in os.environ:
        return _launch(request)
    config = make_config(request)
    if console is None:
        console = CommandConsole(Console(highlight=False, quiet=config.process_index != 0))
    with no_other_progress_bars():
        return _run(request, config, console)


def read_request(words: Sequence[str]) -> TrainRequest:
    """Read the words and the file that they name; the words win.

    Raises:
        WrongUseError: If something is unknown, of a wrong type or missing.
    """
    given = TrainParser().parse(words)
    file = RunFile({}, {})
    if "config" in given:
        file = read_run_file(Path(given.pop("config")), option_types())
    for name, same in (("resume", "resume_from_checkpoint"), ("resume_from_checkpoint", "resume")):
        if name in given:  # two names of one option, and the words win
            file.values.pop(same, None)
    values = {**file.values, **given}
    places = {name: place for name, place in file.places.items() if name not in given}
    missing = [name for name in ("model", "data", "output_dir") if values.get(name) is None]
    if missing:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise WrongUseError(f"{options} must be given, here or in a file with --config (train --help says more)")
    of_run = run_names()
    run = RunOptions(**{name: value for name, value in values.items() if name in of_run})
    config = {name: value for name, value in values.items() if name not in of_run}
    _check_run(run, config)
    _check_dictionaries(config, places)
    return TrainRequest(tuple(words), run, config, places)


def _check_run(run: RunOptions, config: dict[str, Any]) -> None:
    """What belongs together."""
    if run.lora_r is None and (run.lora_alpha is not None or run.lora_target_modules is not None):
        raise WrongUseError("--lora-alpha and --lora-target-modules are for an adapter; say its rank with --lora-r")
    if run.lora_r is not None and run.lora_r < 1:
        raise WrongUseError(f"--lora-r is {run.lora_r}, but a rank is at least 1")
    if os.path.isfile(config["output_dir"]):
        raise WrongUseError(f"--output-dir {config['output_dir']} is a file; give a folder, there or not there yet")
    if run.num_processes is not None and (run.accelerate_config is None or run.num_processes < 1):
        raise WrongUseError("--num-processes takes a number of at least 1, and --accelerate-config with it")
    if run.eval_split is not None and not _evaluates(config) and not run.report_images:
        raise WrongUseError(
            "--eval-split names what to evaluate on, but nothing is evaluated; add --eval-strategy epoch, or steps"
        )
    for name in ("report_images", "card_images"):
        if getattr(run, name) < 0:
            raise WrongUseError(f"--{name.replace('_', '-')} is {getattr(run, name)}, but must be 0 or more")
    if run.card_images > MAX_EXAMPLES:
        raise WrongUseError(f"--card-images is {run.card_images}, but a model card shows at most {MAX_EXAMPLES}")
    if run.resume and config.get("resume_from_checkpoint"):
        raise WrongUseError("--resume and --resume-from-checkpoint say the same; leave one of them out")


def _check_dictionaries(config: dict[str, Any], places: dict[str, str]) -> None:
    """Dictionaries that are written as text: Trainer would say what is wrong with one, and not with which."""
    for name in ContrastiveCaptionConfig._VALID_DICT_FIELDS:
        value = config.get(name)
        if isinstance(value, str) and (value.startswith("{") or name not in _OR_A_FILE):
            try:
                found = json.loads(value)
            except json.JSONDecodeError as error:
                found = error
            if not isinstance(found, dict):
                where = places.get(name, f"--{name.replace('_', '-')}")
                reason = f" ({found})" if isinstance(found, json.JSONDecodeError) else ""
                raise WrongUseError(f"{where}: {value!r} is no dictionary in JSON such as '{{\"a\": 1}}'{reason}")


def _evaluates(config: dict[str, Any]) -> bool:
    return config.get("eval_strategy", "no") != "no" or bool(config.get("eval_on_start"))


def _config_evaluates(config: ContrastiveCaptionConfig) -> bool:
    return _evaluates({"eval_strategy": config.eval_strategy, "eval_on_start": config.eval_on_start})


def make_config(request: TrainRequest) -> ContrastiveCaptionConfig:
    """The config.

    Raises:
        WrongUseError: If an option is out of its range, or options exclude each other; says where those stand that the
            message names and a file gave.
    """
    values = {"disable_tqdm": True, **request.config}  # the command has a bar of its own
    try:
        return ContrastiveCaptionConfig(**values)
    except (ValueError, TypeError) as error:
        message = str(error)
        found = [f"{name}: {place}" for name, place in request.places.items() if re.search(rf"\b{name}\b", message)]
        raise WrongUseError(f"{message} ({', '.join(found)})" if found else message) from error


def _launch(request: TrainRequest) -> int:
    """Run the same words in several processes."""
    assert request.run.accelerate_config is not None
    command = accelerate_launch(request.run.accelerate_config, request.run.num_processes)
    command += ["--module", "hf_contrastive_caption.cli.main", "train", *request.words]
    code = run_to_its_end(command, env={**os.environ, _LAUNCHED: "1"})
    if code == INTERRUPTED:
        _say_how_to_go_on(request, str(request.config["output_dir"]), CommandConsole())
    return code


def _run(request: TrainRequest, config: ContrastiveCaptionConfig, console: CommandConsole) -> int:
    run, folder = request.run, str(config.output_dir)
    resume = run.resume or config.resume_from_checkpoint
    newest = _newest_checkpoint(folder)
    if newest is not None and not resume:
        raise ValueError(
            f"{newest} is there of an earlier run. Go on with that run with --resume, or choose another --output-dir, "
            "or delete its checkpoints: those of two runs in one folder cannot be told apart"
        )
    loaded = _load_data(run, config, console)
    stop = StopOnInterrupt()
    with stop:
        with console.stage("Loading", 1) as advance:
            trainer = ContrastiveCaptionTrainer(
                model=str(run.model),
                args=config,
                train_dataset=loaded.train,
                eval_dataset=loaded.evaluation if _config_evaluates(config) else None,
                reference_model=run.reference_model,
                peft_config=_adapter(run),
                callbacks=[stop],
            )
            advance(1, describe(trainer))
        trainer.remove_callback(PrinterCallback)
        with _says_how_to_go_on(request, folder, console), console.stage("Training", 1) as advance:
            trainer.add_callback(TrainProgress(console, advance))
            trainer.train(resume_from_checkpoint=resume)
        if not stop.stopped:
            trainer.save_model(_internal_call=True)  # as Trainer itself does before it pushes
    if stop.stopped:
        console.say(f"Stopped after step {trainer.state.global_step} of {trainer.state.max_steps}.")
        _say_how_to_go_on(request, folder, console)
        return INTERRUPTED
    page = None
    if loaded.evaluation is not None and compares(run, config):
        page = compare_at_the_end(trainer, run, loaded.evaluation, console)
    if config.push_to_hub:
        trainer.push_to_hub()
    _say_how_to_use(request, config, page, loaded.held_out, console)
    return 0


@dataclass(frozen=True)
class _Loaded:
    """The data of a run.

    Attributes:
        train: To train on.
        evaluation: To evaluate or compare on, if that is asked for or can be done.
        held_out: Name of a split to compare on that is not trained on, if there is one.
    """

    train: datasets.Dataset
    evaluation: datasets.Dataset | None
    held_out: str | None


def _load_data(run: RunOptions, config: ContrastiveCaptionConfig, console: CommandConsole) -> _Loaded:
    """Load the data."""
    splits = load_splits(str(run.data))
    name, data = choose_split(splits, run.train_split)
    told = f"{len(data):,} rows of the split {name!r}"
    evaluation = None
    evaluates, compared = _config_evaluates(config), compares(run, config)
    if run.eval_split is not None and not evaluates and not compared:
        raise ValueError(
            "--eval-split names what to evaluate on, but the comparison at the end is made in one process alone; add "
            "--eval-strategy epoch, or steps"
        )
    if evaluates or run.eval_split is not None or (compared and "validation" in splits):
        if run.eval_split is None and "validation" not in splits:
            raise ValueError(
                f"{run.data} has the splits {', '.join(map(str, splits))}, and none called validation to evaluate on; "
                "name one with --eval-split, or leave --eval-strategy out"
            )
        other, evaluation = choose_split(splits, run.eval_split or "validation")
        told += f", {'evaluated' if evaluates else 'compared'} on {len(evaluation):,} of {other!r}"
    console.say(told, style="dim")
    others = [str(split) for split in (run.eval_split, "test", "validation", *splits) if split in splits]
    return _Loaded(data, evaluation, next((split for split in others if split != name), None))


def _adapter(run: RunOptions) -> LoraConfig | None:
    if run.lora_r is None:
        return None
    targets: Any = run.lora_target_modules or ["all-linear"]
    return LoraConfig(
        r=run.lora_r,
        lora_alpha=2 * run.lora_r if run.lora_alpha is None else run.lora_alpha,  # type: ignore[arg-type]  # any number
        target_modules="all-linear" if targets == ["all-linear"] else targets,
    )


def describe(trainer: ContrastiveCaptionTrainer) -> str:
    """What is trained, and against what."""
    weights = list(trainer.captioner.model.parameters())
    total = sum(weight.numel() for weight in weights)
    trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    told = f"{type(trainer.captioner.base_model).__name__}, {trained:,} of {total:,} weights train"
    return told if trainer.reference is None else f"{told}; the reference is {trainer.reference.description}"


@contextmanager
def _says_how_to_go_on(request: TrainRequest, folder: str, console: CommandConsole) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        _say_how_to_go_on(request, folder, console)
        raise


def _newest_checkpoint(folder: str) -> str | None:
    return get_last_checkpoint(folder) if os.path.isdir(folder) else None


def _say_how_to_go_on(request: TrainRequest, folder: str, console: CommandConsole) -> None:
    if _LAUNCHED in os.environ:
        return  # what started this process says it, below all that the launcher says
    newest = _newest_checkpoint(folder)
    if newest is None:
        console.say("There is no checkpoint yet to go on from.")
        return
    console.say(f"The newest checkpoint is {newest}. To go on:")
    console.code(shlex.join(["contrastive-caption", "train", *going_on(request.words)]))
    if any(_option(word) == _TOKEN for word in request.words):
        console.say("The token of the Hub is not repeated here; set HF_TOKEN to it, or log in with: hf auth login")


def going_on(words: Sequence[str]) -> list[str]:
    """The words that go on with a run that these began, without a token, as they are printed."""
    kept: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if _option(word) not in ("--resume", "--resume-from-checkpoint", _TOKEN):
            kept.append(word)
        elif "=" not in word and rest and not rest[0].startswith("-"):
            rest.pop(0)
    return [*kept, "--resume"]


def _option(word: str) -> str:
    return word.partition("=")[0].replace("_", "-")


def _say_how_to_use(
    request: TrainRequest,
    config: ContrastiveCaptionConfig,
    page: Path | None,
    held_out: str | None,
    console: CommandConsole,
) -> None:
    folder = str(config.output_dir)
    console.say(f"The captioner is in {folder}. To caption with it:")
    console.code(shlex.join(["contrastive-caption", "caption", "photo.jpg", "--model", folder]))
    if page is not None:
        console.say(f"What changed, image by image and word by word: open {page} in a browser.")
    else:
        console.say("Whether it is better, on images that it was not trained on:")
        words = ["contrastive-caption", "compare", str(request.run.reference_model or request.run.model), folder]
        words += (
            ["--data", "OTHER_DATA"] if held_out is None else ["--data", str(request.run.data), "--split", held_out]
        )
        for name in ("prompt", "reference_prompt", "image_column", "image_id_column"):
            if getattr(config, name) is not None:
                words += [f"--{name.replace('_', '-')}", str(getattr(config, name))]
        if config.caption_columns is not None:
            words += ["--caption-columns", ",".join(config.caption_columns)]
        if config.on_bad_image == "skip":
            words.append("--skip-bad")
        console.code(shlex.join(words))
