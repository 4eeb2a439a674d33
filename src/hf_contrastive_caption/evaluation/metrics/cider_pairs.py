"""CIDEr-D of any captions of a data set against the captions of any of its images, without texts for each pair.

:func:`cider_d` takes one caption for each image. Here one collection holds all captions, what they need is computed
once, and an image's captions are the references for hundreds of others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hf_contrastive_caption.data.table import ragged_ranges
from hf_contrastive_caption.evaluation.metrics.cider import SIGMA, Floats, ngram_weights, tfidf_vectors
from hf_contrastive_caption.evaluation.metrics.document_frequencies import DocumentFrequencies
from hf_contrastive_caption.evaluation.metrics.ngrams import MAX_N, Integers, look_up, unpack
from hf_contrastive_caption.evaluation.metrics.prepared import PreparedReferences


class CiderDPairs:
    """Scores captions of a collection against others of it.

    Args:
        references: The words of all captions, by image; document frequencies are counted in them. Captions are
            numbered through.
    """

    def __init__(self, references: PreparedReferences) -> None:
        counts = references.counts
        frequencies = DocumentFrequencies.from_references(references)
        weights = ngram_weights(counts.vocabulary, frequencies)
        texts, ngrams, values = [], [], []
        offset = 0
        for n in range(MAX_N):
            text, ngram = unpack(counts.orders[n].keys)
            value, norm = tfidf_vectors(counts, n, weights[n])
            scale = norm[text]  # 0 where a text has no n-gram that tells images apart; so is the value then
            texts.append(text)
            ngrams.append(ngram + offset)
            values.append(np.stack([value, np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)]))
            offset += counts.vocabulary.size(n + 1)
        text = np.concatenate(texts)
        order = np.argsort(text, kind="stable")
        #: Of each caption's n-grams of all lengths, behind each other, (n_entries,): the number of the n-gram, how
        #: much it weighs, and one over the length of the caption's vector of that n.
        self._ngram: Integers = np.concatenate(ngrams)[order]
        self._value, self._inverse_norm = np.concatenate(values, axis=1)[:, order]
        self._start: Integers = np.searchsorted(text[order], np.arange(len(counts.lengths) + 1))
        self._bigrams: Integers = np.maximum(counts.lengths - 1, 0)  # (n_captions,)

    def scores(self, captions: NDArray[np.int64], references: Sequence[int] | NDArray[np.int64]) -> Floats:
        """CIDEr-D of captions, each against the same references.

        Args:
            captions: Caption numbers, (n,).
            references: Caption numbers of the references, (n_references,).

        Returns:
            Scores between 0 and 10, (n,).
        """
        theirs = np.asarray(references)
        entries, reference = self._entries(theirs)
        known, column = np.unique(self._ngram[entries], return_inverse=True)
        table = np.zeros((len(known), len(theirs)))  # weight of each n-gram in each reference
        table[column, reference] = self._value[entries]
        scale = np.zeros_like(table)
        scale[column, reference] = self._inverse_norm[entries]
        entries, caption = self._entries(captions)
        place = look_up(known, self._ngram[entries])
        entries, caption, place = entries[place >= 0], caption[place >= 0], place[place >= 0]
        products = np.minimum(self._value[entries, None], table[place]) * table[place]  # (n_common, n_references)
        products *= self._inverse_norm[entries, None] * scale[place]
        similarity = np.zeros((len(captions), len(theirs)))
        np.add.at(similarity, caption, products)
        difference = self._bigrams[captions][:, None] - self._bigrams[theirs]
        similarity *= np.exp(-(difference**2) / (2 * SIGMA**2)) / MAX_N
        return np.asarray(similarity.mean(1) * 10)

    def _entries(self, captions: NDArray[np.int64]) -> tuple[Integers, Integers]:
        """The n-grams of captions, and the place of each one's caption among them, both (n_entries,)."""
        starts = self._start[captions]
        lengths = self._start[captions + 1] - starts
        return ragged_ranges(starts, lengths), np.repeat(np.arange(len(captions)), lengths)
