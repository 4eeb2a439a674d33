"""Which of a training's data sets get states and scores from disk, and the computing of those that are missing."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from functools import partial
from typing import Protocol

from accelerate import Accelerator

from hf_contrastive_caption.captioners import Captioner
from hf_contrastive_caption.captioners.determinism import evaluation_mode
from hf_contrastive_caption.config import ContrastiveCaptionConfig
from hf_contrastive_caption.data import CaptionData, ContrastiveCaptionDataset, ContrastiveCaptionStream
from hf_contrastive_caption.data.dataset import warn_of_cut_captions
from hf_contrastive_caption.data.negatives import EVALUATION_EPOCH
from hf_contrastive_caption.precomputed.reference_scores import (
    ReferenceScores,
    ScoringBatches,
    ScoringWork,
    write_scores,
)
from hf_contrastive_caption.precomputed.sharing import SharedWork
from hf_contrastive_caption.precomputed.vision_states import ImageBatches, VisionStates, VisionWork
from hf_contrastive_caption.reference import PrecomputedReference, Reference

logger = logging.getLogger(__name__)


class NegativesSource(Protocol):
    """What gives training sets other negatives than shuffled ones."""

    def check(self, data: CaptionData) -> None:
        """Refuse a training set that can have none."""
        ...

    def attach(self, data: ContrastiveCaptionDataset, num_epochs: int) -> ContrastiveCaptionDataset:
        """A training set with such negatives, for a training of so many epochs."""
        ...


class ComputedAhead:
    """Gives data sets what was computed ahead, computing what is not on disk yet.

    Shards are divided over the processes, which share the folder.

    Args:
        captioner: The target.
        reference: The reference, if there is one.
        args: The training arguments.
        accelerator: Where and in what precision to compute.
        neighbours: What gives training sets hard negatives, if they shall have some.

    Raises:
        ValueError: The reference cannot do with states in place of images.
    """

    def __init__(
        self,
        captioner: Captioner,
        reference: Reference | None,
        args: ContrastiveCaptionConfig,
        accelerator: Accelerator,
        neighbours: NegativesSource | None = None,
    ) -> None:
        self._captioner = captioner
        self._reference = reference if isinstance(reference, PrecomputedReference) else None
        self._args = args
        self._accelerator = accelerator
        self._work = SharedWork(args, accelerator)
        self._neighbours = neighbours
        if args.cache_vision_states and reference is not None and not (reference.shares_vision or self._reference):
            raise ValueError(
                "cache_vision_states=True, but the reference reads images with a vision encoder of its own, for which "
                "they would be opened all the same. Set precompute_reference=True as well, or leave the option out"
            )

    @property
    def _active(self) -> bool:
        """Whether states or scores are computed ahead."""
        return self._args.cache_vision_states or self._reference is not None

    def attach(self, data: CaptionData, epochs: Sequence[int] | None = None) -> CaptionData:
        """A data set that reads from disk what is computed ahead.

        Args:
            data: The data set; one that has states already keeps them, and for evaluation its scores.
            epochs: The epochs for which scores are needed; ``None`` for an evaluation, whose draws stay the same.

        Raises:
            ValueError: It is a stream, or has augmentation that states or scores would not see.
        """
        self.check(data, evaluation=epochs is None)
        if not isinstance(data, ContrastiveCaptionDataset) or not (self._active or (self._neighbours and epochs)):
            return data
        attached = copy.copy(data)
        if self._args.cache_vision_states and attached.vision_states is None:
            attached.vision_states = self._states(data)
        if self._neighbours is not None and epochs:
            attached = self._neighbours.attach(attached, len(epochs))
        scored = data.evaluation and data.reference_scores is not None
        if self._reference is not None and not (scored and self._reference.released):
            drawn = [EVALUATION_EPOCH] if data.evaluation else list(epochs or ())
            read = copy.copy(attached)
            if not self._reference.shares_vision:
                read.vision_states = None  # its own vision encoder needs the images
            attached.reference_scores = self._scores(read, self._reference, drawn)
        return attached

    def check(self, data: CaptionData, *, evaluation: bool) -> None:
        """Refuse a data set for which nothing can be computed ahead.

        Args:
            data: The data set.
            evaluation: Whether it is there to be evaluated.

        Raises:
            ValueError: It has augmentation, is a stream, or draws anew at every evaluation.
        """
        if self._neighbours is not None and not evaluation:
            self._neighbours.check(data)
        if not self._active:
            return
        option = "precompute_reference" if self._reference is not None else "cache_vision_states"
        if isinstance(data, ContrastiveCaptionStream):
            raise ValueError(
                f"{option} needs a data set with a length: what a stream draws depends on what it read before, so "
                "nothing can be computed ahead. Leave the option out, or download the data (load_dataset without "
                "streaming=True)"
            )
        if data.augmented:
            raise ValueError(
                f"{option} was asked for together with augmentation, which changes an image in every epoch and with "
                "it all that could be computed ahead. Leave one of them out"
            )
        if evaluation and not data.evaluation and self._reference is not None:
            raise ValueError(
                "precompute_reference needs an evaluation data set that draws the same captions every time; make it "
                "with ContrastiveCaptionDataset(..., evaluation=True), or pass the datasets.Dataset itself"
            )

    def release_reference(self) -> None:
        """Let the reference leave memory, if all of its scores are on disk."""
        if self._reference is not None:
            self._reference.release()

    def _states(self, data: ContrastiveCaptionDataset) -> VisionStates:
        work = VisionWork(
            data, self._captioner, self._work.precision(self._captioner.dtype), self._args.precomputed_dir
        )
        self._captioner.model.to(self._args.device)
        with evaluation_mode(self._captioner.model):
            store, items, rows = work.plan(self._accelerator.autocast())
            self._work.fill(
                "encoding images",
                self._work.agreed(store.missing()),
                store.missing,
                bounds=store.bounds,
                make_batch=ImageBatches(data.positives_alone(), rows),
                compute=self._work.by_model(work.encode),
                write=store.write,
                padding=self._captioner.padding(),
            )
        return VisionStates(store, items, self._captioner.padding())

    def _scores(
        self, data: ContrastiveCaptionDataset, reference: PrecomputedReference, epochs: list[int]
    ) -> ReferenceScores:
        processor = reference.processor
        if not processor.reads_like(data.processors[0]):
            n_cut = data.n_cut[0]
            data = data.with_processors([processor])
            warn_of_cut_captions(n_cut, *data.n_cut)
        work = ScoringWork(data, reference, self._work.precision(reference.dtype), self._args.precomputed_dir)
        stores, bounds, start = work.plan(epochs)
        missing = self._work.agreed({epoch: store.missing() for epoch, store in stores.items()})
        wanted = [epoch for epoch in missing if missing[epoch]]
        if wanted:
            reference.captioner.model.to(self._args.device)
            with evaluation_mode(reference.captioner.model):
                self._work.fill(
                    f"scoring {len(wanted)} epochs with the reference",
                    sorted({shard for epoch in wanted for shard in missing[epoch]}),
                    lambda: [shard for epoch in wanted for shard in stores[epoch].missing()],
                    bounds=bounds,
                    make_batch=ScoringBatches(data, processor, wanted),
                    compute=self._work.by_model(partial(work.score, epochs=wanted)),
                    write=partial(write_scores, {epoch: stores[epoch] for epoch in wanted}),
                )
        return ReferenceScores(stores, start)


def training_epochs(data: CaptionData, args: ContrastiveCaptionConfig) -> list[int]:
    """The epochs that a training goes through, the last one maybe in part; none for a stream."""
    if isinstance(data, ContrastiveCaptionStream):
        return []
    batches = -(-len(data) // (args.train_batch_size * args.world_size))
    steps = -(-batches // args.gradient_accumulation_steps)
    return list(range(math.ceil(args.max_steps / steps if args.max_steps > 0 else args.num_train_epochs)))
