"""Self-retrieval: does a caption find its own image among many? (Dai and Lin, NIPS 2017, section 4.2)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors.numpy import save_file
from torch import nn

from hf_contrastive_caption.captioners import Captioner
from hf_contrastive_caption.captioners.pairs import DEFAULT_MAX_MEMORY_BYTES
from hf_contrastive_caption.evaluation.bootstrap import RESAMPLES, Bootstrap, Interval
from hf_contrastive_caption.evaluation.pool import ImagePool
from hf_contrastive_caption.evaluation.ranking import Ranks, Scores, chance_recall, rank_own_images
from hf_contrastive_caption.evaluation.retrievers import CaptionerRetriever, Retriever
from hf_contrastive_caption.evaluation.score_table import score_table, share
from hf_contrastive_caption.fingerprints import json_digest
from hf_contrastive_caption.generation import caption_images, describe_decoding

logger = logging.getLogger(__name__)

RECALL_AT = (1, 5, 10, 50, 500)
GIVEN = "captions were given"


@dataclass(frozen=True)
class SelfRetrieval:
    """How well captions find their own images.

    Attributes:
        recall: Recall@k by k: the share of captions whose own image is among the first k, as a number from 0 to 1 with
            its bootstrap interval.
        median_rank: Median rank of the own image, 1 for the first.
        mean_reciprocal_rank: Mean of 1 / rank.
        chance: Recall@k of a guess, by k.
        pool_size: Number of images that each caption is scored against.
        retriever: What scored the captions.
        decoding: How the captions were generated, or that they were given.
        method: How the scores were computed.
        seconds: How long the scores took, without writing the captions.
        captions: The captions, (n_images,).
        ranks: Rank and ties of each caption's own image.
        scores: Score of each caption with each image, float32, (n_captions, n_images).
    """

    recall: dict[int, Interval]
    median_rank: Interval
    mean_reciprocal_rank: Interval
    chance: dict[int, float]
    pool_size: int
    retriever: str
    decoding: str
    method: str
    seconds: float
    captions: tuple[str, ...] = field(repr=False)
    ranks: Ranks = field(repr=False)
    scores: Scores = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Everything but captions and scores, as JSON takes it."""
        return {
            "recall": {str(k): self.recall[k]._asdict() for k in self.recall},
            "median_rank": self.median_rank._asdict(),
            "mean_reciprocal_rank": self.mean_reciprocal_rank._asdict(),
            "chance": {str(k): value for k, value in self.chance.items()},
            "pool_size": self.pool_size,
            "retriever": self.retriever,
            "decoding": self.decoding,
            "method": self.method,
            "seconds": round(self.seconds, 2),
        }

    def to_markdown(self) -> str:
        """A table of recalls beside chance, and a line that says what was measured."""
        lines = ["| | value | 95 % interval | chance |", "| --- | ---: | ---: | ---: |"]
        for k, recall in self.recall.items():
            if k < self.pool_size or k == 1:
                ends = f"{100 * recall.low:.1f} to {100 * recall.high:.1f}"
                lines.append(f"| R@{k} (%) | {100 * recall.value:.1f} | {ends} | {100 * self.chance[k]:.1f} |")
        median, reciprocal = self.median_rank, self.mean_reciprocal_rank
        middle = (self.pool_size + 1) / 2
        lines.append(f"| median rank | {median.value:g} | {median.low:g} to {median.high:g} | {middle:g} |")
        guess = float(np.mean(1 / np.arange(1, self.pool_size + 1)))
        ends = f"{reciprocal.low:.3f} to {reciprocal.high:.3f}"
        lines.append(f"| mean reciprocal rank | {reciprocal.value:.3f} | {ends} | {guess:.3f} |")
        return "\n".join([*lines, "", f"{self.pool_size} images; {self.retriever}; {self.decoding}."])

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
    judge = _retriever(captioner, captions, retriever, max_memory_bytes)
    if not k or any(number < 1 for number in k):
        raise ValueError(f"Got k={tuple(k)}; give numbers of images of at least 1.")
    pool = images if isinstance(images, ImagePool) else ImagePool(images)
    _check_captions(captions, pool)
    decoding = GIVEN
    if captions is None:
        assert captioner is not None
        decoding = describe_decoding(captioner.processor, generate_kwargs)
        captions = write_captions(captioner, pool, batch_size, progress, **generate_kwargs)
    elif generate_kwargs:
        raise TypeError(f"Captions were given, so nothing is generated; leave out {', '.join(generate_kwargs)}.")
    start = perf_counter()
    scorer = judge.scorer(captions)
    folder = None
    if cache_dir is not None:
        key = json_digest([judge.fingerprint(), pool.fingerprint, list(captions), scorer.images_at_once])
        folder = Path(cache_dir) / f"self-retrieval-{key}"
    scores = score_table(scorer, pool, len(captions), shard_dir=folder, progress=progress)
    seconds = perf_counter() - start
    ranks = rank_own_images(scores)
    bootstrap = Bootstrap(len(pool), resamples, seed)
    return SelfRetrieval(
        recall={number: bootstrap.mean(ranks.recall(number)) for number in sorted(set(k))},
        median_rank=bootstrap.median(ranks.expected_rank()),
        mean_reciprocal_rank=bootstrap.mean(ranks.reciprocal_rank()),
        chance={number: chance_recall(number, len(pool)) for number in sorted(set(k))},
        pool_size=len(pool),
        retriever=judge.name,
        decoding=decoding,
        method=scorer.description,
        seconds=seconds,
        captions=tuple(captions),
        ranks=ranks,
        scores=scores,
    )


def write_captions(
    captioner: Captioner, pool: ImagePool, batch_size: int = 32, progress: bool = False, **generate_kwargs: Any
) -> list[str]:
    """One caption for each image, the images dealt out to the processes; every process gets all captions."""
    state = PartialState()
    mine = list(share(len(pool)))
    written = caption_images(
        captioner.model,
        captioner.processor,
        (pool[number] for number in mine),
        batch_size=batch_size,
        progress=progress and state.is_main_process,
        **generate_kwargs,
    )
    pairs = list(zip(mine, written, strict=True))
    if state.num_processes > 1:
        pairs = gather_object(pairs)
    return [caption for _, caption in sorted(pairs)]


def _retriever(
    captioner: Captioner | None,
    captions: Sequence[str] | None,
    retriever: Captioner | Retriever | None,
    max_memory_bytes: int,
) -> Retriever:
    for name, value in (("captioner", captioner), ("retriever", retriever)):
        if isinstance(value, (str, PathLike, nn.Module)):
            raise TypeError(
                f"Got a {type(value).__name__} as {name}; give captioner_for(model, (tokenizer, image_processor))."
            )
    if captioner is None and (captions is None or retriever is None):
        raise TypeError("Without a captioner, both captions and a retriever must be given.")
    judge = captioner if retriever is None else retriever
    assert judge is not None
    return CaptionerRetriever(judge, max_memory_bytes) if isinstance(judge, Captioner) else judge


def _check_captions(captions: Sequence[str] | None, pool: ImagePool) -> None:
    if captions is None:
        return
    if isinstance(captions, str):
        raise TypeError(f"captions is one text, {captions!r}; give a list with a caption for each image.")
    if len(captions) != len(pool):
        raise ValueError(
            f"Got {len(captions)} captions for {len(pool)} images; give one caption for each image, in their order."
        )
    wrong = next((number for number, caption in enumerate(captions) if not isinstance(caption, str)), None)
    if wrong is not None:
        raise ValueError(f"Caption {wrong} is a {type(captions[wrong]).__name__}; captions are strings.")
