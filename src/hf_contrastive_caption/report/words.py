"""Whose doing a caption is, word by word: ln p of a caption's tokens by target and reference, gathered by word."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from hf_contrastive_caption.captioners import Captioner, caption_batch
from hf_contrastive_caption.captioners.determinism import evaluation_mode
from hf_contrastive_caption.evaluation.bootstrap import Floats
from hf_contrastive_caption.evaluation.pool import ImagePool
from hf_contrastive_caption.processing import CaptionProcessor

logger = logging.getLogger(__name__)

_UNFINISHED = "\ufffd"
"""What tokenizers of bytes show of a letter that is not complete."""


class Word(NamedTuple):
    """A word of a caption.

    Attributes:
        text: The word; empty for the end of the caption.
        log_ratio: ln p_target - ln p_reference of its tokens, in nats.
    """

    text: str
    log_ratio: float


class CaptionScores(NamedTuple):
    """A caption's score under one captioner.

    Attributes:
        log_prob: ln p(caption | image) in nats.
        by_word: The same by word, the end of the caption last, (n_words + 1,); its sum is ``log_prob``.
    """

    log_prob: float
    by_word: Floats


def score_captions(
    captioner: Captioner, pool: ImagePool, captions: Sequence[Sequence[str]], batch_size: int = 32
) -> list[list[CaptionScores]]:
    """Score captions with their images, word by word, without gradients.

    Args:
        captioner: Who scores.
        pool: The images, (n_images,).
        captions: Any number of captions for each image, (n_images,).
        batch_size: Images scored at once.

    Returns:
        The scores in the order of the captions. Of one with more tokens than are scored, those of its beginning.
    """
    scores: list[list[CaptionScores]] = []
    n_cut = 0
    processor = captioner.processor
    captioner.verify()
    with evaluation_mode(captioner.model), torch.no_grad():
        for start in range(0, len(pool), batch_size):
            numbers = range(start, min(start + batch_size, len(pool)))
            texts = [text for number in numbers for text in captions[number]]
            owners = [place for place, number in enumerate(numbers) for _ in captions[number]]
            if not texts:
                scores += [[] for _ in numbers]
                continue
            images = captioner.placed(processor.process_images([pool[number] for number in numbers]))
            ids, cut = processor.tokenize(texts)
            n_cut += sum(cut)
            batch = caption_batch(ids, owners, captioner.device)
            tokens = captioner.token_log_probs(captioner.model, images, batch).cpu().double()
            found = [
                _by_word(processor, text, own_ids, own.numpy(), own_cut)
                for text, own_ids, own, own_cut in zip(
                    texts, ids, tokens.split([len(one) for one in ids]), cut, strict=True
                )
            ]
            for place, number in enumerate(numbers):
                scores.append([score for score, owner in zip(found, owners, strict=True) if owner == place])
                assert len(scores[-1]) == len(captions[number])
    if n_cut:
        logger.warning(
            "%d captions have more than the %s tokens that are scored; words behind these count 0",
            n_cut,
            processor.max_caption_tokens,
        )
    return scores


def log_ratios(text: str, target: CaptionScores, reference: CaptionScores) -> tuple[Word, ...]:
    """The words of a caption with their log-ratios, and its end."""
    ratios = target.by_word - reference.by_word
    return tuple(Word(word, float(ratio)) for word, ratio in zip((*text.split(), ""), ratios, strict=True))


def word_of_tokens(processor: CaptionProcessor, text: str, ids: Sequence[int], *, cut: bool = False) -> list[int]:
    """Which word of a caption each of its tokens belongs to; the number of words for the end and what shows nothing.

    A token belongs to the word in which its last letter stands. Letters are counted without the spaces between them,
    which tokenizers keep, drop or add as they like ("dog's" comes back as "dog ' s" from some); where a tokenizer
    does not give the text back letter by letter, as with words that it does not know, by their share of all letters.

    Args:
        processor: Whose tokens they are.
        text: The caption.
        ids: Its tokens, the end token included, (n_tokens,).
        cut: Whether they are those of its beginning alone.
    """
    ends = np.cumsum([len(word) for word in text.split()])  # (n_words,)
    if not len(ends):
        return [0] * len(ids)
    begun: list[str] = processor.tokenizer.batch_decode(
        [list(ids[: n + 1]) for n in range(len(ids))], skip_special_tokens=True
    )
    shown = [len("".join(text.rstrip(_UNFINISHED).split())) for text in begun]
    scale = 1.0 if cut else ends[-1] / max(1, shown[-1])
    words, before = [], 0
    for number, token in enumerate(ids):
        letters = max(before, shown[number])
        if token == processor.end_token_id and number == len(ids) - 1:
            words.append(len(ends))
        elif letters > before:
            words.append(min(int(np.searchsorted(ends, letters * scale - 1e-9)), len(ends) - 1))
        else:  # a space before a word, or a part of a letter: to the word that follows
            words.append(min(int(np.searchsorted(ends, before * scale + 1e-9, side="right")), len(ends) - 1))
        before = letters
    return words


def _by_word(
    processor: CaptionProcessor, text: str, ids: Sequence[int], log_probs: Floats, cut: bool
) -> CaptionScores:
    by_word = np.zeros(len(text.split()) + 1)
    np.add.at(by_word, word_of_tokens(processor, text, ids, cut=cut), log_probs)
    return CaptionScores(float(log_probs.sum()), by_word)
