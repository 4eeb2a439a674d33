"""Ctrl-C in a training: the step ends, a checkpoint is saved, and the training stops."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate.utils import reduce
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_MESSAGE = b"\nStopping after this step, with a checkpoint. Ctrl-C again stops at once.\n"


class StopOnInterrupt(TrainerCallback):
    """Answers the first Ctrl-C of a training by the Trainer's own means, and the second at once.

    Used as a context around ``train()``. SIGINT is noted between the first step of a training and its last. Before,
    while captions are tokenized or scores computed ahead, there is nothing to save, and it interrupts as always.

    Attributes:
        stopped: Whether the training was stopped.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._asked = self._speaks = False
        self._process = os.getpid()
        self._before: Any = None

    def __enter__(self) -> StopOnInterrupt:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._restore()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Take SIGINT over."""
        self._speaks = state.is_world_process_zero
        self._before = signal.signal(signal.SIGINT, self._note)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Save and stop, if any process was asked to: all must do it in the same step."""
        asked = self._asked
        if args.world_size > 1:
            asked = bool(reduce(torch.tensor([int(asked)], device=args.device), reduction="sum").item())
        if asked:
            control.should_save = control.should_training_stop = True
            self.stopped = state.global_step < state.max_steps

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Give SIGINT back."""
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a worker that opens images, and must go on until the step is done
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        if self._speaks:
            os.write(2, _MESSAGE)  # print is not safe in a signal handler

    def _restore(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None
