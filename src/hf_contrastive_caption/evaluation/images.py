"""The images of a data set with their reference captions, each image once."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import datasets
import numpy as np

from hf_contrastive_caption.data.identity import bytes_key, image_id_key
from hf_contrastive_caption.data.images import BadImageError, image_hash
from hf_contrastive_caption.data.schema import check_split, find_columns, references_of
from hf_contrastive_caption.data.table import undecoded
from hf_contrastive_caption.evaluation.metrics.caption_metrics import prepare_references
from hf_contrastive_caption.evaluation.metrics.diversity import similar_images
from hf_contrastive_caption.evaluation.metrics.ngrams import Integers
from hf_contrastive_caption.evaluation.metrics.prepared import PreparedReferences
from hf_contrastive_caption.evaluation.pool import ImagePool
from hf_contrastive_caption.fingerprints import json_digest
from hf_contrastive_caption.processing import ReadsImages, read_images

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationImages:
    """Images and what people say of them.

    Attributes:
        pool: The images.
        references: Reference captions of each image, (n_images,) tuples; empty for an image that has none.
        rows: The first row of each image in the data set, (n_images,).
    """

    pool: ImagePool
    references: tuple[tuple[str, ...], ...]
    rows: tuple[int, ...]
    _similar: dict[int, Integers] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def referenced(self) -> list[int]:
        """Numbers of the images that have references."""
        return [number for number, texts in enumerate(self.references) if texts]

    @cached_property
    def prepared_references(self) -> PreparedReferences:
        """The references of the images that have some, tokenized; used by all metrics of all captioners."""
        return prepare_references([self.references[number] for number in self.referenced])

    @cached_property
    def references_digest(self) -> str:
        """A hash of all references, in their order."""
        return json_digest(self.references)

    def similar(self, k: int) -> Integers:
        """For each image with references the k others whose references are most alike, (n_referenced, k)."""
        if k not in self._similar:
            self._similar[k] = similar_images(self.prepared_references, k)
        return self._similar[k]

    def that_open(self, *readers: ReadsImages) -> EvaluationImages:
        """Those whose image opens and is taken by all who read it; says how many are not. Each is decoded for it.

        Args:
            *readers: Image processors, such as :meth:`CaptionProcessor.process_images`.
        """
        opening: list[int] = []
        last: BadImageError | None = None
        for number in range(len(self)):
            try:
                image = self.pool[number]
            except BadImageError as error:
                last = error
                continue
            _, refused = read_images(readers, [image])
            if refused:
                last = BadImageError(f"Image {self.rows[number]}: {refused[0]}")
            else:
                opening.append(number)
        if last is None:
            return self
        logger.warning(
            "%d of %d images cannot be read and are left out: %s", len(self) - len(opening), len(self), last
        )
        if not opening:
            raise BadImageError(f"none of the {len(self)} images can be read: {last}")
        return self.select(opening)

    def select(self, numbers: Sequence[int]) -> EvaluationImages:
        """Some of the images."""
        rows = tuple(self.rows[number] for number in numbers)
        return EvaluationImages(self.pool.select(numbers), tuple(self.references[n] for n in numbers), rows)

    def sample(self, size: int, seed: int) -> EvaluationImages:
        """Some of the images, drawn by a seed and in the order of the data set; all where there are no more."""
        if size >= len(self):
            return self
        chosen = np.random.default_rng([seed, len(self)]).permutation(len(self))[:size]
        return self.select(sorted(chosen.tolist()))


def evaluation_images(
    dataset: datasets.Dataset,
    image_column: str | None = None,
    caption_columns: str | Sequence[str] | None = None,
    image_id_column: str | None = None,
    on_bad_image: str = "raise",
) -> EvaluationImages:
    """Collect the images of a data set and their references; nothing is decoded yet.

    Rows that show one image are taken together: those with the same image id, or the same file where there is no
    column of ids.

    Args:
        dataset: One split. Captions may be missing, in some rows or altogether.
        image_column: Name of the image column, where the types leave a choice.
        caption_columns: Name or names of the caption columns, where they leave one.
        image_id_column: Name of a column that says which rows show the same image.
        on_bad_image: ``"raise"`` refuses a file that cannot be read when rows are told apart by their files; with
            ``"skip"`` it is an image of its own, which :meth:`EvaluationImages.that_open` leaves out.

    Raises:
        TypeError: If it is no data set, or a stream.
        ValueError: If a column is missing or several fit, or there is no row.
    """
    check_split(dataset)
    if not isinstance(dataset, datasets.Dataset):
        raise TypeError(
            "Got an IterableDataset to evaluate on; every caption is compared with every image, so take as many as "
            "you want to compare: datasets.Dataset.from_list(list(stream.take(1000)), features=stream.features)."
        )
    if not len(dataset):
        raise ValueError("The data set has no rows.")
    columns = find_columns(dataset.features, image_column, caption_columns, image_id_column, captions_required=False)
    images = undecoded(dataset, [columns.image])
    texts = undecoded(dataset, columns.captions) if columns.captions else None
    if columns.image_id:
        ids: Iterable[Any] = dataset.with_format(None)[columns.image_id][:]  # tensors would all differ
    else:
        ids = _hashes(images, columns.image, on_bad_image)
    first: dict[int, int] = {}
    references: dict[int, list[str]] = {}
    for row, image_id in enumerate(ids):
        key = image_id_key(image_id, row)
        first.setdefault(key, row)
        found = references.setdefault(key, [])
        if texts is not None:
            found += references_of(texts[row], columns)
    rows = tuple(first.values())
    pool = ImagePool(images[columns.image]).select(rows)  # a column that is read row by row
    return EvaluationImages(pool, tuple(map(tuple, references.values())), rows)


def _hashes(images: datasets.Dataset, column: str, on_bad_image: str) -> Iterator[int]:
    for number, row in enumerate(images):
        try:
            yield bytes_key(row[column], number) if on_bad_image == "skip" else image_hash(row[column])
        except BadImageError as error:
            raise BadImageError(f"Row {number}: {error}") from error
