"""Which texts say the same."""

from __future__ import annotations

import pytest

from hf_contrastive_caption.data.identity import text_key

SAME = [
    ("A dog runs.", "a dog  runs ."),
    ("A dog runs", "a Dog\truns!"),
    ("Straße", "STRASSE"),
    ("\ufb01ne", "fine"),
    ("\u00e9t\u00e9", "e\u0301te\u0301"),
    ("'a dog'", "a dog"),
    ("\u090f\u0915 \u0915\u0941\u0924\u094d\u0924\u093e\u0964", "\u090f\u0915 \u0915\u0941\u0924\u094d\u0924\u093e"),
    ("\u0643\u0644\u0628\u061f", "\u0643\u0644\u0628"),
    ("\u300c\u4e00\u53ea\u72d7\u300d", "\u4e00\u53ea\u72d7\u3002"),
    ("\u201eein Hund\u201c \u2014", "\u2039ein Hund\u203a"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_texts_that_say_the_same(one, other):
    assert text_key(one) == text_key(other)


@pytest.mark.parametrize(
    ("one", "other"), [("a dog", "a dogs"), ("a, b", "a b"), ("?", "!"), ("a dog \U0001f415", "a dog"), ("कि", "का")]
)
def test_texts_that_say_something_else(one, other):
    assert text_key(one) != text_key(other)
