"""The words of ``contrastive-caption caption``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from hf_contrastive_caption.cli.words import takes

_DECODING = "Decoding"
_OUTPUT = "Output"


@dataclass(frozen=True, kw_only=True)
class CaptionOptions:
    """What ``caption`` is asked for."""

    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE",
            help="Image files, folders of them, patterns such as 'photos/*.jpg', or addresses.",
            show_default=False,
        ),
    ]
    model: Annotated[
        str,
        typer.Option(metavar="TEXT", help="Captioner: a folder, or a repository on the Hub.", show_default=False),
    ]
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="What a chat model is asked before its caption.",
            show_default="what was saved with it",
        ),
    ] = None
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Images captioned at once.")] = 16
    device: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Such as cpu, cuda or cuda:1.", show_default="a GPU if there is one"),
    ] = None
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Pass over images that do not open, and count them.")
    ] = False
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print a line of JSON for each image, instead of path, tab and caption.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False
    log_probs: Annotated[
        bool,
        typer.Option(
            "--log-probs",
            help="Add ln p(caption | image) under the model, in nats, end token included.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False
    num_beams: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Beams of the search.",
            show_default="3, or 1 with --sample",
            rich_help_panel=_DECODING,
        ),
    ] = None
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Longest caption in tokens.",
            show_default="64, or what the decoder holds",
            rich_help_panel=_DECODING,
        ),
    ] = None
    sample: Annotated[
        bool,
        typer.Option("--sample", help="Sample captions, instead of searching the best.", rich_help_panel=_DECODING),
    ] = False
    temperature: Annotated[
        float | None,
        typer.Option(
            metavar="X", min=1e-3, help="Of sampling.", show_default="the model's", rich_help_panel=_DECODING
        ),
    ] = None
    top_p: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            min=0.0,
            max=1.0,
            help="Sample from the likeliest tokens that together have this probability.",
            show_default="the model's",
            rich_help_panel=_DECODING,
        ),
    ] = None
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of sampling.", rich_help_panel=_DECODING)] = 0

    def __post_init__(self) -> None:
        """Check what belongs together.

        Raises:
            typer.BadParameter: If options of sampling are given without sampling.
        """
        if not self.sample and not (self.temperature is None and self.top_p is None):
            raise typer.BadParameter("--temperature and --top-p are for sampling; add --sample, or leave them out")


@takes(CaptionOptions)
def caption(options: CaptionOptions) -> None:
    """Caption images: a line for each, its path, a tab, its caption.

    Folders are read with all folders in them, in the order of names, a batch at a time.
    """
    from hf_contrastive_caption.cli import caption as command

    command.caption(options)
