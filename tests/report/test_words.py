"""Scores by word: every token's score goes to one word, and the words of equal models have no log-ratio."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hf_contrastive_caption.captioners import caption_batch, captioner_for
from hf_contrastive_caption.evaluation.pool import ImagePool
from hf_contrastive_caption.processing import CaptionProcessor
from hf_contrastive_caption.report.words import CaptionScores, log_ratios, score_captions, word_of_tokens
from tests import tiny

TEXTS = ("a dog's tail", "two cafés , closed", "the 日本 sign", "x")
SPECIAL = {"unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}


def byte_level() -> PreTrainedTokenizerFast:
    """Bytes only, so that letters beyond ASCII take several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=270, special_tokens=list(SPECIAL.values()), initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["a dog sat"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def word_piece() -> PreTrainedTokenizerFast:
    """Lower case, with punctuation cut off."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=list(SPECIAL.values()))
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def metaspace() -> PreTrainedTokenizerFast:
    """A sign for the space before a word, which may be a token of its own."""
    tokenizer = Tokenizer(
        models.Unigram([("<unk>", 0.0), ("▁", -1.0), *((letter, -2.0) for letter in "adogstil'")], 0)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)
    made.add_special_tokens({"eos_token": "<eos>"})
    return made


@pytest.mark.parametrize("make", [byte_level, word_piece, metaspace])
@pytest.mark.parametrize("text", TEXTS)
def test_each_token_belongs_to_one_word_in_order(make, text):
    tokenizer = make()
    processor = CaptionProcessor(tokenizer, tiny.image_processor(), tokenizer.eos_token_id)
    ids = processor.tokenize([text]).input_ids[0]
    words = word_of_tokens(processor, text, ids)
    number = len(text.split())
    assert words == sorted(words)
    assert words[-1] == number
    assert words.count(number) == 1
    if make is not metaspace:  # which knows few letters: its unknown ones stand for several
        assert set(words) == set(range(number + 1))


def test_tokens_of_known_words():
    processor = CaptionProcessor(byte_level(), tiny.image_processor(), byte_level().eos_token_id)
    ids = processor.tokenizer("a dog é").input_ids
    shown = processor.tokenizer.convert_ids_to_tokens(ids)
    words = word_of_tokens(processor, "a dog é", [*ids, processor.end_token_id])
    assert shown[0] == "a"
    assert words[0] == 0
    assert words[-3:] == [2, 2, 3]  # two bytes of one letter, and the end
    assert word_of_tokens(processor, "", [processor.end_token_id]) == [0]


def test_bytes_of_a_letter_stay_with_their_word_and_cut_captions_with_their_beginning():
    processor = CaptionProcessor(byte_level(), tiny.image_processor(), byte_level().eos_token_id)
    text = "é dog é"
    ids = processor.tokenize([text]).input_ids[0]
    words = word_of_tokens(processor, text, ids)
    assert words == sorted(words) and words[:2] == [0, 0] and words[-1] == 3
    for length in range(1, len(ids) - 1):
        assert word_of_tokens(processor, text, [*ids[:length], ids[-1]], cut=True) == [*words[:length], 3]


def test_sums_are_the_log_probabilities():
    captioner = captioner_for(tiny.captioner_model(), tiny.processing())
    images, texts = tiny.images(3), [["a dog", "two red cats"], [], ["the sign ."]]
    texts = [[tiny.texts(1, seed)[0] for seed in range(len(row))] for row in texts]
    scores = score_captions(captioner, ImagePool(images), texts, batch_size=2)
    assert [len(row) for row in scores] == [2, 0, 1]
    ids = captioner.processor.tokenize([*texts[0], *texts[2]]).input_ids
    with torch.no_grad():
        captioner.model.eval()
        batch = caption_batch(ids, [0, 0, 2])
        expected = captioner.log_probs(captioner.model, captioner.processor.process_images(images), batch)
    found = [score for row in scores for score in row]
    np.testing.assert_allclose([score.log_prob for score in found], expected.numpy(), atol=1e-4)
    for score, text in zip(found, [*texts[0], *texts[2]], strict=True):
        assert score.by_word.sum() == pytest.approx(score.log_prob, abs=1e-9)
        assert len(score.by_word) == len(text.split()) + 1


def test_log_ratios_of_words():
    target = CaptionScores(-3.0, np.array([-1.0, -1.5, -0.5]))
    reference = CaptionScores(-4.5, np.array([-1.5, -1.5, -1.5]))
    words = log_ratios("a dog", target, reference)
    assert [(word.text, word.log_ratio) for word in words] == [("a", 0.5), ("dog", 0.0), ("", 1.0)]
