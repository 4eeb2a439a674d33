"""Self-retrieval: does a caption find its own image among many? (Dai and Lin, NIPS 2017, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from torch import nn

from hf_contrastive_caption.captioners import Captioner
from hf_contrastive_caption.captioners.pairs import DEFAULT_MAX_MEMORY_BYTES
from hf_contrastive_caption.evaluation.bootstrap import RESAMPLES, Bootstrap
from hf_contrastive_caption.evaluation.captioning import captions_for
from hf_contrastive_caption.evaluation.measures import Measure, measures_table
from hf_contrastive_caption.evaluation.pool import ImagePool
from hf_contrastive_caption.evaluation.retrieval.ranking import Ranks, Scores, chance_recall, rank_own_images
from hf_contrastive_caption.evaluation.retrieval.retrievers import BY_ITSELF, CaptionerRetriever, Retriever
from hf_contrastive_caption.evaluation.retrieval.score_table import score_table
from hf_contrastive_caption.fingerprints import json_digest

RECALL_AT = (1, 5, 10, 50, 500)
_RECALL = "recall_at_"


@dataclass(frozen=True)
class SelfRetrieval:
    """How well captions find their own images.

    Attributes:
        measures: ``recall_at_k`` for each k, ``median_rank`` and ``mean_reciprocal_rank``, with bootstrap intervals.
        chance: The same of a retriever that guesses, by name.
        pool_size: Number of images that each caption is scored against.
        retriever: What scored the captions.
        decoding: How the captions were generated, or that they were given.
        method: How the scores were computed.
        seconds: How long the scores took, without writing the captions.
        captions: The captions, (n_images,).
        ranks: Rank and ties of each caption's own image.
        scores: Score of each caption with each image, float32, (n_captions, n_images).
    """

    measures: dict[str, Measure]
    chance: dict[str, float]
    pool_size: int
    retriever: str
    decoding: str
    method: str
    seconds: float
    captions: tuple[str, ...] = field(repr=False)
    ranks: Ranks = field(repr=False)
    scores: Scores = field(repr=False)

    @property
    def recall(self) -> dict[int, float]:
        """Recall@k by k: the share of captions whose own image is among the first k, from 0 to 1."""
        return {int(name[len(_RECALL) :]): m.value for name, m in self.measures.items() if name.startswith(_RECALL)}

    @property
    def median_rank(self) -> float:
        """Median rank of the own image, 1 for the first."""
        return self.measures["median_rank"].value

    @property
    def mean_reciprocal_rank(self) -> float:
        """Mean of 1 / rank of the own image."""
        return self.measures["mean_reciprocal_rank"].value

    def to_dict(self) -> dict[str, Any]:
        """Everything but captions, ranks and scores, as JSON takes it."""
        others = ("chance", "pool_size", "retriever", "decoding", "method", "seconds")
        return {
            "measures": {name: measure.to_dict() for name, measure in self.measures.items()},
            **{name: getattr(self, name) for name in others},
        }

    def to_markdown(self) -> str:
        """A table with intervals and chance, and a line that says what was measured."""
        table = measures_table("self-retrieval", self.measures, self.chance)
        return f"{table}\n\n{self.pool_size} images; {self.retriever}; {self.decoding}."

    def save_scores(self, path: str | PathLike[str]) -> None:
        """Save the scores, (n_captions, n_images), as ``scores`` in a ``.safetensors`` file."""
        save_file({"scores": self.scores}, path, metadata={"retriever": self.retriever, "decoding": self.decoding})


def self_retrieval(
    captioner: Captioner | None,
    images: Any,
    captions: Sequence[str] | None = None,
    k: Sequence[int] = RECALL_AT,
    *,
    retriever: Captioner | Retriever | None = None,
    batch_size: int = 32,
    max_memory_bytes: int = DEFAULT_MAX_MEMORY_BYTES,
    resamples: int = RESAMPLES,
    seed: int = 0,
    cache_dir: str | PathLike[str] | None = None,
    progress: bool = True,
    **generate_kwargs: Any,
) -> SelfRetrieval:
    """Score every caption against every image, and see where its own image stands.

    Exact: equal to one forward per (caption, image), with a fraction of the work; see :class:`PairScorer`. Under
    Accelerate the images are dealt out to the processes, each of which returns the same result.

    Args:
        captioner: The captioner, from :func:`captioner_for`. ``None`` if both captions and a retriever are given.
        images: PIL images, paths, addresses or bytes of image files, or the image column of a data set
            (``dataset["image"]``), (n_images,).
        captions: One caption for each image, in their order; written by the captioner if not given.
        k: The numbers of images of recall@k.
        retriever: What scores the captions: another captioner as a judge, or a :class:`DualEncoderRetriever`. The
            captioner itself if not given.
        batch_size: Images that are captioned at once.
        max_memory_bytes: Working memory of the scoring, see :class:`PairScorer`.
        resamples: Bootstrap resamples.
        seed: Their seed.
        cache_dir: Folder that keeps the captions and the scores of finished images: a run that was interrupted goes
            on where it was. Results of other models, images or captions are never taken from it.
        progress: Whether to show progress bars.
        **generate_kwargs: Arguments of ``model.generate``, see :func:`caption_images`.

    Returns:
        The recalls with their intervals, the ranks and the scores.

    Raises:
        ValueError: If there are not as many captions as images, there is no image, or a k is less than 1.
        TypeError: If neither a captioner nor captions with a retriever are given.
    """
    judge = check_retrieval(captioner, captions, retriever, max_memory_bytes, k)
    Bootstrap(1, resamples, seed)
    pool = images if isinstance(images, ImagePool) else ImagePool(images)
    texts, decoding = captions_for(
        captioner,
        pool,
        captions,
        batch_size=batch_size,
        cache_dir=cache_dir,
        progress=progress,
        **generate_kwargs,
    )
    start = perf_counter()
    scorer = judge.scorer(texts)
    folder = None
    if cache_dir is not None:
        key = json_digest([judge.fingerprint(), pool.fingerprint, list(texts), scorer.images_at_once])
        folder = Path(cache_dir) / f"self-retrieval-{key}"
    scores = score_table(scorer, pool, len(texts), shard_dir=folder, progress=progress)
    seconds = perf_counter() - start
    ranks = rank_own_images(scores)
    measures = _measures(ranks, k, Bootstrap(len(pool), resamples, seed))
    return SelfRetrieval(
        measures=measures,
        chance=_chance(measures, len(pool)),
        pool_size=len(pool),
        retriever=judge.name,
        decoding=decoding,
        method=scorer.description,
        seconds=seconds,
        captions=texts,
        ranks=ranks,
        scores=scores,
    )


def _measures(ranks: Ranks, k: Sequence[int], bootstrap: Bootstrap) -> dict[str, Measure]:
    recalls = {
        f"{_RECALL}{number}": Measure.of(bootstrap, f"R@{number}", "mean", ranks.recall(number), percent=True)
        for number in sorted(set(k))
    }
    return {
        **recalls,
        "median_rank": Measure.of(bootstrap, "median rank", "median", ranks.expected_rank(), better="lower"),
        "mean_reciprocal_rank": Measure.of(bootstrap, "mean reciprocal rank", "mean", ranks.reciprocal_rank()),
    }


def _chance(measures: dict[str, Measure], pool_size: int) -> dict[str, float]:
    recalls = {name: int(name[len(_RECALL) :]) for name in measures if name.startswith(_RECALL)}
    return {
        **{name: chance_recall(number, pool_size) for name, number in recalls.items()},
        "median_rank": (pool_size + 1) / 2,
        "mean_reciprocal_rank": float(np.mean(1 / np.arange(1, pool_size + 1))),
    }


def check_retrieval(
    captioner: Captioner | None,
    captions: Sequence[str] | None,
    retriever: Captioner | Retriever | None,
    max_memory_bytes: int,
    k: Sequence[int],
) -> Retriever:
    """Check the arguments of :func:`self_retrieval` before anything is computed, and return who ranks.

    Raises:
        ValueError: If a number is out of its range.
        TypeError: If nobody can rank or write.
    """
    if not isinstance(k, (list, tuple)) or not k or any(type(number) is not int or number < 1 for number in k):
        raise ValueError(f"Got k={k!r}; give a list of whole numbers of images, each at least 1.")
    if max_memory_bytes < 1:
        raise ValueError(f"max_memory_bytes must be at least 1, but is {max_memory_bytes}")
    for name, value in (("captioner", captioner), ("retriever", retriever)):
        if isinstance(value, (str, PathLike, nn.Module)):
            raise TypeError(
                f"Got a {type(value).__name__} as {name}; give captioner_for(model, (tokenizer, image_processor))."
            )
    if captioner is None and (captions is None or retriever is None):
        raise TypeError("Without a captioner, both captions and a retriever must be given.")
    judge = captioner if retriever is None else retriever
    assert judge is not None
    if isinstance(judge, Captioner):
        judge = CaptionerRetriever(judge, max_memory_bytes)
    if retriever is None:
        judge.name = BY_ITSELF
    return judge
