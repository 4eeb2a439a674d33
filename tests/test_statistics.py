"""Means over batches, of one quotient and of several that are added up."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from hf_contrastive_caption.statistics import RunningMeans


def means_of_two_batches() -> RunningMeans:
    means = RunningMeans()
    for loss, items, margin in (([3.0, 8.0], [2.0, 16.0], 5.0), ([1.0, 4.0], [3.0, 8.0], 0.0)):
        scalar = torch.tensor(margin), torch.tensor(items[0])
        means.add({"margin": scalar, "loss": (torch.tensor(loss), torch.tensor(items))})
    means.add({"empty": (torch.tensor(0.0), torch.tensor(0.0))})
    return means


def test_terms_are_divided_by_their_own_items_and_added_up() -> None:
    means = means_of_two_batches()
    assert means.pop(Accelerator(cpu=True)) == pytest.approx({"loss": 4 / 5 + 12 / 24, "margin": 5 / 5})
    assert means.pop(Accelerator(cpu=True)) == {}


def test_the_state_brings_everything_back() -> None:
    names, sums = means_of_two_batches().state()
    assert names == ["empty", "loss", "loss", "margin"] and sums.shape == (4, 2) and sums.dtype == torch.float64
    again = RunningMeans()
    again.load(names, sums, "cpu")
    again.add({"loss": (torch.tensor([1.0, 0.0]), torch.tensor([5.0, 0.0]))})
    assert again.pop(Accelerator(cpu=True))["loss"] == pytest.approx(5 / 10 + 12 / 24)
