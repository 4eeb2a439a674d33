"""The lists that a training's hard negatives are drawn from: found on disk, or computed by all processes together."""

from __future__ import annotations

import logging
import math
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from hf_contrastive_caption.config import ContrastiveCaptionConfig
from hf_contrastive_caption.data import CaptionData, ContrastiveCaptionDataset, ContrastiveCaptionStream
from hf_contrastive_caption.data.hard_negatives import HardShare
from hf_contrastive_caption.data.table import digest
from hf_contrastive_caption.evaluation.retrieval.retrievers import DualEncoderRetriever
from hf_contrastive_caption.neighbours.features import (
    FEATURES,
    DualEncoderFeatures,
    FeatureSource,
    ReferenceFeatures,
    word_features,
)
from hf_contrastive_caption.neighbours.images import ImageSet
from hf_contrastive_caption.neighbours.lists import ListMaker, Nearest, StoredLists, settings
from hf_contrastive_caption.neighbours.search import DenseFeatures, FaissIndex, Features, nearest
from hf_contrastive_caption.precomputed.shards import ShardStore, check_space, folder_for
from hf_contrastive_caption.precomputed.sharing import SharedWork
from hf_contrastive_caption.precomputed.vision_states import OPENED
from hf_contrastive_caption.reference import Reference

logger = logging.getLogger(__name__)

IMAGES_PER_SHARD = 4096
"""So many images have their vectors, or their lists, in one file."""

_SEARCHED_AT_ONCE = 1024
_FORMAT = 1
_WORDS_FORMAT = 2  # 1 had images without a word in common


