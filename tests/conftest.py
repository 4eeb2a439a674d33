"""Settings of all tests."""

import gc

import pytest
import torch

torch.set_num_threads(1)  # tiny models: a second thread only waits for the first


@pytest.fixture(scope="module", autouse=True)
def _imports_are_no_garbage() -> None:
    """Keep what the imports made out of sight of the garbage collector, which every training runs in full."""
    gc.collect()
    gc.freeze()
