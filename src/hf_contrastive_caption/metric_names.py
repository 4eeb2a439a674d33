"""What the metrics of an evaluation are called, known before the first one, and whether the best model has one."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from hf_contrastive_caption.evaluation.in_training import RECALL_AT, EvaluationPool
from hf_contrastive_caption.evaluation.score import MEASURES, NEED_RETRIEVAL, recall_number
from hf_contrastive_caption.objectives import (
    LOG_RATIO_LOSS,
    ContrastiveObjective,
    IntrospectiveObjective,
    MLEObjective,
    Objective,
)

logger = logging.getLogger(__name__)

SKIPPED = "skipped_images"
_OF_TRAINER = ("runtime", "samples_per_second", "steps_per_second")
_OF_CAPTIONS = (*MEASURES, "score", "captions_runtime")
_OF_REFERENCES = ("cider_d", "rouge_l", "invented")
_OWN = {
    "loss",
    SKIPPED,
    LOG_RATIO_LOSS,
    *_OF_CAPTIONS,
    *ContrastiveObjective.reported,
    *IntrospectiveObjective.reported,
    *MLEObjective.reported,
}
"""All names that there may be with some options."""


def metric_names(objective: Objective, pool: EvaluationPool | None, *, skips: bool) -> list[str]:
    """The metrics of one data set of an evaluation, without a prefix.

    Args:
        objective: What is trained for.
        pool: Its images that are captioned, if any are.
        skips: Whether its images that do not open are skipped.
    """
    names = [*objective.metrics(), *([SKIPPED] if skips else []), *_OF_TRAINER]
    if pool is None:
        return names
    asked = {k for name in pool.score if (k := recall_number(name)) is not None}
    images = 0 if pool.retrieval is None else len(pool.retrieval)
    absent = {*(() if pool.images.referenced else _OF_REFERENCES), *(() if images else NEED_RETRIEVAL)}
    absent |= set() if pool.score else {"score"}
    recalls = [f"recall_at_{k}" for k in sorted({*RECALL_AT, *asked}) if k < images]
    return [*names, *(name for name in _OF_CAPTIONS if name not in absent), *recalls]


def check_best_metric(metric: str, sets: Mapping[str, Sequence[str]], options: str) -> None:
    """Whether an evaluation will have the metric that chooses the best model.

    Args:
        metric: ``metric_for_best_model``.
        sets: The metrics of each data set of the evaluation, by its name; ``""`` where there is one without a name.
        options: What they follow from, for the message.

    Raises:
        ValueError: If it is a metric of this library that these options do not give. Any other may come from a
            callback or a subclass, and gets a warning.
    """
    given = metric.removeprefix("eval_")
    beginnings = {name: f"{name}_" if name else "" for name in sets}
    names = [beginnings[name] + one for name, metrics in sets.items() for one in metrics]
    if given in names:
        return
    there = ", ".join(f"eval_{name}" for name in names if not name.endswith(_OF_TRAINER))
    parts = [given, *(given.removeprefix(beginning) for beginning in beginnings.values())]
    if any(part in _OWN or recall_number(part) is not None for part in parts):
        raise ValueError(
            f"metric_for_best_model is {metric!r}, which an evaluation does not give with {options}; take one of what "
            f"it gives: {there}"
        )
    logger.warning(
        "metric_for_best_model is %r, which is none of the metrics of an evaluation here: %s. Unless a callback or a "
        "subclass adds it, the training stops at the first evaluation",
        metric,
        there,
    )
