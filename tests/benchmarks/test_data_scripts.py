"""Small benchmarks: they count what there is to count, change what they say, and run at toy sizes."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_contrastive_caption.captioners import caption_batch, captioner_for
from hf_contrastive_caption.data.scenes import scenes
from hf_contrastive_caption.models import small_captioner, small_image_processor, word_level_tokenizer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_padding_is_counted_as_the_decoder_lays_captions_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    script = importlib.import_module("length_buckets")
    captions = caption_batch([[5] * length for length in (2, 3, 4, 2)], [0, 0, 1, 1])  # 11 tokens
    batch = {"images": {"pixel_values": torch.zeros(2, 3, 8, 8)}, "captions": captions}
    assert script.width_over_tokens([batch], packed=True) == pytest.approx(2 * 6 / 11)
    assert script.width_over_tokens([batch, batch], packed=False) == pytest.approx(4 * 4 / 11)


def test_switches_act_on_all_blocks_and_change_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    script = importlib.import_module("switches")
    size = script.QUICK_SIZES["small"]
    plain, checkpointed = script.build(size), script.checkpointed(script.build(size))
    assert len(list(script.layers(plain.model))) == 2  # one of each
    checkpointed.scorer("packed")  # with forwards of its own
    calls = []
    for layer in script.layers(checkpointed.model):
        next(iter(layer.children())).register_forward_hook(lambda *given: calls.append(1))
    losses = [script.WAYS["packed"](bench) for bench in (plain, checkpointed)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert len(calls) == 2 * 2  # every layer twice
    shorter = script.shorter(plain)
    assert [len(ids) for ids in shorter.captions] == [len(ids) - 1 for ids in plain.captions]


def test_log_ratios_by_length(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    script = importlib.import_module("log_ratio_by_length")
    found = script.by_length(np.array([-1.0, 0.5, -2.0, 4.0]), np.array([3, 3, 4, 40]))
    assert found == {
        "1 to 3": (2, -0.25, 0.5),
        "4 to 7": (1, -2.0, 1.0),
        "12 and more": (1, 4.0, 0.0),
        "all": (4, 0.375, 0.5),
    }
    assert script.lengths_by_sign(np.array([-1.0, 0.5, -2.0]), np.array([3, 3, 4])) == {"below": 3.5, "above": 3.0}


def test_log_ratios_of_two_captioners(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against one forward for each caption."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    rows = scenes(1, 4, 1, image_size=32)["validation"]
    script = importlib.import_module("log_ratio_by_length")
    texts = [text for row in rows for text in row["captions"]]
    tokenizer, image_processor = word_level_tokenizer(texts), small_image_processor(32)
    target, reference = (
        captioner_for(small_captioner(tokenizer, 32, seed=seed), (tokenizer, image_processor)) for seed in (0, 1)
    )
    ratios, words = script.log_ratios(target, reference, rows)
    assert words.tolist() == [len(text.split()) for text in texts]
    for number, (image, text) in enumerate((row["image"], text) for row in rows for text in row["captions"]):
        pixels = target.processor.process_images([image])
        batch = caption_batch(target.processor.tokenize([text]).input_ids, [0])
        with torch.no_grad():
            ours, theirs = (one.log_probs(one.model, pixels, batch).item() for one in (target, reference))
        assert ratios[number] == pytest.approx(ours - theirs, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "n_ratios"),
    [
        ("stream_memory", ["--rows", "300", "--reservoir-size", "40", "--batch", "10"], 2),
        ("length_buckets", ["--rows", "32", "--threads", "1"], 3),
        ("switches", ["--quick", "--repeats", "2", "--threads", "1"], 3),
    ],
)
def test_the_scripts_run(tmp_path: Path, name: str, options: list[str], n_ratios: int) -> None:
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *options, "--out", str(tmp_path / "found.json")]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["ratios"]) == n_ratios and all(ratio > 0 for ratio in found["ratios"].values())
    if name == "stream_memory":
        measured = found["measurements"]
        quotient = measured["one_worker_at_100_percent_mb"] / measured["one_worker_at_10_percent_mb"]
        assert found["ratios"]["one_worker_memory_at_100_over_10_percent"] == quotient
        assert measured["no_worker_at_1_percent_mb"] > 50 and measured["no_worker_rows_per_s"] > 1
