"""The example of LoRA: an adapter beside its reference, and merged weights that say what the adapter says."""

from __future__ import annotations

import pytest
import torch

from hf_contrastive_caption import Captioner, caption_batch, scenes
from tests.examples.scripts import LN_4, TINY, load_script


def test_saves_an_adapter_and_what_it_becomes(tmp_path, capsys):
    trainer = load_script("lora").main(["--output", str(tmp_path), *TINY, "--rank", "4", "--learning-rate", "0.01"])
    shown = capsys.readouterr().out
    assert "The reference is the model with its adapters off." in shown
    assert trainer.state.log_history[0]["loss"] == pytest.approx(LN_4, abs=1e-5)
    adapter, whole = tmp_path / "adapter" / "adapter_model.safetensors", tmp_path / "merged" / "model.safetensors"
    assert adapter.stat().st_size < whole.stat().st_size / 5

    row = scenes(48, 2, 10)["test"][0]
    scores = {}
    for name in ("start", "adapter", "merged"):
        captioner = Captioner.from_pretrained(tmp_path / name)
        captions = captioner.caption(scenes(48, 2, 10)["test"]["image"][:3])
        assert f"{tmp_path / name}:\n  " + "\n  ".join(captions) in shown
        ids = captioner.processor.tokenize(row["captions"]).input_ids
        images = captioner.processor.process_images([row["image"]])
        with torch.no_grad():
            scores[name] = captioner.log_probs(captioner.model, images, caption_batch(ids, [0] * len(ids)))
    torch.testing.assert_close(scores["adapter"], scores["merged"], atol=1e-4, rtol=0)
    assert (scores["adapter"] - scores["start"]).abs().max() > 0.01
