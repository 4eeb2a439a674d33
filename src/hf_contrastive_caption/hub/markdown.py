"""Values of users in Markdown: what somebody called a model or wrote as a caption stays text."""

from __future__ import annotations

import re
from typing import Any

_SIGNS = re.compile(r"[^\w\s.,;'\"?%/+()×-]|_")
"""Every sign that could mean something in the middle of a line of Markdown or HTML, and some that do not."""


class Markdown(str):
    """Text that is Markdown already and is not escaped."""


def escape(value: Any) -> str:
    """A value as Markdown that shows it as it is, on one line that it does not begin.

    Numeric references cannot stand for Markdown's own signs (CommonMark 0.31, section 2.5), within tables neither.
    """
    if isinstance(value, Markdown):
        return value
    line = _SIGNS.sub(lambda sign: f"&#{ord(sign[0])};", " ".join(str(value).split()))
    return re.sub(r"\bwww\.", "www&#46;", line)  # GitHub's Markdown makes links of these
