"""How sure a number is: bootstrap over the evaluated images (Efron and Tibshirani, 1993, chapters 13 and 16)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
RESAMPLES = 1000
CONFIDENCE = 0.95
_TOO_FEW = 5
"""Images of which nothing can be told apart: were all on one side, an exact sign test would still give 1/16."""


class Interval(NamedTuple):
    """A number and the percentile interval of its bootstrap replicates.

    Attributes:
        value: The number itself.
        low: Lower end of the interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """A number of one captioner minus that of another on the same images.

    Attributes:
        value: The difference.
        low: Lower end of its interval; of five images or fewer, which cannot tell anything apart, it holds 0.
        high: Upper end.
        p_value: Two-sided: twice the smaller share of replicates on either side of zero, at least 1 / resamples, and
            at least what an exact sign test gives if all images are on one side, 2 / 2 ** n_images.
    """

    value: float
    low: float
    high: float
    p_value: float

    @property
    def is_real(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


class Bootstrap:
    """Resamples of a set of images, the same for everything that is computed with them.

    The same number of images and seed give the same resamples, so that two captioners evaluated on the same images can
    be compared image by image.

    Args:
        num_items: Number of images.
        resamples: Number of resamples.
        seed: Seed of the resamples.
        confidence: Share of replicates within an interval.
    """

    def __init__(
        self, num_items: int, resamples: int = RESAMPLES, seed: int = 0, confidence: float = CONFIDENCE
    ) -> None:
        if num_items < 1 or resamples < 1 or not 0 < confidence < 1:
            raise ValueError(
                f"got num_items={num_items}, resamples={resamples}, confidence={confidence}; there must be at least "
                "one item and one resample, and the confidence is a share between 0 and 1"
            )
        self.confidence = confidence
        generator = np.random.default_rng([seed, num_items])
        self._items = generator.integers(0, num_items, (resamples, num_items), dtype=np.int32)

    def mean(self, values: npt.ArrayLike) -> Interval:
        """Interval of the mean of per-image values, (n_images,)."""
        return self.interval(_mean, values)

    def median(self, values: npt.ArrayLike) -> Interval:
        """Interval of the median of per-image values, (n_images,)."""
        return self.interval(_median, values)

    def ratio(self, numerators: npt.ArrayLike, denominators: npt.ArrayLike) -> Interval:
        """Interval of the sum of per-image numerators by the sum of denominators, both (n_images,); 0 for 0 / 0."""
        return self.interval(_ratio, numerators, denominators)

    def interval(self, statistic: Callable[..., Floats], *values: npt.ArrayLike) -> Interval:
        """Interval of any statistic.

        Args:
            statistic: Takes arrays, (resamples, n_images), one for each of ``values``, and gives (resamples,).
            *values: Per-image values, (n_images,).
        """
        arrays = self._arrays(values)
        value = float(statistic(*(array[None] for array in arrays))[0])
        return Interval(value, *self._ends(self._replicates(statistic, arrays)))

    def difference(
        self, statistic: Callable[..., Floats], ours: list[npt.ArrayLike], theirs: list[npt.ArrayLike]
    ) -> Difference:
        """The paired difference of a statistic, both sides in the same resamples.

        Args:
            statistic: As for :meth:`interval`.
            ours: Its values for one captioner.
            theirs: Its values for the other, in the same order of images.
        """
        sides = [self._arrays(ours), self._arrays(theirs)]
        value = float(statistic(*(array[None] for array in sides[0]))[0])
        value -= float(statistic(*(array[None] for array in sides[1]))[0])
        replicates = self._replicates(statistic, sides[0]) - self._replicates(statistic, sides[1])
        smaller = min(float(np.mean(replicates <= 0)), float(np.mean(replicates >= 0)))
        least = max(1 / len(replicates), 2.0 ** (1 - self._items.shape[1]))
        p_value = min(1.0, max(2 * smaller, least))
        low, high = self._ends(replicates)
        if self._items.shape[1] <= _TOO_FEW:
            low, high = min(low, 0.0), max(high, 0.0)
        return Difference(value, low, high, p_value)

    def _arrays(self, values: Sequence[npt.ArrayLike]) -> list[Floats]:
        arrays = [np.asarray(value, dtype=np.float64) for value in values]
        shape = (self._items.shape[1],)
        wrong = next((array.shape for array in arrays if array.shape != shape), None)
        if wrong is not None:
            raise ValueError(f"got values of shape {wrong} for a bootstrap of {shape[0]} images; give one per image")
        return arrays

    def _replicates(self, statistic: Callable[..., Floats], arrays: list[Floats]) -> Floats:
        return statistic(*(array[self._items] for array in arrays))

    def _ends(self, replicates: Floats) -> tuple[float, float]:
        outside = (1 - self.confidence) / 2
        low, high = np.quantile(replicates, [outside, 1 - outside])
        return float(low), float(high)


def _mean(values: Floats) -> Floats:
    means: Floats = values.mean(axis=1)
    return means


def _median(values: Floats) -> Floats:
    medians: Floats = np.median(values, axis=1)
    return medians


def _ratio(numerators: Floats, denominators: Floats) -> Floats:
    top, bottom = numerators.sum(axis=1), denominators.sum(axis=1)
    ratios: Floats = np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
    return ratios


STATISTICS: dict[str, Callable[..., Floats]] = {"mean": _mean, "median": _median, "ratio": _ratio}
"""The statistics by name."""
