"""The helper of tests with several processes: what is seen of one that hangs."""

from __future__ import annotations

import sys
import time

import psutil
import pytest

from tests.processes import run_or_show_stacks, torchrun

FORKS = """
import os, time
def waits_in_the_fork(): time.sleep(600)
def waits_in_the_parent(): os.waitpid(child, 0)
child = os.fork()
waits_in_the_parent() if child else waits_in_the_fork()
"""


def test_stacks_of_all_processes_are_shown_and_all_end():
    before = set(psutil.pids())
    start = time.monotonic()
    done, hung = run_or_show_stacks([sys.executable, "-c", FORKS], timeout=2)
    assert hung and time.monotonic() - start < 60
    assert "in waits_in_the_fork" in done.stderr and "in waits_in_the_parent" in done.stderr
    left = [process for process in psutil.process_iter(["cmdline"]) if process.pid not in before]
    assert not [process for process in left if FORKS in (process.info["cmdline"] or [])]


def test_what_ends_by_itself_is_left_alone():
    done, hung = run_or_show_stacks([sys.executable, "-c", "print('out'); raise SystemExit(3)"], timeout=60)
    assert (done.returncode, done.stdout, hung) == (3, "out\n", False)


def test_a_second_try_warns_of_the_first(monkeypatch):
    answers = iter([(Done(-6, "in a_lock"), True), (Done(0, "fine"), False)])
    monkeypatch.setattr("tests.processes.run_or_show_stacks", lambda command, timeout: next(answers))
    with pytest.warns(UserWarning, match="tests.any hung for 9 seconds.*\n.*in a_lock"):
        assert torchrun("tests.any", timeout=9, tries=2) == "fine"


@pytest.mark.parametrize("answer", [(-6, "in a_lock", True), (1, "an error", False)])
def test_a_run_that_fails_or_hangs_for_good_says_why(monkeypatch, answer):
    code, text, hung = answer
    monkeypatch.setattr("tests.processes.run_or_show_stacks", lambda command, timeout: (Done(code, text), hung))
    with pytest.raises(AssertionError, match=text):
        torchrun("tests.any", timeout=9)


class Done:
    def __init__(self, returncode: int, stderr: str) -> None:
        self.returncode, self.stderr = returncode, stderr
