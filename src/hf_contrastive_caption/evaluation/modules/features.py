"""What the modules take: one caption for each image, and a list of references or a single one."""

from __future__ import annotations

from collections.abc import Sequence

import datasets


def caption_features() -> list[datasets.Features]:
    """Both forms of input: a list of references for each image, or one string."""
    prediction = datasets.Value("string")
    return [
        datasets.Features({"predictions": prediction, "references": datasets.Sequence(datasets.Value("string"))}),
        datasets.Features({"predictions": prediction, "references": datasets.Value("string")}),
    ]


def reference_lists(references: Sequence[str | Sequence[str]]) -> list[list[str]]:
    """A list for each image, also where a single reference was given."""
    return [[of_image] if isinstance(of_image, str) else list(of_image) for of_image in references]
