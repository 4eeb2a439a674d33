"""The real command in a process of its own, with nothing of the user's to write to."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from hf_contrastive_caption.captioners import captioner_for
from tests import tiny


class Running(NamedTuple):
    """The command while it runs.

    Attributes:
        url: The address of its page.
        process: The process.
        folder: Its current folder, with ``home`` and ``tmp`` in it.
    """

    url: str
    process: subprocess.Popen[str]
    folder: Path

    def stop(self, how: int = signal.SIGINT) -> tuple[int, str]:
        """Send a signal; gives the exit code and what stands on standard error."""
        self.process.send_signal(how)
        _, shown = self.process.communicate(timeout=60)
        return self.process.returncode, shown

    def files(self) -> list[str]:
        """Everything that the process may have written, relative to its folder."""
        found = [path for path in self.folder.rglob("*") if path.is_file()]
        return sorted(str(path.relative_to(self.folder)) for path in found)


def save_captioners(folder: Path) -> list[str]:
    """Save two tiny captioners; gives their folders, the reference first."""
    for seed, name in enumerate(("before", "after")):
        model = tiny.captioner_model(seed=seed)
        model.save_pretrained(folder / name)
        captioner_for(model, tiny.processing()).processor.save_pretrained(folder / name)
    return [str(folder / "before"), str(folder / "after")]


@contextmanager
def running(folder: Path, *words: object) -> Iterator[Running]:
    """Run ``contrastive-caption app`` in an empty folder until its page is there."""
    (folder / "home").mkdir(parents=True)
    (folder / "tmp").mkdir()
    path = os.pathsep.join(os.path.abspath(path) for path in sys.path if path)
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("GRADIO_")},
        "PYTHONPATH": path,
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "hf_contrastive_caption.cli.main", "app", *map(str, words)],
        cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        found = re.search(r"The page is (http://\S+) \(Ctrl-C ends it\)", first)
        assert found, first + process.communicate(timeout=10)[1]
        yield Running(found[1], process, folder)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
