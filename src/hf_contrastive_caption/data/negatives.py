"""Which captions are wrong for an image.

The negatives of the contrastive caption loss (Dai and Lin 2017) are captions of other images: K sets Y_1 ... Y_K,
sampled anew all the time. Here each set is a shuffle of all captions, by a keyed permutation that is never written
down, so that a caption's negatives are a pure function of (seed, epoch, caption).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hf_contrastive_caption.data.keyed import derive_key, keyed_permutation, mix
from hf_contrastive_caption.data.table import CaptionIndex

#: The epoch whose draws evaluation uses, every time: numbers of different evaluations can be compared.
EVALUATION_EPOCH = -1

_ATTEMPTS = 16
_CHUNK = 4096


class ShuffledNegatives:
    """Draws K captions of other images, with other texts, for each caption.

    Negative k of caption c is Y_k[c], where Y_k is a pseudo-random permutation of all captions with a key made of
    (seed, epoch, k). Where that is a caption of the same image, or one that says the same, it is drawn again with the
    next key, and after 16 keys taken as the first allowed one in a random order of c's own. So every allowed caption
    is equally likely, and within an epoch each caption serves about K times as a negative. The K draws of one
    caption are independent of each other and may coincide.

    Args:
        index: The captions, with image keys.
        num_negatives: K, negatives for each caption.
        seed: Another seed, other negatives.

    Attributes:
        index: ``index`` as it was given.

    Raises:
        ValueError: ``num_negatives`` is less than 1, or some caption has no possible negative.
    """

    def __init__(self, index: CaptionIndex, num_negatives: int, seed: int = 0) -> None:
        check_num_negatives(num_negatives)
        self.num_negatives = num_negatives
        self.seed = seed
        self.index = index
        _check_every_caption_has_negatives(index)

    def draw(self, captions: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """Draw negatives.

        Args:
            captions: Caption numbers, (n,).
            epoch: The epoch, or :data:`EVALUATION_EPOCH`.

        Returns:
            Caption numbers, (n, K). A row depends on the seed, the epoch and its own caption only.
        """
        key = derive_key(self.seed, "negatives", epoch)
        size = self.index.n_captions
        sets = np.arange(self.num_negatives)
        drawn = keyed_permutation(captions[:, None], size, mix(key, sets, 0))  # (n, K)
        place, k = np.nonzero(self._refused(drawn, captions[:, None]))  # both (n_refused,)
        for attempt in range(1, _ATTEMPTS):
            if not len(place):
                return drawn
            again = keyed_permutation(captions[place], size, mix(key, k, attempt))
            drawn[place, k] = again
            refused = self._refused(again, captions[place])
            place, k = place[refused], k[refused]
        for one_place, one_k in zip(place.tolist(), k.tolist(), strict=True):
            caption = int(captions[one_place])
            # Along one order for all captions, those behind a long gap would serve more often than others.
            drawn[one_place, one_k] = self._walk(caption, int(mix(key, one_k, _ATTEMPTS, caption)))
        return drawn

    def digest(self) -> str:
        """What the draws depend on beside captions, images and seed: nothing."""
        return "shuffled"

    def _refused(self, drawn: NDArray[np.int64], captions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Where a drawn caption has the image or the text of the caption that it is drawn for."""
        same_text = self.index.text_key[drawn] == self.index.text_key[captions]
        return np.asarray(same_text | (self.index.image_keys(drawn) == self.index.image_keys(captions)))

    def _walk(self, caption: int, key: int) -> int:
        """The first allowed caption in the order of a permutation of all captions."""
        size = self.index.n_captions
        for start in range(0, size, _CHUNK):
            steps = np.arange(start, min(start + _CHUNK, size))
            candidates = keyed_permutation(steps, size, key)
            allowed = np.flatnonzero(~self._refused(candidates, np.asarray([caption])))
            if len(allowed):
                return int(candidates[allowed[0]])
        raise AssertionError(f"caption {caption} has no negative, though the check at the start found that it has")


def check_num_negatives(num_negatives: int) -> None:
    """Refuse a K below 1.

    Raises:
        ValueError: ``num_negatives`` is less than 1.
    """
    if num_negatives < 1:
        raise ValueError(
            f"num_negatives={num_negatives}: every caption needs at least 1 negative (the paper has 5). For training "
            "by maximum likelihood, without negatives, use ContrastiveCaptionConfig(objective='mle') in the trainer, "
            "or ContrastiveCaptionDataset(..., num_negatives=0) by itself."
        )


def _check_every_caption_has_negatives(index: CaptionIndex) -> None:
    """Raise unless every caption has a caption of another image with another text.

    A caption without negatives shares image or text with *every* caption. Take two captions that share neither, say
    (image a, text a) and (image b, text b). Then it can only be (image a, text b) or (image b, text a), so two pairs
    are checked, in passes that end early, instead of all.
    """
    image_a, text_a = index.image_key[index.rows(np.zeros(1, np.int64))[0]], index.text_key[0]
    opposite = _first(index, lambda images, texts: (images != image_a) & (texts != text_a))
    if opposite is None:
        raise ValueError(_no_negative_message(index, 0, image_a, text_a))
    image_b, text_b = index.image_key[index.rows(np.asarray([opposite]))[0]], index.text_key[opposite]
    for image, text in ((image_a, text_b), (image_b, text_a)):
        stranded = _stranded(index, image, text)
        if stranded is not None:
            raise ValueError(_no_negative_message(index, stranded, image, text))


def _stranded(index: CaptionIndex, image: np.uint64, text: np.uint64) -> int | None:
    """A caption with this image and text, if there is one and every caption shares the image or the text."""
    if _first(index, lambda images, texts: (images != image) & (texts != text)) is not None:
        return None
    return _first(index, lambda images, texts: (images == image) & (texts == text))


def _first(
    index: CaptionIndex, condition: Callable[[NDArray[np.uint64], NDArray[np.uint64]], NDArray[np.bool_]]
) -> int | None:
    """The first caption whose image key and text key fulfil a condition."""
    for start in range(0, index.n_captions, 16 * _CHUNK):
        captions = np.arange(start, min(start + 16 * _CHUNK, index.n_captions))
        found = np.flatnonzero(condition(index.image_keys(captions), index.text_key[captions]))
        if len(found):
            return start + int(found[0])
    return None


def _no_negative_message(index: CaptionIndex, caption: int, image: np.uint64, text: np.uint64) -> str:
    row = int(index.rows(np.asarray([caption]))[0])
    if _first(index, lambda images, texts: images != image) is None:
        reason = f"all {index.n_captions} captions belong to one and the same image"
    elif _first(index, lambda images, texts: texts != text) is None:
        reason = f"all {index.n_captions} captions say the same"
    else:
        reason = (
            f"every caption of another image says the same as caption {caption - int(index.row_start[row])} of "
            f"row {row}"
        )
    return (
        f"No negatives can be drawn from this data set: {reason}. A negative is a caption of another image (by the "
        "image-id column, or the bytes of the image) with another text. Add images with other captions, check "
        "image_id_column, or train without negatives (objective='mle')."
    )
