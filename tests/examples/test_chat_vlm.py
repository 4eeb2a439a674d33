"""The example of a chat model: prompt, adapter, and states of the vision tower on disk."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from tests.examples.scripts import LN_4, TINY, load_script


def test_trains_on_stored_states_as_on_images(tmp_path, capsys):
    example = load_script("chat_vlm")
    words = ["--output", str(tmp_path), *TINY, "--rank", "4", "--learning-rate", "0.01"]
    logs, weights = [], []
    for more in ([], ["--no-cache"]):
        trainer = example.main([*words, *more])
        logs.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        weights.append(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    shown = capsys.readouterr().out
    assert shown.count("The reference is the model with its adapters off.") == 2
    assert shown.count("\nDescribe the picture.\n") == 2
    assert logs[0][0] == pytest.approx(LN_4, abs=1e-5)
    assert logs[1] == pytest.approx(logs[0], abs=1e-4)
    assert len(list((tmp_path / "states").iterdir())) == 1
    assert len(weights[0]) == 2 * 2 * 2  # A and B of queries and values in two layers
    assert all("text_model" in name for name in weights[0])
    for name, value in weights[0].items():
        assert (value - weights[1][name]).abs().max() < 1e-3
    saved = json.loads((tmp_path / "adapter" / "tokenizer_config.json").read_text())
    assert saved["caption_prompt"] == "Describe the picture."
