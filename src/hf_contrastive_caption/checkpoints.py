"""Checkpoints that are there whole or not at all, and that a training goes on from bit for bit.

``Trainer`` writes straight into ``OUTPUT_DIR/checkpoint-STEP``, and a resume takes the highest number: a run that is
killed while it writes leaves a newest checkpoint that does not load. Here a checkpoint is written into a folder of
another name and gets its own by one rename when it is complete. Folders that wait for that, or for being deleted,
begin with an underscore: neither ``Trainer`` nor its uploads to the Hub take such a folder for anything.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer import OPTIMIZER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, get_last_checkpoint, sort_checkpoints

from hf_contrastive_caption.loading import remove_other_kind, restore_weights
from hf_contrastive_caption.sharding import is_sharded
from hf_contrastive_caption.statistics import RunningMeans

logger = logging.getLogger(__name__)

LOG_STATE_NAME = "log_state.json"
"""The file of a checkpoint with what was summed up since the last log."""

_UNFINISHED, _REPLACED, _DELETED = "_unfinished-", "_replaced-", "_deleted-"
_JIT_SENTINEL = "checkpoint-is-incomplete.txt"
"""What ``Trainer`` with ``enable_jit_checkpoint`` puts into a checkpoint's folder before it saves."""


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
        self._staging = run / f"{_UNFINISHED}{self.state.global_step}"
        staged = self._staging / final.name
        try:
            super()._save_checkpoint(model, trial)
            staged.mkdir(parents=True, exist_ok=True)  # another process makes it, maybe later
            self._save_log_state(staged)
            self.save_extra(staged)
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
            remove_other_kind(str(output_dir or self.args.output_dir), self.model)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._staging is None:  # else Trainer asks too early
            super()._push_from_checkpoint(checkpoint_folder)

    def _correct_best(self, run: Path, staged: Path) -> None:
        """Say which checkpoint is the best: ``Trainer`` has looked for it in the staging folder."""
        step = self.state.best_global_step
        if not step:
            return
        best = run / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        if step == self.state.global_step or best.is_dir():
            self.state.best_model_checkpoint = str(best)
        if self.args.should_save:
            self.state.save_to_json(str(staged / TRAINER_STATE_NAME))

    def _finalize_training(self, trial: Any, *args: Any, **kwargs: Any) -> TrainOutput:
        """With ``save_total_limit=1`` Trainer ends by deleting all but the best, file by file; so do it before."""
        best = self.state.best_model_checkpoint
        if self.args.should_save and self.args.save_total_limit == 1 and best is not None and os.path.isdir(best):
            self._finish_current_push()  # Trainer waits for it too late
            rotate(Path(self._get_output_dir(trial)), 1, [best])
        output: TrainOutput = super()._finalize_training(trial, *args, **kwargs)  # type: ignore[no-untyped-call]
        return output

    # Restoring -------------------------------------------------------------------------------------------------------

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        whole = self._whole_model()
        if whole is not None:
            restore_weights(whole, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        whole, folder = self._whole_model(), self.state.best_model_checkpoint
        if whole is not None and folder is not None:
            restore_weights(whole, folder)
        else:
            super()._load_best_model()

    def _whole_model(self) -> PreTrainedModel | None:
        """The model, if it has no adapters and every process has all of its weights."""
        return self.model if isinstance(self.model, PreTrainedModel) and not self._is_sharded() else None

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
        self._newly_skipped = own[1].clone()
        self._train_means.load(state["names"], own[2:].reshape(-1, 2), self._tr_loss.device)
        # The log takes the mean of this over processes, and the end of the training the sum of what was logged.
        loss = own[0] if same else rows[:, 0].mean()
        self._tr_loss.fill_(loss.item())
        self._total_loss_scalar -= rows[:, 0].mean().item()
        self._globalstep_last_logged = state["last_logged_step"]


# Folders -------------------------------------------------------------------------------------------------------------


def publish(staged: Path, final: Path) -> None:
    """Give a complete checkpoint its name.

    Args:
        staged: The checkpoint, in a folder of its own that is removed.
        final: The name. A folder of this name, of an earlier run, is replaced; :func:`tidy` brings it back if the
            process is killed before the new one stands in its place.
    """
    _sync(staged)
    replaced = final.with_name(final.name.replace(f"{PREFIX_CHECKPOINT_DIR}-", _REPLACED))
    if final.exists():
        os.rename(final, replaced)  # a folder cannot be renamed onto another
    os.rename(staged, final)
    _sync_folder(final.parent)
    if replaced.exists():
        remove(replaced)
    shutil.rmtree(staged.parent, ignore_errors=True)  # empty


def remove(folder: Path) -> None:
    """Delete a folder; it loses its name at once, so that it is never there in part."""
    bin_folder = Path(tempfile.mkdtemp(prefix=_DELETED, dir=folder.parent))
    os.rename(folder, bin_folder / folder.name)
    shutil.rmtree(bin_folder, ignore_errors=True)


def rotate(run: Path, limit: int | None, keep: list[Any]) -> None:
    """Delete the oldest checkpoints.

    Args:
        run: The folder with the checkpoints.
        limit: How many may be there.
        keep: Paths of checkpoints that stay; ``None`` for none. There are more than ``limit`` if these are more.
    """
    kept = {Path(path).resolve() for path in keep if path is not None}
    folders = [Path(path) for path in sort_checkpoints(str(run), use_mtime=True)]  # the oldest first
    others = [path for path in folders if path.resolve() not in kept]
    surplus = len(folders) - max(limit or 0, len(folders) - len(others))
    for path in others[: max(0, surplus)]:
        logger.info("deleting %s, as save_total_limit is %s", path, limit)
        remove(path)


def tidy(run: Path) -> None:
    """Remove what a killed run left in its folder, and undo a replacement that was not finished.

    Args:
        run: The folder with the checkpoints of one run; folders of other runs in it are not looked into.
    """
    if not run.is_dir():
        return
    for path in sorted(run.glob("_*-*")):
        number = re.fullmatch(rf"{_REPLACED}(\d+)", path.name)
        if number is not None:
            checkpoint = run / f"{PREFIX_CHECKPOINT_DIR}-{number[1]}"
            if checkpoint.exists():
                remove(path)
            else:
                os.rename(path, checkpoint)
        elif re.match(rf"{_UNFINISHED}\d+$|{_DELETED}", path.name):
            logger.info("removing %s, which a run that was killed left behind", path)
            shutil.rmtree(path, ignore_errors=True)
    for path in _checkpoints(run):  # the folder that enable_jit_checkpoint makes before it saves
        if set(os.listdir(path)) <= {_JIT_SENTINEL}:
            remove(path)


def find_checkpoint(output_dir: str | None, given: Any) -> str:
    """The checkpoint that a training shall go on from.

    Args:
        output_dir: The output folder.
        given: ``True`` for the newest checkpoint in it, or the folder of one.

    Returns:
        Its folder.

    Raises:
        ValueError: If there is none, or it is damaged.
    """
    if given is True:
        newest = get_last_checkpoint(output_dir) if output_dir and os.path.isdir(output_dir) else None
        if newest is None:
            raise ValueError(
                f"there is no checkpoint in the output folder {output_dir!r} to resume from; leave "
                "resume_from_checkpoint out to start anew, or set output_dir to the folder of the run to go on with"
            )
        given = newest
    folder = Path(given)
    if not folder.is_dir():
        raise ValueError(f"there is no checkpoint folder {str(given)!r}; a run writes OUTPUT_DIR/checkpoint-STEP")
    found = damage(folder)
    if found is not None:
        whole = [path for path in _checkpoints(folder.parent) if path != folder and damage(path) is None]
        way_out = f"resume_from_checkpoint={str(whole[-1])!r} is whole" if whole else "start anew without it"
        raise ValueError(f"the checkpoint {str(folder)!r} is damaged ({found}); {way_out}")
    return str(folder)


def damage(folder: Path) -> str | None:
    """What is wrong with the files of a checkpoint, or ``None``; opens them, but reads no weights."""
    if not (folder / TRAINER_STATE_NAME).is_file():
        return f"{TRAINER_STATE_NAME} is missing"
    for path in sorted(folder.iterdir()):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix == ".safetensors":
                with safe_open(path, framework="pt"):
                    pass
            elif path.suffix in (".pt", ".pth", ".bin") and path.is_file() and not zipfile.is_zipfile(path):
                return f"{path.name} is no file of torch.save, or was cut"  # its directory is at its end
        except (ValueError, SafetensorError) as error:
            return f"{path.name}: {error}"
    return None


def _checkpoints(run: Path) -> list[Path]:
    """Folders of checkpoints, the lowest number first."""
    numbers = {path: re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name) for path in run.iterdir()}
    found = [(int(number[1]), path) for path, number in numbers.items() if number is not None and path.is_dir()]
    return [path for _, path in sorted(found)]


def _sync(folder: Path) -> None:
    """Wait until all files of a folder are on the disk, so that a power failure leaves no renamed empty files."""
    if os.name != "posix":  # elsewhere a file must be open for writing, and a folder cannot be opened
        return
    for path, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(os.path.join(path, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _sync_folder(Path(path))


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # a file system that cannot
            raise
    finally:
        os.close(descriptor)
