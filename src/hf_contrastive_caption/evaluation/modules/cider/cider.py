"""CIDEr without clipping and length penalty, as a module of the ``evaluate`` library."""

from __future__ import annotations

from typing import Any

import evaluate

from hf_contrastive_caption.evaluation.metrics.caption_metrics import caption_metrics
from hf_contrastive_caption.evaluation.metrics.document_frequencies import DocumentFrequencies
from hf_contrastive_caption.evaluation.modules.features import caption_features, reference_lists

_CITATION = """\
@inproceedings{vedantam2015cider,
  title={CIDEr: Consensus-based Image Description Evaluation},
  author={Vedantam, Ramakrishna and Zitnick, C. Lawrence and Parikh, Devi},
  booktitle={CVPR},
  year={2015}
}
"""


class Cider(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """CIDEr without clipping and length penalty; see :mod:`hf_contrastive_caption.evaluation.metrics.cider`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation=_CITATION,
            inputs_description="predictions: one caption for each image; references: its references; "
            "document_frequencies: path of a saved table.",
            features=caption_features(),
        )

    def _compute(
        self, predictions: list[str], references: list[Any], document_frequencies: str | None = None
    ) -> dict[str, float]:
        table = None if document_frequencies is None else DocumentFrequencies.load(document_frequencies)
        scores = caption_metrics(
            predictions, reference_lists(references), metrics=("cider",), document_frequencies=table
        )
        return {name: score.corpus for name, score in scores.items()}