class NeighbourNegatives:
    """Gives a training set hard negatives.

    Args:
        reference: The reference; its states tell which images look alike, unless something else does.
        encoder: A dual encoder that tells it instead.
        args: The training arguments.
        accelerator: Where and in what precision to compute.

    Raises:
        ValueError: The reference has no states that could tell it.
    """

    def __init__(
        self,
        reference: Reference,
        encoder: DualEncoderRetriever | None,
        args: ContrastiveCaptionConfig,
        accelerator: Accelerator,
    ) -> None:
        self._args = args
        self._work = SharedWork(args, accelerator)
        self._dtype = reference.dtype
        of_captions = args.hard_negative_source == "captions"
        self._source: FeatureSource | None = None
        if encoder is not None:
            self._source = DualEncoderFeatures(encoder, of_captions)
        elif not of_captions:
            self._source = ReferenceFeatures(reference)

    def check(self, data: CaptionData) -> None:
        """Refuse a training set that has no neighbours.

        Raises:
            ValueError: It is a stream.
        """
        if isinstance(data, ContrastiveCaptionStream):
            raise ValueError(
                f"negatives={self._args.negatives!r} needs a data set with a length: the nearest of all images can "
                "only be found where all are there. Leave it out, or download the data (load_dataset without "
                "streaming=True)"
            )

    def attach(self, data: ContrastiveCaptionDataset, num_epochs: int) -> ContrastiveCaptionDataset:
        """A data set with hard negatives.

        Args:
            data: The data set; the lists of one that has hard negatives already are kept, since the reference may
                have been replaced or released since they were made.
            num_epochs: Epochs of the training.
        """
        schedule = self._args.hard_negative_schedule
        share = HardShare(self._share, schedule, num_epochs)  # type: ignore[arg-type]  # checked by the config
        has = data.hard_negatives
        return data.with_hard_negatives(self._lists(data) if has is None else has.lists, share)

    @property
    def _share(self) -> float:
        """The highest share of hard negatives in the training."""
        return 1.0 if self._args.negatives == "nearest" else self._args.hard_negative_share

    def _lists(self, data: ContrastiveCaptionDataset) -> StoredLists:
        images = ImageSet.of(data)
        args, n_images = self._args, len(images)
        chosen = digest([n_images], images.image_of_row.tobytes())
        bounds = np.append(np.arange(0, n_images, IMAGES_PER_SHARD), n_images)
        nearness = {"words": _WORDS_FORMAT} if self._source is None else self._source_depends_on(self._source)
        folder, key = folder_for(
            "neighbours",
            {
                "format": _FORMAT,
                "contents": data.contents_fingerprint(),
                "images": chosen,
                "nearness": nearness,
                "index": args.hard_negative_index,
                **settings(args.hard_negative_pool, args.hard_negative_threshold),
            },
            args.precomputed_dir,
        )
        store = ShardStore(folder, key, bounds)
        missing = self._work.agreed(store.missing())
        if missing:
            check_space(folder, n_images * args.hard_negative_pool * 4, f"the lists of {n_images} images")
            features = self._features(images, bounds, chosen)
            search: Nearest = partial(nearest, features)
            if args.hard_negative_index == "faiss":
                assert isinstance(features, DenseFeatures)  # the config refuses words
                search = FaissIndex(features).nearest
            maker = ListMaker(images, search, args.hard_negative_pool, args.hard_negative_threshold)
            self._work.fill(
                "looking for neighbours",
                missing,
                store.missing,
                bounds=bounds,
                make_batch=_as_they_are,
                compute=maker.lists,
                write=store.write,
                batch_size=_SEARCHED_AT_ONCE,
                num_workers=0,
            )
        lists = StoredLists(store, images.image_of_row)
        self._say(lists)
        return lists

    def _features(self, images: ImageSet, bounds: NDArray[np.int64], chosen: str) -> Features:
        source = self._source
        if source is None:
            return word_features(images.words)
        folder, key = folder_for(
            "neighbour-features",
            {
                "format": _FORMAT,
                "contents": images.data.contents_fingerprint(),
                "images": chosen,
                "nearness": self._source_depends_on(source),
            },
            self._args.precomputed_dir,
        )
        store = ShardStore(folder, key, bounds)
        missing = self._work.agreed(store.missing())
        if missing:
            with source.ready(self._args.device):
                self._work.fill(
                    f"reading {source.description}",
                    missing,
                    store.missing,
                    bounds=bounds,
                    make_batch=source.batches(images),
                    compute=self._work.by_model(source.features) if source.by_reference else source.features,
                    write=store.write,
                )
        stored = [store.mapped(shard) for shard in range(len(bounds) - 1)]
        vectors = torch.cat([tensors[FEATURES] for tensors in stored]).to(self._args.device)
        opened = torch.cat([tensors[OPENED] for tensors in stored]).bool().to(self._args.device)
        return DenseFeatures(vectors, opened, centred=source.centred)

    def _source_depends_on(self, source: FeatureSource) -> dict[str, object]:
        precision = str(self._work.precision(self._dtype)) if source.by_reference else "float32"
        return {**source.depends_on(), "precision": precision}

    def _say(self, lists: StoredLists) -> None:
        described = "the words of captions" if self._source is None else self._source.description
        wanted = math.ceil(self._share * self._args.num_negatives)
        few = int((lists.lengths < wanted).sum())
        logger.info(
            "hard negatives are captions of images that are near by %s: on the average %.0f for each of %d images. "
            "%.1f%% of the captions of the nearest were refused because they say what the image's own say. %d images "
            "have fewer than the %d that a caption may ask for, and get shuffled ones for the rest. Evaluations have "
            "shuffled ones",
            described,
            lists.lengths.mean(),
            len(lists.lengths),
            100 * lists.refused,
            few,
            wanted,
        )


def make_neighbours(
    reference: Reference | None,
    encoder: DualEncoderRetriever | None,
    args: ContrastiveCaptionConfig,
    accelerator: Accelerator,
) -> NeighbourNegatives | None:
    """What gives training sets hard negatives; ``None`` if they shall have none.

    Args:
        reference: The reference; there is one where there are negatives.
        encoder: A dual encoder as an object; one by name is in ``args``.
        args: The training arguments.
        accelerator: Where and in what precision to compute.

    Raises:
        TypeError: The dual encoder is none.
        ValueError: A dual encoder was given twice, or without need.
    """
    name = args.hard_negative_encoder
    if encoder is not None:
        if args.negatives == "shuffled":
            raise ValueError("hard_negative_encoder was given, but negatives are shuffled; set negatives='mixed'")
        if name is not None:
            raise ValueError(f"hard_negative_encoder was given twice, as an object and by name ({name!r}); give one")
        if not isinstance(encoder, DualEncoderRetriever):
            raise TypeError(
                f"hard_negative_encoder is a {type(encoder).__name__}; give DualEncoderRetriever(model, processor), "
                "or the name of a dual encoder in the arguments"
            )
    if reference is None or args.negatives == "shuffled":
        return None
    if name is not None:
        encoder = DualEncoderRetriever.from_pretrained(name)
    return NeighbourNegatives(reference, encoder, args, accelerator)


def _as_they_are(numbers: list[int]) -> list[int]:
    return numbers
