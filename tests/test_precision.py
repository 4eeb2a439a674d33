"""What processors compute in, and the word for a training that asks for what this one does not."""

from __future__ import annotations

import logging

import pytest
import torch

from hf_contrastive_caption import precision
from tests.training import trainer


def test_onednn_is_asked_about_its_own_types(monkeypatch):
    assert precision.processor_computes_in(torch.float32) and precision.processor_computes_in(torch.float64)
    if torch.backends.mkldnn.is_available():
        for dtype, answer in ((torch.bfloat16, "bf16"), (torch.float16, "fp16")):
            has = getattr(torch.ops.mkldnn, f"_is_mkldnn_{answer}_supported")()
            assert precision.processor_computes_in(dtype) is has
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert precision.processor_computes_in(torch.bfloat16) and precision.processor_computes_in(torch.float16)


@pytest.mark.parametrize(("bf16", "computes", "warnings"), [(True, False, 1), (True, True, 0), (False, False, 0)])
def test_a_training_in_bfloat16_is_warned_where_it_is_slow(tmp_path, caplog, monkeypatch, bf16, computes, warnings):
    monkeypatch.setattr(precision, "processor_computes_in", lambda dtype: computes)
    with caplog.at_level(logging.WARNING, logger="hf_contrastive_caption.precision"):
        trainer(tmp_path, options={"bf16": bf16})
    said = [record.message for record in caplog.records if record.name == "hf_contrastive_caption.precision"]
    assert len(said) == warnings
    assert all("does not compute in bfloat16" in message and "Leave bf16 out" in message for message in said)
