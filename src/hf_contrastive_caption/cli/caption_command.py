"""The words of ``contrastive-caption caption``."""

from __future__ import annotations

from typing import Annotated

import typer


def caption(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE",
            help="Image files, folders of them, patterns such as 'photos/*.jpg', or addresses.",
            show_default=False,
        ),
    ],
    model: Annotated[str, typer.Option(help="Captioner: a folder, or a repository on the Hub.", show_default=False)],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a line of JSON for each image, instead of path, tab and caption.")
    ] = False,
    log_probs: Annotated[
        bool,
        typer.Option("--log-probs", help="Add ln p(caption | image) under the model, in nats, end token included."),
    ] = False,
    prompt: Annotated[
        str | None,
        typer.Option(help="What a chat model is asked before its caption.", show_default="what was saved with it"),
    ] = None,
    num_beams: Annotated[
        int | None, typer.Option(min=1, help="Beams of the search.", show_default="3, or 1 with --sample")
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Longest caption in tokens.", show_default="64, or what the decoder holds"),
    ] = None,
    sample: Annotated[bool, typer.Option("--sample", help="Sample captions, instead of searching the best.")] = False,
    temperature: Annotated[
        float | None, typer.Option(min=1e-3, help="Of sampling.", show_default="the model's")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Of sampling: the likeliest tokens.", show_default="the model's"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampling.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images captioned at once.")] = 16,
    device: Annotated[
        str | None, typer.Option(help="Such as cpu, cuda or cuda:1.", show_default="a GPU if there is one")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Pass over images that do not open, and count them.")
    ] = False,
) -> None:
    """Caption images: one line for each, path and caption with a tab between them.

    Folders are read with all folders in them, in the order of names, a batch at a time.
    """
    if not sample and not (temperature is None and top_p is None):
        raise typer.BadParameter("--temperature and --top-p are for sampling; add --sample, or leave them out")
    from hf_contrastive_caption.cli import caption as command

    command.caption(
        command.CaptionOptions(
            images=tuple(images),
            model=model,
            as_json=as_json,
            log_probs=log_probs,
            prompt=prompt,
            num_beams=num_beams,
            max_new_tokens=max_new_tokens,
            sample=sample,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            batch_size=batch_size,
            device=device,
            skip_bad=skip_bad,
        )
    )
