"""Ranks of a caption's own image, and what is expected of them where scores are equal."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hf_contrastive_caption.evaluation.bootstrap import Floats

Scores = npt.NDArray[np.float32]


class Ranks(NamedTuple):
    """Where the own image of each caption stands among all images.

    Equal scores are broken at random, and what is reported is expected over that: a retriever that gives every image
    the same score has recall@1 of 1 / n_images, and not of 1.

    Attributes:
        better: Number of images with a higher score than the own one, (n_captions,).
        equal: Number of other images with the very score of the own one, (n_captions,).
        pool_size: Number of images.
    """

    better: npt.NDArray[np.int64]
    equal: npt.NDArray[np.int64]
    pool_size: int

    @classmethod
    def of(cls, better: npt.ArrayLike, equal: npt.ArrayLike, pool_size: int) -> Ranks:
        """Ranks of lists of numbers."""
        return cls(np.asarray(better, dtype=np.int64), np.asarray(equal, dtype=np.int64), pool_size)

    def recall(self, k: int) -> Floats:
        """Probability that the own image is among the first k, (n_captions,)."""
        return np.clip((k - self.better) / (self.equal + 1.0), 0.0, 1.0)

    def expected_rank(self) -> Floats:
        """Expected rank of the own image, 1 for the first, (n_captions,)."""
        return 1.0 + self.better + self.equal / 2.0

    def reciprocal_rank(self) -> Floats:
        """Expected reciprocal of the rank, (n_captions,)."""
        harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, self.pool_size + 1))])
        reciprocal: Floats = (harmonic[self.better + self.equal + 1] - harmonic[self.better]) / (self.equal + 1.0)
        return reciprocal


def rank_own_images(scores: npt.ArrayLike, own: npt.ArrayLike | None = None) -> Ranks:
    """Rank the own image of each caption.

    Args:
        scores: Score of each caption with each image, higher for what fits better, (n_captions, n_images).
        own: Number of each caption's own image, (n_captions,); caption i belongs to image i if not given.

    Raises:
        ValueError: If the shapes do not fit, or a score is not a number.
    """
    table = np.asarray(scores)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"scores must be (n_captions, n_images) with at least one of each, but is {table.shape}")
    if own is None and table.shape[0] != table.shape[1]:
        raise ValueError(
            f"{table.shape[0]} captions are scored against {table.shape[1]} images, so it must be said which image "
            "each belongs to: give own, (n_captions,)"
        )
    image = np.arange(table.shape[0]) if own is None else np.asarray(own)
    if image.shape != table.shape[:1] or image.min() < 0 or image.max() >= table.shape[1]:
        raise ValueError(
            f"own must hold the number of an image, 0 to {table.shape[1] - 1}, for each of {table.shape[0]} captions"
        )
    if np.isnan(table).any():
        row = int(np.isnan(table).any(axis=1).argmax())
        raise ValueError(f"a score of caption {row} is not a number, so its images have no order")
    mine = table[np.arange(len(image)), image][:, None]  # (n_captions, 1)
    return Ranks((table > mine).sum(axis=1), (table == mine).sum(axis=1) - 1, table.shape[1])


def rival_images(scores: Scores, k: int) -> list[tuple[int, ...]]:
    """For each caption up to k other images that it fits better than its own, the best first.

    Args:
        scores: Score of each caption with each image, higher for what fits better, (n_images, n_images).
        k: How many images at most.
    """
    rivals = []
    for own, row in enumerate(scores):
        better = np.flatnonzero(row > row[own])
        best = better[np.argsort(-row[better], kind="stable")[:k]]
        rivals.append(tuple(best.tolist()))
    return rivals


def chance_recall(k: int, pool_size: int) -> float:
    """Recall@k of a retriever that guesses."""
    return min(k / pool_size, 1.0)
