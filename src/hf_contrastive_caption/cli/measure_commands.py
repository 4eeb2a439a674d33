"""The words of ``evaluate`` and ``compare``; what they do is imported when they are called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    str,
    typer.Option(
        help="Folder of parquet files or of images with a metadata.jsonl or .csv, one parquet file, or a data set "
        "on the Hub.",
        show_default=False,
    ),
]
Prompt = Annotated[
    str | None, typer.Option(help="What a chat model is asked for a caption.", show_default="the one saved with it")
]
ReferencePrompt = Annotated[
    str | None,
    typer.Option(help="The same for the reference.", show_default="the one saved with it, else the model's"),
]
Split = Annotated[str | None, typer.Option(help="Which split.", show_default="test, else validation")]
Images = Annotated[int | None, typer.Option(min=1, help="Take so many images, drawn by the seed.", show_default="all")]
RetrieverName = Annotated[
    str | None,
    typer.Option(help="Who ranks: another captioner, or CLIP or SigLIP.", show_default="each captioner itself"),
]
K = Annotated[str, typer.Option(help="The k of recall@k; empty for no self-retrieval.")]
Metrics = Annotated[str, typer.Option(help="Caption metrics.")]
Frequencies = Annotated[
    Path | None, typer.Option(exists=True, help="Saved table for CIDEr-D.", show_default="of these references")
]
Samples = Annotated[int, typer.Option(min=0, help="Captions sampled for each image, for mBLEU; 0 for none.")]
ImageColumn = Annotated[str | None, typer.Option(help="Image column.", show_default="found by type")]
CaptionColumns = Annotated[str | None, typer.Option(help="Caption column or columns.", show_default="found by type")]
IdColumn = Annotated[
    str | None, typer.Option(help="Column that tells which rows show one image.", show_default="image_id, or bytes")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images captioned at once.")]
Beams = Annotated[int | None, typer.Option(min=1, help="Beams of the search.", show_default="3")]
MaxNewTokens = Annotated[
    int | None, typer.Option(min=1, help="Longest caption.", show_default="64, or what the decoder holds")
]
Memory = Annotated[float, typer.Option(min=0.1, help="Working memory of self-retrieval in GiB.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of resamples, samples, and of images that are drawn.")]
CacheDir = Annotated[
    Path | None,
    typer.Option(
        file_okay=False, help="Keep captions and scores here, so that a stopped run goes on.", show_default=False
    ),
]
_K = "1,5,10,50,500"
_METRICS = "cider_d,bleu,meteor,rouge_l"


def evaluate(
    model: Annotated[str, typer.Argument(help="Captioner: a folder, or a repository on the Hub.", show_default=False)],
    data: Data,
    reference: Annotated[
        str | None, typer.Option(help="A captioner to compare with, on the same images.", show_default=False)
    ] = None,
    prompt: Prompt = None,
    reference_prompt: ReferencePrompt = None,
    out: Annotated[
        Path | None, typer.Option(dir_okay=False, help="JSON file for the report.", show_default=False)
    ] = None,
    split: Split = None,
    images: Images = None,
    retriever: RetrieverName = None,
    k: K = _K,
    metrics: Metrics = _METRICS,
    document_frequencies: Frequencies = None,
    samples_per_image: Samples = 0,
    image_column: ImageColumn = None,
    caption_columns: CaptionColumns = None,
    image_id_column: IdColumn = None,
    batch_size: BatchSize = 32,
    num_beams: Beams = None,
    max_new_tokens: MaxNewTokens = None,
    memory_gib: Memory = 2.0,
    seed: Seed = 0,
    cache_dir: CacheDir = None,
) -> None:
    """Measure both sides of a captioner: do its captions find their images, and are they still right?

    Prints the table, with intervals; with --reference a second captioner beside it, and which differences are real.
    """
    numbers = _numbers(k)
    from hf_contrastive_caption.cli import evaluate as command

    command.evaluate(
        command.EvaluateOptions(
            model=model,
            data=data,
            reference=reference,
            prompt=prompt,
            reference_prompt=reference_prompt,
            out=out,
            split=split,
            images=images,
            retriever=retriever,
            k=numbers,
            metrics=_words(metrics),
            document_frequencies=document_frequencies,
            samples_per_image=samples_per_image,
            image_column=image_column,
            caption_columns=None if caption_columns is None else _words(caption_columns),
            image_id_column=image_id_column,
            batch_size=batch_size,
            num_beams=num_beams,
            max_new_tokens=max_new_tokens,
            memory_gib=memory_gib,
            seed=seed,
            cache_dir=cache_dir,
        )
    )


def compare(
    reference: Annotated[
        str, typer.Argument(help="The captioner before: a folder or a repository.", show_default=False)
    ],
    target: Annotated[str, typer.Argument(help="The captioner after.", show_default=False)],
    data: Data,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the page.")] = Path("report"),
    shown: Annotated[int, typer.Option(min=1, help="Images on the page at most, drawn by the seed.")] = 1000,
    prompt: Prompt = None,
    reference_prompt: ReferencePrompt = None,
    split: Split = None,
    images: Images = None,
    retriever: RetrieverName = None,
    k: K = _K,
    metrics: Metrics = _METRICS,
    document_frequencies: Frequencies = None,
    image_column: ImageColumn = None,
    caption_columns: CaptionColumns = None,
    image_id_column: IdColumn = None,
    batch_size: BatchSize = 32,
    num_beams: Beams = None,
    max_new_tokens: MaxNewTokens = None,
    memory_gib: Memory = 2.0,
    seed: Seed = 0,
    cache_dir: CacheDir = None,
) -> None:
    """Show two captioners side by side: one page with numbers, curves, and captions word by word.

    Writes OUT/index.html, which needs no other file and no network, and the numbers as OUT/comparison.json.
    """
    numbers = _numbers(k)
    from hf_contrastive_caption.cli import evaluate as command

    command.compare(
        command.EvaluateOptions(
            model=target,
            data=data,
            reference=reference,
            prompt=prompt,
            reference_prompt=reference_prompt,
            out=None,
            split=split,
            images=images,
            retriever=retriever,
            k=numbers,
            metrics=_words(metrics),
            document_frequencies=document_frequencies,
            samples_per_image=0,
            image_column=image_column,
            caption_columns=None if caption_columns is None else _words(caption_columns),
            image_id_column=image_id_column,
            batch_size=batch_size,
            num_beams=num_beams,
            max_new_tokens=max_new_tokens,
            memory_gib=memory_gib,
            seed=seed,
            cache_dir=cache_dir,
        ),
        out,
        shown,
    )


def _words(text: str) -> tuple[str, ...]:
    """Words separated by commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(text: str) -> tuple[int, ...]:
    words = _words(text)
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise typer.BadParameter(f"{text!r} is no list of whole numbers such as 1,5,10", param_hint="--k")
    return tuple(map(int, words))
