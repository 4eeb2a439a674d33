"""Two captioners on the same images: their numbers, and for each image what they say, word by word."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from torch import nn
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import sort_checkpoints

from hf_contrastive_caption.captioners import Captioner
from hf_contrastive_caption.data.identity import text_key
from hf_contrastive_caption.data.negatives import EVALUATION_EPOCH, ShuffledNegatives
from hf_contrastive_caption.data.table import CaptionIndex
from hf_contrastive_caption.evaluation.bootstrap import Floats
from hf_contrastive_caption.evaluation.evaluator import as_captioner, evaluate_captioner, prompt_of
from hf_contrastive_caption.evaluation.images import EvaluationImages, evaluation_images
from hf_contrastive_caption.evaluation.report import CaptionerReport
from hf_contrastive_caption.loading import short_name
from hf_contrastive_caption.report.page import render_frame, write_page
from hf_contrastive_caption.report.thumbnails import thumbnail
from hf_contrastive_caption.report.words import CaptionScores, Word, log_ratios, score_captions
from hf_contrastive_caption.writing import write_whole

logger = logging.getLogger(__name__)

SHOWN = 1000
"""How many images a page shows unless told otherwise."""

NUM_NEGATIVES = 5
"""Captions of other images for each image, in the histogram of log-ratios."""

CaptionerInPlace = Callable[[], AbstractContextManager[Captioner]]
"""A context in which a captioner is ready: two of them may share their weights."""


@dataclass(frozen=True)
class ShownCaption:
    """What one captioner says of an image.

    Attributes:
        text: The caption.
        words: Its words with their log-ratios of target to reference, and its end.
        rank: Expected rank of the own image when the caption is looked up, 1 for the first; ``None`` without
            self-retrieval.
        invented: Its content words that no reference caption of the image has.
    """

    text: str
    words: tuple[Word, ...]
    rank: float | None
    invented: tuple[str, ...]

    @property
    def log_ratio(self) -> float:
        """Ln p_target - ln p_reference of the whole caption, in nats."""
        return sum(word.log_ratio for word in self.words)


@dataclass(frozen=True)
class ShownImage:
    """An image with both captions.

    Attributes:
        number: Its number among the evaluated images.
        reference: What the reference says.
        target: What the target says.
        human: What people say.
        rivals: Numbers of images that the reference's caption fits better than this one.
        thumbnail: A small WebP file.
    """

    number: int
    reference: ShownCaption
    target: ShownCaption
    human: tuple[str, ...]
    rivals: tuple[int, ...]
    thumbnail: bytes = field(repr=False)

    @property
    def gain(self) -> float:
        """How much better the target's caption finds the image: log2 of old rank over new rank; 0 without ranks."""
        if self.reference.rank is None or self.target.rank is None:
            return 0.0
        return math.log2(self.reference.rank / self.target.rank)


@dataclass(frozen=True)
class CaptionerComparison:
    """A target and its reference on the same images. ``save`` writes the page, ``to_markdown`` the table.

    Attributes:
        reference: Everything measured of the one captioner.
        target: The same of the other.
        images: The images that are shown, in the order of the data set.
        positives: Log-ratios of people's captions with their own images, in nats, (n,).
        negatives: The same with captions of other images.
        log_history: The log of the target's training, if it is known.
    """

    reference: CaptionerReport
    target: CaptionerReport
    images: tuple[ShownImage, ...] = field(repr=False)
    positives: Floats = field(repr=False)
    negatives: Floats = field(repr=False)
    log_history: Sequence[Mapping[str, Any]] = field(default=(), repr=False)

    def to_markdown(self) -> str:
        """The table of both sides, with intervals and verdicts."""
        return self.target.compare(self.reference).to_markdown()

    def save(self, folder: str | PathLike[str]) -> Path:
        """Write ``index.html``, a page that needs no other file and no network, and ``comparison.json``.

        Args:
            folder: Made if it is not there.

        Returns:
            The page.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        content = json.dumps(self.to_dict(), ensure_ascii=False)
        write_whole(target / "comparison.json", content + "\n")
        return write_page(self, target / "index.html")

    def _repr_html_(self) -> str:
        """The page, as a notebook shows it below a cell that ends with the comparison."""
        return render_frame(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures, as JSON takes it."""
        return {
            "reference": self.reference.to_dict(per_image=True),
            "target": self.target.to_dict(per_image=True),
            "comparison": self.target.compare(self.reference).to_dict(),
            "positive_log_ratios": self.positives.tolist(),
            "negative_log_ratios": self.negatives.tolist(),
            "images": [
                {
                    "number": image.number,
                    "reference": [[word.text, word.log_ratio] for word in image.reference.words],
                    "target": [[word.text, word.log_ratio] for word in image.target.words],
                }
                for image in self.images
            ],
        }


