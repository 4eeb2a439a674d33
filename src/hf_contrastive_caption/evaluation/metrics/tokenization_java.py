"""The Java tokenizer of COCO's evaluation itself, for those who want its words to the last one (extra ``coco``)."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hf_contrastive_caption.evaluation.metrics.java import (
    JVM_OPTIONS,
    TOKENIZER_JAR,
    find_jar,
    find_java,
    one_line,
    what_is_missing,
)
from hf_contrastive_caption.evaluation.metrics.prepared import check_strings
from hf_contrastive_caption.evaluation.metrics.tokenization import PUNCTUATION

_TIMEOUT_S = 600.0


def java_ptb_tokenizer_available() -> str | None:
    """What keeps the Java tokenizer from running here.

    Returns:
        ``None`` if nothing does; otherwise one line that says what is missing and how to get it.
    """
    return what_is_missing(TOKENIZER_JAR, "The Java tokenizer")


def java_ptb_tokenize(captions: Sequence[str]) -> list[list[str]]:
    """Split captions into words with the ``PTBTokenizer`` of Stanford CoreNLP 3.4.1.

    White space and line separators of any kind within a caption become one space first, so a caption cannot move the
    words of others. The Java program looks across the end of a line: a caption that ends in a single letter and a full
    stop loses the stop if the next caption begins with a word such as "A".

    Args:
        captions: The captions, (n_captions,) strings.

    Returns:
        The words of each caption, (n_captions,) lists.

    Raises:
        RuntimeError: If the package or Java are missing, or the program fails.
        TypeError: If ``captions`` is one string, or holds something other than strings.
    """
    check_strings(captions, "captions")
    missing = java_ptb_tokenizer_available()
    java, jar = find_java(), find_jar(TOKENIZER_JAR)
    if missing is not None or java is None or jar is None:
        raise RuntimeError(missing)
    command = [java, *JVM_OPTIONS, "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines"]
    with tempfile.TemporaryDirectory(prefix="ptb-") as folder:
        file = Path(folder) / "captions.txt"
        file.write_text("".join(one_line([caption]) + "\n" for caption in captions), encoding="utf-8", newline="\n")
        done = subprocess.run(
            [*command, "-lowerCase", str(file)], cwd=folder, capture_output=True, timeout=_TIMEOUT_S, check=False
        )
    lines = done.stdout.decode("utf-8").split("\n")[:-1]
    if done.returncode or len(lines) != len(captions):
        said = done.stderr.decode("utf-8", "replace").strip()[-2000:]
        raise RuntimeError(
            f"the Java tokenizer ended with status {done.returncode} and {len(lines)} lines for {len(captions)} "
            f"captions; ptb_tokenize needs no Java. It wrote: {said}"
        )
    return [[word for word in line.split() if word not in PUNCTUATION] for line in lines]
