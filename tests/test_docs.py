"""The Python blocks of the README and of the documentation run as they stand, one after the other on a page.

Only two things are put in place of what is not here: a model on the Hub, by a tiny one in a folder, and the user's
parquet file. (``docs/data.md`` is run by the tests of the data room.)
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hf_contrastive_caption import captioner_for
from tests import tiny

ROOT = Path(__file__).parents[1]
ON_THE_HUB = ("nlpconnect/vit-gpt2-image-captioning", "you/vit-gpt2-contrastive")


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/training.md",
        "docs/index.md",
        "docs/evaluation.md",
        "docs/metrics.md",
        "docs/report.md",
        "docs/hub.md",
        "docs/paper_models.md",
        "docs/own_captioner.md",
    ],
)
def test_code_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, processing = tiny.captioner_model(), tiny.processing()
    model.save_pretrained(tmp_path / "tiny")
    captioner_for(model, processing).processor.save_pretrained(tmp_path / "tiny")
    tiny.caption_dataset().to_parquet(tmp_path / "train.parquet")
    tiny.images(1)[0].save(tmp_path / "photo.jpg")
    (tmp_path / "photographs").mkdir()
    tiny.images(1)[0].save(tmp_path / "photographs" / "1.png")
    blocks = python_blocks(ROOT / page)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        for name in ON_THE_HUB:
            block = block.replace(name, str(tmp_path / "tiny"))
        exec(compile(block, page, "exec"), names)


def test_pages_that_the_navigation_names_exist() -> None:
    navigation = re.findall(r"^  - \w+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(navigation) >= 8
    assert [page for page in navigation if not (ROOT / "docs" / page).exists()] == []
