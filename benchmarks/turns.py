"""Trainers that take a step each in turns, in processes of their own: what parent and worker say to each other."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from training_step import status_mb
from transformers import TrainerCallback

WARM_UP, PREFIX = 2, "@@ "
ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


class Worker:
    """A trainer in a process of its own, as the parent sees it.

    Args:
        command: What to run.
        memory: Whether its memory is measured: its allocator then gives freed memory back at once.
    """

    def __init__(self, command: list[str], *, memory: bool) -> None:
        environment = {**os.environ, **(ALLOCATOR if memory else {})}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def step(self) -> dict[str, Any]:
        """Have it take a step, and load the batch of the next one."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """What it says next."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(PREFIX):
                found: dict[str, Any] = json.loads(line.removeprefix(PREFIX))
                return found
        raise SystemExit(f"{self._process.args} ended with {self._process.wait()}")

    def end(self) -> dict[str, Any]:
        """Have it count a step, and wait for its end."""
        found = self.step()
        self.wait()
        return found

    def wait(self) -> None:
        """Wait for its end."""
        self._process.communicate()


class Turns(TrainerCallback):
    """Takes a timed step whenever it is told to, then notes the peak of memory and counts operations.

    The trainer takes ``WARM_UP + repeats + 1`` steps.

    Args:
        repeats: Timed steps.
        before_mb: Memory of the process before there was a model.
    """

    def __init__(self, repeats: int, before_mb: float) -> None:
        self.repeats = repeats
        self.before_mb = before_mb
        self.found: dict[str, float] = {}
        self._counting = ExitStack()
        self._marks = 0.0, 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say that the batch is there, and wait for the turn."""
        loading = self._since("loading")
        step = state.global_step - WARM_UP
        if 0 <= step <= self.repeats:
            say({**loading, **self.found})
            sys.stdin.readline()
        if step == 0:
            reset_peak()
        if step == self.repeats:
            self.found["peak_mb"] = peak_mb() - self.before_mb
            self.counter = FlopCounterMode(display=False)
            self._counting.enter_context(sdpa_kernel(SDPBackend.MATH))
            self._counting.enter_context(self.counter)
        self._marks = _seconds()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time that it took."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.found |= self._since("step")
        self._counting.close()
        self._marks = _seconds()

    def _since(self, what: str) -> dict[str, float]:
        """Seconds since the last call, by the clock and of the processor, in all threads together."""
        begun, self._marks = self._marks, _seconds()
        return {f"{what}_s": self._marks[0] - begun[0], f"{what}_cpu_s": self._marks[1] - begun[1]}


def _seconds() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def say(values: dict[str, Any]) -> None:
    """Tell the parent; other lines on the standard output are the libraries'."""
    print(PREFIX + json.dumps(values), flush=True)


def start_mb() -> float:
    """Memory of a process that has imported everything and has no model yet, in MB; 0 on a GPU."""
    warm = nn.Linear(64, 64)
    warm(torch.randn(64, 64)).sum().backward()  # threads and kernels of PyTorch
    ctypes.CDLL(None).malloc_trim(0)
    return 0.0 if torch.cuda.is_available() else status_mb("RssAnon")


def reset_peak() -> None:
    """Let the peak of memory start again from here."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # see proc(5)


def peak_mb() -> float:
    """Peak since then, in MB, without pages of files, which the system can drop."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return status_mb("VmHWM") - status_mb("RssFile")
