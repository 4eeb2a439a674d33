"""The words of ``evaluate`` and ``compare``; what they do is imported when they are called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from hf_contrastive_caption.cli.words import takes

_DATA = "Data"
_CAPTIONS = "Captions"
_MEASURES = "Measures"


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """What both commands are asked for."""

    data: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="Folder of parquet files or of images with a metadata.jsonl or .csv, one parquet file, or a data "
            "set on the Hub.",
            show_default=False,
            rich_help_panel=_DATA,
        ),
    ]
    split: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Which split.", show_default="test, else validation", rich_help_panel=_DATA),
    ] = None
    images: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Take so many images, drawn by the seed.",
            show_default="all",
            rich_help_panel=_DATA,
        ),
    ] = None
    image_column: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Column with images.", show_default="found by type", rich_help_panel=_DATA),
    ] = None
    caption_columns: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT,...",
            help="Column or columns with captions.",
            show_default="found by type",
            rich_help_panel=_DATA,
        ),
    ] = None
    image_id_column: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Column that tells which rows show one image.",
            show_default="image_id, or bytes",
            rich_help_panel=_DATA,
        ),
    ] = None
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out images that do not open.", rich_help_panel=_DATA)
    ] = False
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="What a chat model is asked for a caption.",
            show_default="the one saved with it",
            rich_help_panel=_CAPTIONS,
        ),
    ] = None
    reference_prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="The same for the reference.",
            show_default="the one saved with it, else the model's",
            rich_help_panel=_CAPTIONS,
        ),
    ] = None
    num_beams: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Beams of the search.", show_default="3", rich_help_panel=_CAPTIONS),
    ] = None
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Longest caption in tokens.",
            show_default="64, or what the decoder holds",
            rich_help_panel=_CAPTIONS,
        ),
    ] = None
    batch_size: Annotated[
        int, typer.Option(metavar="N", min=1, help="Images captioned at once.", rich_help_panel=_CAPTIONS)
    ] = 32
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            file_okay=False,
            help="Keep captions and scores here, so that a stopped run goes on.",
            show_default=False,
            rich_help_panel=_CAPTIONS,
        ),
    ] = None
    k: Annotated[
        str,
        typer.Option(
            metavar="N,...",
            help="The k of recall@k; empty for no self-retrieval.",
            rich_help_panel=_MEASURES,
        ),
    ] = "1,5,10,50,500"
    retriever: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Who ranks: another captioner, or CLIP or SigLIP.",
            show_default="each captioner itself",
            rich_help_panel=_MEASURES,
        ),
    ] = None
    memory_gib: Annotated[
        float,
        typer.Option(metavar="X", min=0.1, help="Working memory of self-retrieval in GiB.", rich_help_panel=_MEASURES),
    ] = 2.0
    metrics: Annotated[str, typer.Option(metavar="NAME,...", help="Caption metrics.", rich_help_panel=_MEASURES)] = (
        "cider_d,bleu,meteor,rouge_l"
    )
    document_frequencies: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Saved table for CIDEr-D.",
            show_default="of the references of the split",
            rich_help_panel=_MEASURES,
        ),
    ] = None
    seed: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Seed of resamples, samples, and of images that are drawn.",
            rich_help_panel=_MEASURES,
        ),
    ] = 0

    def __post_init__(self) -> None:
        """Check what is more than a type.

        Raises:
            typer.BadParameter: If ``k`` is no list of numbers.
        """
        if not all(word.isdecimal() and int(word) > 0 for word in words_of(self.k)):
            raise typer.BadParameter(f"{self.k!r} is no list of whole numbers such as 1,5,10", param_hint="--k")

    @property
    def recall_at(self) -> tuple[int, ...]:
        """The k of recall@k."""
        return tuple(map(int, words_of(self.k)))


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(MeasureOptions):
    """What ``evaluate`` is asked for."""

    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Captioner: a folder, or a repository on the Hub.", show_default=False),
    ]
    reference: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="A captioner to compare with, on the same images.", show_default=False),
    ] = None
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", dir_okay=False, help="JSON file for the report.", show_default=False)
    ] = None
    samples_per_image: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Captions sampled for each image, for mBLEU; 0 for none.",
            rich_help_panel=_MEASURES,
        ),
    ] = 0

    def __post_init__(self) -> None:
        """Check what belongs together.

        Raises:
            typer.BadParameter: If there is a prompt for a reference, and none; a single sample; or no folder for the
                report.
        """
        super().__post_init__()
        if self.samples_per_image == 1:
            raise typer.BadParameter(
                "one sample cannot be compared with others; take 2 or more, or 0", param_hint="--samples-per-image"
            )
        if self.reference_prompt is not None and self.reference is None:
            raise typer.BadParameter(
                "it is what the captioner of --reference is asked, and there is none", param_hint="--reference-prompt"
            )
        if self.out is not None and not self.out.parent.is_dir():
            raise typer.BadParameter(f"the folder of {str(self.out)!r} does not exist", param_hint="--out")


@dataclass(frozen=True, kw_only=True)
class CompareOptions(MeasureOptions):
    """What ``compare`` is asked for."""

    reference: Annotated[
        str,
        typer.Argument(
            metavar="REFERENCE",
            help="The captioner before: a folder, or a repository on the Hub.",
            show_default=False,
        ),
    ]
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The captioner after, likewise.", show_default=False)]
    out: Annotated[Path, typer.Option(metavar="FOLDER", file_okay=False, help="Folder for the page.")] = Path("report")
    shown: Annotated[int, typer.Option(metavar="N", min=1, help="Images on the page at most, drawn by the seed.")] = (
        1000
    )

    def __post_init__(self) -> None:
        """Check that the page can be written, before hours are spent on it.

        Raises:
            typer.BadParameter: If a file is in the way.
        """
        super().__post_init__()
        if not next(path for path in (self.out, *self.out.parents) if path.exists()).is_dir():
            raise typer.BadParameter(f"{str(self.out)!r} leads through a file", param_hint="--out")


@takes(EvaluateOptions)
def evaluate(options: EvaluateOptions) -> None:
    """Measure whether captions find their images, and are right.

    Prints both sides in one table, with intervals; with --reference a second captioner beside it, and which
    differences are real.
    """
    from hf_contrastive_caption.cli import evaluate as command

    command.evaluate(options)


@takes(CompareOptions)
def compare(options: CompareOptions) -> None:
    """Show two captioners side by side, on one page.

    With numbers, curves, and captions word by word. Writes OUT/index.html, which needs no other file and no network,
    and the numbers as OUT/comparison.json.
    """
    from hf_contrastive_caption.cli import evaluate as command

    command.compare(options)


def words_of(text: str) -> tuple[str, ...]:
    """Words separated by commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip())
