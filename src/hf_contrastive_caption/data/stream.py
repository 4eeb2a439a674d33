"""Images with right and wrong captions from a stream."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count, islice
from typing import Any, Literal

import datasets
import numpy as np
from datasets.distributed import split_dataset_by_node
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from hf_contrastive_caption.data.examples import Augmentation, CaptionExample, ImageRules, OnBadImage, check_options
from hf_contrastive_caption.data.identity import bytes_key, image_id_key, text_key
from hf_contrastive_caption.data.keyed import derive_key, mix
from hf_contrastive_caption.data.negatives import EVALUATION_EPOCH
from hf_contrastive_caption.data.reservoir import CaptionReservoir, StreamRow
from hf_contrastive_caption.data.sampler import SharedEpoch
from hf_contrastive_caption.data.schema import (
    CaptionColumns,
    captions_of,
    check_split,
    features_of_examples,
    find_columns,
    no_column_message,
)
from hf_contrastive_caption.processing import CaptionProcessor

logger = logging.getLogger(__name__)

_CHUNK = 64
_LOOKED_AT = 100
"""Examples that are read at most to find the columns of a stream that does not know its features."""


class ContrastiveCaptionStream(IterableDataset[CaptionExample]):
    """Like :class:`~.dataset.ContrastiveCaptionDataset`, for a ``datasets.IterableDataset``.

    Negatives come from a reservoir of captions. The stream is read ahead until the reservoir is full; the rows that
    wait keep their images as they came, not decoded, in memory. What is drawn is a pure function of the seed, the
    epoch and the rows before it, so that a pass can be repeated and resumed by skipping examples.

    Several workers divide the shards of the stream, each with a reservoir of its own; then another number of workers
    gives other draws. So do several processes with ``num_processes``; without it, every process gets the whole stream.
    Row ``r`` is row ``r // n`` of part ``r % n``, where ``n`` is ``num_processes * num_workers``, and a worker's part
    ``process_index * num_workers + worker``.

    With ``repeat``, the stream goes round without an end: every time with its next epoch, and each worker at its own
    pace. So parts of unequal length never leave one process without a batch that others wait for, and skipping the
    batches that were seen leads to the same place in any epoch.

    Args:
        dataset: The stream, with an image column and captions. If it does not know its features, its first example
            is read to find the columns, and more where something is ``None`` in it, unless image and caption columns
            are named.
        processors: The target's processor, and where the reference has another one, the reference's.
        num_negatives: K, negatives for each positive; 0 for maximum likelihood, without a reservoir.
        seed: Another seed, other draws.
        captions_per_image: How many of an image's captions are positives in an epoch; ``"all"`` for all of them.
        image_column: Name of the image column, where the types leave a choice.
        caption_columns: Name or names of the caption columns.
        image_id_column: Name of a column that says which rows show the same image; without one, the images' bytes do.
        augment: Applied to every image, with random numbers that depend on (seed, epoch, row) only.
        on_bad_image: What to do with an image that does not open: ``"raise"``, or ``"skip"``: give it weight 0.
        evaluation: Draw the same captions in every epoch.
        reservoir_size: How many captions negatives are drawn from.
        pad_to: Each worker's examples are filled up with weight 0 to a multiple of this: the batch size times the
            number of processes. 1 for no padding.
        repeat: Go round without an end, for training with ``max_steps``.
        process_index: Which of the processes this is.
        num_processes: Read only this process's shards, every ``num_processes``-th. The number of shards must be a
            multiple of it; a stream that was shuffled must have been shuffled with the same seed in every process.

    Raises:
        TypeError: ``dataset`` is no stream.
        ValueError: The columns or an option do not fit. While iterating: the captions of a row, a caption for which
            the reservoir holds no negative, or shards without any row in one of several processes.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        processors: Sequence[CaptionProcessor],
        num_negatives: int = 5,
        *,
        seed: int = 0,
        captions_per_image: int | Literal["all"] = 1,
        image_column: str | None = None,
        caption_columns: str | Sequence[str] | None = None,
        image_id_column: str | None = None,
        augment: Augmentation | None = None,
        on_bad_image: OnBadImage = "raise",
        evaluation: bool = False,
        reservoir_size: int = 5000,
        pad_to: int = 1,
        repeat: bool = False,
        process_index: int = 0,
        num_processes: int = 1,
    ) -> None:
        check_split(dataset)
        if not isinstance(dataset, datasets.IterableDataset):
            raise TypeError("Got a Dataset; for those there is ContrastiveCaptionDataset.")
        check_options(processors, num_negatives, captions_per_image, augment, on_bad_image, evaluation)
        if reservoir_size < 2:
            raise ValueError(f"reservoir_size={reservoir_size}; it must hold at least 2 captions.")
        if pad_to < 1:
            raise ValueError(f"pad_to={pad_to}; give the number of examples in a batch of all processes, at least 1.")
        _check_parts(dataset, evaluation, pad_to, repeat, process_index, num_processes)
        self.source = dataset
        self.columns = _columns(dataset, image_column, caption_columns, image_id_column)
        self.processors = tuple(processors)
        self.num_negatives = num_negatives
        self.seed = seed
        self.captions_per_image = captions_per_image
        self.evaluation = evaluation
        self.reservoir_size = reservoir_size
        self.pad_to = pad_to
        self.repeat = repeat
        self.process_index = process_index
        self.num_processes = num_processes
        self._rules = ImageRules(augment, on_bad_image, seed)
        self._epoch = SharedEpoch()
        own = dataset if num_processes == 1 else split_dataset_by_node(dataset, process_index, num_processes)
        self._dataset = _undecoded(own, self.columns)

    @property
    def on_bad_image(self) -> OnBadImage:
        """What is done with an image that does not open."""
        return self._rules.on_bad_image

    @property
    def epoch(self) -> int:
        """The epoch of the next pass; with ``repeat``, of the first of the next passes."""
        return self._epoch.get()

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch; workers that are already running follow with their next pass."""
        self._epoch.set(epoch)

    def __iter__(self) -> Iterator[CaptionExample]:
        """One pass over the stream, or over this worker's part of it; with ``repeat``, one after the other."""
        if self.repeat:
            return self._passes()
        return self._padded(EVALUATION_EPOCH if self.evaluation else self.epoch)

    def _padded(self, epoch: int) -> Iterator[CaptionExample]:
        n_examples, example = 0, None
        for example in self._examples(epoch):
            n_examples += 1
            yield example
        if example is not None:
            for _ in range(-n_examples % self.pad_to):
                yield replace(example, weight=0.0)

    def _passes(self) -> Iterator[CaptionExample]:
        for epoch in count(self.epoch):
            example = None
            for example in self._examples(epoch):
                yield example
            if example is None:
                self._check_left_out()
                return

    def _check_left_out(self) -> None:
        """Whether a part without rows may end: where all processes read the same, or there are too few shards."""
        worker = get_worker_info()
        n_shards = self._dataset.num_shards
        if self.num_processes > 1 and (worker is None or worker.id < n_shards):
            raise ValueError(
                f"The shards of process {self.process_index} of {self.num_processes}"
                f"{'' if worker is None else f' (worker {worker.id})'} have no rows, and the other processes would "
                "wait for it for ever. Leave empty shards out, use fewer workers, or let every process read the whole "
                "stream (stream_sharding='replicate')."
            )

    def _examples(self, epoch: int) -> Iterator[CaptionExample]:
        # Without negatives, nothing has to be kept: every row finds the reservoir "full".
        reservoir = CaptionReservoir(self.reservoir_size if self.num_negatives else 0, self.seed, epoch)
        waiting: deque[StreamRow] = deque()
        for row in self._rows(epoch):
            if self.num_negatives:
                reservoir.add(row)
            waiting.append(row)
            if reservoir.full:
                yield self._example(waiting.popleft(), reservoir, epoch)
        while waiting:
            yield self._example(waiting.popleft(), reservoir, epoch)

    def _example(self, row: StreamRow, reservoir: CaptionReservoir, epoch: int) -> CaptionExample:
        positives = self._positives(row, epoch)  # (n_positives,)
        drawn = np.zeros((len(positives), 0), np.int64)
        if self.num_negatives:
            drawn = reservoir.draw(row, positives, self.num_negatives)  # (n_positives, K)
        tokens = reservoir.tokens(row, positives, drawn)
        return CaptionExample(row.number, epoch, 1.0, row.image, tokens, self._rules)

    def _positives(self, row: StreamRow, epoch: int) -> NDArray[np.int64]:
        places = np.arange(len(row.captions))
        if self.captions_per_image == "all":
            return places
        order = np.argsort(mix(derive_key(self.seed, "positives", epoch), row.number, places))
        return order[: self.captions_per_image]

    def _rows(self, epoch: int) -> Iterator[StreamRow]:
        """The rows of the stream with their captions tokenized, a few rows at a time."""
        worker = get_worker_info()
        place, n_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        step = n_workers * self.num_processes
        # Workers share the memory of a data set's epoch, and those that go round are not in the same one: with_format
        # makes a data set with an epoch of its own.
        dataset = self._dataset.with_format(None)
        dataset.set_epoch(max(epoch, 0))
        examples, number, n_cut = iter(dataset), self.process_index * n_workers + place, 0
        while chunk := self._next_chunk(examples):
            numbers = range(number, number + step * len(chunk), step)
            texts = [captions_of(example, self.columns, row) for example, row in zip(chunk, numbers, strict=True)]
            flat = [text for row_texts in texts for text in row_texts]
            tokenized = [processor.tokenize(flat) for processor in self.processors]
            n_cut += self._report_cut([one.cut for one in tokenized], n_cut)
            ids = zip(*([np.asarray(ids, np.int32) for ids in one.input_ids] for one in tokenized), strict=True)
            for row, example, row_texts in zip(numbers, chunk, texts, strict=True):
                keys = np.asarray([text_key(text) for text in row_texts], dtype=np.uint64)
                captions = list(islice(ids, len(row_texts)))
                yield StreamRow(row, example[self.columns.image], self._image_key(example, row), keys, captions)
            number += step * len(chunk)
        if n_cut:
            logger.info("%d captions of this pass over the stream were cut.", n_cut)

    def _next_chunk(self, examples: Iterator[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        try:
            return list(islice(examples, _CHUNK))
        except KeyError as error:
            # A stream that does not know its features could not be asked for its columns when they were named.
            there = next(iter(self.source))  # a KeyError of its own, of a map, is raised again
            missing = [name for name in self.columns.names if name not in there]
            if not missing:
                raise
            raise ValueError(no_column_message(missing[0], there)) from error

    def _image_key(self, example: Mapping[str, Any], row: int) -> int:
        if not self.num_negatives:
            return 0
        if self.columns.image_id is not None:
            return image_id_key(example[self.columns.image_id], row)
        return bytes_key(example[self.columns.image], row)

    def _report_cut(self, cut: list[list[bool]], before: int) -> int:
        """How many captions are cut for some processor; says so when these are the first ones."""
        n_cut = sum(map(any, zip(*cut, strict=True)))
        if n_cut and not before:
            limits = [one.max_caption_tokens for one, of_one in zip(self.processors, cut, strict=True) if any(of_one)]
            logger.warning(
                "Captions of the stream longer than max_caption_tokens=%s are cut; they keep their end token. Their "
                "number is logged at the end of the pass.",
                limits[0],
            )
        return n_cut


def _check_parts(
    dataset: datasets.IterableDataset,
    evaluation: bool,
    pad_to: int,
    repeat: bool,
    process_index: int,
    num_processes: int,
) -> None:
    """Check what decides which part of the stream is read, and how often."""
    if repeat and evaluation:
        raise ValueError("evaluation is one pass over the stream; leave repeat out.")
    if repeat and pad_to != 1:
        raise ValueError(
            f"pad_to={pad_to} fills up the end of a pass, and with repeat=True there is none; leave it out."
        )
    if not 0 <= process_index < num_processes:
        raise ValueError(
            f"process_index={process_index} of num_processes={num_processes}; give a number from 0 to "
            "num_processes - 1."
        )
    if num_processes > 1 and not repeat:
        raise ValueError(
            f"num_processes={num_processes} without repeat=True: the shards of one process may have fewer rows than "
            "those of another, which would wait for it for ever. Add repeat=True, or let every process read the whole "
            "stream, without num_processes."
        )
    if dataset.num_shards % num_processes:
        raise ValueError(uneven_shards_message(dataset.num_shards, num_processes))


def uneven_shards_message(num_shards: int, num_processes: int) -> str:
    """What is said of a stream whose shards cannot be divided among the processes."""
    return (
        f"The stream has {num_shards} shard{'s' * (num_shards != 1)} (files, usually), which is no multiple of the "
        f"{num_processes} processes; they can divide it if it is stored in a multiple of {num_processes} files of "
        f"about equal length (or made with to_iterable_dataset(num_shards={num_processes}))."
    )


def _columns(
    dataset: datasets.IterableDataset,
    image: str | None,
    captions: str | Sequence[str] | None,
    image_id: str | None,
) -> CaptionColumns:
    features = dataset.features
    if features is None and image is not None and captions is not None:
        return CaptionColumns(image, (captions,) if isinstance(captions, str) else tuple(captions), image_id)
    if features is None:
        features = features_of_examples(islice(dataset, _LOOKED_AT))
        if not features:
            raise ValueError("The stream is empty, and its columns cannot be found without an example.")
    return find_columns(features, image, captions, image_id)


def _undecoded(dataset: datasets.IterableDataset, columns: CaptionColumns) -> datasets.IterableDataset:
    selected = dataset.with_format(None).select_columns(columns.names)
    if selected.features is not None and isinstance(selected.features[columns.image], datasets.Image):
        selected = selected.cast_column(columns.image, datasets.Image(decode=False))
    return selected
