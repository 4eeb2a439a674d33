"""ROUGE-L of COCO's evaluation, as a module of the ``evaluate`` library."""

from __future__ import annotations

from typing import Any

import evaluate

from hf_contrastive_caption.evaluation.metrics.caption_metrics import caption_metrics
from hf_contrastive_caption.evaluation.modules.features import caption_features, reference_lists

_CITATION = """\
@inproceedings{lin2004rouge,
  title={ROUGE: A Package for Automatic Evaluation of Summaries},
  author={Lin, Chin-Yew},
  booktitle={Text Summarization Branches Out},
  year={2004}
}
"""


class RougeL(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """ROUGE-L of COCO's evaluation; see :mod:`hf_contrastive_caption.evaluation.metrics.rouge`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation=_CITATION,
            inputs_description="predictions: one caption for each image; references: its references.",
            features=caption_features(),
        )

    def _compute(self, predictions: list[str], references: list[Any]) -> dict[str, float]:
        scores = caption_metrics(predictions, reference_lists(references), metrics=("rouge_l",))
        return {name: score.corpus for name, score in scores.items()}
