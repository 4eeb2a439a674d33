"""Share of content words that no reference has, as a module of the ``evaluate`` library."""

from __future__ import annotations

from typing import Any

import evaluate

from hf_contrastive_caption.evaluation.metrics.invention import invented_words
from hf_contrastive_caption.evaluation.modules.features import caption_features, reference_lists

_CITATION = """\
@inproceedings{rohrbach2018object,
  title={Object Hallucination in Image Captioning},
  author={Rohrbach, Anna and Hendricks, Lisa Anne and Burns, Kaylee and Darrell, Trevor and Saenko, Kate},
  booktitle={EMNLP},
  year={2018}
}
"""


class InventedWords(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """Share of content words that no reference has; see :mod:`hf_contrastive_caption.evaluation.metrics.invention`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation=_CITATION,
            inputs_description="predictions: one caption for each image; references: its references.",
            features=caption_features(),
        )

    def _compute(self, predictions: list[str], references: list[Any]) -> dict[str, float]:
        scores = invented_words(predictions, reference_lists(references))
        return {
            "invented_words": scores.corpus,
            "n_content": float(scores.n_content.sum()),
            "n_invented": float(scores.n_invented.sum()),
        }
