"""All captions against all images: the same numbers as one forward per pair."""

from __future__ import annotations

import copy
import functools
import logging
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, VisionEncoderDecoderModel, ViTModel
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions

from hf_contrastive_caption.captioners import Captioner, caption_batch, captioner_for
from hf_contrastive_caption.captioners.base import TrieScorer
from hf_contrastive_caption.captioners.encoder_decoder import EncoderDecoderCaptioner
from hf_contrastive_caption.captioners.packing import sum_by_caption
from hf_contrastive_caption.captioners.pairs import PairScorer
from hf_contrastive_caption.captioners.tries import PrefixTrie, prefix_trie
from hf_contrastive_caption.captioners.verification import exact_tries
from tests import tiny

BY_TRIES = ("gpt2", "bert", "roberta")
BY_ROWS = ("mbart", "trocr")
BUDGETS = (1, 100_000, 2**31)
Captions = list[list[int]]

# Few words, so that captions share beginnings; without an end token of their own some are prefixes of others.
words = st.lists(st.integers(4, 7), max_size=5)
closed = words.map(lambda ids: [*ids, tiny.EOS])
caption_sets = st.lists(st.one_of(closed, words.filter(bool)), min_size=1, max_size=7)

CAPTIONS: Captions = [
    [tiny.EOS],
    [7, 8, 9, tiny.EOS],
    [7, 8, tiny.EOS],
    [7, 8, 9, tiny.EOS],  # the second once more
    [7, 8],  # the beginning of others
    [30, 31, 32, 33, 34, 35, tiny.EOS],
    [7, 50, tiny.EOS],
]


@functools.cache
def ready(decoder: tiny.DecoderName, dtype: torch.dtype = torch.float32) -> Captioner:
    captioner = captioner_for(tiny.captioner_model(decoder).to(dtype).eval(), tiny.processing())
    captioner.verify()
    return captioner


def one_by_one(captioner: Captioner, images: dict[str, Tensor], captions: Sequence[Sequence[int]]) -> Tensor:
    """A plain forward per pair, (n_images, n_captions)."""
    num_images = images["pixel_values"].shape[0]
    rows = []
    with torch.no_grad():
        for image in range(num_images):
            batch = caption_batch(captions, [image] * len(captions))
            rows.append(sum_by_caption(captioner.reference_log_probs(images, batch).double(), batch["lengths"]))
    return torch.stack(rows)


