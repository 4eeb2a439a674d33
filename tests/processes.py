"""Trainings in processes of their own, as ``torchrun`` starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]


def torchrun(module: str, *words: object, processes: int = 2, timeout: float = 280, tries: int = 1) -> str:
    """Run a module of the tests on several processes.

    Args:
        module: Its name, such as ``"tests.test_distributed"``.
        words: What it is given on the command line.
        processes: How many.
        timeout: Seconds for one try. Then every process writes where each of its threads was, and ends.
        tries: More than one for what may be run again: processes that hang are then a warning until the last try.

    Returns:
        What they wrote to stderr.

    Raises:
        AssertionError: If one fails, or all tries hang; with the end of what they wrote.
    """
    done = try_torchrun(module, *words, processes=processes, timeout=timeout, tries=tries)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def try_torchrun(
    module: str, *words: object, processes: int = 2, timeout: float = 280, tries: int = 1
) -> subprocess.CompletedProcess[str]:
    """As :func:`torchrun`, for a run that may fail: its exit status and output."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += ["-m", module, *map(str, words)]
    for left in reversed(range(tries)):
        done, hung = run_or_show_stacks(command, timeout)
        if not hung:
            return done
        message = f"{module} hung for {timeout} seconds; its processes were at\n{done.stderr[-12000:]}"
        assert left, message
        warnings.warn(message, stacklevel=2)
    raise ValueError(f"tries={tries}; give at least 1")


def run_or_show_stacks(command: Sequence[str], timeout: float) -> tuple[subprocess.CompletedProcess[str], bool]:
    """Run a command, and end it after ``timeout`` seconds with the stacks of all its Python processes in ``stderr``.

    Returns:
        What it printed, and whether it had to be ended.
    """
    # Python writes the stacks of all threads before it dies of SIGABRT; processes that it forks inherit that.
    environment = {**os.environ, "PYTHONFAULTHANDLER": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    hung = False
    try:
        out, error = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        hung = True
        end(process.pid)
        out, error = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, out, error), hung


def end(pid: int) -> None:
    """Abort a process and all that it has started, one by one, so that none reacts before it has told its stacks."""
    process = psutil.Process(pid)
    family = [process, *process.children(recursive=True)]
    for member in family:
        member.suspend()
    for member in family:
        member.send_signal(signal.SIGABRT)
        member.resume()
        if psutil.wait_procs([member], timeout=5)[1]:
            member.kill()
