"""Captions to tokens and back, fingerprints, and what is saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoImageProcessor, AutoTokenizer, BertTokenizerFast, PreTrainedTokenizer

from hf_contrastive_caption.processing import CaptionProcessor
from tests import tiny

PROCESSING = tiny.processing()


def processor(max_caption_tokens: int | None = None) -> CaptionProcessor:
    return CaptionProcessor(*PROCESSING, end_token_id=tiny.EOS, max_caption_tokens=max_caption_tokens)


def bert_tokenizer(words: tuple[str, ...] = ("a", "red", "dog")) -> BertTokenizerFast:
    names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words)
    return BertTokenizerFast(vocab={name: number for number, name in enumerate(names)})


class Letters(PreTrainedTokenizer):
    """A tokenizer without the fast backend: one token for each letter."""

    def __init__(self, alphabet: str) -> None:
        self.ids = {token: number for number, token in enumerate(["<pad>", "<eos>", *alphabet])}
        super().__init__(pad_token="<pad>", eos_token="<eos>")

    @property
    def vocab_size(self) -> int:
        return len(self.ids)

    def get_vocab(self) -> dict[str, int]:
        return dict(self.ids)

    def _tokenize(self, text: str, **kwargs: object) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self.ids[token]

    def _convert_id_to_token(self, index: int) -> str:
        return list(self.ids)[index]


class TestTokenize:
    def test_every_caption_is_closed_once(self) -> None:
        tokens = processor().tokenize(["a red dog", "cat", "", "a red dog <eos>"])
        words = PROCESSING[0].convert_tokens_to_ids(["a", "red", "dog", "cat"])
        closed = [*words[:3], tiny.EOS]
        assert tokens.input_ids == [closed, [words[3], tiny.EOS], [tiny.EOS], closed]
        assert tokens.cut == [False] * 4

    def test_the_tokenizers_own_end_token_is_kept(self) -> None:
        tokenizer = bert_tokenizer()
        captioner = CaptionProcessor(tokenizer, PROCESSING[1], end_token_id=3, max_caption_tokens=4)
        tokens = captioner.tokenize(["a dog", "a red dog"])
        assert tokens.input_ids == [[2, 5, 7, 3], [2, 5, 6, 3]]  # [CLS] a dog [SEP]
        assert tokens.cut == [False, True]
        bare = CaptionProcessor(tokenizer, PROCESSING[1], end_token_id=3, add_special_tokens=False)
        assert bare.tokenize(["a dog"]).input_ids == [[5, 7, 3]]

    @given(
        lengths=st.lists(st.integers(0, 12), min_size=1, max_size=5),
        limit=st.one_of(st.none(), st.integers(1, 12)),
    )
    def test_cut_at_the_limit(self, lengths: list[int], limit: int | None) -> None:
        texts = [" ".join(tiny.WORDS[:length]) for length in lengths]
        tokens = processor(limit).tokenize(texts)
        for ids, cut, length in zip(tokens.input_ids, tokens.cut, lengths, strict=True):
            kept = length if limit is None else min(length, limit - 1)
            assert ids == [*range(4, 4 + kept), tiny.EOS]
            assert cut is (kept < length)

    def test_nothing(self) -> None:
        assert processor().tokenize([]) == ([], [])

    def test_one_text_is_no_list_of_letters(self) -> None:
        with pytest.raises(TypeError, match=r"pass \['a dog'\]"):
            processor().tokenize("a dog")

    def test_the_tokenizers_own_truncation_and_padding_do_not_matter(self) -> None:
        tokenizer = tiny.tokenizer()
        tokenizer(["a red dog", "a"], padding="max_length", truncation=True, max_length=2)
        captioner = CaptionProcessor(tokenizer, PROCESSING[1], end_token_id=tiny.EOS)
        assert [len(ids) for ids in captioner.tokenize(["a red dog", "a"]).input_ids] == [4, 2]

    def test_decode_is_the_way_back(self) -> None:
        captions = tiny.texts(20)
        captioner = processor()
        tokens = captioner.tokenize(captions).input_ids
        assert captioner.decode(tokens) == captions
        padded = torch.full((20, 12), tiny.PAD)
        for row, ids in zip(padded, tokens, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        assert captioner.decode(padded) == captions

    def test_a_caption_is_decoded_up_to_its_first_stop_token(self) -> None:
        tokenizer, image_processor = tiny.processing()
        a, dog, cat, runs = tokenizer("a dog cat runs")["input_ids"]
        captioner = CaptionProcessor(tokenizer, image_processor, end_token_id=cat)  # which is no special token
        assert captioner.decode([[a, dog, cat, runs], [cat], []]) == ["a dog", "", ""]
        assert captioner.decode([[cat, a, dog, cat, tiny.PAD]]) == ["a dog"]  # begun with it, as by GPT-2
        assert captioner.decode(torch.tensor([[a, dog, cat, runs]]), [cat, dog]) == ["a"]


class TestImages:
    def test_pixels(self) -> None:
        pictures = tiny.images(3)
        features = processor().process_images(pictures)
        assert list(features) == ["pixel_values"]
        assert features["pixel_values"].shape == (3, 3, 32, 32)
        small = np.asarray(pictures[1].resize((32, 32), resample=2), dtype=np.float64)
        expected = torch.from_numpy(small / 127.5 - 1).permute(2, 0, 1).float()
        torch.testing.assert_close(features["pixel_values"][1], expected, rtol=0, atol=1e-6)


class TestFingerprints:
    def test_use_does_not_change_them(self) -> None:
        tokenizer, image_processor = tiny.processing()
        captioner = CaptionProcessor(tokenizer, image_processor, end_token_id=tiny.EOS)
        text, image = captioner.text_fingerprint(), captioner.image_fingerprint()
        captioner.tokenize(["a dog"])
        captioner.process_images(tiny.images(1))
        tokenizer.pad([{"input_ids": [4]}, {"input_ids": [4, 5]}], return_tensors="pt")
        tokenizer(["a red dog", "a"], padding="max_length", truncation=True, max_length=5)
        assert tokenizer.backend_tokenizer.truncation is not None
        assert captioner.text_fingerprint() == text
        assert captioner.image_fingerprint() == image

    def test_two_that_are_made_alike_are_equal(self) -> None:
        first, second = (CaptionProcessor(*tiny.processing(), end_token_id=tiny.EOS) for _ in range(2))
        assert first.text_fingerprint() == second.text_fingerprint()
        assert first.image_fingerprint() == second.image_fingerprint()

    def test_all_that_changes_tokens_changes_it(self) -> None:
        added = tiny.tokenizer()
        added.add_tokens(["zebra"])
        base = {"tokenizer": PROCESSING[0], "image_processor": PROCESSING[1], "end_token_id": tiny.EOS}
        variants = [
            base,
            {**base, "tokenizer": added},
            {**base, "tokenizer": bert_tokenizer()},
            {**base, "tokenizer": bert_tokenizer(("red", "a", "dog"))},
            {**base, "end_token_id": 4},
            {**base, "max_caption_tokens": 9},
            {**base, "add_special_tokens": False},
        ]
        assert len({CaptionProcessor(**variant).text_fingerprint() for variant in variants}) == len(variants)

    def test_tokenizer_in_python(self) -> None:
        first, second, other = (
            CaptionProcessor(Letters(alphabet), PROCESSING[1], end_token_id=1) for alphabet in ("ab", "ab", "ba")
        )
        assert first.tokenize(["ab", "b"]).input_ids == [[2, 3, 1], [3, 1]]
        fingerprint = first.text_fingerprint()
        first.tokenizer(["ab", "b"], padding="max_length", truncation=True, max_length=5)
        assert first.text_fingerprint() == second.text_fingerprint() == fingerprint
        assert other.text_fingerprint() != fingerprint

    def test_image_size_changes_it(self) -> None:
        other = CaptionProcessor(PROCESSING[0], tiny.image_processor(48), end_token_id=tiny.EOS)
        assert other.image_fingerprint() != processor().image_fingerprint()

    def test_is_a_short_text(self) -> None:
        for fingerprint in (processor().text_fingerprint(), processor().image_fingerprint()):
            assert len(fingerprint) == 32
            assert int(fingerprint, 16) >= 0


class TestSaving:
    def test_both_sides_come_back(self, tmp_path: Path) -> None:
        saved = processor(9)
        saved.save_pretrained(tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        image_processor = AutoImageProcessor.from_pretrained(tmp_path)
        loaded = CaptionProcessor(tokenizer, image_processor, tokenizer.eos_token_id, 9)
        assert loaded.text_fingerprint() == saved.text_fingerprint()
        assert loaded.image_fingerprint() == saved.image_fingerprint()
        captions = tiny.texts(10)
        assert loaded.tokenize(captions) == saved.tokenize(captions)
        pictures = tiny.images(2)
        assert torch.equal(
            loaded.process_images(pictures)["pixel_values"], saved.process_images(pictures)["pixel_values"]
        )


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        processor().end_token_id = 4  # type: ignore[misc]
