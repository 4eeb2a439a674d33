"""Which rows of a data set show the same image, and the captions in the order of images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hf_contrastive_caption.data.table import CaptionIndex, ragged_ranges


def same_images(*keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which rows show the same image, where rows that agree in any key do, and so does what is linked by such rows.

    Args:
        *keys: Keys of the rows, (n_rows,) each, such as those of image ids and those of the images' bytes.

    Returns:
        ``image_of_row``: the number of each row's image, (n_rows,), in the order of first rows; ``first_row``: the
        first row of each image, (n_images,).
    """
    links = [np.unique(key, return_inverse=True)[1] for key in keys]
    image = np.arange(len(links[0]))
    while True:  # each turn takes the smallest row number one link further
        before = image
        for link in links:
            smallest = np.full(link.max() + 1, len(image))
            np.minimum.at(smallest, link, image)
            image = smallest[link]
        if np.array_equal(image, before):
            break
    first_row, image_of_row = np.unique(image, return_inverse=True)
    return image_of_row, first_row


class CaptionsByImage(NamedTuple):
    """The captions of a data set in the order of images.

    Attributes:
        numbers: Caption numbers, those of an image behind each other, (n_captions,).
        start: Where those of each image begin, and their number, (n_images + 1,).
        text_key: Hash of what each caption says, by caption number, (n_captions,).
    """

    numbers: NDArray[np.int64]
    start: NDArray[np.int64]
    text_key: NDArray[np.uint64]

    def say(self, images: NDArray[np.int64], texts: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Whether some caption of an image says the text that goes with it.

        Args:
            images: Numbers of images, (n,).
            texts: A text key for each, (n,).
        """
        starts = self.start[images]  # (n,)
        counts = self.start[images + 1] - starts  # (n,), each at least 1
        said = self.text_key[self.numbers[ragged_ranges(starts, counts)]]
        return np.asarray(np.logical_or.reduceat(said == np.repeat(texts, counts), np.cumsum(counts) - counts))


def captions_by_image(index: CaptionIndex, image_of_row: NDArray[np.int64]) -> CaptionsByImage:
    """Order captions by images.

    Args:
        index: The captions.
        image_of_row: The number of each row's image, (n_rows,).
    """
    images = image_of_row[index.rows(np.arange(index.n_captions))]  # (n_captions,)
    numbers = np.argsort(images, kind="stable")
    start = np.searchsorted(images[numbers], np.arange(int(image_of_row.max()) + 2))
    return CaptionsByImage(numbers, start, np.asarray(index.text_key))
