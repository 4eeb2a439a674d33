"""Results of the studies that were made up, for tests of what is done with them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
IMAGES = 6


def room(name):
    return importlib.import_module(f"studies.{name}")


def fake_result(unit, place, better=None, weights="first"):
    """What a unit would store, made up from its name."""
    generator = np.random.default_rng(list(unit.key.encode()))
    better = generator.integers(0, IMAGES, IMAGES).tolist() if better is None else better
    plan, summary = room("plan"), room("summary")
    row = unit.row
    ranks = {"better": better, "equal": {"1": 1}}
    return {
        "settings": json.loads(json.dumps(unit.settings(place.scale))),
        "machine": {"processor": "a small one"},
        "seconds": 2.0,
        "training_seconds": 1.5,
        "weights": weights,
        "made_of": {needed.row.name: weights for needed in unit.needs()},
        "images": IMAGES,
        "pool": "the same",
        "learned": dict.fromkeys(room("measuring").LEARNED, -1.5),
        "corpus": dict.fromkeys(room("measuring").CORPUS, 0.25),
        "per_image": {
            "cider_d": [generator.random(IMAGES).round(3).tolist()],
            "rouge_l": [generator.random(IMAGES).round(3).tolist()],
            "invented": [[1.0] * IMAGES, [4.0] * IMAGES],
        },
        "ranks": {"own": ranks} if row is plan.reference_row(row.model) else {"own": ranks, "reference": ranks},
        "labels": sorted(summary.LABELS),
    }


def store(place, *names, seeds=(0, 1), **others):
    plan = room("plan")
    for unit in plan.units("scenes", names, seeds):
        room("files").write_json(place.result(unit), fake_result(unit, place, **others))
