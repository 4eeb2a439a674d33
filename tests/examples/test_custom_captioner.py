"""The example of a captioner of one's own runs, and its captioner scores as the model alone does."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from hf_contrastive_caption import SimpleCaptioner, captioner_for, scenes
from hf_contrastive_caption.captioners import caption_batch, registry
from hf_contrastive_caption.loading import load_model, load_processing

SCRIPT = Path(__file__).parents[2] / "examples" / "custom_captioner.py"


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    known = dict(registry._CAPTIONERS)
    spec = importlib.util.spec_from_file_location("custom_captioner", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["custom_captioner"] = module
    spec.loader.exec_module(module)
    yield module
    registry._CAPTIONERS.clear()
    registry._CAPTIONERS.update(known)


def test_trained_tuned_saved_loaded_and_measured(example, tmp_path, capsys):
    results = example.main(["--output", str(tmp_path), "--images", "120", "--steps", "40"])
    shown = capsys.readouterr().out
    data = scenes(120, 0, 12, image_size=32)
    captioners = {}
    for name, found in results.items():
        assert f"--- {name}: " in shown and found.captions[0] in shown
        captioner = captioner_for(load_model(str(tmp_path / name)), load_processing(str(tmp_path / name)))
        assert isinstance(captioner, SimpleCaptioner) and type(captioner.model) is example.PictureGRU
        captioners[name] = captioner
        table = torch.empty(12, 12)
        with torch.no_grad():
            pixels = captioner.processor.process_images(data["test"]["image"])["pixel_values"]
            for row, ids in enumerate(captioner.processor.tokenize(found.captions).input_ids):
                inputs = torch.tensor([captioner.model.config.bos_token_id, *ids[:-1]]).expand(12, -1)
                log_probs = captioner.model(inputs, pixels).logits.log_softmax(-1)  # (12, length, vocabulary)
                table[row] = log_probs[:, torch.arange(len(ids)), ids].sum(1)
        np.testing.assert_allclose(found.scores, table.numpy(), atol=1e-4)
    assert margin(captioners["contrastive"], data["train"]) > margin(captioners["mle"], data["train"]) + 0.02


def margin(captioner, rows) -> float:
    """How much likelier images make their own captions than those of the image before, in nats."""
    ids = captioner.processor.tokenize([captions[0] for captions in rows["captions"]]).input_ids
    images = captioner.processor.process_images(rows["image"])
    own, others = caption_batch(ids, range(len(ids))), caption_batch([ids[-1], *ids[:-1]], range(len(ids)))
    with torch.no_grad():
        scores = [captioner.log_probs(captioner.model, images, batch).mean().item() for batch in (own, others)]
    return scores[0] - scores[1]
