"""Shards that the processes of a training compute together, each its part, in a folder that all of them see."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, send_to_device

from hf_contrastive_caption.config import ContrastiveCaptionConfig
from hf_contrastive_caption.precomputed.shards import fill_shards

logger = logging.getLogger(__name__)


class SharedWork:
    """Divides shards over the processes.

    Args:
        args: The training arguments.
        accelerator: Where and in what precision to compute.
    """

    def __init__(self, args: ContrastiveCaptionConfig, accelerator: Accelerator) -> None:
        self._args = args
        self._accelerator = accelerator

    def agreed(self, found: Any) -> Any:
        """What the first process has found: another run may be writing the same files."""
        return broadcast_object_list([found])[0]

    def precision(self, weights: torch.dtype) -> torch.dtype:
        """What matrix products run in, by the dtype of the weights."""
        autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}
        return autocast.get(self._accelerator.mixed_precision, weights)

    def by_model(self, compute: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """What computes with a model, on its device, without gradients and in the precision of the training."""

        def computed(batch: Any) -> Any:
            with torch.no_grad(), self._accelerator.autocast():
                return compute(send_to_device(batch, self._args.device))

        return computed

    def fill(self, what: str, missing: list[int], still_missing: Callable[[], list[int]], **work: Any) -> None:
        """Compute this process's part of the missing shards, and wait for the others.

        Args:
            what: What it is, for the log and the progress bar.
            missing: The shards that all processes together compute.
            still_missing: The shards that are not there.
            **work: Arguments of :func:`fill_shards`; batch size and workers are those of evaluations if not given.

        Raises:
            OSError: What other processes wrote is not to be seen.
        """
        process, processes = self._accelerator.process_index, self._accelerator.num_processes
        if missing:
            logger.info("%s: %d shards", what, len(missing))
            defaults = {
                "batch_size": self._args.per_device_eval_batch_size,
                "num_workers": self._args.dataloader_num_workers,
            }
            fill_shards(
                missing[process::processes],
                progress=what if self._accelerator.is_main_process and not self._args.disable_tqdm else None,
                **{**defaults, **work},
            )
        self._accelerator.wait_for_everyone()
        if still_missing():
            raise OSError(
                f"{what}: {len(still_missing())} shards that other processes have written are not there; all "
                "processes must share the folder, so give one on a shared file system as precomputed_dir"
            )
