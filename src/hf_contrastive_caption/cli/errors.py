"""How a command ends that was used wrongly or stopped."""

from __future__ import annotations

WRONG_USE = 2
INTERRUPTED = 130
"""Exit codes: for wrong use, and for Ctrl-C (128 and the number of its signal, as in shells)."""


class WrongUseError(Exception):
    """What was asked for cannot be meant: an unknown option, a wrong type, a file that is not there."""
