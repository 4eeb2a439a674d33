"""Means that are gathered over many batches and processes before anybody looks at them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from hf_contrastive_caption.precision import widest

Statistics = dict[str, tuple[Tensor, Tensor]]
"""A name, and sums and weights, scalars or (n_terms,) both. Their quotients, added up, are what is reported."""


class RunningMeans:
    """Adds up sums and weights on the device, so that nothing waits for it, and divides them when asked."""

    def __init__(self) -> None:
        """Start empty."""
        self._sums: dict[str, Tensor] = {}  # (n_terms, 2) each

    def add(self, statistics: Statistics) -> None:
        """Add the sums and weights of one batch."""
        for name, (total, weight) in statistics.items():
            columns = [part.detach().to(widest(part.device)).reshape(-1) for part in (total, weight)]
            pairs = torch.stack(columns, dim=1)
            self._sums[name] = self._sums[name] + pairs if name in self._sums else pairs

    def clear(self) -> None:
        """Forget everything."""
        self._sums = {}

    def state(self) -> tuple[list[str], Tensor]:
        """What was added up on this process: sums and weights of every term, (n, 2), and the names of these.

        Names are in their order; one with several terms is there once for each.
        """
        names = [name for name in sorted(self._sums) for _ in self._sums[name]]
        return names, torch.cat([self._sums[name] for name in sorted(self._sums)]) if names else torch.zeros(
            0, 2
        ).double()

    def load(self, names: Sequence[str], sums: Tensor, device: torch.device | str) -> None:
        """Go on from what :meth:`state` gave, on the device of what will be added."""
        places = {name: [place for place, other in enumerate(names) if other == name] for name in dict.fromkeys(names)}
        dtype = widest(torch.device(device))
        self._sums = {name: sums[places[name]].to(device, dtype) for name in places}

    def pop(self, accelerator: Accelerator) -> dict[str, float]:
        """The means over all processes since the last call; names whose weight is 0 are left out.

        Every process must call this at the same point.
        """
        if not self._sums:
            return {}
        names, sums = self.state()
        table = accelerator.reduce(sums, reduction="sum")
        self._sums = {}
        means: dict[str, float] = {}
        for name, (total, weight) in zip(names, table.tolist(), strict=True):
            if weight:
                means[name] = means.get(name, 0.0) + total / weight
        return means
