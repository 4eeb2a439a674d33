"""Which of the dropped images a caption fits best, by the scores of one captioner, of each writer, or of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from hf_contrastive_caption.app.work import SIDES, Answer
from hf_contrastive_caption.evaluation.bootstrap import Floats
from hf_contrastive_caption.evaluation.retrieval.ranking import Ranks, rank_own_images

JUDGES = {
    "writer": "the captioner that wrote it",
    "target": "the target",
    "reference": "the reference",
    "log_ratio": "their log-ratio",
}
"""Who ranks: ln p(caption | image) of one captioner, or target minus reference, as the loss compares them."""


class FoundImages(NamedTuple):
    """What a caption finds among the images.

    Attributes:
        rank: Expected rank of its own image, 1 for the first; ``None`` for a caption that belongs to none.
        rival: Number of the best other image; the best of all for a caption that belongs to none.
        margin: Score of the own image minus that of the rival, in nats; for a caption that belongs to none, of the
            best image minus that of the second.
        shares: Probability of each image given the caption, were all of them as likely before: the softmax of the
            scores, (n_images,).
        scores: Score of each image in nats, (n_images,).
    """

    rank: float | None
    rival: int
    margin: float
    shares: Floats
    scores: Floats


class SideRanking(NamedTuple):
    """What the captions of one side find.

    Attributes:
        found: One for each caption.
        ranks: Ranks and ties of the own images.
    """

    found: tuple[FoundImages, ...]
    ranks: Ranks


def rank_captions(answer: Answer, judge: str) -> dict[str, SideRanking]:
    """Rank the images for each caption of both sides.

    Args:
        answer: Captions with their scores.
        judge: One of :data:`JUDGES`.

    Returns:
        By side what its captions find; nothing where there are no scores.
    """
    if not answer.scores:
        return {}
    rankings = {}
    for side in SIDES:
        scores = _judged({by: answer.scores[side, by] for by in SIDES}, judge, side)  # (n_captions, n_images)
        ranks = rank_own_images(scores)
        expected = ranks.expected_rank()
        found = tuple(_found(row, own, float(expected[own])) for own, row in enumerate(scores))
        rankings[side] = SideRanking(found, ranks)
    return rankings


def rank_own_caption(answer: Answer, judge: str) -> FoundImages | None:
    """Rank the images for the caption that somebody typed; the target ranks where the writer should."""
    if answer.own is None or len(answer.thumbnails) == 1:
        return None
    scores = _judged(answer.own.scores, judge, "target")
    best = int(scores.argmax())
    others = np.delete(scores, best)
    return FoundImages(None, best, float(scores[best] - others.max()), _shares(scores), scores)


def _judged(scores: Mapping[str, Floats], judge: str, writer: str) -> Floats:
    if judge == "log_ratio":
        return scores["target"] - scores["reference"]
    return scores[writer if judge == "writer" else judge]


def _found(scores: Floats, own: int, rank: float) -> FoundImages:
    others = scores.copy()
    others[own] = -np.inf
    rival = int(others.argmax())
    return FoundImages(rank, rival, float(scores[own] - scores[rival]), _shares(scores), scores)


def _shares(scores: Floats) -> Floats:
    weights = np.exp(scores - scores.max())
    shares: Floats = weights / weights.sum()
    return shares
