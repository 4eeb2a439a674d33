"""What pages that show captions word by word look alike in: their colours, and the shading of a word."""

from __future__ import annotations

from importlib.resources import files


def word_style(light: str, dark: str, end: str = "") -> str:
    """The colours of a page in light and dark, and the style of a word (``class="word"`` with ``--s`` from -1 to 1).

    Args:
        light: Selector of what has the light colours.
        dark: Selector of what has the dark ones; it may open a media query.
        end: What closes that query.
    """
    colours = f"{light} {{\n{template_text('light.css')}}}\n{dark} {{\n{template_text('dark.css')}}}{end}\n"
    return colours + template_text("words.css")


def template_text(name: str) -> str:
    """The text of a file beside the report's template."""
    return files("hf_contrastive_caption.report").joinpath("templates", name).read_text(encoding="utf-8")
