"""Self-retrieval from a table of scores, as a module of the ``evaluate`` library."""

from __future__ import annotations

import datasets
import evaluate
import numpy as np

from hf_contrastive_caption.evaluation.retrieval.ranking import rank_own_images

_CITATION = """\
@inproceedings{dai2017contrastive,
  title={Contrastive Learning for Image Captioning},
  author={Dai, Bo and Lin, Dahua},
  booktitle={NIPS},
  year={2017}
}
"""


class SelfRetrieval(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """Where a caption's own image stands among all images, by any table of scores.

    Equal scores are broken at random, and the result is expected over that.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation=_CITATION,
            inputs_description="predictions: for each caption its scores with all images; references: the number of "
            "its own image; k: the numbers of images of recall_at_k.",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float64")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(
        self, predictions: list[list[float]], references: list[int], k: tuple[int, ...] = (1, 5, 10)
    ) -> dict[str, float]:
        ranks = rank_own_images(np.asarray(predictions), references)
        return {
            **{f"recall_at_{number}": float(ranks.recall(number).mean()) for number in k},
            "median_rank": float(np.median(ranks.expected_rank())),
            "mean_reciprocal_rank": float(ranks.reciprocal_rank().mean()),
        }
