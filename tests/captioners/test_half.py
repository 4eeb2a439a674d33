"""Models in half precision of which transformers keeps parts in float32."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Blip2ForConditionalGeneration

from hf_contrastive_caption.captioners import captioner_for
from hf_contrastive_caption.captioners.pairs import PairScorer
from hf_contrastive_caption.generation import caption_images
from tests import tiny
from tests.families.blip2 import blip2_model, blip2_processing
from tests.families.chat import PROMPT


def test_blip2_as_loaded(tmp_path: Path) -> None:
    dtype, off = torch.float16, 0.03
    whole = blip2_model()
    whole.save_pretrained(tmp_path)
    model = Blip2ForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    assert model.query_tokens.dtype == torch.float32 and model.language_model.dtype == dtype
    captioner = captioner_for(model, blip2_processing(), prompt=PROMPT)
    exact = captioner_for(whole, blip2_processing(), prompt=PROMPT)
    assert captioner.dtype == dtype
    captioner.verify()
    assert (captioner.layout, captioner.head, captioner.tries) == ("packed", "fused", True)
    inputs, captions = captioner.processor.process_images(tiny.images(2)), tiny.captions([0, 1, 1])
    placed = captioner.placed(inputs)
    assert placed["pixel_values"].dtype == dtype and placed["input_ids"].dtype == torch.int64
    with torch.no_grad():
        scores = captioner.log_probs(model, inputs, captions)
        expected = exact.log_probs(exact.model, inputs, captions)
    assert ((scores - expected).abs() / captions["lengths"]).max() < off
    pairs = [ids.tolist() for ids in captions["input_ids"].split(captions["lengths"].tolist())]
    table = PairScorer(captioner, pairs).scores(inputs)[captions["image_index"], torch.arange(3)]
    assert ((table - expected).abs() / captions["lengths"]).max() < off
    assert len(caption_images(model, captioner.processor, tiny.images(2), max_new_tokens=5)) == 2
