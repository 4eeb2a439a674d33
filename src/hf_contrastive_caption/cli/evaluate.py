"""``contrastive-caption evaluate`` and ``compare``: the two-sided table of a captioner or of two, and their page."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModel, AutoProcessor

from hf_contrastive_caption.captioners import Captioner
from hf_contrastive_caption.console import CommandConsole
from hf_contrastive_caption.data.files import choose_split, load_splits
from hf_contrastive_caption.evaluation.evaluator import as_captioner, evaluate_captioner, prompt_of
from hf_contrastive_caption.evaluation.images import EvaluationImages, evaluation_images
from hf_contrastive_caption.evaluation.measures import measures_rows
from hf_contrastive_caption.evaluation.metrics.document_frequencies import DocumentFrequencies
from hf_contrastive_caption.evaluation.report import CaptionerReport, report_rows
from hf_contrastive_caption.evaluation.retrieval.retrievers import DualEncoderRetriever, Retriever
from hf_contrastive_caption.loading import is_captioner
from hf_contrastive_caption.report.comparison import CaptionerComparison, compare_captioners, stored_log


@dataclass(frozen=True)
class EvaluateOptions:
    """What the command was asked for; see its ``--help``."""

    model: str
    data: str
    reference: str | None
    prompt: str | None
    reference_prompt: str | None
    out: Path | None
    split: str | None
    images: int | None
    retriever: str | None
    k: tuple[int, ...]
    metrics: tuple[str, ...]
    document_frequencies: Path | None
    samples_per_image: int
    image_column: str | None
    caption_columns: tuple[str, ...] | None
    image_id_column: str | None
    batch_size: int
    num_beams: int | None
    max_new_tokens: int | None
    memory_gib: float
    seed: int
    cache_dir: Path | None


def evaluate(options: EvaluateOptions, console: CommandConsole | None = None) -> CaptionerReport:
    """Evaluate a captioner, and a reference on the same images if there is one; print the table, write the report."""
    console = CommandConsole() if console is None else console
    if options.reference_prompt is not None and options.reference is None:
        raise ValueError("--reference-prompt is what the captioner of --reference is asked, and there is none")
    if options.out is not None and not options.out.parent.is_dir():
        raise ValueError(f"the folder of --out {options.out} does not exist")
    images, arguments = _what_to_evaluate(options, console)
    names = _short_names(options)
    captioner = as_captioner(options.model, prompt=options.prompt)
    asked = prompt_of(captioner)
    arguments["retriever"] = _retriever(options, asked)
    report = evaluate_captioner(captioner, images, name=names[0], **arguments)
    del captioner  # its memory is the reference's
    reference = None
    if options.reference is not None:
        other = as_captioner(options.reference, prompt=options.reference_prompt, otherwise=asked)
        reference = evaluate_captioner(other, images, name=names[1], **arguments)
    if reference is None:
        console.table(measures_rows(report.name, report.measures, report.chance))
        console.say(report.about(), style="dim")
    else:
        comparison = report.compare(reference)
        console.table(report_rows([reference, report]))
        console.say()
        console.table(comparison.rows())
        console.say(comparison.about(), style="dim")
    if options.out is not None:
        content = report.to_dict(per_image=True)
        if reference is not None:
            content |= {"reference": reference.to_dict(per_image=True), "comparison": comparison.to_dict()}
        options.out.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
        console.say(f"The report is in {options.out}; CaptionerReport.load reads it.")
    return report


def compare(
    options: EvaluateOptions, folder: Path, shown: int, console: CommandConsole | None = None
) -> CaptionerComparison:
    """Evaluate a captioner and its reference on the same images; print the table, write the page into a folder."""
    console = CommandConsole() if console is None else console
    assert options.reference is not None
    images, arguments = _what_to_evaluate(options, console)
    target = as_captioner(options.model, prompt=options.prompt)
    asked = prompt_of(target)
    reference = as_captioner(options.reference, prompt=options.reference_prompt, otherwise=asked)
    arguments["retriever"] = _retriever(options, asked)
    tuned, before = _short_names(options)
    comparison = compare_captioners(
        reference,
        target,
        images,
        names=(before, tuned),
        shown=shown,
        log_history=stored_log(options.model),
        **arguments,
    )
    console.table(comparison.target.compare(comparison.reference).rows())
    console.say(comparison.target.about(), style="dim")
    console.say(f"The page is {comparison.save(folder)}; open it in a browser.")
    return comparison


def _what_to_evaluate(options: EvaluateOptions, console: CommandConsole) -> tuple[EvaluationImages, dict[str, Any]]:
    """The images, and the arguments of :func:`evaluate_captioner` that both captioners share."""
    split, dataset = choose_split(load_splits(options.data), options.split)
    everything = evaluation_images(dataset, options.image_column, options.caption_columns, options.image_id_column)
    images = everything if options.images is None else everything.sample(options.images, options.seed)
    console.say(f"{len(images)} of {len(everything)} images of the split {split!r}", style="dim")
    return images, _arguments(options, everything)


def _retriever(options: EvaluateOptions, prompt: str | None) -> Captioner | Retriever | None:
    return None if options.retriever is None else load_retriever(options.retriever, prompt)


def load_retriever(name: str, prompt: str | None = None) -> Captioner | Retriever:
    """A captioner or an image-text dual encoder by name, whichever it is.

    Args:
        name: Its name or folder.
        prompt: What it is asked if it is a chat model, and no prompt was saved with it.
    """
    if is_captioner(name):
        return as_captioner(name, otherwise=prompt)
    return DualEncoderRetriever(AutoModel.from_pretrained(name), AutoProcessor.from_pretrained(name))


def _arguments(options: EvaluateOptions, everything: EvaluationImages) -> dict[str, Any]:
    """The arguments of :func:`evaluate_captioner` that both captioners share."""
    generation = {"num_beams": options.num_beams, "max_new_tokens": options.max_new_tokens}
    frequencies = None
    if options.document_frequencies is not None:
        frequencies = DocumentFrequencies.load(options.document_frequencies)
    elif options.images is not None and everything.referenced:  # of the whole split, also for a part of it
        frequencies = DocumentFrequencies.from_references(everything.prepared_references)
    return {
        "k": options.k,
        "metrics": options.metrics,
        "document_frequencies": frequencies,
        "samples_per_image": options.samples_per_image,
        "batch_size": options.batch_size,
        "max_memory_bytes": int(options.memory_gib * 2**30),
        "seed": options.seed,
        "cache_dir": options.cache_dir,
        **{name: value for name, value in generation.items() if value is not None},
    }


def _short_names(options: EvaluateOptions) -> tuple[str, str]:
    """What tables call both captioners: the last part of a folder's name, if that tells them apart."""
    given = (options.model, options.reference or "")
    short = tuple(Path(name).name if Path(name).exists() else name for name in given)
    return given if short[0] == short[1] else (short[0], short[1])
