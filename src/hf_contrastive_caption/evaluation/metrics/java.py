"""Where Java and the jar files of the ``coco`` extra are."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

METEOR_JAR = "meteor/meteor-1.5.jar"
TOKENIZER_JAR = "tokenizer/stanford-corenlp-3.4.1.jar"

#: For every JVM: numbers with a decimal point and text in UTF-8, whatever the locale of the machine. METEOR reads its
#: own parameters with the locale's number format and fails where that has a comma.
JVM_OPTIONS = ("-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8", "-Djava.awt.headless=true")


def find_java() -> str | None:
    """The Java program, from ``JAVA_HOME`` or the path; ``None`` if there is none."""
    home = os.environ.get("JAVA_HOME")
    program = shutil.which("java", path=str(Path(home) / "bin")) if home else None
    return program or shutil.which("java")


def find_jar(name: str) -> Path | None:
    """A jar file in the ``pycocoevalcap`` package, which is not imported; ``None`` if it is not there."""
    package = importlib.util.find_spec("pycocoevalcap")
    for folder in (package.submodule_search_locations if package is not None else None) or ():
        jar = Path(folder) / name
        if jar.is_file():
            return jar.resolve()
    return None


def what_is_missing(jar: str, purpose: str) -> str | None:
    """One line that says how to get what is missing.

    Args:
        jar: The jar file.
        purpose: What needs it, for the line.

    Returns:
        ``None`` if the jar file and Java are here.
    """
    ways = []
    if find_jar(jar) is None:
        ways.append("the package pycocoevalcap (pip install 'hf-contrastive-caption[coco]')")
    if find_java() is None:
        ways.append("Java (for example apt-get install default-jre-headless, or conda install openjdk)")
    return f"{purpose} needs {' and '.join(ways)}" if ways else None


@cache
def why_java_does_not_start(java: str, heap: str) -> str | None:
    """Start Java, which takes a fraction of a second, and end it.

    Args:
        java: The program.
        heap: The memory that it shall get, as its option ``-Xmx`` takes it.

    Returns:
        ``None`` if it starts; otherwise one line with what it said.
    """
    try:
        run = subprocess.run(
            [java, *JVM_OPTIONS, f"-Xmx{heap}", "-version"], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{java} does not start: {error}"
    said = " ".join(f"{run.stdout} {run.stderr}".split())
    return f"{java} does not start with {heap} of memory: {said}" if run.returncode else None


def one_line(words: list[str]) -> str:
    """Words for a program that reads one text in each line: no white space of any kind within, one space between."""
    return " ".join(" ".join(words).split())
