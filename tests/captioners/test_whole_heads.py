"""Heads that PEFT trains whole (``modules_to_save``): the copy runs with adapters on, the original with them off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers.utils.generic import ModelOutput

from hf_contrastive_caption.captioners import captioner_for
from hf_contrastive_caption.captioners.pairs import PairScorer
from tests import tiny
from tests.families.blip import blip_model
from tests.families.chat import PROMPT, llava_model, llava_processing
from tests.training import logged, trainer


@pytest.mark.parametrize(
    ("kind", "head", "layers"),
    [
        ("bert", "cls", r".*decoder.*(query|value)"),
        ("roberta", "lm_head", r".*decoder.*(query|value)"),
        ("blip", "cls", r".*text_decoder.*(query|value)"),
        ("llava", "lm_head", r".*language_model.*(q_proj|v_proj)"),
    ],
)
def test_both_heads_are_scored(kind: Any, head: str, layers: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"prompt": PROMPT} if kind == "llava" else {}
    models = {"blip": blip_model, "llava": llava_model}
    run = trainer(
        tmp_path,
        models[kind]() if kind in models else tiny.captioner_model(kind),
        tiny.caption_dataset(4, 2),
        {**options, "learning_rate": 1e-2, "max_steps": 3},
        processing_class=llava_processing() if kind == "llava" else tiny.processing(),
        peft_config=LoraConfig(r=2, target_modules=layers, modules_to_save=[head]),
    )
    run.train()
    assert logged(run, "loss")[0] == pytest.approx(1.3862944, abs=1e-3)
    captioner, model = run.captioner, run.captioner.model.eval()
    assert captioner.head == "fused"
    inputs, captions = captioner.processor.process_images(tiny.images(2)), tiny.captions([0, 1, 1])
    pairs = [ids.tolist() for ids in captions["input_ids"].split(captions["lengths"].tolist())]
    found = []

    def check() -> None:
        with torch.no_grad():
            plain = captioner.reference_log_probs(inputs, captions)
            tokens = captioner.token_log_probs(model, inputs, captions)
        torch.testing.assert_close(tokens, plain, rtol=0, atol=1e-4)
        table = PairScorer(captioner, pairs).scores(inputs)
        sums = torch.stack([part.sum() for part in plain.split(captions["lengths"].tolist())])
        torch.testing.assert_close(table[captions["image_index"], torch.arange(3)], sums, rtol=0, atol=1e-4)
        found.append(sums)

    check()
    with model.disable_adapter():  # type: ignore[operator]
        check()
    assert (found[0] - found[1]).abs().min() > 0.1


def test_logits_that_no_hook_replaced_are_refused() -> None:
    captioner = captioner_for(tiny.captioner_model(), tiny.processing())
    captions = tiny.captions([0, 1])
    rows = captioner.rows(tiny.pixel_values(2), captions)
    logits = torch.zeros(2, rows.input_ids.shape[1], tiny.VOCABULARY_SIZE)
    with pytest.raises(ValueError, match=r"gave \(2, \d+, 65\) logits where the log-probabilities of \d+ tokens"):
        captioner.gather(ModelOutput(logits=logits), captions, rows)
