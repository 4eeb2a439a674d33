"""What checkpoints know of the reference, and its weights on disk: each version once, named by its hash."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_contrastive_caption.reference.base import Reference
from hf_contrastive_caption.reference.replacement import ReferenceRefresh

logger = logging.getLogger(__name__)

RECORD = "reference.json"
VERSIONS = "_references"
"""Folder of the versions inside the output folder; what begins with "_" is not pushed to the Hub."""

_IN_CHECKPOINT = "reference"


class ReferenceVersions:
    """Writes the reference's state beside a run's checkpoints, and brings it back.

    Args:
        reference: The reference.
        refresh: What replaces it, if anything does.
        output_dir: Folder of the run.
    """

    def __init__(self, reference: Reference, refresh: ReferenceRefresh | None, output_dir: str | Path) -> None:
        self.reference = reference
        self.refresh = refresh
        self.folder = Path(output_dir) / VERSIONS
        self._names = self._named()
        self._initial = self._names[1]

    @property
    def initial(self) -> str:
        """The digest of the reference with which the run began."""
        return self._initial

    def restore(self, checkpoint: str | Path) -> None:
        """Bring the reference to where it was at a checkpoint.

        Raises:
            ValueError: If the run began with another reference, or the reference's weights are missing.
        """
        file = Path(checkpoint) / RECORD
        if not file.is_file():
            logger.warning(
                "%s does not say which reference it was trained against, so it cannot be told whether this is the "
                "same one",
                checkpoint,
            )
            return
        record = json.loads(file.read_text())
        self._check_same_start(record, Path(checkpoint))
        if record["current"] != self._current()[0] or record["stored"] != self._current()[1]:
            self._load(record, Path(checkpoint))

    def save(self, checkpoint: str | Path) -> None:
        """Write what a resume needs to know into a checkpoint, and new weights to disk; by one process only."""
        self._prune()
        checkpoint = Path(checkpoint)
        current, stored = self._current()
        average = self.refresh is not None and self.refresh.mixup < 1 and self.reference.version > 0
        record = {
            "description": self.reference.description,
            "initial": self._initial,
            "identity": self.reference.identity(),
            "current": current,
            "stored": stored,
            "version": self.reference.version,
            "replaced_after_step": 0 if self.refresh is None else self.refresh.step,
            "with_checkpoint": average,
        }
        if self.reference.has_state:
            if average:
                self.reference.save(checkpoint / _IN_CHECKPOINT)
            else:
                self._store(stored)
        (checkpoint / RECORD).write_text(json.dumps(record, indent=2) + "\n")

    def _prune(self) -> None:
        """Delete versions that no checkpoint of the run needs any more."""
        if not self.folder.is_dir():
            return
        needed = {self._initial, *self._current()}
        for file in self.folder.parent.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{RECORD}"):
            record = json.loads(file.read_text())
            needed |= {record["initial"], record["stored"]}
        for version in self.folder.iterdir():
            if version.is_dir() and version.name not in needed:
                shutil.rmtree(version)

    def _current(self) -> tuple[str, str]:
        """The digest of the reference, and the name of its weights."""
        if self._names[0] != self.reference.version:
            self._names = self._named()
        return self._names[1:]

    def _named(self) -> tuple[int, str, str]:
        digest = self.reference.digest()
        # Weights that have no effect yet, those of a new adapter, do not count for the digest.
        return self.reference.version, digest, self.reference.weights_name() if self.reference.identity() else digest

    def _store(self, name: str) -> None:
        """Write the reference's weights under their name, unless they are there; complete or not at all."""
        if (self.folder / name).is_dir():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix="unfinished-", dir=self.folder))  # _prune() removes what a kill leaves
        self.reference.save(scratch)
        scratch.chmod(0o755)  # mkdtemp lets nobody else read
        scratch.rename(self.folder / name)

    def _load(self, record: dict[str, Any], checkpoint: Path) -> None:
        if not self.reference.has_state or (self.refresh is None and record["version"] > 0):
            if record["version"] == 0:
                return
            raise ValueError(
                f"the reference of {checkpoint} was replaced {record['version']} times while training; resume with "
                "the reference_refresh of that run"
            )
        folder = checkpoint / _IN_CHECKPOINT
        if not record["with_checkpoint"]:
            folder = self._stored(record["stored"], checkpoint) or self.folder / record["stored"]
        if not folder.is_dir() and record["current"] == self._current()[0]:
            return  # the run had no weights to store
        if not folder.is_dir():
            raise ValueError(
                f"the reference of {checkpoint} has weights of its own, which should be in {folder}; they are not "
                "there. Resume with the output_dir of the run, or from another checkpoint"
            )
        self.reference.load(folder)
        self.reference.version = record["version"]
        if self.refresh is not None:
            self.refresh.step = record["replaced_after_step"]
        self._names = self._named()
        if self._current()[0] != record["current"]:
            raise ValueError(f"the weights in {folder} are not those that {checkpoint} was trained against")

    def _stored(self, name: str, checkpoint: Path) -> Path | None:
        """The folder of a version, in the output folder of this run or of the one that the checkpoint is of."""
        places = (self.folder / name, checkpoint.absolute().parent / VERSIONS / name)
        return next((place for place in places if place.is_dir()), None)

    def _check_same_start(self, record: dict[str, Any], checkpoint: Path) -> None:
        if record["initial"] == self._initial:
            return
        if record["identity"] and record["identity"] == self.reference.identity():
            self._initial = record["initial"]  # the same adapter with other first weights, which are loaded next
            return
        stored = self._stored(record["initial"], checkpoint)
        way = "make the trainer with the model that the run began with"
        if stored is not None and (stored / "config.json").is_file():
            way += f", or pass reference_model={str(stored)!r}, which is the run's"
        raise ValueError(
            f"{checkpoint} was trained against another reference: {record['description']} (hash "
            f"{record['initial'][:12]}), and this one is {self.reference.description} (hash {self._initial[:12]}). A "
            f"resumed run must keep its reference: {way}. For training on against another reference, load the "
            "checkpoint as model of a new run"
        )
