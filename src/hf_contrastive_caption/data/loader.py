"""The data loader of a stream whose shards the processes have divided among them."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from hf_contrastive_caption.data.stream import ContrastiveCaptionStream


def own_part_loader(
    loader: DataLoader[Any], stream: ContrastiveCaptionStream, device: torch.device
) -> DataLoader[Any]:
    """A loader of all that the stream of this process brings, in place of one that divides it again.

    ``Accelerator.prepare`` divides every stream by batches where there are several processes, so that each would train
    on a part of its own part only. The function behind it, told that there is one process, leaves the stream as it is.

    Args:
        loader: The loader that Accelerate prepared; workers, batch size and the like are taken from it.
        stream: The stream, made for this process.
        device: Where batches go.

    Returns:
        The loader; its batches are on the device.
    """
    plain = DataLoader(
        stream,
        batch_size=loader.batch_size,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        persistent_workers=loader.persistent_workers,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
        in_order=loader.in_order,
    )
    prepared: DataLoader[Any] = prepare_data_loader(
        plain, device=device, num_processes=1, process_index=0, put_on_device=True, dispatch_batches=False
    )
    return prepared
