"""The words of ``contrastive-caption app``; what it does is imported when it is called."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import typer

from hf_contrastive_caption.cli.words import takes

_CAPTIONERS = "Captioners"
_LIMITS = "Limits"


class Switch(StrEnum):
    """What is on or off."""

    ON = "on"
    OFF = "off"


@dataclass(frozen=True, kw_only=True)
class AppOptions:
    """What ``app`` is asked for."""

    reference: Annotated[
        str, typer.Argument(help="The captioner before: a folder or a repository.", show_default=False)
    ]
    target: Annotated[str, typer.Argument(help="The captioner after.", show_default=False)]
    share: Annotated[
        Switch, typer.Option(help="Whether Gradio makes a public address for the page, through its own servers.")
    ] = Switch.OFF
    host: Annotated[
        str, typer.Option(metavar="TEXT", help="Address to listen at; 0.0.0.0 for everybody in the network.")
    ] = "127.0.0.1"
    port: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, max=65535, help="Port to listen at.", show_default="the first free one from 7860 on"
        ),
    ] = None
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="What a chat model is asked for a caption.",
            show_default="what was saved with it",
            rich_help_panel=_CAPTIONERS,
        ),
    ] = None
    reference_prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="The same for the reference.",
            show_default="what was saved with it, else the target's",
            rich_help_panel=_CAPTIONERS,
        ),
    ] = None
    device: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Such as cpu, cuda or cuda:1.",
            show_default="a GPU if there is one",
            rich_help_panel=_CAPTIONERS,
        ),
    ] = None
    max_images: Annotated[int, typer.Option(metavar="N", min=1, help="Images at once.", rich_help_panel=_LIMITS)] = 12
    max_upload_mb: Annotated[
        float, typer.Option(metavar="X", min=1e-3, help="Size of an image file in MB.", rich_help_panel=_LIMITS)
    ] = 20.0
    max_megapixels: Annotated[
        float,
        typer.Option(
            metavar="X",
            min=1e-3,
            help="Width times height of an image, in millions of pixels.",
            rich_help_panel=_LIMITS,
        ),
    ] = 40.0
    max_beams: Annotated[
        int, typer.Option(metavar="N", min=1, help="Beams of the search.", rich_help_panel=_LIMITS)
    ] = 8
    max_queue: Annotated[
        int, typer.Option(metavar="N", min=1, help="Requests that wait for the captioners.", rich_help_panel=_LIMITS)
    ] = 16


@takes(AppOptions)
def show_app(options: AppOptions) -> None:
    """Open a page to drop images on: both captions, word by word.

    It also shows which images the captions find, and what both captioners think of a caption of yours. Needs Gradio:
    pip install 'hf-contrastive-caption[app]'. Ctrl-C ends it.
    """
    from hf_contrastive_caption.cli import app as command

    command.show_app(options)
