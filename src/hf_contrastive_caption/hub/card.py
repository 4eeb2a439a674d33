"""The model card: what was done, with which numbers, in words for people and in metadata for the Hub."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from hf_contrastive_caption.data.images import open_image
from hf_contrastive_caption.evaluation.measures import Measure, aligned_table, measures_rows
from hf_contrastive_caption.evaluation.report import CaptionerReport
from hf_contrastive_caption.hub.content import MAX_EXAMPLES, CardContent
from hf_contrastive_caption.hub.facts import Origin, TrainingFacts
from hf_contrastive_caption.hub.markdown import Markdown, escape
from hf_contrastive_caption.loading import short_name
from hf_contrastive_caption.report.charts import to_png, training_chart
from hf_contrastive_caption.report.thumbnails import thumbnail

logger = logging.getLogger(__name__)

CARD = "README.md"
PICTURES = "card"
"""Folder of the card's pictures, beside it."""

TAGS = ("contrastive-caption", "image-captioning")
_CURVES = "training_curves.png"
_EXAMPLE_SIZE, _EXAMPLE_BYTES = 512, 60_000


def write_card(
    folder: Path,
    facts: TrainingFacts,
    content: CardContent,
    *,
    name: str,
    repository: str | None = None,
    tags: Sequence[str] = (),
) -> Path:
    """Write a model card with its pictures into a folder; pictures of an earlier card are removed.

    Args:
        folder: The folder of the model.
        facts: What is known of the training.
        content: What else the card says.
        name: The title.
        repository: The id under which the model is published; the name of the folder stands in its place if it is not.
        tags: Further tags.

    Returns:
        The file.
    """
    pictures = folder / PICTURES
    if pictures.is_dir():
        for path in (pictures / _CURVES, *pictures.glob("example-*.webp")):
            path.unlink(missing_ok=True)
    pictures.mkdir(parents=True, exist_ok=True)
    curves = _write_curves(pictures / _CURVES, facts.log_history)
    examples = []
    for number, example in enumerate(content.examples[:MAX_EXAMPLES], start=1):
        path = pictures / f"example-{number:02d}.webp"
        path.write_bytes(thumbnail(open_image(example.image), _EXAMPLE_SIZE, _EXAMPLE_BYTES))
        examples.append((Markdown(f"{PICTURES}/{path.name}"), example.before, example.after))
    if not any(pictures.iterdir()):
        pictures.rmdir()
    text = render_card(facts, content, examples, name=name, repository=repository or short_name(folder), curves=curves)
    metadata = card_metadata(facts, content, name=name, tags=tags).to_yaml(line_break="\n")
    card = folder / CARD
    unfinished = folder / f"_{CARD}"  # not uploaded
    unfinished.write_text(f"---\n{metadata}\n---\n\n{text}", encoding="utf-8")
    unfinished.replace(card)
    return card


