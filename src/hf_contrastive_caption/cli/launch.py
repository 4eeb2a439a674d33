"""``contrastive-caption launch``: a training script in several processes, by ``accelerate launch``.

Nothing heavy is imported before it is known that the command is used rightly.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from hf_contrastive_caption.cli.errors import INTERRUPTED
from hf_contrastive_caption.launch import accelerate_config, shipped_configs

_WITH_VALUE = ("--accelerate-config", "--num-processes")


def own_words(arguments: Sequence[str]) -> int:
    """How many words of a command line are for ``contrastive-caption`` itself; those of a launched script are not.

    Args:
        arguments: The words after the program's name.
    """
    first = next((number for number, word in enumerate(arguments) if not word.startswith("-")), len(arguments))
    if arguments[first : first + 1] != ["launch"]:
        return len(arguments)
    number = first + 1
    while number < len(arguments) and arguments[number].startswith("-"):
        number += 2 if arguments[number] in _WITH_VALUE else 1
    return min(number + 1, len(arguments))


def launch(config: str, num_processes: int | None, script: Path, arguments: Sequence[str]) -> int:
    """Run a script in several processes.

    Args:
        config: Name of a config in the package, or path of one.
        num_processes: How many processes; as many as there are GPUs if not given, unless the config is the user's own.
        script: The script.
        arguments: What it is given.

    Returns:
        The exit code of ``accelerate launch``; 128 and the number of the signal if one ended it.

    Raises:
        ValueError: If there is no such config or script, or no GPU to count, or Accelerate has no FSDP2.
    """
    return run_to_its_end(launch_command(config, num_processes, script, arguments))


def launch_command(config: str, num_processes: int | None, script: Path, arguments: Sequence[str]) -> list[str]:
    """The words of the process that is started; see :func:`launch`."""
    accelerate_config(config)  # a wrong one is told first
    if not script.is_file():
        raise ValueError(f"there is no script {str(script)!r}; give the path of a Python file after the options")
    return [*accelerate_launch(config, num_processes), str(script), *arguments]


def accelerate_launch(config: str, num_processes: int | None) -> list[str]:
    """The words that start ``accelerate launch``, without those for what it runs; see :func:`launch`."""
    file = accelerate_config(config)
    if config in shipped_configs() and num_processes is None:  # one's own file may say it
        num_processes = _num_gpus()
    if config == "fsdp2":
        _check_fsdp2()
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file)]
    if num_processes is not None:
        command += ["--num_processes", str(num_processes)]
    return command


def run_to_its_end(command: Sequence[str], env: dict[str, str] | None = None) -> int:
    """Run a command that gets Ctrl-C itself, as a terminal sends it to all; so this process waits for it.

    Returns:
        Its exit code, as a shell would say it; 130 after a Ctrl-C.
    """
    interrupted = False

    def note(number: int, frame: object) -> None:
        nonlocal interrupted
        interrupted = True

    before = signal.signal(signal.SIGINT, note)
    try:
        code = exit_code(subprocess.Popen(command, env=env).wait())
    finally:
        signal.signal(signal.SIGINT, before)
    return INTERRUPTED if interrupted and code else code


def exit_code(returncode: int) -> int:
    """What a shell would say of a process that ended so."""
    return returncode if returncode >= 0 else 128 - returncode


def _check_fsdp2() -> None:
    found = version("accelerate")
    if tuple(int(part) for part in found.split(".")[:2]) < (1, 6):
        raise ValueError(
            f"Accelerate {found} has no FSDP2 and would run FSDP of the first version without a word; install "
            "accelerate>=1.6"
        )


def _num_gpus() -> int:
    import torch

    found = torch.cuda.device_count()
    if found == 0:
        raise ValueError(
            "no GPU is visible, so it is not known how many processes are wanted; say --num-processes. Without a GPU "
            "only ddp runs"
        )
    return found
