"""BLIP-2: what is particular to its two kinds of language models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from hf_contrastive_caption.captioners import Captioner, caption_batch, captioner_for
from hf_contrastive_caption.captioners.blip2 import Blip2EncoderDecoderCaptioner
from hf_contrastive_caption.captioners.pairs import PairScorer
from hf_contrastive_caption.generation import caption_images
from tests import tiny
from tests.captioners.test_families import inputs_of, naive, naive_captions
from tests.families.blip2 import BLIP2, BLIP2_T5, blip2_processing, blip2_t5_model
from tests.families.chat import PROMPT
from tests.families.common import Family


def t5(processing: Any = None, prompt: str | None = PROMPT, **text: Any) -> Captioner:
    return captioner_for(blip2_t5_model(**text), processing or blip2_processing(), prompt=prompt)


class TestEncoderDecoder:
    def test_is_chosen_by_the_config(self) -> None:
        captioner = t5()
        assert isinstance(captioner, Blip2EncoderDecoderCaptioner)
        assert captioner.name == "Blip2ForConditionalGeneration of T5ForConditionalGeneration"

    @pytest.mark.parametrize("scaled", [True, False])
    @pytest.mark.parametrize("tied", [True, False])
    def test_any_head(self, scaled: bool, tied: bool) -> None:
        model = blip2_t5_model(tie_word_embeddings=scaled)
        assert model.language_model.config.scale_decoder_outputs == scaled
        if not tied:
            head = model.language_model.lm_head
            head.weight = torch.nn.Parameter(
                torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(1))
            )
        captioner = captioner_for(model, blip2_processing(), prompt=PROMPT)
        inputs, captions = inputs_of(captioner, 3), tiny.captions([0, 2, 1, 0])
        with torch.no_grad():
            scores = captioner.token_log_probs(model, inputs, captions)
            expected = naive(BLIP2_T5, model, inputs, captions)
        assert (captioner.layout, captioner.head) == ("packed", "fused")
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4)

    def test_captions_longer_than_any_distance_that_is_told_apart(self) -> None:
        captioner = t5(n_positions=16)  # texts that it was trained on, no limit
        assert captioner.processor.max_caption_tokens is None
        inputs = inputs_of(captioner, 2)
        words = torch.randint(4, 60, (24,), generator=torch.Generator().manual_seed(0)).tolist()
        sentences = [[*words[:shared], *words[:length], tiny.EOS] for shared in (0, 9, 20) for length in (3, 22)]
        captions = caption_batch([ids for _ in range(2) for ids in sentences], [0] * 6 + [1] * 6)
        with torch.no_grad():
            packed = captioner.log_probs(captioner.model, inputs, captions)
            expected = naive_captions(BLIP2_T5, captioner.model, inputs, captions)
        torch.testing.assert_close(packed, expected, rtol=0, atol=1e-3)
        scorer = PairScorer(captioner, sentences)
        assert scorer.plan.method == "prefix tries"
        torch.testing.assert_close(scorer.scores(inputs), expected.view(2, -1), rtol=0, atol=1e-3)

    def test_a_prompt_ends_as_the_tokenizer_ends_texts_and_a_caption_ends_once(self) -> None:
        processing = blip2_processing()  # T5's tokenizer closes every text
        closing = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", tiny.EOS)])
        processing.tokenizer.backend_tokenizer.post_processor = closing
        processor = t5(processing).processor
        image = processing.tokenizer.convert_tokens_to_ids("<image>")
        words = processing.tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
        ids = processor.process_images(tiny.images(1))["input_ids"][0].tolist()
        assert ids == [image] * 4 + words + [tiny.EOS]
        assert processor.tokenize(["a dog"]).input_ids == [[4, tiny.WORDS.index("dog") + 4, tiny.EOS]]

    def test_scores_depend_on_the_prompt(self) -> None:
        scores = []
        for prompt in (PROMPT, "a ."):
            captioner = t5(prompt=prompt)
            with torch.no_grad():
                inputs = inputs_of(captioner, 1)
                scores.append(captioner.log_probs(captioner.model, inputs, tiny.captions([0])).item())
        assert abs(scores[0] - scores[1]) > 0.1

    def test_captions_are_written_behind_the_token_that_they_are_scored_behind(self) -> None:
        captioner = t5(decoder_start_token_id=tiny.BOS)
        assert captioner.start_token_id == tiny.BOS
        sequences = captioner.generate(inputs_of(captioner, 2), num_beams=1, do_sample=False, max_new_tokens=4)
        assert sequences[:, 0].tolist() == [tiny.BOS, tiny.BOS]
        captioner.model.language_model.generation_config.decoder_start_token_id = tiny.PAD  # of another checkpoint
        again = captioner.generate(inputs_of(captioner, 2), num_beams=1, do_sample=False, max_new_tokens=4)
        assert torch.equal(sequences, again)


@pytest.mark.parametrize("family", [BLIP2, BLIP2_T5], ids=str)
def test_float16_with_parts_in_float32_is_packed(family: Family, tmp_path: Path) -> None:
    model: Any = family.model(0.0)
    model.save_pretrained(tmp_path)
    half = type(model).from_pretrained(tmp_path, dtype=torch.float16)
    assert half.query_tokens.dtype == torch.float32  # the first of the weights
    captioner = captioner_for(half, family.processing(), prompt=PROMPT)
    captioner.verify()
    assert (captioner.dtype, captioner.layout, captioner.head, captioner.tries) == (
        torch.float16,
        "packed",
        "fused",
        True,
    )
    assert len(caption_images(half, captioner.processor, tiny.images(1), max_new_tokens=4)) == 1