def compare_captioners(
    reference: Captioner | nn.Module | str | PathLike[str],
    target: Captioner | nn.Module | str | PathLike[str],
    dataset: datasets.Dataset | EvaluationImages,
    *,
    processing_class: Any = None,
    reference_processing_class: Any = None,
    prompt: str | None = None,
    reference_prompt: str | None = None,
    names: tuple[str, str] | None = None,
    shown: int = SHOWN,
    log_history: Sequence[Mapping[str, Any]] | None = None,
    image_column: str | None = None,
    caption_columns: str | Sequence[str] | None = None,
    image_id_column: str | None = None,
    batch_size: int = 32,
    seed: int = 0,
    **options: Any,
) -> CaptionerComparison:
    """Compare a captioner with its reference, or any two: in numbers, and image by image and word by word.

    Args:
        reference: A captioner, a model, or the name or folder of one.
        target: The other.
        dataset: One split with images, and captions where there are some; see :func:`evaluate_captioner`.
        processing_class: Tokenizer and image processor of a target given as a model.
        reference_processing_class: The same of the reference; the target's if not given.
        prompt: What a target that is a chat model is asked; the prompt that was saved with it if not given.
        reference_prompt: The same of the reference; else what was saved with it, else what the target is asked.
        names: What page and tables call reference and target.
        shown: How many images the page shows at most, drawn by the seed where there are more.
        log_history: The log of the target's training; read from ``trainer_state.json`` in its folder if not given.
        image_column: Name of the image column, where the types leave a choice.
        caption_columns: Name or names of the caption columns, where they leave one.
        image_id_column: Name of a column that says which rows show the same image.
        batch_size: Images that are captioned or scored at once.
        seed: Seed of the resamples, of the images that are shown, and of the negatives.
        **options: Other arguments of :func:`evaluate_captioner`, such as ``k``, ``metrics``, ``retriever``,
            ``cache_dir`` and arguments of ``generate``.

    Returns:
        The comparison. ``comparison.save("report")`` writes the page.

    Raises:
        ValueError: If the data or an option do not fit.
        TypeError: If a model or the data set is not what is accepted.
    """
    if isinstance(dataset, EvaluationImages):
        images = dataset
    else:
        images = evaluation_images(dataset, image_column, caption_columns, image_id_column)
    if reference_processing_class is None and not isinstance(reference, (str, PathLike)):
        reference_processing_class = processing_class
    if names is None:
        names = names_of(reference, target)
    if log_history is None:
        log_history = stored_log(target)
    if "captions" in options:
        raise ValueError("captions were given, but each of the two captioners writes its own here; leave them out")
    after = as_captioner(target, processing_class, prompt)
    before = as_captioner(reference, reference_processing_class, reference_prompt, otherwise=prompt_of(after))
    options = {"batch_size": batch_size, "seed": seed, **options}
    return compare_in_place(
        lambda: nullcontext(before), lambda: nullcontext(after), images, names, shown, log_history, options
    )


def compare_in_place(
    reference: CaptionerInPlace,
    target: CaptionerInPlace,
    images: EvaluationImages,
    names: tuple[str, str],
    shown: int,
    log_history: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
) -> CaptionerComparison:
    """As :func:`compare_captioners`, of captioners that are ready only within a context, one at a time.

    Args:
        reference: Puts the reference in its place.
        target: Puts the target in its place.
        images: The images.
        names: What page and tables call the two.
        shown: How many images are shown at most.
        log_history: The log of the target's training.
        options: Arguments of :func:`evaluate_captioner`, ``batch_size`` and ``seed`` among them.

    Raises:
        ValueError: If ``shown`` is less than 1, or an option does not fit.
    """
    _check_shown(shown)
    with reference() as captioner:
        theirs = evaluate_captioner(captioner, images, name=names[0], **options)
    with target() as captioner:
        ours = evaluate_captioner(captioner, images, name=names[1], **options)
    return compare_reports(
        theirs, ours, reference, target, images, shown, log_history, options["batch_size"], options["seed"]
    )


