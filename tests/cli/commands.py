"""Commands run within the test, and a captioner and data for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_contrastive_caption import captioner_for
from hf_contrastive_caption.cli.main import main
from tests import tiny


def run(*words: object) -> int:
    """Run ``contrastive-caption``; gives its exit code."""
    with pytest.raises(SystemExit) as end:
        main(list(map(str, words)))
    return int(end.value.code or 0)


def workplace(folder: Path) -> Path:
    """A folder with a tiny captioner ``model`` and data with two splits, ``data``."""
    model = tiny.captioner_model()
    model.save_pretrained(folder / "model")
    captioner_for(model, tiny.processing()).processor.save_pretrained(folder / "model")
    (folder / "data").mkdir()
    tiny.caption_dataset(rows=16).to_parquet(folder / "data" / "train.parquet")
    tiny.caption_dataset(rows=6, seed=1).to_parquet(folder / "data" / "validation.parquet")
    return folder
