"""``contrastive-caption evaluate`` and ``compare``: the two-sided table of a captioner or of two, and their page."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_contrastive_caption.captioners import Captioner
from hf_contrastive_caption.cli.captioners import load_named
from hf_contrastive_caption.cli.errors import WrongUseError
from hf_contrastive_caption.cli.measure_commands import CompareOptions, EvaluateOptions, MeasureOptions, words_of
from hf_contrastive_caption.console import CommandConsole, no_other_progress_bars
from hf_contrastive_caption.data.files import choose_split, load_splits
from hf_contrastive_caption.evaluation.evaluator import evaluate_captioner, prompt_of
from hf_contrastive_caption.evaluation.images import EvaluationImages, evaluation_images
from hf_contrastive_caption.evaluation.measures import measures_rows
from hf_contrastive_caption.evaluation.metrics.caption_metrics import expand_metrics
from hf_contrastive_caption.evaluation.metrics.document_frequencies import DocumentFrequencies
from hf_contrastive_caption.evaluation.report import CaptionerReport, report_rows
from hf_contrastive_caption.evaluation.retrieval.retrievers import DualEncoderRetriever
from hf_contrastive_caption.loading import is_captioner, short_name
from hf_contrastive_caption.processing import CaptionProcessor
from hf_contrastive_caption.report.comparison import CaptionerComparison, compare_captioners, names_of, stored_log
from hf_contrastive_caption.writing import write_whole


def evaluate(options: EvaluateOptions, console: CommandConsole | None = None) -> CaptionerReport:
    """Evaluate a captioner, and a reference on the same images if there is one; print the table, write the report."""
    console, longest = CommandConsole() if console is None else console, options.max_new_tokens
    with no_other_progress_bars():
        images, arguments = _what_to_evaluate(options, console)
        arguments["samples_per_image"] = options.samples_per_image
        other_name, name = names_of(options.reference, options.model)
        if options.reference is None:
            name = short_name(options.model)
        captioner = load_named(options.model, prompt=options.prompt, max_new_tokens=longest)
        asked = prompt_of(captioner)
        arguments["retriever"] = _retriever(options, asked)
        readers = [captioner.processor]
        if options.reference is not None:  # what is wrong with it is said now, and not after hours
            readers.append(_load_reference(options.reference, options, asked, device="cpu").processor)
        images = _readable(images, options, readers, arguments["retriever"])
        report = evaluate_captioner(captioner, images, name=name, **arguments)
        del captioner  # its memory is the reference's
        reference = None
        if options.reference is not None:
            _write(options.out, report.to_dict(per_image=True))
            other = _load_reference(options.reference, options, asked)
            reference = evaluate_captioner(other, images, name=other_name, **arguments)
    comparison = None if reference is None else report.compare(reference)
    if options.out is not None:  # first: a table may have signs that the output cannot show
        content = report.to_dict(per_image=True)
        if reference is not None and comparison is not None:
            content |= {"reference": reference.to_dict(per_image=True), "comparison": comparison.to_dict()}
        _write(options.out, content)
    if reference is None or comparison is None:
        console.table(measures_rows(report.name, report.measures, report.chance))
        console.say(report.about(), style="dim")
    else:
        console.table(report_rows([reference, report]))
        console.say()
        console.table(comparison.rows())
        console.say(comparison.about(), style="dim")
    if options.out is not None:
        console.say(f"The report is in {options.out}; CaptionerReport.load reads it.")
    return report


def compare(options: CompareOptions, console: CommandConsole | None = None) -> CaptionerComparison:
    """Evaluate a captioner and its reference on the same images; print the table, write the page into a folder."""
    console, longest = CommandConsole() if console is None else console, options.max_new_tokens
    with no_other_progress_bars():
        images, arguments = _what_to_evaluate(options, console)
        target = load_named(options.target, prompt=options.prompt, max_new_tokens=longest)
        asked = prompt_of(target)
        reference = _load_reference(options.reference, options, asked)
        arguments["retriever"] = _retriever(options, asked)
        images = _readable(images, options, [target.processor, reference.processor], arguments["retriever"])
        comparison = compare_captioners(
            reference,
            target,
            images,
            names=names_of(options.reference, options.target),
            shown=options.shown,
            log_history=stored_log(options.target),
            **arguments,
        )
    page = comparison.save(options.out)  # first: a table may have signs that the output cannot show
    differences = comparison.target.compare(comparison.reference)
    console.table(differences.rows())
    console.say(differences.about(), style="dim")
    console.say(f"The page is {page}; open it in a browser.")
    return comparison


def _load_reference(name: str, options: MeasureOptions, asked: str | None, device: str = "auto") -> Captioner:
    prompt, longest = options.reference_prompt, options.max_new_tokens
    return load_named(name, prompt=prompt, otherwise=asked, max_new_tokens=longest, device=device)


def _write(out: Path | None, content: dict[str, Any]) -> None:
    if out is not None:
        write_whole(out, json.dumps(content, ensure_ascii=False) + "\n")


def _what_to_evaluate(options: MeasureOptions, console: CommandConsole) -> tuple[EvaluationImages, dict[str, Any]]:
    """The images, and the arguments of :func:`evaluate_captioner` that both captioners share."""
    metrics = words_of(options.metrics)
    try:
        expand_metrics(metrics)
    except ValueError as error:
        raise WrongUseError(f"--metrics: {error}") from error
    split, dataset = choose_split(load_splits(options.data), options.split)
    columns = None if options.caption_columns is None else words_of(options.caption_columns)
    names = (options.image_column, columns, options.image_id_column)
    everything = evaluation_images(dataset, *names, on_bad_image="skip" if options.skip_bad else "raise")
    images = everything if options.images is None else everything.sample(options.images, options.seed)
    console.say(f"{len(images)} of {len(everything)} images of the split {split!r}", style="dim")
    return images, {"metrics": metrics, **_arguments(options, everything)}


def _readable(
    images: EvaluationImages,
    options: MeasureOptions,
    processors: Sequence[CaptionProcessor],
    retriever: Captioner | DualEncoderRetriever | None,
) -> EvaluationImages:
    """The images that open and that all who read them take, if the others are to be left out; else all."""
    readers = [processor.process_images for processor in processors]
    if retriever is not None:
        readers.append((retriever.processor if isinstance(retriever, Captioner) else retriever).process_images)
    return images.that_open(*readers) if options.skip_bad else images


def _retriever(options: MeasureOptions, prompt: str | None) -> Captioner | DualEncoderRetriever | None:
    return None if options.retriever is None else load_retriever(options.retriever, prompt)


def load_retriever(name: str, prompt: str | None = None) -> Captioner | DualEncoderRetriever:
    """A captioner or an image-text dual encoder by name, whichever it is.

    Args:
        name: Its name or folder.
        prompt: What it is asked if it is a chat model, and no prompt was saved with it.
    """
    if is_captioner(name):
        return load_named(name, otherwise=prompt)
    return DualEncoderRetriever.from_pretrained(name)


def _arguments(options: MeasureOptions, everything: EvaluationImages) -> dict[str, Any]:
    """The arguments of :func:`evaluate_captioner` that both captioners share."""
    generation = {"num_beams": options.num_beams, "max_new_tokens": options.max_new_tokens}
    frequencies = None
    if options.document_frequencies is not None:
        frequencies = DocumentFrequencies.load(options.document_frequencies)
    elif options.images is not None and everything.referenced:  # of the whole split, also for a part of it
        frequencies = DocumentFrequencies.from_references(everything.prepared_references)
    return {
        "k": options.recall_at,
        "document_frequencies": frequencies,
        "batch_size": options.batch_size,
        "max_memory_bytes": int(options.memory_gib * 2**30),
        "seed": options.seed,
        "cache_dir": options.cache_dir,
        "progress": sys.stderr.isatty(),
        **{name: value for name, value in generation.items() if value is not None},
    }
