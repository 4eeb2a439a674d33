"""Captions and references for the tests of the scorers: tokens over a small vocabulary, so that much is in common."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

Words = list[str]

_words = st.lists(st.sampled_from(["a", "b", "c", "d", "猫", "قط"]), max_size=9)
_some_words = st.lists(st.sampled_from(["a", "b", "c", "d", "猫", "قط"]), min_size=1, max_size=9)

#: Captions and references; captions may be empty, references may not: there pycocoevalcap differs, see test_rouge.
corpora = st.lists(st.tuples(_words, st.lists(_some_words, min_size=1, max_size=4)), min_size=1, max_size=6).map(
    lambda pairs: ([caption for caption, _ in pairs], [references for _, references in pairs])
)


def random_corpus(n_images: int, seed: int = 0) -> tuple[list[Words], list[list[Words]]]:
    """Captions and 1 to 5 references over a vocabulary with frequent and rare words."""
    rng = np.random.default_rng(seed)

    def text() -> Words:
        return [f"w{number}" for number in np.minimum(rng.zipf(1.4, rng.integers(1, 16)), 300)]

    return [text() for _ in range(n_images)], [[text() for _ in range(rng.integers(1, 6))] for _ in range(n_images)]


def for_pycocoevalcap(
    captions: list[Words], references: list[list[Words]]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """References and captions as ``compute_score`` takes them."""
    return (
        {number: [" ".join(words) for words in of_image] for number, of_image in enumerate(references)},
        {number: [" ".join(words)] for number, words in enumerate(captions)},
    )
