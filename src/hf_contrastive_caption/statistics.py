"""Means that are gathered over many batches and processes before anybody looks at them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

Statistics = dict[str, tuple[Tensor, Tensor]]
"""A name, and a (sum, weight) pair of scalars whose quotient is the mean that is reported."""


class RunningMeans:
    """Adds up sums and weights on the device, so that nothing waits for it, and divides them when asked."""

    def __init__(self) -> None:
        """Start empty."""
        self._sums: dict[str, Tensor] = {}

    def add(self, statistics: Statistics) -> None:
        """Add the sums and weights of one batch."""
        for name, (total, weight) in statistics.items():
            pair = torch.stack([total.detach().double().reshape(()), weight.detach().double().reshape(())])  # (2,)
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def clear(self) -> None:
        """Forget everything."""
        self._sums = {}

    def state(self) -> tuple[list[str], Tensor]:
        """What was added up on this process: the names in their order, and sums and weights, (n_names, 2) float64."""
        names = sorted(self._sums)
        return names, torch.stack([self._sums[name] for name in names]) if names else torch.zeros(0, 2).double()

    def load(self, names: Sequence[str], sums: Tensor, device: torch.device | str) -> None:
        """Go on from what :meth:`state` gave, on the device of what will be added."""
        self._sums = dict(zip(names, sums.to(device), strict=True))

    def pop(self, accelerator: Accelerator) -> dict[str, float]:
        """The means over all processes since the last call; names whose weight is 0 are left out.

        Every process must call this at the same point.
        """
        if not self._sums:
            return {}
        names = sorted(self._sums)
        table = accelerator.reduce(torch.stack([self._sums[name] for name in names]), reduction="sum")
        self._sums = {}
        return {name: (total / weight) for name, (total, weight) in zip(names, table.tolist(), strict=True) if weight}
