"""Which images a caption is wrong for.

Introspective learning compares a caption's likelihood for its own image with that for *distractor* images. These are
fixed in advance: a pure function of (seed, caption), the same in every epoch, and never written down.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hf_contrastive_caption.data.by_image import captions_by_image, same_images
from hf_contrastive_caption.data.negatives import ShuffledNegatives
from hf_contrastive_caption.data.table import CaptionIndex

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
        self._image_of_row, _ = same_images(index.image_key)
        self._by_image = captions_by_image(index, self._image_of_row)
        self._check_every_caption_has_distractors()

    def _refused(self, drawn: NDArray[np.int64], captions: NDArray[np.int64]) -> NDArray[np.bool_]:
        drawn, captions = np.broadcast_arrays(drawn, captions)
        images = self._images(drawn)
        said = self._by_image.say(images.reshape(-1), self.index.text_key[captions].reshape(-1))
        return np.asarray((images == self._images(captions)) | said.reshape(drawn.shape))

    def _images(self, captions: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._image_of_row[self.index.rows(captions)]

    def _check_every_caption_has_distractors(self) -> None:
        """Raise if a caption says what is said of all images but its own.

        An image can be refused to a caption only for a caption with the same text or for being its own. Where these
        are fewer than the images there is one left; the few captions for which they are not are looked at one by one.
        """
        index, images = self.index, np.arange(len(self._by_image.start) - 1)
        _, text_of, times = np.unique(index.text_key, return_inverse=True, return_counts=True)
        for caption in np.flatnonzero(times[text_of] + 1 >= len(images)).tolist():
            said = self._by_image.say(images, np.full(len(images), index.text_key[caption]))
            if (said | (images == self._images(np.asarray([caption])))).all():
                row = int(index.rows(np.asarray([caption]))[0])
                place = caption - int(index.row_start[row])
                raise ValueError(
                    f"No distractor image can be drawn for caption {place} of row {row}: "
                    "every other image has a caption that says the same. Add images with other captions, check "
                    "image_id_column, or train with another objective."
                )
