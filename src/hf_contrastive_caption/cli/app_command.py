"""The words of ``contrastive-caption app``; what it does is imported when it is called."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Switch(StrEnum):
    """What is on or off."""

    ON = "on"
    OFF = "off"


def show_app(
    reference: Annotated[
        str, typer.Argument(help="The captioner before: a folder or a repository.", show_default=False)
    ],
    target: Annotated[str, typer.Argument(help="The captioner after.", show_default=False)],
    share: Annotated[
        Switch, typer.Option(help="Whether Gradio makes a public address for the page, through its own servers.")
    ] = Switch.OFF,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 for everybody in the network.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port.", show_default="the first free one from 7860 on")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="What a chat model is asked for a caption.", show_default="the one saved with it"),
    ] = None,
    reference_prompt: Annotated[
        str | None,
        typer.Option(help="The same for the reference.", show_default="the one saved with it, else the target's"),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Such as cpu, cuda or cuda:1.", show_default="a GPU if there is one")
    ] = None,
    max_images: Annotated[int, typer.Option(min=1, help="Images at once.")] = 12,
    max_upload_mb: Annotated[float, typer.Option(min=0.001, help="Size of an image file in MB.")] = 20.0,
    max_megapixels: Annotated[
        float, typer.Option(min=0.001, help="Width times height of an image, in millions of pixels.")
    ] = 40.0,
    max_beams: Annotated[int, typer.Option(min=1, help="Beams of the search.")] = 8,
    max_queue: Annotated[int, typer.Option(min=1, help="Requests that wait for the captioners.")] = 16,
) -> None:
    """Open a page to drop images on, and see what both write.

    Both captions, word by word, and which images they find. Needs Gradio: pip install
    'hf-contrastive-caption[app]'. Ctrl-C ends it.
    """
    from hf_contrastive_caption.cli import app as command

    command.show_app(
        command.AppOptions(
            reference=reference,
            target=target,
            share=share is Switch.ON,
            host=host,
            port=port,
            prompt=prompt,
            reference_prompt=reference_prompt,
            device=device,
            max_images=max_images,
            max_upload_mb=max_upload_mb,
            max_megapixels=max_megapixels,
            max_beams=max_beams,
            max_queue=max_queue,
        )
    )