def compare_reports(
    reference_report: CaptionerReport,
    target_report: CaptionerReport,
    reference: CaptionerInPlace,
    target: CaptionerInPlace,
    images: EvaluationImages,
    shown: int = SHOWN,
    log_history: Sequence[Mapping[str, Any]] = (),
    batch_size: int = 32,
    seed: int = 0,
) -> CaptionerComparison:
    """The comparison of two captioners that were evaluated before, on the same images.

    Args:
        reference_report: What was measured of the reference.
        target_report: What was measured of the target.
        reference: Puts the reference in its place.
        target: Puts the target in its place.
        images: The images of both reports.
        shown: How many images are shown at most.
        log_history: The log of the target's training.
        batch_size: Images scored at once.
        seed: Seed of the images that are shown, and of the negatives.

    Raises:
        ValueError: If ``shown`` is less than 1.
    """
    _check_shown(shown)
    numbers = _chosen(len(images), shown, seed)
    pool = images.pool.select(numbers)
    texts = [[reference_report.captions[number], target_report.captions[number]] for number in numbers]
    both = [[*pair, *trial] for pair, trial in zip(texts, _trials(images, numbers, seed), strict=True)]
    scores: list[list[list[CaptionScores]]] = []
    for side in (reference, target):
        with side() as captioner:
            scores.append(score_captions(captioner, pool, both, batch_size))
    rows = list(zip(*scores, strict=True))  # of each image, the scores by reference and target
    words = [
        [log_ratios(text, after, before) for text, before, after in zip(pair, *row, strict=False)]
        for pair, row in zip(texts, rows, strict=True)
    ]
    ratios = [[after.log_prob - before.log_prob for before, after in list(zip(*row, strict=True))[2:]] for row in rows]
    return CaptionerComparison(
        reference=reference_report,
        target=target_report,
        images=tuple(
            ShownImage(
                number=number,
                reference=_shown_caption(reference_report, images, number, own[0]),
                target=_shown_caption(target_report, images, number, own[1]),
                human=images.references[number],
                rivals=reference_report.rivals[number] if reference_report.rivals else (),
                thumbnail=thumbnail(pool[place]),
            )
            for place, (number, own) in enumerate(zip(numbers, words, strict=True))
        ),
        positives=np.array([row[0] for row in ratios if row]),
        negatives=np.array([ratio for row in ratios for ratio in row[1:]]),
        log_history=log_history,
    )


def _check_shown(shown: int) -> None:
    if shown < 1:
        raise ValueError(f"shown is {shown}, but at least one image must be shown.")


def _trials(images: EvaluationImages, numbers: Sequence[int], seed: int) -> list[list[str]]:
    """For each image a caption that people wrote for it, and some that they wrote for others; none without any."""
    referenced = [number for number in numbers if images.references[number]]
    first = [images.references[number][0] for number in referenced]
    keys = np.array([text_key(text) for text in first], dtype=np.uint64)
    if len(np.unique(keys)) < 2:
        return [[] for _ in numbers]
    own = np.arange(len(first), dtype=np.uint64)
    index = CaptionIndex.from_arrays(np.arange(len(first) + 1), keys, own)
    drawn = ShuffledNegatives(index, NUM_NEGATIVES, seed).draw(np.arange(len(first)), EVALUATION_EPOCH)
    trials = {
        number: [text, *(first[other] for other in others)]
        for number, text, others in zip(referenced, first, drawn.tolist(), strict=True)
    }
    return [trials.get(number, []) for number in numbers]


def _shown_caption(
    report: CaptionerReport, images: EvaluationImages, number: int, words: tuple[Word, ...]
) -> ShownCaption:
    invented = dict(zip(images.referenced, report.invented_words, strict=True)) if report.invented_words else {}
    rank = None if report.ranks is None else float(report.ranks.expected_rank()[number])
    return ShownCaption(report.captions[number], words, rank, invented.get(number, ()))


def _chosen(size: int, shown: int, seed: int) -> list[int]:
    if size <= shown:
        return list(range(size))
    drawn: list[int] = np.random.default_rng([seed, size]).permutation(size)[:shown].tolist()
    return sorted(drawn)


def names_of(reference: Any, target: Any) -> tuple[str, str]:
    """What pages call the two: the last part of a folder's name if that tells them apart."""
    given = [str(side) if isinstance(side, (str, PathLike)) else "" for side in (reference, target)]
    short = [short_name(name) for name in given]
    if not all(given) or given[0] == given[1]:
        return "reference", "target"
    return (short[0], short[1]) if short[0] != short[1] else (given[0], given[1])


def stored_log(target: Any) -> Sequence[Mapping[str, Any]]:
    """The log of a training that stands beside a model, of its last checkpoint if there is none in the folder.

    Args:
        target: A folder; anything else has no log, and neither has one whose file cannot be read.
    """
    if not isinstance(target, (str, PathLike)) or not Path(target).is_dir():
        return ()
    checkpoints = sort_checkpoints(str(target))
    files = [Path(folder) / TRAINER_STATE_NAME for folder in (target, *reversed(checkpoints))]
    newest = next((file for file in files if file.is_file()), None)
    if newest is None:
        return ()
    try:
        history: list[dict[str, Any]] = json.loads(newest.read_text(encoding="utf-8"))["log_history"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        logger.warning("there are no training curves, as %s cannot be read: %r", newest, error)
        return ()
    return history
