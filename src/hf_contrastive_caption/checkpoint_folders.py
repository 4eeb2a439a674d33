"""The folders of checkpoints: each gets its name, loses it, and is looked for, whole or not at all."""

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

from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint, sort_checkpoints

logger = logging.getLogger(__name__)

UNFINISHED = "_unfinished-"
_REPLACED, _DELETED = "_replaced-", "_deleted-"
_JIT_SENTINEL = "checkpoint-is-incomplete.txt"
"""What ``Trainer`` with ``enable_jit_checkpoint`` puts into a checkpoint's folder before it saves."""


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
        elif re.match(rf"{UNFINISHED}\d+$|{_DELETED}", path.name):
            logger.info("removing %s, which a run that was killed left behind", path)
            shutil.rmtree(path, ignore_errors=True)
    for path in _checkpoints(run):  # the folder that enable_jit_checkpoint makes before it saves
        if set(os.listdir(path)) <= {_JIT_SENTINEL}:
            remove(path)


def find_checkpoint(output_dir: str | None, given: Any) -> str:
    """The checkpoint that a training shall go on from.

    Args:
        output_dir: The output folder.
        given: ``True`` for the checkpoint with the highest number in it, or the folder of one.

    Returns:
        Its folder.

    Raises:
        ValueError: If there is none, it is damaged, or it is of an earlier training than one with a lower number.
    """
    newest = given is True
    if newest:
        given = get_last_checkpoint(output_dir) if output_dir and os.path.isdir(output_dir) else None
        if given is None:
            raise ValueError(
                f"there is no checkpoint in the output folder {output_dir!r} to resume from; leave "
                "resume_from_checkpoint out to start anew, or set output_dir to the folder of the run to go on with"
            )
    folder = Path(given)
    if not folder.is_dir():
        raise ValueError(f"there is no checkpoint folder {str(given)!r}; a run writes OUTPUT_DIR/checkpoint-STEP")
    found = damage(folder)
    if found is not None:
        whole = [path for path in _checkpoints(folder.parent) if path != folder and damage(path) is None]
        way_out = f"resume_from_checkpoint={str(whole[-1])!r} is whole" if whole else "start anew without it"
        raise ValueError(f"the checkpoint {str(folder)!r} is damaged ({found}); {way_out}")
    if newest:
        _refuse_two_trainings(folder)
    return str(folder)


def _refuse_two_trainings(highest: Path) -> None:
    """Refuse to choose where a checkpoint was written after the one with the highest number, by another training.

    Times alone prove nothing, since a copy of a folder may have any. So both have to say it: the times, and the logs.
    """
    written = _state_file(highest).stat().st_mtime
    for path in _checkpoints(highest.parent):
        later = damage(path) is None and _state_file(path).stat().st_mtime > written
        if later and not goes_on_from(highest, path):
            raise ValueError(
                f"{str(highest.parent)!r} has checkpoints of two trainings: {highest.name} has the highest number, "
                f"but {path.name} was written after it, and its log is not the beginning of that of {highest.name}. "
                f"Say which to go on from: resume_from_checkpoint={str(path)!r} for the later training"
            )


def goes_on_from(later: Path, earlier: Path) -> bool:
    """Whether a checkpoint may be of the training that wrote an earlier one: its log begins with that of the other.

    So it is where neither had anything to log yet, and for a checkpoint and itself.
    """
    try:
        logs = [json.loads(_state_file(path).read_text(encoding="utf-8"))["log_history"] for path in (later, earlier)]
    except (OSError, ValueError, KeyError):
        return False  # damaged
    begun, whole = json.dumps(logs[1]), json.dumps(logs[0][: len(logs[1])])  # as texts, in which NaN equals NaN
    return begun == whole


def steps_before(checkpoint: Path) -> set[int]:
    """The steps of the checkpoints that the training of a checkpoint wrote up to it, its own included."""
    step = _step(checkpoint)
    return {
        _step(path)
        for path in _checkpoints(checkpoint.parent)
        if _step(path) <= step and goes_on_from(checkpoint, path)
    }


def damage(folder: Path) -> str | None:
    """What is wrong with the files of a checkpoint, or ``None``; opens them, but reads no weights."""
    if not _state_file(folder).is_file():
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
    found = [path for path in run.iterdir() if _step(path) >= 0 and path.is_dir()]
    return sorted(found, key=lambda path: (_step(path), path))


def _step(checkpoint: Path) -> int:
    """The number in the name of a checkpoint; -1 for a folder that is none by its name."""
    number = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", checkpoint.name)
    return -1 if number is None else int(number[1])


def _state_file(checkpoint: Path) -> Path:
    return checkpoint / TRAINER_STATE_NAME


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
