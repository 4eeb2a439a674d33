"""Replacing the reference by the target while it trains."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_contrastive_caption.captioners import Captioner
from hf_contrastive_caption.reference.base import Reference

logger = logging.getLogger(__name__)


class ReferenceRefresh(TrainerCallback):
    """Replaces the reference before the step, or the epoch, that follows.

    Before the next step and not after the last one, so that what is logged, evaluated and saved at a step still
    belongs to the reference that the step was made with, and a resume from there replaces it as well.

    Args:
        reference: The reference.
        target: The target.
        every: ``"epoch"``, or a number of steps.
        mixup: See :meth:`Reference.refresh`.
        replaced: Called with the number of the new version.

    Attributes:
        step: The step after which the reference was last replaced.
    """

    def __init__(
        self,
        reference: Reference,
        target: Captioner,
        every: int | str,
        mixup: float,
        replaced: Callable[[int], None],
    ) -> None:
        self.reference = reference
        self.target = target
        self.every = every
        self.mixup = mixup
        self.replaced = replaced
        self.step = 0

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Replace the reference between two epochs."""
        if self.every == "epoch" and abs(state.epoch - round(state.epoch)) < 1e-9:  # a resume begins within one
            self._refresh(state.global_step)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Replace the reference after so many steps."""
        if isinstance(self.every, int) and state.global_step % self.every == 0:
            self._refresh(state.global_step)

    def _refresh(self, step: int) -> None:
        if step == self.step:  # the start, or just done
            return
        self.reference.refresh(self.target, self.mixup)
        self.step = step
        how = "the target" if self.mixup == 1 else f"{self.mixup:g} of the target and {1 - self.mixup:g} of itself"
        logger.info("after step %d the reference is replaced by %s (version %d)", step, how, self.reference.version)
        self.replaced(self.reference.version)
