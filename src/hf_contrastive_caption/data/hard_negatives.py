"""Negatives that are hard to tell from positives: captions of images that are near to the positive's.

Which captions these are is made once, elsewhere, of whatever tells how near images are, and comes in as a list for
each image. Here captions are drawn from the lists, as pure functions of (seed, epoch, caption).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from hf_contrastive_caption.data.keyed import derive_key, mix
from hf_contrastive_caption.data.negatives import ShuffledNegatives

Schedule = Literal["constant", "linear"]

_LAST = np.uint64(2**64 - 1)


class CandidateLists(Protocol):
    """For each image, the captions that its hard negatives are drawn from.

    Attributes:
        image_of_row: The number of each row's image, (n_rows,).
        refused: Share of the captions that were looked at and are not in the lists because they say what the image's
            own captions say.
    """

    image_of_row: NDArray[np.int64]
    refused: float

    def read(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """The captions of some images' lists, (n, longest list); -1 behind the end of a list that is shorter."""
        ...

    def digest(self) -> str:
        """A hash of all lists."""
        ...


@dataclass(frozen=True)
class HardShare:
    """How many of the negatives are hard ones, as a pure function of the epoch.

    Args:
        share: Their share, above 0 and at most 1.
        schedule: ``"constant"``, or ``"linear"``: it grows by equal steps, one each epoch, and reaches ``share`` in
            the last.
        num_epochs: Epochs of the training.
    """

    share: float = 1.0
    schedule: Schedule = "constant"
    num_epochs: int = 1

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not 0 < self.share <= 1:
            raise ValueError(f"the share of hard negatives must be above 0 and at most 1, but is {self.share}")
        if self.schedule not in get_args(Schedule):
            raise ValueError(f"the schedule is {self.schedule!r}, but must be one of {', '.join(get_args(Schedule))}")

    def at(self, epoch: int) -> float:
        """The share in an epoch, counted from 0."""
        if self.schedule == "constant":
            return self.share
        return self.share * min(epoch + 1, self.num_epochs) / self.num_epochs

    def digest(self) -> str:
        """What the shares of all epochs follow from: without the number of epochs where it makes no difference."""
        return f"{self.share} constant" if self.schedule == "constant" else f"{self.share} over {self.num_epochs}"


class HardNegatives:
    """Draws K captions for each caption: some from the list of its image, the others shuffled.

    With a share s of hard ones, a caption has floor(sK) of them or one more, which a keyed draw decides so that the
    mean is sK; they come first. They are different entries of the list, in an order of the epoch's and the
    caption's own. Where the list is too short, shuffled negatives fill up.

    Args:
        shuffled: What draws the others.
        lists: The lists of all images.
        share: How many are hard.
    """

    def __init__(self, shuffled: ShuffledNegatives, lists: CandidateLists, share: HardShare) -> None:
        self.shuffled = shuffled
        self.lists = lists
        self.share = share
        self.num_negatives = shuffled.num_negatives

    def draw(self, captions: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """Draw negatives.

        Args:
            captions: Caption numbers, (n,).
            epoch: The epoch.

        Returns:
            Caption numbers, (n, K). A row depends on the seed, the epoch and its own caption only.
        """
        drawn = self.shuffled.draw(captions, epoch)  # (n, K)
        rows = self.shuffled.index.rows(captions)
        listed = self.lists.read(self.lists.image_of_row[rows])  # (n, longest list)
        hashes = mix(derive_key(self.shuffled.seed, "hard negatives", epoch), captions[:, None], listed)
        order = np.argsort(np.where(listed < 0, _LAST, hashes), axis=1, kind="stable")[:, : self.num_negatives]
        nearest = np.take_along_axis(listed, order, axis=1)  # (n, at most K)
        wanted = self._how_many(captions, epoch)  # (n,)
        hard = (np.arange(nearest.shape[1]) < wanted[:, None]) & (nearest >= 0)
        drawn[:, : nearest.shape[1]][hard] = nearest[hard]
        return drawn

    def digest(self) -> str:
        """A hash of all that the draws depend on beside captions, images and seed."""
        return f"{self.lists.digest()} {self.share.digest()}"

    def _how_many(self, captions: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """How many hard negatives each caption shall have, (n,)."""
        hashes = mix(derive_key(self.shuffled.seed, "number of hard negatives", epoch), captions)
        uniform = (hashes >> np.uint64(11)).astype(np.float64) / 2**53  # in [0, 1)
        return np.floor(self.share.at(epoch) * self.num_negatives + uniform).astype(np.int64)
