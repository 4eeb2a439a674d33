"""Everything that is measured of a captioner, in one call."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import datasets
import torch
from torch import nn

from hf_contrastive_caption.captioners import Captioner, captioner_for
from hf_contrastive_caption.captioners.pairs import DEFAULT_MAX_MEMORY_BYTES
from hf_contrastive_caption.captioners.registry import prompt_or
from hf_contrastive_caption.evaluation.bootstrap import RESAMPLES, Bootstrap
from hf_contrastive_caption.evaluation.captioning import captions_for
from hf_contrastive_caption.evaluation.images import EvaluationImages, evaluation_images
from hf_contrastive_caption.evaluation.measures import Measure
from hf_contrastive_caption.evaluation.metrics.caption_metrics import (
    expand_metrics,
    scores_and_left_out,
    without_meteor,
)
from hf_contrastive_caption.evaluation.metrics.diversity import cider_btw, diversity, mbleu
from hf_contrastive_caption.evaluation.metrics.document_frequencies import DocumentFrequencies
from hf_contrastive_caption.evaluation.metrics.invention import invented_words
from hf_contrastive_caption.evaluation.metrics.prepared import check_strings
from hf_contrastive_caption.evaluation.report import CaptionerReport
from hf_contrastive_caption.evaluation.retrieval.ranking import Ranks, rival_images
from hf_contrastive_caption.evaluation.retrieval.retrievers import Retriever
from hf_contrastive_caption.evaluation.retrieval.self_retrieval import RECALL_AT, check_retrieval, self_retrieval
from hf_contrastive_caption.loading import load_captioner
from hf_contrastive_caption.prompting import PromptProcessor

DEFAULT_METRICS = ("cider_d", "bleu", "meteor", "rouge_l")
SIMILAR_IMAGES = 5
"""How many similar images CIDErBtw compares with."""

RIVALS = 3
"""How many images that a caption fits better than its own are kept."""

_LABELS = {
    "cider_d": "CIDEr-D",
    "cider": "CIDEr",
    "rouge_l": "ROUGE-L",
    "meteor": "METEOR",
    **{f"bleu_{n}": f"BLEU-{n}" for n in range(1, 5)},
}
_CORPUS_ONLY = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor")
"""Metrics whose figure for all images is not the mean of their figures for each."""


def evaluate_captioner(
    model: Captioner | nn.Module | str | PathLike[str],
    dataset: datasets.Dataset | EvaluationImages,
    *,
    processing_class: Any = None,
    prompt: str | None = None,
    name: str | None = None,
    captions: Sequence[str] | None = None,
    k: Sequence[int] = RECALL_AT,
    retriever: Captioner | Retriever | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    document_frequencies: DocumentFrequencies | None = None,
    training_captions: Sequence[str] | None = None,
    samples_per_image: int = 0,
    image_column: str | None = None,
    caption_columns: str | Sequence[str] | None = None,
    image_id_column: str | None = None,
    batch_size: int = 32,
    max_memory_bytes: int = DEFAULT_MAX_MEMORY_BYTES,
    resamples: int = RESAMPLES,
    seed: int = 0,
    cache_dir: str | PathLike[str] | None = None,
    progress: bool = True,
    **generate_kwargs: Any,
) -> CaptionerReport:
    """Measure both sides of a captioner: does a caption find its image, and is it still a good caption?

    The captioner captions every image; its captions are ranked against all images (:func:`self_retrieval`), compared
    with the references (:func:`caption_metrics`, :func:`invented_words`), and with each other (:func:`diversity`).
    Under Accelerate the images are dealt out to the processes, each of which returns the same report.

    Args:
        model: A captioner, a model, or the name or folder of one.
        dataset: One split with an image column and, for the metrics that need them, captions: a row for each image,
            or several rows with one image id. Or what :func:`evaluation_images` made of it, so that several captioners
            share what is prepared.
        processing_class: Tokenizer and image processor of a model given as an object.
        prompt: What a chat model is asked, see :func:`captioner_for`; the prompt that was saved with it if not given.
        name: What tables call the captioner; its name or class if not given.
        captions: Its captions, one for each image, if they are there already. Arguments of ``generate`` are then those
            of the samples of ``samples_per_image``.
        k: The numbers of images of recall@k; none for no self-retrieval.
        retriever: What scores the captions for self-retrieval; the captioner itself if not given.
        metrics: See :func:`caption_metrics`. They and the invented words are about the images that have references;
            what cannot be measured stands in ``left_out`` of the report.
        document_frequencies: For CIDEr-D and CIDEr; counted in the references of the images if not given.
        training_captions: What the captioner was trained on, for the share of novel captions.
        samples_per_image: Captions that are sampled for each image for mBLEU, without beams; 0 for none, else at
            least 2.
        image_column: Name of the image column, where the types leave a choice.
        caption_columns: Name or names of the caption columns, where they leave one.
        image_id_column: Name of a column that says which rows show the same image.
        batch_size: Images that are captioned at once.
        max_memory_bytes: Working memory of self-retrieval, see :class:`PairScorer`.
        resamples: Bootstrap resamples of the intervals.
        seed: Seed of the resamples and of sampled captions.
        cache_dir: Folder that keeps captions and scores, so that an interrupted run goes on where it was.
        progress: Whether to show progress bars.
        **generate_kwargs: Arguments of ``model.generate``, see :func:`caption_images`.

    Returns:
        The report. ``report.to_markdown()`` is a table; ``report.compare(other)`` says which differences are real.

    Raises:
        ValueError: If the data, the captions or an option do not fit.
        TypeError: If the model or the data set is not what is accepted.
    """
    _check_options(metrics, document_frequencies, training_captions, samples_per_image, resamples, seed)
    captioner = as_captioner(model, processing_class, prompt)
    if k or isinstance(k, int):
        check_retrieval(captioner, captions, retriever, max_memory_bytes, k)
    elif retriever is not None:
        raise ValueError("a retriever was given, and no k, so it would have nothing to rank; leave one of them out")
    if isinstance(dataset, EvaluationImages):
        images = dataset
    else:
        images = evaluation_images(dataset, image_column, caption_columns, image_id_column)
    writing: dict[str, Any] = {"batch_size": batch_size, "cache_dir": cache_dir, "progress": progress}
    fingerprint = images.pool.fingerprint  # opens every image: one that does not open is told before any is captioned
    generation = {} if captions is not None and samples_per_image else generate_kwargs  # all of it for the samples
    texts, decoding = captions_for(captioner, images.pool, captions, **writing, **generation)
    measures: dict[str, Measure] = {}
    chance: dict[str, float] = {}
    left_out: dict[str, str] = {}
    judge = "no self-retrieval"
    ranks: Ranks | None = None
    rivals: tuple[tuple[int, ...], ...] = ()
    if k:
        shown = [number for number in k if number < len(images)] or (1,)  # the recall of all images says nothing
        if set(shown) != set(k) and tuple(k) != RECALL_AT:
            left_out["recall"] = f"of {len(images)} or more among {len(images)} images, which is 100 %."
        scoring: dict[str, Any] = {"retriever": retriever, "max_memory_bytes": max_memory_bytes}
        scoring |= {"resamples": resamples, "seed": seed, "cache_dir": cache_dir, "progress": progress}
        retrieval = self_retrieval(captioner, images.pool, texts, shown, **scoring)
        measures, chance, judge = dict(retrieval.measures), retrieval.chance, retrieval.retriever
        ranks, rivals = retrieval.ranks, tuple(rival_images(retrieval.scores, RIVALS))
    quality = caption_quality(texts, images, metrics, document_frequencies, resamples, seed)
    measures |= quality.measures
    measures |= diversity_measures(texts, training_captions)
    if samples_per_image:
        sampled = _sampled(captioner, images, samples_per_image, seed, {**writing, **generate_kwargs})
        measures["mbleu_4"] = Measure("mBLEU-4", mbleu(sampled), better="lower")
    return CaptionerReport(
        name=name or (captioner.name if isinstance(model, (Captioner, nn.Module)) else os.fspath(model)),
        measures=measures,
        captions=texts,
        invented_words=quality.invented_words,
        images=fingerprint,
        num_images=len(images),
        num_referenced=len(images.referenced),
        chance=chance,
        retriever=judge,
        ranked_by_itself=retriever is None if k else None,
        decoding=decoding,
        left_out={**left_out, **quality.left_out},
        references=images.references_digest,
        document_frequencies="of these references" if document_frequencies is None else document_frequencies.digest,
        resamples=resamples,
        seed=seed,
        ranks=ranks,
        rivals=rivals,
    )


def _check_options(
    metrics: Sequence[str],
    document_frequencies: DocumentFrequencies | None,
    training_captions: Sequence[str] | None,
    samples_per_image: int,
    resamples: int,
    seed: int,
) -> None:
    """Refuse what cannot work before hours are spent on captions."""
    without_meteor(expand_metrics(metrics))  # says so now, and not at the end
    if not isinstance(document_frequencies, DocumentFrequencies | None):
        raise TypeError(
            f"document_frequencies is a {type(document_frequencies).__name__}; give a table, of a file "
            "DocumentFrequencies.load(file)"
        )
    if training_captions is not None:
        check_strings(training_captions, "training_captions")
    if samples_per_image == 1 or samples_per_image < 0:
        raise ValueError(f"samples_per_image is {samples_per_image}, but must be 0, or 2 or more to be compared.")
    Bootstrap(1, resamples, seed)


def as_captioner(
    model: Captioner | nn.Module | str | PathLike[str],
    processing_class: Any = None,
    prompt: str | None = None,
    *,
    otherwise: str | None = None,
) -> Captioner:
    """The captioner of a model given as an object or by name.

    Args:
        model: A captioner, a model, or the name or folder of one.
        processing_class: Tokenizer and image processor of a model given as an object.
        prompt: What a chat model is asked; the prompt that was saved with it if not given.
        otherwise: What it is asked if there is neither.

    Raises:
        ValueError: If there is no such folder, or a prompt is given for what takes none or has another.
        TypeError: If it is neither, or the tokenizer and image processor of an object are not given.
    """
    if isinstance(model, Captioner):
        if prompt is not None:
            raise ValueError(
                f"prompt={prompt!r} was given beside a captioner, which has its own; give it to captioner_for"
            )
        return model
    if isinstance(model, (str, PathLike)):
        return load_captioner(model, processing_class=processing_class, prompt=prompt, otherwise=otherwise)
    if processing_class is None:
        raise TypeError(
            f"Got a {type(model).__name__} without its tokenizer and image processor; pass processing_class="
            "(tokenizer, image_processor), a captioner from captioner_for, or the name of a model."
        )
    return captioner_for(model, processing_class, prompt=prompt_or(prompt, model, processing_class, otherwise))


def prompt_of(captioner: Captioner) -> str | None:
    """What a captioner is asked, ``None`` if nothing."""
    return captioner.processor.prompt if isinstance(captioner.processor, PromptProcessor) else None


@dataclass(frozen=True)
class CaptionQuality:
    """What the references say of captions.

    Attributes:
        measures: The measures by name.
        invented_words: The invented words of each image with references.
        left_out: What could not be measured, and why.
    """

    measures: dict[str, Measure]
    invented_words: tuple[tuple[str, ...], ...]
    left_out: dict[str, str]


def caption_quality(
    captions: Sequence[str],
    images: EvaluationImages,
    metrics: Sequence[str] = DEFAULT_METRICS,
    document_frequencies: DocumentFrequencies | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    similar_images: int = SIMILAR_IMAGES,
) -> CaptionQuality:
    """Compare captions with the references of those images that have some.

    Args:
        captions: One caption for each image.
        images: The images.
        metrics: See :func:`caption_metrics`.
        document_frequencies: For CIDEr-D and CIDEr; counted in the references of the images if not given.
        resamples: Bootstrap resamples of the intervals.
        seed: Their seed.
        similar_images: How many similar images CIDErBtw compares with; 0 for no CIDErBtw.
    """
    numbers = images.referenced
    if not numbers:
        return CaptionQuality({}, (), {"caption metrics": "no image has references."})
    texts = [captions[number] for number in numbers]
    references = images.prepared_references
    bootstrap = Bootstrap(len(numbers), resamples, seed)
    measures: dict[str, Measure] = {}
    scores, missing = scores_and_left_out(texts, references, metrics, document_frequencies)
    for name, score in scores.items():
        if name in _CORPUS_ONLY:
            measures[name] = Measure(_LABELS[name], score.corpus)
        else:
            measures[name] = Measure.of(bootstrap, _LABELS[name], "mean", score.per_image)
    invention = invented_words(texts, references)
    measures["invented"] = Measure.of(
        bootstrap, "invented", "ratio", invention.n_invented, invention.n_content, better="lower", percent=True
    )
    if 0 < similar_images < len(numbers):
        neighbours = images.similar(similar_images)
        between = cider_btw(texts, references, neighbours, document_frequencies=document_frequencies)
        measures["cider_btw"] = Measure.of(bootstrap, "CIDErBtw", "mean", between.per_image, better="lower")
    left_out = {} if missing is None else {"METEOR": missing}
    return CaptionQuality(measures, tuple(map(tuple, invention.words)), left_out)


def diversity_measures(captions: Sequence[str], training_captions: Sequence[str] | None = None) -> dict[str, Measure]:
    """How different captions are from each other; these depend on the number of captions and have no intervals."""
    found = diversity(captions, training_captions)
    measures = {
        "distinct_captions": Measure("distinct captions", found["distinct_captions"], count=True),
        "distinct_share": Measure("distinct", found["distinct_captions_share"], percent=True),
        "vocabulary": Measure("vocabulary", found["vocabulary_size"], count=True),
        "distinct_1": Measure("distinct-1", found["distinct_1"]),
        "distinct_2": Measure("distinct-2", found["distinct_2"]),
        "mean_length": Measure("words a caption", found["mean_length"], better=None),
    }
    if "novel_captions" in found:
        measures["novel_share"] = Measure("novel captions", found["novel_captions"], better=None, percent=True)
    return measures


def _sampled(
    captioner: Captioner, images: EvaluationImages, samples: int, seed: int, arguments: dict[str, Any]
) -> list[list[str]]:
    """Several sampled captions of each image, (n_images, samples), without beams: these would all be alike."""
    arguments = {**arguments, "num_beams": 1, "do_sample": True, "cache_dir": None}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        columns = [captions_for(captioner, images.pool, **arguments).texts for _ in range(samples)]
    return [list(row) for row in zip(*columns, strict=True)]
