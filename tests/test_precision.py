"""What processors compute in, and the word for a training that asks for what this one does not."""

from __future__ import annotations

import copy
import logging
import math

import pytest
import torch

from hf_contrastive_caption import captioner_for, precision
from tests import tiny
from tests.families import FAMILIES
from tests.training import logged, trainer


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


def test_what_a_training_in_bfloat16_leaves_is_no_autocast(tmp_path):
    model = tiny.captioner_model()
    mle = trainer(tmp_path / "mle", model, options={"objective": "mle", "bf16": True, "max_steps": 1})
    mle.train()
    mle.evaluate(tiny.caption_dataset(4, seed=2))
    assert "_original_forward" not in vars(model)
    fresh = tiny.captioner_model()
    fresh.load_state_dict(model.state_dict())
    for bf16 in (True, False):
        runs = [trainer(tmp_path / f"{bf16}", each, options={"bf16": bf16}) for each in (copy.deepcopy(model), fresh)]
        for run in runs:
            run.train()
        assert logged(runs[0], "loss") == logged(runs[1], "loss")
        assert logged(runs[0], "loss")[0] == pytest.approx(2 * math.log(2), abs=1e-5)
        fresh.load_state_dict(model.state_dict())


def test_a_model_under_the_autocast_of_another_trainer_is_checked_and_left(tmp_path):
    other = trainer(tmp_path / "other", options={"bf16": True})
    model = other.accelerator.prepare_model(tiny.captioner_model())
    patched = vars(model)["forward"]
    captioner = captioner_for(model, tiny.processing())
    captioner.verify()
    assert captioner.tries and (captioner.layout, captioner.head) == ("packed", "fused")
    assert vars(model)["forward"] is patched and "_original_forward" in vars(model)
    again = trainer(tmp_path / "again", model, options={"bf16": True}, reference_model=copy.deepcopy(model))
    again.train()
    assert logged(again, "loss")[0] == pytest.approx(2 * math.log(2), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_without_autocast_a_model_is_as_it_was(tmp_path, family):
    model = family.model(0.0).eval()
    captioner = captioner_for(model, family.processing(), **dict(family.options))
    images = tiny.images(2)
    expected = captioner.caption(images, max_new_tokens=5)
    accelerator = trainer(tmp_path, options={"bf16": True}).accelerator
    for _ in range(2):  # it can be prepared again
        accelerator.prepare_model(model)
        assert "_original_forward" in vars(model)
        precision.without_autocast(model)
        assert not {"forward", "_original_forward", "_is_accelerate_prepared"} & vars(model).keys()
    assert captioner.caption(images, max_new_tokens=5) == expected


def test_apples_gpus_have_no_float64():
    assert precision.widest(torch.device("mps")) == torch.float32
    assert precision.widest(torch.device("cpu")) == precision.widest(torch.device("cuda", 1)) == torch.float64


def test_a_gpu_that_emulates_bfloat16_does_not_compute_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not precision.gpu_computes_in_bfloat16()
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert precision.gpu_computes_in_bfloat16()
