"""What mkdocs does to a page after Markdown: formulas become MathML, and other Sphinx roles of docstrings plain code.

MathML needs no script and no font from another host; every current browser draws it.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
_BLOCK = re.compile(r'(<div class="arithmatex">)\s*\\\[(.*?)\\\]\s*(</div>)', re.DOTALL)
_DIRECTIVE = re.compile(r"<p>\.\. math::\s+(.*?)</p>", re.DOTALL)
_MATH_ROLE = re.compile(r":math:<code>(.*?)</code>", re.DOTALL)
_FUNCTION = re.compile(r"<mi>(ln|log|exp|min|max)</mi>")
_SIGN = re.compile(r"(&#x00028;</mo>)<mo>&#x02212;</mo>")
_OTHER_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):<code>~?(.*?)</code>", re.DOTALL)


def mathml(formula: str, display: str = "inline") -> str:
    """A formula as MathML.

    Args:
        formula: LaTeX without dollar signs, as it stands in HTML: ``<`` is ``&lt;``.
        display: ``"inline"`` or ``"block"``.

    Raises:
        ValueError: If the formula has a command that the converter does not know.
    """
    converted = convert(html.unescape(formula).strip(), display=display)
    # What the converter does not know stays in the output as it was written.
    if "\\" in html.unescape(converted):
        raise ValueError(f"latex2mathml does not know a command in {formula!r}; write it with others")
    # Two spaces that the converter leaves to the browser, which cannot know them: "ln p" and "(-x)".
    converted = _FUNCTION.sub(r'<mo lspace="0" rspace="0.17em">\1</mo>', converted)
    return _SIGN.sub(r'\1<mo form="prefix">&#x02212;</mo>', converted)


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Called by mkdocs with the HTML of a page."""
    try:
        content = _INLINE.sub(lambda found: mathml(found[1]), content)
        content = _BLOCK.sub(lambda found: found[1] + mathml(found[2], "block") + found[3], content)
        content = _DIRECTIVE.sub(lambda found: f'<div class="arithmatex">{mathml(found[1], "block")}</div>', content)
        content = _MATH_ROLE.sub(lambda found: mathml(found[1]), content)
    except Exception as error:  # the converter has many kinds
        raise PluginError(f"{page.file.src_path}: {error}") from error
    return _OTHER_ROLE.sub(r"<code>\1</code>", content)
