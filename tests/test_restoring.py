"""What comes back from a checkpoint: every weight bit for bit, and the adapter that was trained."""

from __future__ import annotations

from pathlib import Path

import torch

from hf_contrastive_caption.loading import restore_weights
from tests import tiny


def test_weights_wider_than_the_first_one_are_not_rounded(tmp_path: Path) -> None:
    """``model.dtype`` is that of the frozen vision encoder."""
    model = tiny.captioner_model()
    model.encoder.to(torch.bfloat16)
    assert model.dtype == torch.bfloat16
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    restore_weights(model, str(tmp_path))
    restored = model.state_dict()
    assert {value.dtype for value in restored.values()} == {torch.bfloat16, torch.float32}
    assert all(restored[name].dtype == value.dtype for name, value in saved.items())
    assert all(torch.equal(restored[name], value) for name, value in saved.items())
