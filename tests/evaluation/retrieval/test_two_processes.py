"""Two real processes on gloo give the same self-retrieval as one.

``torchrun`` and not ``accelerate launch --cpu``, which silently runs one process; every worker asserts a world of two.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState

from hf_contrastive_caption.captioners import captioner_for
from hf_contrastive_caption.evaluation.retrieval.self_retrieval import self_retrieval
from tests import tiny
from tests.processes import torchrun


def measure(num_images: int, cache_dir: Path | None = None) -> dict[str, Any]:
    """Write captions for some images, the last of which is the first once more where there are several."""
    captioner = captioner_for(tiny.captioner_model().eval(), tiny.processing())
    pictures = tiny.images(num_images)
    if num_images > 1:
        pictures[-1] = pictures[0]
    result = self_retrieval(
        captioner,
        pictures,
        max_memory_bytes=1,  # one image at a time, so that both processes have some
        resamples=50,
        cache_dir=cache_dir,
        progress=False,
        max_new_tokens=6,
    )
    numbers = {name: value for name, value in result.to_dict().items() if name != "seconds"}
    return {**numbers, "captions": list(result.captions), "scores": result.scores.tolist()}


def run(folder: Path) -> None:
    state = PartialState(cpu=True)
    seen = {
        "world": state.num_processes,
        "backend": state.backend,
        "several": measure(5, folder / "cache"),
        "again": measure(5, folder / "cache"),
        "fewer than processes": measure(1),
    }
    (folder / f"rank{state.process_index}.json").write_text(json.dumps(seen))
    state.destroy_process_group()


def launch(folder: Path) -> list[dict[str, Any]]:
    torchrun("tests.evaluation.retrieval.test_two_processes", folder)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path: Path) -> None:
    ranks = launch(tmp_path)
    assert [(rank["world"], rank["backend"]) for rank in ranks] == [(2, "gloo")] * 2
    for name, num_images in (("several", 5), ("again", 5), ("fewer than processes", 1)):
        expected = measure(num_images)
        assert np.std(expected["scores"]) > 1 or num_images == 1
        for rank in ranks:
            scores = rank[name].pop("scores")
            np.testing.assert_allclose(scores, expected["scores"], rtol=0, atol=1e-5)
            assert rank[name] == without_scores(expected)
    shards = list(tmp_path.rglob("*.safetensors"))
    assert len(shards) == 4  # each distinct image was scored by one of the processes


def without_scores(numbers: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in numbers.items() if name != "scores"}


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]))
