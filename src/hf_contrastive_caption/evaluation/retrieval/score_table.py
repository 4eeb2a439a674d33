"""The table of scores, all captions against all images: over processes, with a progress bar, resumable."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, reduce
from safetensors.numpy import load_file, save_file
from tqdm.auto import tqdm

from hf_contrastive_caption.evaluation.pool import ImagePool
from hf_contrastive_caption.evaluation.retrieval.ranking import Scores
from hf_contrastive_caption.evaluation.retrieval.retrievers import Scorer


def score_table(
    scorer: Scorer, pool: ImagePool, num_captions: int, *, shard_dir: Path | None = None, progress: bool = False
) -> Scores:
    """Score all captions against all images.

    Images with the same pixels are scored once, so that their scores are equal to the last bit. Under Accelerate the
    images are dealt out to the processes, and every process gets the whole table.

    Args:
        scorer: Made for the captions.
        pool: The images.
        num_captions: Number of captions.
        shard_dir: Folder for the scores of finished images, which belongs to this captions, images and scorer alone;
            what lies there is not computed again.
        progress: Whether to show a progress bar.

    Returns:
        float32, (n_captions, n_images).
    """
    state = PartialState()
    numbers = np.unique(pool.distinct)  # (n_distinct,)
    table = np.zeros((len(numbers), num_captions), dtype=np.float32)
    size = broadcast_object_list([scorer.images_at_once])[0]  # processes may have found different ones
    size = max(1, min(size, -(-len(numbers) // state.num_processes)))
    mine = list(range(state.process_index * size, len(numbers), state.num_processes * size))
    rows = sum(min(size, len(numbers) - first) for first in mine)
    hidden = not progress or not state.is_main_process
    with tqdm(total=rows, desc="self-retrieval", unit="image", disable=hidden) as bar:
        for first in mine:
            images = numbers[first : first + size].tolist()
            table[first : first + size] = _shard(scorer, pool, images, shard_dir)
            bar.update(len(images))
    if state.num_processes > 1:  # every row was written by one process and is 0 in all others
        table = reduce(torch.from_numpy(table).to(state.device), "sum").cpu().numpy()
    column = np.searchsorted(numbers, pool.distinct)
    return np.ascontiguousarray(table[column].T)


def _shard(scorer: Scorer, pool: ImagePool, images: list[int], folder: Path | None) -> Scores:
    """Scores of some images, (len(images), n_captions), from the disk if they are there."""
    file = None if folder is None else folder / f"images-{images[0]:06d}-{images[-1]:06d}-{len(images)}.safetensors"
    if file is not None and file.exists():
        stored: Scores = load_file(file)["scores"]
        return stored
    scores: Scores = scorer.scores([pool[number] for number in images]).numpy()
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f".{file.name}.{uuid4().hex}")
        save_file({"scores": np.ascontiguousarray(scores)}, unfinished)
        unfinished.replace(file)  # whole or not at all
    return scores