def render_card(
    facts: TrainingFacts,
    content: CardContent,
    examples: Sequence[tuple[Markdown, str, str]],
    *,
    name: str,
    repository: str,
    curves: bool,
) -> str:
    """The text of a card, without its metadata; every value is escaped.

    Args:
        facts: What is known of the training.
        content: What else the card says.
        examples: Pictures with captions before and after.
        name: The title.
        repository: What the model is loaded by.
        curves: Whether there is a picture of the training curves.
    """
    environment = Environment(
        loader=PackageLoader("hf_contrastive_caption.hub"),
        undefined=StrictUndefined,
        finalize=escape,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # What these return is not escaped again; "code" and "markdown" are for what the package itself has written.
    environment.filters |= {"python": _python, "arguments": _arguments, "table": _table}
    environment.filters |= {"code": Markdown, "markdown": Markdown}
    reports = _named_shortly(content)
    numbers, about = _numbers(*reports)
    data = facts.data if content.data_name is None else Origin(content.data_name, facts.data.repository)
    return environment.get_template("model_card.md.j2").render(
        name=name,
        repository=repository,
        facts=facts,
        loss=list(facts.loss),
        settings=list(facts.settings),
        data=data,
        data_license=content.data_license or facts.data_license,
        evaluation_data=content.evaluation_data,
        numbers=numbers,
        about=about,
        compared=content.before is not None,
        sides=_sides(facts, *reports),
        examples=examples,
        curves=Markdown(f"{PICTURES}/{_CURVES}") if curves else None,
    )


def card_metadata(facts: TrainingFacts, content: CardContent, *, name: str, tags: Sequence[str] = ()) -> ModelCardData:
    """The metadata of a card, with what was measured as ``model-index``; ``yaml`` quotes every value."""
    own: dict[str, Any] = {"library_name": "transformers" if facts.adapter is None else "peft"}
    if facts.usage.imports is not None:
        own["library_name"] = "hf-contrastive-caption"
    if facts.base.repository is not None:
        own["base_model"] = facts.base.repository
        own["base_model_relation"] = "finetune" if facts.adapter is None else "adapter"
    return ModelCardData(
        language=content.language,
        pipeline_tag="image-to-text" if facts.usage.question is None else "image-text-to-text",
        tags=list(dict.fromkeys([*TAGS, *tags])),
        datasets=None if facts.data.repository is None else [facts.data.repository],
        model_name=name,
        eval_results=_eval_results(facts, content) or None,
        **_license(content.license),
        **own,
    )


def _license(given: str | None) -> dict[str, Any]:
    """As the Hub takes it: an identifier, or ``other`` with a name."""
    if given is None:
        return {}
    if re.fullmatch(r"[a-z0-9]+([.-][a-z0-9]+)*", given):
        return {"license": given}
    return {"license": "other", "license_name": given}


def _eval_results(facts: TrainingFacts, content: CardContent) -> list[EvalResult]:
    after, before = content.after, content.before
    if after is None:
        return []
    data = content.evaluation_data or "unnamed images"
    results = []
    for key, measure in after.measures.items():
        if not math.isfinite(measure.value):
            continue
        args: dict[str, Any] = {"images": after.num_images, **_ends(measure, "interval_95")}
        if key in after.chance:
            args["chance"] = float(after.chance[key])
        if before is not None and key in before.measures:
            args |= {"before": float(before.measures[key].value), **_ends(before.measures[key], "before_interval_95")}
        results.append(
            EvalResult(
                task_type="image-to-text" if facts.usage.question is None else "image-text-to-text",
                dataset_type=re.sub(r"[^\w./-]+", "-", data),
                dataset_name=data,
                metric_type=key,
                metric_name=measure.label,
                metric_value=float(measure.value),
                metric_args=args,
            )
        )
    return results


def _ends(measure: Measure, name: str) -> dict[str, list[float]]:
    if measure.interval is None:
        return {}
    return {name: [float(measure.interval.low), float(measure.interval.high)]}


def _named_shortly(content: CardContent) -> tuple[CaptionerReport | None, CaptionerReport | None]:
    """The reports of before and after, captioners that were called by their folders called by their last part."""
    before, after = (
        None if report is None else replace(report, name=short_name(report.name))
        for report in (content.before, content.after)
    )
    if content.before is None or content.after is None or before is None or after is None:
        return before, after
    if before.name == after.name and content.before.name != content.after.name:
        return replace(before, name="reference"), replace(after, name="tuned")
    return before, after


def _numbers(before: CaptionerReport | None, after: CaptionerReport | None) -> tuple[list[Sequence[str]], str]:
    """The table of what was measured, the heading first, and what it was measured on."""
    if after is None:
        return [], ""
    if before is None:
        return measures_rows(after.name, after.measures, after.chance), after.about()
    comparison = after.compare(before)
    return comparison.rows(intervals=True), comparison.about()


def _sides(facts: TrainingFacts, before: CaptionerReport | None, after: CaptionerReport | None) -> tuple[str, str]:
    """What the columns of captions are called: a reference that was replaced is not what was before."""
    if facts.reference_replaced and before is not None and after is not None:
        return before.name, after.name
    return "before", "after"


def _write_curves(path: Path, log_history: Sequence[Mapping[str, Any]]) -> bool:
    """Draw the training curves; a save in the middle of a training must not fail because nothing can draw them."""
    try:
        figure = training_chart(log_history)
    except ImportError as error:
        logger.warning("the model card has no training curves: %s", error)
        return False
    if figure is None:
        return False
    to_png(figure, path)
    return True


def _python(value: Any) -> Markdown:
    """A value as it stands in a block of Python code: on one line, so that it cannot close the block."""
    return Markdown(ascii(value))


def _arguments(values: Mapping[str, Any]) -> Markdown:
    return Markdown(", ".join(f"{name}={ascii(value)}" for name, value in values.items()))


def _table(rows: Sequence[Sequence[str]]) -> Markdown:
    return Markdown(aligned_table([[escape(cell) for cell in row] for row in rows]))
