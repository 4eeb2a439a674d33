"""In how many images' references each n-gram stands: what CIDEr weighs n-grams by.

The frequencies decide the scale of CIDEr. Counted in the scored references themselves they make the scores of small
sets too high, so a table of a large set can be saved and used for every set that shall be compared.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hf_contrastive_caption.evaluation.metrics.ngrams import Integers, NgramVocabulary, pack, unpack
from hf_contrastive_caption.evaluation.metrics.prepared import PreparedReferences, as_references
from hf_contrastive_caption.fingerprints import json_digest

_FORMAT = "hf_contrastive_caption.document_frequencies"
_VERSION = 1


@dataclass(frozen=True, eq=False)
class DocumentFrequencies:
    """How many images have each n-gram in at least one reference.

    Args:
        n_images: Number of images that were counted.
        vocabulary: The n-grams.
        counts: For n = 1, 2, ... the number of images for each n-gram, (vocabulary.size(n),).
    """

    n_images: int
    vocabulary: NgramVocabulary
    counts: tuple[Integers, ...]

    @classmethod
    def from_references(
        cls, references: Sequence[Sequence[Sequence[str]]] | PreparedReferences
    ) -> DocumentFrequencies:
        """Count the references of a set of images.

        Args:
            references: For each image the words of each of its references, from the tokenizer that the scored captions
                go through.

        Returns:
            The table.
        """
        references = as_references(references)
        vocabulary = references.counts.vocabulary
        counts = tuple(
            np.bincount(unpack(order.keys)[1], minlength=vocabulary.size(n)).astype(np.int64)
            for n, order in enumerate(references.image_counts, start=1)
        )
        return cls(len(references), vocabulary, counts)

    def look_up(self, vocabulary: NgramVocabulary) -> list[Integers]:
        """How many images have each n-gram of a vocabulary.

        Args:
            vocabulary: Any vocabulary.

        Returns:
            For n = 1, 2, ... the numbers, (vocabulary.size(n),); 0 for what was not counted.
        """
        return [
            # The zero is what -1, for an n-gram that is not here, points to.
            np.append(counts, 0)[numbers]
            for counts, numbers in zip(self.counts, vocabulary.translate(self.vocabulary), strict=True)
        ]

    @cached_property
    def digest(self) -> str:
        """A hash of what :meth:`save` writes, in one order: a table and the same one saved and loaded are equal."""
        content = self._content()
        words, numbers = content["words"], iter(content["counts"])
        ngrams: list[tuple[str, ...]] = [(word,) for word in words]
        table = [sorted(zip(ngrams, next(numbers), strict=True))]
        for order, counts in zip(content["ngrams"], numbers, strict=True):
            ngrams = [(*ngrams[one], words[last]) for one, last in zip(order["first"], order["last"], strict=True)]
            table.append(sorted(zip(ngrams, counts, strict=True)))
        return json_digest([self.n_images, table])

    def save(self, path: str | Path) -> None:
        """Write the table as JSON.

        N-grams of a single image are left out, most of the table: CIDEr counts an n-gram of no image as if one image
        had it, so scores are the same.

        Args:
            path: The file.
        """
        content = {"format": _FORMAT, "version": _VERSION, **self._content()}
        Path(path).write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")

    def _content(self) -> dict[str, Any]:
        """The table without n-grams of a single image."""
        kept = [counts > 1 for counts in self.counts]
        renumbered = [np.cumsum(keep) - 1 for keep in kept]
        orders = []
        for n, keys in enumerate(self.vocabulary.keys, start=1):
            # Every image that has an n-gram has its first words too, so those are kept with it.
            first, last = unpack(keys[kept[n]])
            orders.append({"first": renumbered[n - 1][first].tolist(), "last": renumbered[0][last].tolist()})
        return {
            "n_images": self.n_images,
            "words": [word for word, keep in zip(self.vocabulary.words, kept[0], strict=True) if keep],
            "ngrams": orders,
            "counts": [counts[keep].tolist() for counts, keep in zip(self.counts, kept, strict=True)],
        }

    @classmethod
    def load(cls, path: str | Path) -> DocumentFrequencies:
        """Read a table that :meth:`save` wrote.

        Args:
            path: The file.

        Returns:
            The table.

        Raises:
            ValueError: If the file holds something else.
        """
        try:
            content: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError:  # no JSON, or no text at all
            content = None
        if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (_FORMAT, _VERSION):
            raise ValueError(
                f"{path} is no table of document frequencies that this version reads (format {_FORMAT!r}, version "
                f"{_VERSION}); write one with DocumentFrequencies.from_references(...).save(path)"
            )
        words = {word: number for number, word in enumerate(content["words"])}
        keys = tuple(
            pack(np.asarray(order["first"], np.int64), np.asarray(order["last"], np.int64))
            for order in content["ngrams"]
        )
        counts = tuple(np.asarray(numbers, np.int64) for numbers in content["counts"])
        return cls(int(content["n_images"]), NgramVocabulary(words, keys), counts)
