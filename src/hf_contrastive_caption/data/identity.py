"""What tells captions and images apart: hashes that are equal where captions say, or images are, the same."""

from __future__ import annotations

import string
import unicodedata
from typing import Any

from hf_contrastive_caption.data.images import BadImageError, hash64, image_hash


def text_key(caption: str) -> int:
    """Hash what a caption says.

    Captions that differ only in case, in white space, in punctuation at their ends, or in how Unicode writes the same
    letters (NFKC) say the same and have the same key.

    Args:
        caption: The caption.

    Returns:
        An unsigned 64-bit number.
    """
    words = " ".join(unicodedata.normalize("NFKC", caption).casefold().split())
    return hash64((_without_punctuation_at_ends(words) or words).encode("utf-8", "surrogatepass"))


def _without_punctuation_at_ends(words: str) -> str:
    first, behind = 0, len(words)
    while first < behind and _is_punctuation_or_space(words[first]):
        first += 1
    while first < behind and _is_punctuation_or_space(words[behind - 1]):
        behind -= 1
    return words[first:behind]


def _is_punctuation_or_space(character: str) -> bool:
    """Of any script: the danda of Hindi, the question mark of Arabic, brackets, dashes and quotation marks."""
    return character in string.punctuation or unicodedata.category(character)[0] in "PZ"


def image_id_key(image_id: Any, row: int) -> int:
    """Hash an image id.

    Raises:
        ValueError: The id is missing.
    """
    if image_id is None:
        raise ValueError(
            f"Row {row} has no image id. Give every row one, or leave the column out: the bytes of the images then "
            "tell which rows show the same image."
        )
    return hash64(str(image_id).encode())


def bytes_key(value: Any, row: int) -> int:
    """Hash an image by its bytes; one that cannot be read is an image of its own until it is opened."""
    try:
        return image_hash(value)
    except BadImageError:
        return hash64(f"unreadable image of row {row}".encode())
