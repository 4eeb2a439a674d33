"""Checkpoints that are there whole or not at all, and that a training goes on from bit for bit.

``Trainer`` writes straight into ``OUTPUT_DIR/checkpoint-STEP``, and a resume takes the highest number: a run that is
killed while it writes leaves a newest checkpoint that does not load. Here a checkpoint is written into a folder of
another name and gets its own by one rename when it is complete. Folders that wait for that, or for being deleted,
begin with an underscore: neither ``Trainer`` nor its uploads to the Hub take such a folder for anything.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer import OPTIMIZER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from hf_contrastive_caption.adapter_files import arrange_adapter, restore_adapter
from hf_contrastive_caption.checkpoint_folders import UNFINISHED, find_checkpoint, publish, rotate, steps_before, tidy
from hf_contrastive_caption.loading import restore_weights
from hf_contrastive_caption.precision import widest
from hf_contrastive_caption.sharding import is_sharded
from hf_contrastive_caption.statistics import RunningMeans

logger = logging.getLogger(__name__)

LOG_STATE_NAME = "log_state.json"
"""The file of a checkpoint with what was summed up since the last log."""


class AtomicCheckpoints(Trainer):
    """Checkpoints that survive a kill at any moment, for a trainer that keeps ``_train_means`` and ``_newly_skipped``.

    A training that is killed, at any step or in the middle of writing a checkpoint, goes on from its newest checkpoint
    with the same losses, draws, logs and weights as if it had never been killed. That rests on a file system that
    renames a folder at once, as local disks and NFS do; object stores that are mounted as a folder do not.
    """

    _train_means: RunningMeans
    _newly_skipped: torch.Tensor
    _staging: Path | None = None
    """While a checkpoint is written, the folder that stands for the output folder."""
    _own_steps: AbstractSet[int] = frozenset()
    """Steps whose checkpoints in the output folder are of this training, and not of an earlier one."""

    def save_extra(self, folder: Path) -> None:
        """For subclasses: write further files into a checkpoint, before it gets its name.

        Called on every process.

        Args:
            folder: The folder of the checkpoint that is being written. It exists, and has the files that ``Trainer``
                writes, those of this process at least.
        """

    def prepare_start(self, checkpoint: str | None) -> None:
        """For subclasses: what is to be done before a training begins, on every process.

        Args:
            checkpoint: The checkpoint that it will go on from, which is whole; the model does not have its weights
                yet. ``None`` for a training from the start.
        """

    def checkpoints_in_use(self) -> list[str]:
        """For subclasses: checkpoints that must stay for now, however many there may be."""
        return []

    # Starting --------------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: Any = None, trial: Any = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """See ``Trainer``; what a killed run left behind in the output folder is removed.

        Raises:
            ValueError: If there is no checkpoint to resume from, or it is damaged; says which one is whole.
        """
        self._tidy(trial)
        folder = self.checkpoint_to_resume(resume_from_checkpoint)
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled  # these have other files
        if folder is not None and not sharded and not os.path.isfile(os.path.join(folder, OPTIMIZER_NAME)):
            logger.warning(
                "%s has no state of the optimizer (it was saved with save_only_model=True): the optimizer, the "
                "learning rate and the random numbers start anew",
                folder,
            )
        self._own_steps = frozenset()
        if folder is not None and Path(folder).resolve().parent == Path(self._get_output_dir(trial)).resolve():
            self._own_steps = steps_before(Path(folder))
        self.prepare_start(folder)
        return super().train(folder, trial, *args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Trainer looks whether it is at the end after a step and not before one, so a run that goes on from its last
        # checkpoint, in the middle of an epoch, would train a step too many.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)  # type: ignore[no-untyped-call]

    def checkpoint_to_resume(self, resume_from_checkpoint: Any) -> str | None:
        """The folder that a training goes on from; every process must call this.

        Args:
            resume_from_checkpoint: As in :meth:`train`: ``True`` for the newest checkpoint, or a folder.

        Returns:
            The folder, or ``None`` for a training from the start.

        Raises:
            ValueError: If there is no checkpoint, or it is damaged.
        """
        self._tidy(None)  # it may bring a checkpoint back
        if resume_from_checkpoint is None or resume_from_checkpoint is False:
            return None
        return find_checkpoint(self.args.output_dir, resume_from_checkpoint)

    def _tidy(self, trial: Any) -> None:
        if self.args.should_save:
            tidy(Path(self._get_output_dir(trial)))
        self.accelerator.wait_for_everyone()

    # Writing ---------------------------------------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run = Path(self._get_output_dir(trial))
        final = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self._staging = run / f"{UNFINISHED}{self.state.global_step}"
        staged = self._staging / final.name
        try:
            super()._save_checkpoint(model, trial)
            staged.mkdir(parents=True, exist_ok=True)  # another process makes it, maybe later
            self._save_log_state(staged)
            self.save_extra(staged)
            self._own_steps |= {self.state.global_step}
            self._correct_best(run, staged)
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()  # everything is written
        if self.args.should_save:
            publish(staged, final)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))
        if self.args.should_save and (self.args.save_total_limit or 0) > 0:
            kept = [final, self.state.best_model_checkpoint, *self.checkpoints_in_use()]
            rotate(run, self.args.save_total_limit, kept)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save and self.model is not None:
            arrange_adapter(self.model, str(output_dir or self.args.output_dir))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._staging is None:  # else Trainer asks too early
            super()._push_from_checkpoint(checkpoint_folder)

    def _correct_best(self, run: Path, staged: Path) -> None:
        """Say which checkpoint is the best: ``Trainer`` has looked for it in the staging folder."""
        step = self.state.best_global_step
        if not step:
            return
        best = run / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        if step in self._own_steps and (step == self.state.global_step or best.is_dir()):
            self.state.best_model_checkpoint = str(best)
        if self.args.should_save:
            self.state.save_to_json(str(staged / TRAINER_STATE_NAME))

    def _finalize_training(self, trial: Any, *args: Any, **kwargs: Any) -> TrainOutput:
        """With ``save_total_limit=1`` Trainer ends by deleting all but the best, file by file; so do it before."""
        best, step = self.state.best_model_checkpoint, self.state.best_global_step
        if self.args.load_best_model_at_end and step and (best is None or not best.endswith(f"-{step}")):
            logger.warning(
                "the best step, by %s, is %d, but this training has saved no checkpoint there. %s. With save_steps "
                "equal to eval_steps, or save_strategy='best', there is one wherever the best may be",
                self.args.metric_for_best_model,
                step,
                "The model stays as it is after the last step" if best is None else f"The model of {best} comes back",
            )
        if self.args.should_save and self.args.save_total_limit == 1 and best is not None and os.path.isdir(best):
            self._finish_current_push()  # Trainer waits for it too late
            rotate(Path(self._get_output_dir(trial)), 1, [best])
        output: TrainOutput = super()._finalize_training(trial, *args, **kwargs)  # type: ignore[no-untyped-call]
        return output

    # Restoring -------------------------------------------------------------------------------------------------------

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self._restore(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        folder = self.state.best_model_checkpoint
        if folder is None or not self._restore(folder):
            super()._load_best_model()

    def _restore(self, folder: str) -> bool:
        """Put the weights of a checkpoint into the model, where every process has all of it; else Trainer must."""
        model: Any = self.model
        if self._is_sharded():
            return False
        if isinstance(model, PeftModel):
            restore_adapter(model, folder)
        elif isinstance(model, PreTrainedModel):
            restore_weights(model, folder)
        else:
            return False
        return True

    def _is_sharded(self) -> bool:
        """Whether a process may have only a part of the model."""
        return self.is_fsdp_enabled or self.is_deepspeed_enabled or (self.model is not None and is_sharded(self.model))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Called once in a resume, after Trainer has set its sums to 0 and before the first step."""
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            self._load_log_state(Path(checkpoint))

    # Between two logs ------------------------------------------------------------------------------------------------

    def _save_log_state(self, folder: Path) -> None:
        """Keep what the next log is the mean of: Trainer's sum of losses, which has no public name, and ours.

        Nothing is kept in the middle of a step, where ``enable_jit_checkpoint`` may save, since a resume takes that
        step again.
        """
        if self.model is None or any(weight.grad is not None for weight in self.model.parameters()):
            return
        names, sums = self._train_means.state()
        parts = (self._tr_loss.detach(), self._newly_skipped, sums)
        own = torch.cat([part.flatten().cpu().double() for part in parts])[None]
        if self.args.world_size > 1:
            own = own.to(self._tr_loss.device)
        rows = self.accelerator.gather(own)  # (n_processes, 2 + 2 * n_names)
        if self.args.should_save:
            state = {"last_logged_step": self._globalstep_last_logged, "names": names, "sums": rows.tolist()}
            (folder / LOG_STATE_NAME).write_text(json.dumps(state))

    def _load_log_state(self, folder: Path) -> None:
        if not (folder / LOG_STATE_NAME).is_file():
            return
        state = json.loads((folder / LOG_STATE_NAME).read_text())
        rows = torch.tensor(state["sums"], dtype=torch.float64)  # (n_processes then, 2 + 2 * n_names)
        same = len(rows) == self.args.world_size
        own = rows[self.args.process_index] if same else rows.sum(0) / self.args.world_size
        self._newly_skipped = own[1].to(widest(self._tr_loss.device))
        self._train_means.load(state["names"], own[2:].reshape(-1, 2), self._tr_loss.device)
        # The log takes the mean of this over processes, and the end of the training the sum of what was logged.
        loss = own[0] if same else rows[:, 0].mean()
        self._tr_loss.fill_(loss.item())
        self._total_loss_scalar -= rows[:, 0].mean().item()
        self._globalstep_last_logged = state["last_logged_step"]