class TestScores:
    @pytest.mark.parametrize("decoder", BY_TRIES + BY_ROWS)
    @settings(max_examples=6, deadline=None)
    @given(captions=caption_sets, budget=st.sampled_from(BUDGETS))
    def test_equal_one_by_one(self, decoder: tiny.DecoderName, captions: Captions, budget: int) -> None:
        captioner, images = ready(decoder), tiny.pixel_values(2)
        scorer = PairScorer(captioner, captions, budget)
        assert scorer.plan.method == ("prefix tries" if decoder in BY_TRIES else "rows")
        scores = scorer.scores(images)
        assert (scores.dtype, scores.shape) == (torch.float32, (2, len(captions)))
        torch.testing.assert_close(scores.double(), one_by_one(captioner, images, captions), rtol=0, atol=1e-4)

    @pytest.mark.parametrize("decoder", BY_TRIES + BY_ROWS)
    def test_equal_whatever_the_memory_budget(self, decoder: tiny.DecoderName) -> None:
        captioner, images = ready(decoder), tiny.pixel_values(2)
        captions = [*CAPTIONS, *([4 + number, 4 + number // 3, tiny.EOS] for number in range(30))]
        expected = one_by_one(captioner, images, captions)
        assert expected.std() > 3  # far from uniform, so that errors show
        assert (expected[0] - expected[1]).abs().max() > 0.5
        for budget in BUDGETS:
            scores = PairScorer(captioner, captions, budget).scores(images)
            torch.testing.assert_close(scores.double(), expected, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("decoder", BY_TRIES + BY_ROWS)
    def test_are_exact_in_float64(self, decoder: tiny.DecoderName) -> None:
        captioner, images = ready(decoder, torch.float64), tiny.pixel_values(2, dtype=torch.float64)
        scores = PairScorer(captioner, CAPTIONS).scores(images)
        expected = one_by_one(captioner, images, CAPTIONS)
        # Nothing is lost but the rounding of the result to float32, half a unit of its last place.
        torch.testing.assert_close(scores.double(), expected, rtol=2.0**-24, atol=1e-10)

    @pytest.mark.parametrize("decoder", ["gpt2", "mbart"])
    def test_of_one_image_do_not_depend_on_the_others(self, decoder: tiny.DecoderName) -> None:
        scorer, images = PairScorer(ready(decoder), CAPTIONS), tiny.pixel_values(3)
        together = scorer.scores(images)
        alone = [scorer.scores({"pixel_values": image[None]}) for image in images["pixel_values"]]
        torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)

    @pytest.mark.parametrize("decoder", ["gpt2", "mbart"])
    def test_a_repeated_caption_has_the_same_score_to_the_last_bit(self, decoder: tiny.DecoderName) -> None:
        scores = PairScorer(ready(decoder), CAPTIONS).scores(tiny.pixel_values(2))
        assert torch.equal(scores[:, 1], scores[:, 3])
        assert not torch.equal(scores[:, 1], scores[:, 2])

    @pytest.mark.parametrize("decoder", BY_TRIES)
    def test_the_longest_caption_of_the_decoder(self, decoder: tiny.DecoderName) -> None:
        captioner, images = ready(decoder), tiny.pixel_values(1)
        longest = [*range(4, 64), *range(10, 13), tiny.EOS]
        assert len(longest) == captioner.processor.max_caption_tokens
        captions = [longest, [*longest[:60], 5, tiny.EOS]]
        scores = PairScorer(captioner, captions, 1).scores(images)
        torch.testing.assert_close(scores.double(), one_by_one(captioner, images, captions), rtol=1e-5, atol=0)

    def test_an_encoder_of_another_width_has_tries_too(self) -> None:
        captioner = captioner_for(tiny.captioner_model(n_embd=24).eval(), tiny.processing())
        images = tiny.pixel_values(2)
        scorer = PairScorer(captioner, CAPTIONS)
        assert scorer.plan.method == "prefix tries"
        expected = one_by_one(captioner, images, CAPTIONS)
        torch.testing.assert_close(scorer.scores(images).double(), expected, rtol=0, atol=1e-4)


class TestPlan:
    @pytest.mark.parametrize("decoder", ["gpt2", "mbart"])
    def test_counts(self, decoder: tiny.DecoderName) -> None:
        plan = PairScorer(ready(decoder), CAPTIONS).plan
        distinct = {tuple(ids) for ids in CAPTIONS}
        tokens = sum(map(len, distinct))
        prefixes = {ids[:end] for ids in distinct for end in range(len(ids))}
        assert (plan.num_captions, plan.num_distinct, plan.num_tokens) == (7, 6, tokens)
        assert plan.num_positions == (len(prefixes) if decoder == "gpt2" else tokens)

    @pytest.mark.parametrize("decoder", ["gpt2", "mbart"])
    def test_less_memory_means_smaller_pieces(self, decoder: tiny.DecoderName) -> None:
        beginning = [4 + place % 3 for place in range(40)]  # longer than the smallest trie
        captions = [[*beginning, word, tiny.EOS] for word in range(4, 64)]
        small, middle, large = (PairScorer(ready(decoder), captions, budget).plan for budget in BUDGETS)
        assert small.images_at_once == 1 <= middle.images_at_once < large.images_at_once
        assert small.chunk_size < large.chunk_size
        if decoder == "gpt2":
            assert small.num_positions == 60 * 42  # each caption a trie of its own
            assert large.num_positions == 41 + 60  # the root, what they share, and the word of each

    @pytest.mark.parametrize("packing", ["auto", "repeated"])
    def test_rows_are_never_larger_than_planned(self, packing: Any, caplog: pytest.LogCaptureFixture) -> None:
        """Lengths that differ: rows are padded to the longest of them."""
        captioner = captioner_for(tiny.captioner_model().eval(), tiny.processing(), packing=packing)
        captioner.verify()
        captioner._tries = False
        captions = [[4 + number % 50, *range(5, 5 + number // 4), tiny.EOS] for number in range(60)]
        scorer = PairScorer(captioner, captions, 800_000)
        seen: list[int] = []
        hook = captioner.decoder.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
        )
        scores = scorer.scores(tiny.pixel_values(1))
        hook.remove()
        assert len(seen) > 2
        assert max(seen) <= scorer.plan.chunk_size
        assert not caplog.records  # packed rows within the decoder's positions
        expected = one_by_one(captioner, tiny.pixel_values(1), captions)
        torch.testing.assert_close(scores.double(), expected, rtol=0, atol=1e-4)


class Tempered(GPT2LMHeadModel):
    """A decoder that changes its logits after the projection."""

    def forward(self, input_ids: Tensor, encoder_hidden_states: Tensor, **kwargs: Any) -> Any:
        outputs = super().forward(input_ids, encoder_hidden_states=encoder_hidden_states, **kwargs)
        return CausalLMOutputWithCrossAttentions(logits=outputs.logits * 0.5)


class Factored(nn.Module):
    """A projection that is no ``nn.Linear`` and has no ``weight``; ``out_features`` lets it be called in pieces."""

    def __init__(self, sized: bool) -> None:
        super().__init__()
        if sized:
            self.out_features = tiny.VOCABULARY_SIZE
        self.inner = nn.Linear(32, 8, bias=False)
        self.outer = nn.Linear(8, tiny.VOCABULARY_SIZE)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(hidden)))


class TestOtherHeads:
    @pytest.mark.parametrize("budget", [1, 2**31])
    def test_logits_that_are_changed_after_the_projection(self, budget: int) -> None:
        torch.manual_seed(0)
        config = tiny.decoder_config("gpt2", add_cross_attention=True, is_decoder=True)
        encoder = ViTModel(tiny.encoder_config(), add_pooling_layer=False)
        model = VisionEncoderDecoderModel(encoder=encoder, decoder=Tempered(config)).eval()
        model.config.decoder_start_token_id = tiny.BOS
        captioner, images = captioner_for(model, tiny.processing()), tiny.pixel_values(2)
        scorer = PairScorer(captioner, CAPTIONS, budget)
        assert (captioner.head, scorer.plan.method) == ("logits", "prefix tries")
        expected = one_by_one(captioner, images, CAPTIONS)
        torch.testing.assert_close(scorer.scores(images).double(), expected, rtol=0, atol=1e-4)

    @pytest.mark.parametrize(("sized", "head"), [(True, "fused"), (False, "logits")])
    @pytest.mark.parametrize("budget", [1, 2**31])
    def test_a_head_that_is_no_linear_layer(self, sized: bool, head: str, budget: int) -> None:
        model = tiny.captioner_model().eval()
        torch.manual_seed(1)
        model.decoder.lm_head = Factored(sized)
        for weight in model.decoder.lm_head.parameters():
            nn.init.normal_(weight)
        captioner, images = captioner_for(model, tiny.processing()), tiny.pixel_values(2)
        scorer = PairScorer(captioner, CAPTIONS, budget)
        assert (captioner.head, scorer.plan.method) == (head, "prefix tries")
        expected = one_by_one(captioner, images, CAPTIONS)
        torch.testing.assert_close(scorer.scores(images).double(), expected, rtol=0, atol=1e-4)


class TestWrongInput:
    def test_no_caption(self) -> None:
        with pytest.raises(ValueError, match="no captions"):
            PairScorer(ready("gpt2"), [])

    def test_a_caption_without_tokens(self) -> None:
        with pytest.raises(ValueError, match="caption 1 has no tokens"):
            PairScorer(ready("gpt2"), [[tiny.EOS], []])

    @pytest.mark.parametrize("decoder", ["gpt2", "mbart"])
    def test_a_caption_too_long_for_the_decoder(self, decoder: tiny.DecoderName) -> None:
        with pytest.raises(ValueError, match=r"caption 1 has 65 tokens, but .* at most 64"):
            PairScorer(ready(decoder), [[tiny.EOS], [5] * 64 + [tiny.EOS]])

    def test_no_memory(self) -> None:
        with pytest.raises(ValueError, match="max_memory_bytes must be at least 1, but is 0"):
            PairScorer(ready("gpt2"), [[tiny.EOS]], 0)


@pytest.mark.parametrize("decoder", ["gpt2", "mbart"])
def test_the_model_is_left_as_it_was(decoder: tiny.DecoderName) -> None:
    model = tiny.captioner_model(decoder, dropout=0.5)
    model.encoder.eval()  # a frozen encoder, say
    modes = [module.training for module in model.modules()]
    assert 0 < sum(modes) < len(modes)
    weights = copy.deepcopy(model.state_dict())
    captioner, images = captioner_for(model, tiny.processing()), tiny.pixel_values(2)
    scorer = PairScorer(captioner, CAPTIONS)
    first, again = scorer.scores(images), scorer.scores(images)
    assert torch.equal(first, again)  # without dropout, although the model trains
    assert [module.training for module in model.modules()] == modes
    assert not [name for name, module in model.named_modules() if module._forward_hooks or module._forward_pre_hooks]
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())
    with pytest.raises(ValueError, match="channel dimension"):
        scorer.scores({"pixel_values": images["pixel_values"][:, :1]})
    assert [module.training for module in model.modules()] == modes


class Wrong(EncoderDecoderCaptioner):
    """Its tries are off by a little, not numbers, refused, or none at all."""

    fault: float | Exception | None = 0.0
    only_later: bool = False

    def trie_scorer(self, images: dict[str, Tensor], max_logits_bytes: int | None = None) -> TrieScorer | None:
        if self.fault is None:
            return None
        right = super().trie_scorer(images, max_logits_bytes)
        assert right is not None
        calls: list[PrefixTrie] = []

        def score(trie: PrefixTrie) -> Tensor:
            calls.append(trie)
            if self.only_later and len(calls) == 1:
                return right(trie)
            if isinstance(self.fault, Exception):
                raise self.fault
            assert self.fault is not None
            return right(trie) + self.fault

        return score


def wrong(fault: float | Exception | None, *, only_later: bool = False) -> Wrong:
    right = ready("gpt2")
    captioner = Wrong(right.model, right.processor)
    captioner.fault, captioner.only_later = fault, only_later
    captioner.verify()
    return captioner


class TestExactTries:
    @pytest.mark.parametrize("decoder", BY_TRIES)
    def test_are_used_in_silence(self, decoder: tiny.DecoderName, caplog: pytest.LogCaptureFixture) -> None:
        assert exact_tries(ready(decoder))
        assert ready(decoder).tries
        assert not caplog.records

    @pytest.mark.parametrize("decoder", BY_ROWS)
    def test_are_not_looked_for_where_packing_is_not_exact(self, decoder: tiny.DecoderName) -> None:
        assert not ready(decoder).tries

    @pytest.mark.parametrize("only_later", [False, True])
    @pytest.mark.parametrize(
        ("fault", "message"),
        [
            (0.01, r"off by 0\.\d+ nats"),
            (float("nan"), "off by inf nats"),
            (RuntimeError("no such mask"), "no such mask"),
        ],
    )
    def test_are_refused_with_one_warning(
        self, fault: float | Exception, message: str, only_later: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        captioner, images = wrong(fault, only_later=only_later), tiny.pixel_values(2)
        assert not exact_tries(captioner)
        caplog.clear()
        scorers = [PairScorer(captioner, CAPTIONS) for _ in range(2)]
        assert [scorer.plan.method for scorer in scorers] == ["rows", "rows"]
        expected = one_by_one(captioner, images, CAPTIONS)
        torch.testing.assert_close(scorers[0].scores(images).double(), expected, rtol=0, atol=1e-4)
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert record.getMessage().startswith("VisionEncoderDecoderModel of ViTModel and GPT2LMHeadModel")
        assert re.search(message, record.getMessage())

    def test_a_difference_within_rounding_is_allowed(self) -> None:
        assert exact_tries(wrong(1e-6))

    def test_a_family_without_them(self, caplog: pytest.LogCaptureFixture) -> None:
        assert PairScorer(wrong(None), CAPTIONS).plan.method == "rows"
        assert not caplog.records

    @pytest.mark.parametrize("positions", [2, 3])
    def test_a_decoder_with_few_positions(self, positions: int) -> None:
        captioner = captioner_for(tiny.captioner_model(n_positions=positions).eval(), tiny.processing())
        captions, images = [[tiny.EOS], [5, tiny.EOS], [6, tiny.EOS]], tiny.pixel_values(2)
        scorer = PairScorer(captioner, captions)
        assert scorer.plan.method == "prefix tries"
        expected = one_by_one(captioner, images, captions)
        torch.testing.assert_close(scorer.scores(images).double(), expected, rtol=0, atol=1e-4)


class TestTrieScorer:
    @pytest.mark.parametrize("decoder", BY_TRIES)
    def test_from_images_and_from_their_states(self, decoder: tiny.DecoderName) -> None:
        captioner, images = ready(decoder), tiny.pixel_values(2)
        captions = sorted(CAPTIONS)
        trie = prefix_trie(captions, captioner.start_token_id)
        expected = one_by_one(captioner, images, captions)
        for given_images in (images, captioner.encode(images)):
            for max_logits_bytes in (None, 1, 2 * 4 * tiny.VOCABULARY_SIZE * 3):
                score = captioner.trie_scorer(given_images, max_logits_bytes)
                assert score is not None
                for _ in range(2):  # the second from the keys and values that the first one kept
                    torch.testing.assert_close(trie.sum_paths(score(trie)), expected, rtol=0, atol=1e-4)
