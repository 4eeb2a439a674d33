"""CIDEr-D of pairs equals CIDEr-D of one caption after the other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_contrastive_caption.data.scenes import sample_scene
from hf_contrastive_caption.evaluation.metrics.cider import cider_d
from hf_contrastive_caption.evaluation.metrics.cider_pairs import CiderDPairs
from hf_contrastive_caption.evaluation.metrics.document_frequencies import DocumentFrequencies
from hf_contrastive_caption.evaluation.metrics.prepared import PreparedReferences
from hf_contrastive_caption.evaluation.metrics.tokenization import ptb_tokenize

pytestmark = pytest.mark.filterwarnings("ignore:the document frequencies of CIDEr")

WORDS = st.lists(st.sampled_from("a b c d".split()), max_size=7)
SETS = st.lists(st.lists(WORDS, min_size=1, max_size=3), min_size=1, max_size=6)


def naive(references: PreparedReferences, captions: list[int], image: int) -> np.ndarray:
    flat = [words for of_one in references.words for words in of_one]
    frequencies = DocumentFrequencies.from_references(references)
    return cider_d([flat[one] for one in captions], [references.words[image]] * len(captions), frequencies).per_image


@given(SETS)
@settings(deadline=None)
def test_pairs_are_scored_as_one_by_one(words: list[list[list[str]]]) -> None:
    """Captions without words, with repeated words, and with n-grams that all images have."""
    references = PreparedReferences(words)
    pairs = CiderDPairs(references)
    everything = np.arange(int(references.per_image.sum()))
    for image in range(len(words)):
        own = references.first[image] + np.arange(references.per_image[image])
        found = pairs.scores(everything, own)
        np.testing.assert_allclose(found, naive(references, everything.tolist(), image), atol=1e-12)


def test_scenes_agree_to_rounding() -> None:
    references = PreparedReferences.from_strings([sample_scene(0, "train", n)[1] for n in range(600)], ptb_tokenize)
    captions = np.random.default_rng(0).integers(0, 3000, 300)
    found = CiderDPairs(references).scores(captions, np.arange(35, 40))
    np.testing.assert_allclose(found, naive(references, captions.tolist(), 7), atol=1e-12)
    assert found.max() > 1.5 and (found < 0.1).mean() > 0.3
