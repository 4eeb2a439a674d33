"""Negatives for a stream, whose captions are not all there to draw from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_contrastive_caption.data.examples import Tokens
from hf_contrastive_caption.data.keyed import bounded, derive_key, keyed_permutation, mix

_ATTEMPTS = 16


@dataclass(frozen=True, eq=False)
class StreamRow:
    """A row of a stream: the image as it came, and its captions.

    Args:
        number: The row's number in the stream.
        image: The image, not opened.
        image_key: Hash of its image id or of itself.
        text_keys: Hash of each caption's text, (n_captions,).
        captions: The tokens of each caption, (n_captions,) of one array per processor.
    """

    number: int
    image: Any
    image_key: int
    text_keys: NDArray[np.uint64]
    captions: list[tuple[NDArray[np.int32], ...]]


class CaptionReservoir:
    """The captions that a stream's negatives are drawn from.

    It fills up first; from then on each caption that arrives takes the place of a random one. So a caption stays for
    about ``size`` further captions, and serves on the average K times as a negative, as in a shuffle of all captions.
    What is kept and what is drawn are pure functions of the seed, the epoch, and the rows seen so far.

    Args:
        size: How many captions it holds.
        seed: Another seed, other draws.
        epoch: The epoch.
    """

    def __init__(self, size: int, seed: int, epoch: int) -> None:
        self.size = size
        self._keys = {use: derive_key(seed, f"reservoir {use}", epoch) for use in ("place", "draw")}
        self._image_keys = np.zeros(size, np.uint64)
        self._text_keys = np.zeros(size, np.uint64)
        self._captions: list[tuple[NDArray[np.int32], ...]] = []

    @property
    def full(self) -> bool:
        """Whether every place is taken."""
        return len(self._captions) == self.size

    def add(self, row: StreamRow) -> None:
        """Take in the captions of a row."""
        places = bounded(mix(self._keys["place"], row.number, np.arange(len(row.captions))), self.size).tolist()
        for caption, text_key, place in zip(row.captions, row.text_keys, places, strict=True):
            if not self.full:
                place = len(self._captions)
                self._captions.append(caption)
            self._captions[place] = caption
            self._text_keys[place] = text_key
            self._image_keys[place] = row.image_key

    def draw(self, row: StreamRow, positives: NDArray[np.int64], num_negatives: int) -> NDArray[np.int64]:
        """Draw negatives for captions of a row.

        Args:
            row: The row.
            positives: Which of its captions, (n_positives,).
            num_negatives: K.

        Returns:
            Places in the reservoir, (n_positives, K): captions of other images with other texts.

        Raises:
            ValueError: The reservoir holds none.
        """
        parts = (self._keys["draw"], row.number, positives[:, None], np.arange(num_negatives))
        drawn = np.zeros((len(positives), num_negatives), np.int64)
        refused = np.ones_like(drawn, dtype=np.bool_)
        for attempt in range(_ATTEMPTS):
            again = bounded(mix(*parts, attempt), len(self._captions)).astype(np.int64)
            drawn = np.where(refused, again, drawn)
            refused = self._refused(row, positives[:, None], drawn)
            if not refused.any():
                return drawn
        for place, k in np.argwhere(refused):
            held = len(self._captions)
            order = keyed_permutation(np.arange(held), held, mix(*parts, _ATTEMPTS)[place, k])
            allowed = order[~self._refused(row, positives[place], order)]
            if not len(allowed):
                raise ValueError(self._no_negative_message(row, int(positives[place])))
            drawn[place, k] = allowed[0]
        return drawn

    def tokens(self, row: StreamRow, positives: NDArray[np.int64], drawn: NDArray[np.int64]) -> tuple[Tokens, ...]:
        """Lay out the captions of a row: each positive with its negatives behind it.

        Args:
            row: The row.
            positives: Which of its captions, (n_positives,).
            drawn: Places in the reservoir, (n_positives, K).

        Returns:
            The tokens, for each processor.
        """
        laid_out = [
            caption
            for positive, negatives in zip(positives.tolist(), drawn.tolist(), strict=True)
            for caption in (row.captions[positive], *(self._captions[place] for place in negatives))
        ]
        return tuple(
            Tokens(np.concatenate(ids), np.asarray([len(one) for one in ids], dtype=np.int64))
            for ids in zip(*laid_out, strict=True)
        )

    def _refused(self, row: StreamRow, positives: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.bool_]:
        same_text = self._text_keys[places] == row.text_keys[positives]
        return np.asarray(same_text | (self._image_keys[places] == np.uint64(row.image_key)))

    def _no_negative_message(self, row: StreamRow, caption: int) -> str:
        held = self._image_keys[: len(self._captions)]
        if (held == np.uint64(row.image_key)).all():
            reason = "all of them belong to the same image"
        else:
            reason = "those of other images say the same"
        return (
            f"No negative can be drawn for caption {caption} of row {row.number} of the stream from the "
            f"{len(self._captions)} captions of the reservoir: {reason}. A negative is a caption of another image (by "
            "the image-id column, or the bytes of the image) with another text. Shuffle the stream, enlarge "
            f"reservoir_size ({self.size}), divide the stream among fewer workers, or "
            "train without negatives (objective='mle')."
        )
