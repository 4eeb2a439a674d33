"""A data set of images with right and wrong captions, for PyTorch's data loader."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Protocol

import datasets
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from hf_contrastive_caption.data.by_image import CaptionsByImage, captions_by_image, same_images
from hf_contrastive_caption.data.distractors import DistractorImages
from hf_contrastive_caption.data.examples import (
    Augmentation,
    CaptionExample,
    ImageRules,
    OnBadImage,
    StoredScores,
    StoredStates,
    Tokens,
    check_options,
)
from hf_contrastive_caption.data.hard_negatives import (
    CandidateLists,
    HardNegatives,
    HardShare,
)
from hf_contrastive_caption.data.images import file_states
from hf_contrastive_caption.data.keyed import derive_key, mix
from hf_contrastive_caption.data.negatives import EVALUATION_EPOCH, ShuffledNegatives
from hf_contrastive_caption.data.sampler import SampleKey, SharedEpoch
from hf_contrastive_caption.data.schema import captions_of, check_split, find_columns
from hf_contrastive_caption.data.table import build_index, build_tokens, digest, ragged_ranges, undecoded
from hf_contrastive_caption.processing import CaptionProcessor

logger = logging.getLogger(__name__)


class StatesSource(Protocol):
    """Where states of a vision encoder are read."""

    def read(self, rows: Sequence[int]) -> Sequence[StoredStates]:
        """The states of the images of some rows."""
        ...


class ScoresSource(Protocol):
    """Where scores of the reference are read."""

    def read(self, rows: Sequence[int], epoch: int) -> Sequence[StoredScores]:
        """The scores of what is drawn for some rows in an epoch, each of all captions of the row."""
        ...


class ContrastiveCaptionDataset(Dataset[CaptionExample]):
    """Images, each with captions of its own and, for each of them, K captions of other images.

    Captions are tokenized once and cached beside the data set. Which captions an example has is drawn when it is
    asked for, as a pure function of (seed, epoch, row): the same for any number of workers and processes, any batch
    size, and after a resume. Images are opened by the collator, in the worker.

    An index is a row, and means this row in :attr:`epoch`, or a :class:`~.sampler.SampleKey`, which has its own epoch.

    Args:
        dataset: One split, with an image column and captions.
        processors: The target's processor, and where the reference has another one, the reference's.
        num_negatives: K, negatives for each positive; 0 for maximum likelihood.
        distractors: Compare each positive with itself for K other images, as introspective learning does, and not with
            K captions of other images. These images are the same in every epoch.
        seed: Another seed, other draws.
        captions_per_image: How many of an image's captions are positives in an epoch, drawn anew each epoch, without
            repetition (fewer where the image has fewer); ``"all"`` for all of them.
        image_column: Name of the image column, where the types leave a choice.
        caption_columns: Name or names of the caption columns.
        image_id_column: Name of a column that says which rows show the same image; without one, the images' bytes do.
        augment: Applied to every image, with random numbers that depend on (seed, epoch, row) only.
        on_bad_image: What to do with an image that does not open: ``"raise"``, or ``"skip"``: give it weight 0.
        num_proc: Processes for tokenizing and hashing.
        evaluation: Draw the same captions in every epoch.

    Attributes:
        source: ``dataset`` as it was given.
        columns: The columns that are used.
        vision_states: Where states of a vision encoder are read that stand in place of images, if anywhere.
        reference_scores: Where scores of the reference are read that were computed ahead, if anywhere.

    Raises:
        TypeError: ``dataset`` is no data set, or a stream.
        ValueError: The columns, the captions or an option do not fit, or a caption can have no negatives.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        processors: Sequence[CaptionProcessor],
        num_negatives: int = 5,
        *,
        distractors: bool = False,
        seed: int = 0,
        captions_per_image: int | Literal["all"] = 1,
        image_column: str | None = None,
        caption_columns: str | Sequence[str] | None = None,
        image_id_column: str | None = None,
        augment: Augmentation | None = None,
        on_bad_image: OnBadImage = "raise",
        num_proc: int | None = None,
        evaluation: bool = False,
    ) -> None:
        check_split(dataset)
        if not isinstance(dataset, datasets.Dataset):
            raise TypeError("Got an IterableDataset; for streams there is ContrastiveCaptionStream.")
        check_options(processors, num_negatives, captions_per_image, augment, on_bad_image, evaluation)
        if len(dataset) == 0:
            raise ValueError("The data set has no rows.")
        if dataset.format["type"] == "custom":
            logger.warning("The transform of the data set is not run; use augment for transforms of images.")
        self.source = dataset
        self.columns = find_columns(dataset.features, image_column, caption_columns, image_id_column)
        self.processors = tuple(processors)
        self.num_negatives = num_negatives
        self.seed = seed
        self.captions_per_image = captions_per_image
        self.evaluation = evaluation
        self.vision_states: StatesSource | None = None
        self.reference_scores: ScoresSource | None = None
        self._num_proc = num_proc
        self._rules = ImageRules(augment, on_bad_image, seed)
        self._epoch = SharedEpoch()
        self._images = undecoded(dataset, [self.columns.image])
        self._texts = undecoded(dataset, self.columns.captions)
        self._index = build_index(dataset, self.columns, with_images=num_negatives > 0, num_proc=num_proc)
        self._tokens = [build_tokens(dataset, self.columns, processor, num_proc) for processor in processors]
        self._distractors = DistractorImages(self._index, num_negatives, seed) if distractors else None
        shuffled = num_negatives > 0 and not distractors
        self._shuffled = ShuffledNegatives(self._index, num_negatives, seed) if shuffled else None
        self._negatives: ShuffledNegatives | HardNegatives | None = self._shuffled

    def __len__(self) -> int:
        """Number of rows."""
        return self._index.n_rows

    @property
    def n_captions(self) -> int:
        """Number of captions of all rows together."""
        return self._index.n_captions

    @property
    def n_cut(self) -> tuple[int, ...]:
        """How many captions were too long and are cut, for each processor."""
        return tuple(tokens.n_cut for tokens in self._tokens)

    @property
    def distractors(self) -> bool:
        """Whether positives are compared with themselves for other images."""
        return self._distractors is not None

    @property
    def augmented(self) -> bool:
        """Whether images are changed anew in every epoch."""
        return self._rules.augment is not None

    @property
    def on_bad_image(self) -> OnBadImage:
        """What is done with an image that does not open."""
        return self._rules.on_bad_image

    @property
    def epoch(self) -> int:
        """The epoch of examples that are asked for by row."""
        return self._epoch.get()

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch; workers that are already running follow."""
        self._epoch.set(epoch)

    def __getitem__(self, key: int | SampleKey) -> CaptionExample:
        """One example."""
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[int | SampleKey]) -> list[CaptionExample]:
        """The examples of a batch, drawn together. PyTorch's data loader calls this.

        Args:
            keys: Rows or sample keys, (n,).

        Returns:
            The examples, (n,).
        """
        wanted = [self._sample_key(key) for key in keys]
        examples: dict[int, CaptionExample] = {}
        for epoch in dict.fromkeys(key.epoch for key in wanted):
            places = [place for place, key in enumerate(wanted) if key.epoch == epoch]
            examples.update(zip(places, self._examples([wanted[place] for place in places], epoch), strict=True))
        return [examples[place] for place in range(len(wanted))]

    def draw(self, rows: NDArray[np.int64], epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draw the captions of some rows.

        Args:
            rows: Row numbers, (n,).
            epoch: The epoch; with ``evaluation`` it makes no difference.

        Returns:
            ``captions``: caption numbers, (n_positives, 1 + K), each positive with its negatives (with distractors:
            with itself, once for each of them); ``counts``: how many of the positives belong to each row, (n,).
        """
        epoch = EVALUATION_EPOCH if self.evaluation else epoch
        positives, counts = self._positives(rows, epoch)
        if self._distractors is not None:
            return np.repeat(positives[:, None], 1 + self.num_negatives, axis=1), counts
        if self._negatives is None:
            return positives[:, None], counts
        return np.concatenate([positives[:, None], self._negatives.draw(positives, epoch)], axis=1), counts

    def row_lengths(self, rows: NDArray[np.int64], epoch: int, *, packed: bool) -> NDArray[np.int64]:
        """How wide a batch must be for the captions that are drawn for some rows, in tokens of the target.

        Args:
            rows: Row numbers, (n,).
            epoch: The epoch.
            packed: Whether the captions of an image stand in one row of the decoder, or in one each.

        Returns:
            Tokens of all captions of each row together, or of the longest of them, (n,).
        """
        captions, counts = self.draw(rows, epoch)  # (n_positives, 1 + K), (n,)
        _, lengths = self._tokens[0].gather(captions.reshape(-1))
        row_starts = np.cumsum(counts) - counts  # (n,) the first positive of each row
        per_positive = lengths.reshape(captions.shape)
        if packed:
            return np.add.reduceat(per_positive.sum(1), row_starts)
        return np.maximum.reduceat(per_positive.max(1), row_starts)

    def positive_start(self) -> NDArray[np.int64]:
        """Number of the first positive of each row in an epoch, and of all positives, (n_rows + 1,)."""
        counts = np.diff(self._index.row_start)
        if self.captions_per_image != "all":
            counts = np.minimum(counts, self.captions_per_image)
        return np.concatenate([[0], np.cumsum(counts)])

    def distinct_images(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which rows show the same image.

        Returns:
            ``rows``: the first row of each different image, (n_images,), in order; ``images``: the number of each
            row's image among them, (n_rows,). Without negatives, or with an id column, every row counts as another.
        """
        if not self.num_negatives or self.columns.image_id is not None:
            return np.arange(len(self)), np.arange(len(self))
        image_of_row, first_row = same_images(self._index.image_key)
        return first_row, image_of_row

    def images_fingerprint(self) -> str:
        """A hash of the images: as ``datasets`` knows them, which are the same, and when files of them changed."""
        keys = self._index.image_key.tobytes() if self.num_negatives else b""
        return digest(
            [self.source._fingerprint, self.columns.image],
            keys,
            file_states(self._images.data.column(self.columns.image)),
        )

    def fingerprint(self) -> str:
        """A hash of images and captions, and of the tokens that the first processor makes of them."""
        arrays = [self._index.row_start, self._index.text_key, *self._tokens[0].arrays()]
        return digest(
            [self.images_fingerprint(), list(self.columns.captions)], *(np.asarray(one).tobytes() for one in arrays)
        )

    def contents_fingerprint(self) -> str:
        """A hash of images and captions, whatever reads them."""
        arrays = [self._index.row_start, self._index.text_key]
        return digest(
            [self.images_fingerprint(), list(self.columns.captions)], *(np.asarray(one).tobytes() for one in arrays)
        )

    @property
    def hard_negatives(self) -> HardNegatives | None:
        """What draws negatives, if some of them are hard."""
        return self._negatives if isinstance(self._negatives, HardNegatives) else None

    def negatives_digest(self) -> str:
        """A hash of what decides which negatives are drawn, beside captions, images and seed."""
        return "none" if self._negatives is None else self._negatives.digest()

    def same_images(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which rows show the same image, by its id or by its bytes; reads the bytes of every image, once.

        Returns:
            ``image_of_row``: the number of each row's image, (n_rows,); ``first_row``: the first row of each,
            (n_images,).
        """
        keys = [self._index.image_key]
        if self.columns.image_id is not None:
            by_bytes = replace(self.columns, image_id=None)
            keys.append(build_index(self.source, by_bytes, num_proc=self._num_proc).image_key)
        return same_images(*keys)

    def captions_by_image(self, image_of_row: NDArray[np.int64]) -> CaptionsByImage:
        """All captions of each image, of all its rows.

        Args:
            image_of_row: The number of each row's image, (n_rows,).
        """
        return captions_by_image(self._index, image_of_row)

    def with_hard_negatives(self, lists: CandidateLists, share: HardShare) -> ContrastiveCaptionDataset:
        """The same data set with some of its negatives drawn from lists.

        Raises:
            ValueError: The data set has no negatives, or those of an evaluation, which are the same for all models.
        """
        if self._shuffled is None or self.evaluation:
            raise ValueError(
                f"num_negatives={self.num_negatives} and evaluation={self.evaluation}: only a data set for training "
                "with negatives has hard ones; evaluations keep shuffled ones, so that their losses can be compared"
            )
        other = copy.copy(self)
        other._negatives = HardNegatives(self._shuffled, lists, share)
        return other

    def without_augmentation(self) -> ContrastiveCaptionDataset:
        """The same data set without augmentation."""
        other = copy.copy(self)
        other._rules = replace(self._rules, augment=None)
        return other

    def detached(self) -> ContrastiveCaptionDataset:
        """The same data set, which opens its images, has no scores, and shuffled negatives."""
        other = copy.copy(self)
        other.vision_states = other.reference_scores = None
        other._negatives = self._shuffled
        return other

    def positives_alone(self) -> ContrastiveCaptionDataset:
        """The same images and positives, compared with nothing."""
        other = copy.copy(self)
        other.num_negatives, other._shuffled, other._negatives, other._distractors = 0, None, None, None
        return other

    def with_processors(self, processors: Sequence[CaptionProcessor]) -> ContrastiveCaptionDataset:
        """The same images with the same draws, read by other processors."""
        other = self.detached()
        other._negatives = self._negatives
        other.processors = tuple(processors)
        other._tokens = [build_tokens(self.source, self.columns, one, self._num_proc) for one in processors]
        return other

    def captions_of(self, rows: Sequence[int]) -> list[list[str]]:
        """The captions of some rows as texts, all that they have."""
        return [captions_of(self._texts[int(row)], self.columns, int(row)) for row in rows]

    def caption_texts(self, captions: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """The texts of captions given by their numbers, of any shape, in order."""
        numbers = np.asarray(captions, dtype=np.int64).reshape(-1)
        rows = self._index.rows(numbers)
        within = numbers - self._index.row_start[rows]
        return [texts[place] for texts, place in zip(self.captions_of(rows.tolist()), within.tolist(), strict=True)]

    def _sample_key(self, key: int | SampleKey) -> SampleKey:
        if not isinstance(key, SampleKey):
            key = SampleKey(self.epoch, int(key))
        row = key.row + len(self) if key.row < 0 else key.row
        if not 0 <= row < len(self):
            raise IndexError(f"There is no row {key.row}; the data set has {len(self)} rows.")
        return key._replace(row=row)

    def _examples(self, keys: list[SampleKey], epoch: int) -> list[CaptionExample]:
        rows = np.asarray([key.row for key in keys])  # (n,)
        captions, counts = self.draw(rows, epoch)  # (n_positives, 1 + K), (n,)
        ends = np.cumsum(counts * captions.shape[1])  # (n,) where each row's captions end
        tokens = [_split(*store.gather(captions.reshape(-1)), ends) for store in self._tokens]
        drawn_for = EVALUATION_EPOCH if self.evaluation else epoch
        scores: Sequence[StoredScores | None] = [None] * len(keys)
        if self.reference_scores is not None:
            scores = self.reference_scores.read(rows.tolist(), drawn_for)
        shown, numbers = rows, np.zeros_like(counts)
        if self._distractors is not None:
            shown = np.concatenate([rows, self._distractors.rows(captions[:, 0]).reshape(-1)])
            numbers = counts * self.num_negatives
        pictures = self._pictures(shown.tolist(), epoch)  # those of the rows, then the distractors of each of them
        stops = len(keys) + np.cumsum(numbers)  # (n,)
        return [
            replace(
                picture,
                weight=key.weight,
                tokens=tuple(per_processor),
                reference_scores=score,
                distractors=tuple(pictures[stop - number : stop]),
            )
            for key, picture, score, stop, number, *per_processor in zip(
                keys, pictures[: len(keys)], scores, stops, numbers, *tokens, strict=True
            )
        ]

    def _pictures(self, rows: list[int], epoch: int) -> list[CaptionExample]:
        """The images of rows, or what stands in their place, as examples without captions, which count for nothing."""
        nothing = [None] * len(rows)
        # In one go: states of images of different sizes are padded to one size.
        states = nothing if self.vision_states is None else self.vision_states.read(rows)
        images = nothing if self.vision_states is not None else self._images[rows][self.columns.image]
        return [
            CaptionExample(row, epoch, 0.0, image, (), self._rules, state)
            for row, image, state in zip(rows, images, states, strict=True)
        ]

    def _positives(self, rows: NDArray[np.int64], epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Caption numbers (n_positives,), and how many each row has (n,)."""
        starts = self._index.row_start[rows]  # (n,)
        counts = self._index.row_start[rows + 1] - starts  # (n,)
        captions = ragged_ranges(starts, counts)
        if self.captions_per_image == "all":
            return captions, counts
        # The captions of a row in a random order, of which the first are taken.
        hashes = mix(derive_key(self.seed, "positives", epoch), captions)
        shuffled = captions[np.lexsort((hashes, np.repeat(np.arange(len(rows)), counts)))]
        rank = ragged_ranges(np.zeros_like(counts), counts)
        return shuffled[rank < self.captions_per_image], np.minimum(counts, self.captions_per_image)


def warn_of_cut_captions(target: int, reference: int | None = None) -> None:
    """Say so where target and reference read different parts of some captions."""
    if reference is not None and reference != target:
        logger.warning(
            "%d captions are cut for the target and %d for the reference, so their log-ratios compare different "
            "texts; raise max_caption_tokens, or leave such captions out",
            target,
            reference,
        )


def _split(input_ids: NDArray[np.int32], lengths: NDArray[np.int64], ends: NDArray[np.int64]) -> list[Tokens]:
    """Cut the captions of a batch into those of each row, which end at caption ``ends``, (n,)."""
    token_ends = np.concatenate([[0], np.cumsum(lengths)])[ends]  # (n,)
    ids, sizes = np.split(input_ids, token_ends[:-1]), np.split(lengths, ends[:-1])
    return [Tokens(*pair) for pair in zip(ids, sizes, strict=True)]
