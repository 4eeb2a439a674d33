"""METEOR 1.5, by the authors' own Java program in the ``pycocoevalcap`` package (extra ``coco``).

METEOR matches words exactly, by stem, by WordNet synonym and by paraphrase. No other implementation gives these
numbers; the METEOR of ``nltk`` is another metric under the same name.

Source: Denkowski and Lavie, "Meteor Universal: Language Specific Translation Evaluation for Any Target Language", WMT
2014; called as ``pycocoevalcap`` 1.2 calls it (English, normalised text).
"""

from __future__ import annotations

import atexit
import queue
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from hf_contrastive_caption.evaluation.metrics.java import (
    JVM_OPTIONS,
    METEOR_JAR,
    find_jar,
    find_java,
    one_line,
    what_is_missing,
    why_java_does_not_start,
)
from hf_contrastive_caption.evaluation.metrics.prepared import (
    MetricScores,
    PreparedCaptions,
    PreparedReferences,
    as_captions,
    as_references,
    check_same_number,
)

_SEPARATOR = "|||"
_HEAP = "2G"
"""Memory for Java."""


def meteor_available() -> str | None:
    """What keeps METEOR from running here.

    Returns:
        ``None`` if nothing does; otherwise one line that says what is missing, the package or Java, and how to get it,
        or why Java does not start.
    """
    missing, java = what_is_missing(METEOR_JAR, "METEOR"), find_java()
    return missing if missing is not None or java is None else why_java_does_not_start(java, _HEAP)


def meteor(
    captions: Sequence[Sequence[str]] | PreparedCaptions,
    references: Sequence[Sequence[Sequence[str]]] | PreparedReferences,
) -> MetricScores:
    """METEOR 1.5, from a Java process that is started once and kept until Python ends.

    Args:
        captions: Words of the caption of each image; an empty caption scores 0.
        references: For each image the words of each of its references.

    Returns:
        Scores between 0 and 1. The corpus figure is METEOR's own, from the counts of all images.

    Raises:
        RuntimeError: If the package or Java are missing, or the Java process ends or does not answer.
        ValueError: If the numbers of captions and images differ, or an image has no references.
    """
    captions, references = as_captions(captions), as_references(references)
    check_same_number(len(captions), len(references))
    process = _shared()
    try:
        return process.score(captions, references)
    except BaseException:
        # Answers that nobody read would be taken for those of the next call: the next call starts a new process.
        _shared.cache_clear()
        process.close()
        raise


class MeteorProcess:
    """A running METEOR; use it as a context manager, or call :meth:`close`.

    Args:
        timeout_s: Seconds to wait for one answer. The first one takes longest, since tables are read before it.
        heap: Memory for Java, as its option ``-Xmx`` takes it.

    Raises:
        RuntimeError: If the package or Java are missing.
    """

    def __init__(self, timeout_s: float = 300.0, heap: str = _HEAP) -> None:
        missing = meteor_available()
        java, jar = find_java(), find_jar(METEOR_JAR)
        if missing is not None or java is None or jar is None:
            raise RuntimeError(missing)
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        # A folder of its own: the package's folder may be read-only, or shared by other processes.
        self._folder = tempfile.TemporaryDirectory(prefix="meteor-")
        # A file takes any amount of messages; a pipe that nobody reads would fill up and stop the process.
        self._errors = Path(self._folder.name) / "stderr.txt"
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [java, *JVM_OPTIONS, f"-Djava.io.tmpdir={self._folder.name}", f"-Xmx{heap}", "-jar", str(jar)]
                + ["-", "-", "-stdio", "-l", "en", "-norm"],
                cwd=self._folder.name,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                encoding="utf-8",
            )
        assert self._process.stdin is not None and self._process.stdout is not None  # both are pipes
        self._stdin: IO[str] = self._process.stdin
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        reader.start()

    def __enter__(self) -> MeteorProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def score(self, captions: PreparedCaptions, references: PreparedReferences) -> MetricScores:
        """Score captions.

        Args:
            captions: One caption for each image.
            references: Their references.

        Returns:
            The scores.

        Raises:
            RuntimeError: If the process ends or does not answer.
        """
        with self._lock:
            statistics = []
            for caption, of_image in zip(captions.words, references.words, strict=True):
                texts = [_line(words) for words in [*of_image, caption]]
                self._ask(f" {_SEPARATOR} ".join(["SCORE", *texts]))
                statistics.append(self._answer())
            self._ask(f" {_SEPARATOR} ".join(["EVAL", *statistics]))
            per_image = np.array([float(self._answer()) for _ in statistics])
            return MetricScores("meteor", float(self._answer()), per_image)

    def close(self) -> None:
        """End the process and remove its folder; a second call does nothing."""
        self._process.kill()
        self._process.wait()
        try:
            self._stdin.close()
        except BrokenPipeError:  # what was still to be written has no reader any more
            pass
        self._folder.cleanup()

    def _read(self, stdout: IO[str]) -> None:
        with stdout:
            for line in stdout:
                self._answers.put(line.strip())
        self._answers.put(None)

    def _ask(self, line: str) -> None:
        try:
            self._stdin.write(line + "\n")
            self._stdin.flush()
        except (BrokenPipeError, ValueError) as error:  # it has ended, or was closed
            raise self._failure("ended") from error

    def _answer(self) -> str:
        try:
            answer = self._answers.get(timeout=self._timeout_s)
        except queue.Empty:
            raise self._failure(f"did not answer within {self._timeout_s:g} s") from None
        if answer is None:
            raise self._failure("ended")
        return answer

    def _failure(self, what: str) -> RuntimeError:
        said = self._errors.read_text(errors="replace").strip() if self._errors.exists() else ""
        return RuntimeError(
            f"the Java process of METEOR {what}; it needs about 2 GB of memory, and can be left out by naming other "
            f"metrics. It wrote: {said[-2000:] or 'nothing'}"
        )


def _line(words: Sequence[str]) -> str:
    return one_line([word.replace(_SEPARATOR, "") for word in words])


@lru_cache(maxsize=1)
def _shared() -> MeteorProcess:
    process = MeteorProcess()
    atexit.register(process.close)
    return process
