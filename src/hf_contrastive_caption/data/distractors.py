"""Which images a caption is wrong for.

Introspective learning compares a caption's likelihood for its own image with that for *distractor* images. These are
fixed in advance: a pure function of (seed, caption), the same in every epoch, and never written down.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hf_contrastive_caption.data.negatives import ShuffledNegatives
from hf_contrastive_caption.data.table import CaptionIndex, ragged_ranges

#: Stands where negatives have their epoch; evaluation draws with it as well.
_EVERY_EPOCH = -2


class DistractorImages:
    """Gives each caption K other images, none of which has a caption with the same text.

    Distractor k of caption c is the image of a caption that :class:`ShuffledNegatives` draws for it, with a key that
    has no epoch in it. So images serve as often as they have captions, and the K distractors of one caption may
    coincide.

    Args:
        index: The captions, with image keys.
        num_distractors: K, distractors for each caption.
        seed: Another seed, other distractors.

    Raises:
        ValueError: ``num_distractors`` is less than 1, or some caption has no possible distractor.
    """

    def __init__(self, index: CaptionIndex, num_distractors: int, seed: int = 0) -> None:
        self._index = index
        self._negatives = _CaptionsOfOtherImages(index, num_distractors, seed)
        _check_every_caption_has_distractors(index)

    def rows(self, captions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows whose images are the distractors.

        Args:
            captions: Caption numbers, (n,).

        Returns:
            Row numbers, (n, K). A row of them depends on the seed and its own caption only.
        """
        return self._index.rows(self._negatives.draw(captions, _EVERY_EPOCH))


class _CaptionsOfOtherImages(ShuffledNegatives):
    """Negatives whose image has no caption at all with the text of the caption that they are drawn for."""

    def __init__(self, index: CaptionIndex, num_negatives: int, seed: int) -> None:
        super().__init__(index, num_negatives, seed)
        self._captions = index

    def _refused(self, drawn: NDArray[np.int64], captions: NDArray[np.int64]) -> NDArray[np.bool_]:
        drawn, captions = np.broadcast_arrays(drawn, captions)
        same_image = self._captions.image_keys(drawn) == self._captions.image_keys(captions)
        rows, texts = self._captions.rows(drawn).reshape(-1), self._captions.text_key[captions].reshape(-1)
        return np.asarray(same_image | _said_of(self._captions, rows, texts).reshape(drawn.shape))


def _said_of(index: CaptionIndex, rows: NDArray[np.int64], texts: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether some caption of each row has the text that goes with the row, (n,) for rows (n,) and texts (n,)."""
    starts = index.row_start[rows]  # (n,)
    counts = index.row_start[rows + 1] - starts  # (n,), each at least 1
    of_rows = index.text_key[ragged_ranges(starts, counts)]
    return np.asarray(np.logical_or.reduceat(of_rows == np.repeat(texts, counts), np.cumsum(counts) - counts))


def _check_every_caption_has_distractors(index: CaptionIndex) -> None:
    """Raise if a caption says what is said of all images but its own.

    An image can be refused to a caption only for a caption with the same text or for being its own. Where these are
    fewer than the rows there is one left; the few captions for which they are not are looked at one by one.
    """
    _, text_of, times = np.unique(index.text_key, return_inverse=True, return_counts=True)
    _, image_of, rows_of = np.unique(index.image_key, return_inverse=True, return_counts=True)
    everything = np.arange(index.n_captions)
    most_refused = times[text_of] + rows_of[image_of[index.rows(everything)]]  # (n_captions,)
    rows = np.arange(index.n_rows)
    for caption in np.flatnonzero(most_refused >= index.n_rows).tolist():
        own, text = index.image_keys(np.asarray([caption])), index.text_key[caption]
        if (_said_of(index, rows, np.full(index.n_rows, text)) | (index.image_key == own)).all():
            row = int(index.rows(np.asarray([caption]))[0])
            raise ValueError(
                f"No distractor image can be drawn for caption {caption - int(index.row_start[row])} of row {row}: "
                "every other image has a caption that says the same. Add images with other captions, check "
                "image_id_column, or train with another objective."
            )
