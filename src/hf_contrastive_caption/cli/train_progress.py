"""What ``train`` prints while it trains."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_contrastive_caption.console import Advance, CommandConsole

_SHOWN = {
    "loss": ("loss", "{:.3f}"),
    "margin": ("margin", "{:.2f}"),
    "ranked_first": ("ranked first", "{:.1%}"),
    "image_margin": ("margin over other images", "{:.2f}"),
    "own_image_first": ("own image first", "{:.1%}"),
    "learning_rate": ("learning rate", "{:.1e}"),
    "recall_at_1": ("recall@1", "{:.1%}"),
    "recall_at_10": ("recall@10", "{:.1%}"),
    "cider_d": ("CIDEr-D", "{:.3f}"),
    "invented": ("invented", "{:.1%}"),
    "score": ("score", "{:.3f}"),
    "skipped_images": ("images skipped", "{:.0f}"),
}
"""What people watch of what is logged; the rest is in the checkpoints' trainer_state.json and in the trackers."""
_IN_BAR = ("loss", "ranked_first", "own_image_first")
"""What has room beside the bar."""


class TrainProgress(TrainerCallback):
    """Moves the bar, and prints a line for each evaluation, and where there is no terminal for each log as well.

    Args:
        console: Where to print.
        advance: Of the stage that the training is.
    """

    def __init__(self, console: CommandConsole, advance: Advance) -> None:
        self.console, self.advance = console, advance

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Where the bar begins (a resume begins later) and ends."""
        self.advance(state.global_step, "", state.max_steps)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Move the bar."""
        self.advance(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: object,
    ) -> None:
        """Print what was logged."""
        logs = logs or {}
        step = f"step {state.global_step} of {state.max_steps}"
        evaluated = in_words({name.removeprefix("eval_"): logs[name] for name in logs if name.startswith("eval_")})
        if evaluated:
            self.console.say(f"{step}, evaluation: {evaluated}")
        trained = in_words(logs) if "loss" in logs else ""
        if trained:
            self.advance(state.global_step, in_words({name: logs[name] for name in _IN_BAR if name in logs}))
            if not self.console.is_terminal:
                self.console.say(f"{step}: {trained}")


def in_words(logs: dict[str, Any]) -> str:
    """What people watch of a log, in a line."""
    return ", ".join(f"{name} {form.format(logs[key])}" for key, (name, form) in _SHOWN.items() if key in logs)
