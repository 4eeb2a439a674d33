"""What the page computes: both captions of each image, whose doing each word is, and what each caption finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_contrastive_caption.captioners import Captioner
from hf_contrastive_caption.evaluation.bootstrap import Floats
from hf_contrastive_caption.evaluation.pool import ImagePool
from hf_contrastive_caption.evaluation.retrieval.retrievers import CaptionerRetriever
from hf_contrastive_caption.evaluation.retrieval.score_table import score_table
from hf_contrastive_caption.generation import stream_captions
from hf_contrastive_caption.report.thumbnails import thumbnail
from hf_contrastive_caption.report.words import CaptionScores, Word, log_ratios, score_captions

SIDES = ("reference", "target")
_BATCH = 4
"""Images that are captioned or scored at once: few, since they may be large."""


@dataclass(frozen=True)
class Decoding:
    """How captions are written.

    Args:
        num_beams: Beams of the search; sampling has one.
        max_new_tokens: Longest caption in tokens; the library's own limit if not given.
        sample: Draw captions, instead of searching the likeliest.
        temperature: Of sampling.
        top_p: Of sampling: only the likeliest tokens that together have this probability.
        seed: Of sampling. Both captioners start from it.
    """

    num_beams: int = 3
    max_new_tokens: int | None = None
    sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def arguments(self) -> dict[str, Any]:
        """The arguments of ``generate``."""
        found: dict[str, Any] = {"num_beams": 1 if self.sample else self.num_beams, "do_sample": self.sample}
        if self.max_new_tokens is not None:
            found["max_new_tokens"] = self.max_new_tokens
        if self.sample:
            found |= {"temperature": self.temperature, "top_p": self.top_p}
        return found


@dataclass(frozen=True)
class OwnCaption:
    """A caption that somebody typed, with every image.

    Attributes:
        text: The caption.
        words: Its words with their log-ratios for each image, (n_images,) of (n_words + 1,).
        scores: ln p(caption | image) in nats by side, (n_images,).
    """

    text: str
    words: tuple[tuple[Word, ...], ...]
    scores: Mapping[str, Floats]


@dataclass(frozen=True)
class Answer:
    """What is said of some images.

    Attributes:
        thumbnails: The images, encoded anew and small.
        captions: By side the caption of each image.
        words: By side the words of each caption with their log-ratios, its end last.
        scores: By side that wrote and side that scores: ln p(caption | image) in nats, (n_captions, n_images). Empty
            for one image, and where a captioner cannot score all pairs.
        no_scores: Why there are no scores, if they were wanted.
        own: A caption that somebody typed.
    """

    thumbnails: tuple[bytes, ...] = field(repr=False)
    captions: Mapping[str, tuple[str, ...]]
    words: Mapping[str, tuple[tuple[Word, ...], ...]]
    scores: Mapping[tuple[str, str], Floats]
    no_scores: str = ""
    own: OwnCaption | None = None

    def all_words(self) -> list[Word]:
        """The words of all captions, from which the full colour is found."""
        found = [word for side in SIDES for words in self.words[side] for word in words]
        return found + [word for words in (self.own.words if self.own else ()) for word in words]


@dataclass(frozen=True)
class Captioners:
    """The two captioners of a page.

    Args:
        reference: The one before.
        target: The one after.
    """

    reference: Captioner
    target: Captioner

    def of(self, side: str) -> Captioner:
        """One of the two."""
        return self.target if side == "target" else self.reference

    def answer(self, images: Sequence[Image.Image], decoding: Decoding, own: str = "") -> Answer:
        """Caption images with both captioners and score all captions with both.

        Args:
            images: RGB images, (n_images,).
            decoding: How captions are written.
            own: A caption to score beside them; none if it is empty.

        Raises:
            ValueError: If there is no image, or a captioner cannot decode this way.
        """
        pool = ImagePool(list(images))
        captions = {side: self._written(side, images, decoding) for side in SIDES}
        by_image = list(zip(*captions.values(), strict=True))
        scored = {side: score_captions(self.of(side), pool, by_image, _BATCH) for side in SIDES}
        words = {
            side: tuple(
                _ratios(captions[side][image], {judge: scored[judge][image][place] for judge in SIDES})
                for image in range(len(pool))
            )
            for place, side in enumerate(SIDES)
        }
        scores, problem = self._tables(pool, captions)
        answer = Answer(tuple(thumbnail(image) for image in pool), captions, words, scores, problem)
        return self.with_own(answer, images, own)

    def with_own(self, answer: Answer, images: Sequence[Image.Image], own: str) -> Answer:
        """An answer with another caption that somebody typed, or with none; nothing else is computed again.

        Args:
            answer: What is known of the images.
            images: The same images, (n_images,).
            own: The caption; white space around and between its words does not count.

        Raises:
            ValueError: If it has more tokens than are scored.
        """
        text = " ".join(own.split())
        if not text:
            return replace(answer, own=None)
        for side in SIDES:
            processor = self.of(side).processor
            if any(processor.tokenize([text]).cut):
                raise ValueError(
                    f"Your caption has more than the {processor.max_caption_tokens} tokens that the {side} scores. "
                    "Make it shorter."
                )
        pool = ImagePool(list(images))
        scored = {side: score_captions(self.of(side), pool, [[text]] * len(pool), _BATCH) for side in SIDES}
        words = tuple(_ratios(text, {side: scored[side][image][0] for side in SIDES}) for image in range(len(pool)))
        scores = {side: np.array([found[0].log_prob for found in scored[side]]) for side in SIDES}
        return replace(answer, own=OwnCaption(text, words, scores))

    def _written(self, side: str, images: Sequence[Image.Image], decoding: Decoding) -> tuple[str, ...]:
        with torch.random.fork_rng():
            torch.manual_seed(decoding.seed)
            found = stream_captions(self.of(side), list(images), batch_size=_BATCH, **decoding.arguments())
            return tuple(one.caption for one in found)

    def _tables(
        self, pool: ImagePool, captions: Mapping[str, tuple[str, ...]]
    ) -> tuple[dict[tuple[str, str], Floats], str]:
        """Scores of all captions with all images by writer and judge, or why there are none."""
        if len(pool) == 1:
            return {}, ""
        texts = [text for side in SIDES for text in captions[side]]
        tables: dict[tuple[str, str], Floats] = {}
        for judge in SIDES:
            try:
                scorer = CaptionerRetriever(self.of(judge)).scorer(texts)
                table = score_table(scorer, pool, len(texts)).astype(np.float64)  # (2 n_images, n_images)
            except ValueError as error:  # a family whose images cannot be told apart; its captions stand all the same
                return {}, str(error)
            tables |= {(side, judge): part for side, part in zip(SIDES, np.split(table, 2), strict=True)}
        return tables, ""


def _ratios(text: str, scores: Mapping[str, CaptionScores]) -> tuple[Word, ...]:
    return log_ratios(text, scores["target"], scores["reference"])
