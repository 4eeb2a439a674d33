"""The Python blocks of the README and of the documentation run as they stand, one after the other on a page.

Only what is not here is put in place: a model on the Hub by a tiny one of its class in a folder, and the user's files.
"""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest

from hf_contrastive_caption import captioner_for
from tests import tiny
from tests.families import FAMILIES
from tests.pages import PAGES, ROOT, blocks, python_blocks

STAND_INS = {
    "nlpconnect/vit-gpt2-image-captioning": "VisionEncoderDecoderModel",
    "you/vit-gpt2-contrastive": "VisionEncoderDecoderModel",
    "HuggingFaceTB/SmolVLM-256M-Instruct": "SmolVLMForConditionalGeneration",
    "llava-hf/llava-1.5-7b-hf": "LlavaForConditionalGeneration",
}
"""Which class of model stands in for a repository on the Hub."""

RUN_ELSEWHERE = {"docs/data.md": "tests/data/test_documentation.py"}
"""Pages whose blocks need files of their own, and the tests that make them and run every block."""

LANGUAGES = {"python", "sh", "bash", "yaml", "text", "bibtex"}
"""What a block may be: Python is run here, commands and YAML are read in ``test_docs_commands``."""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with a tiny model for each repository."""
    folders: dict[str, Path] = {}
    for name in set(STAND_INS.values()):
        folder = folders[name] = tmp_path_factory.mktemp(name)
        if name == "VisionEncoderDecoderModel":
            model, processing, options = tiny.captioner_model(), tiny.processing(), {}
        else:
            family = next(one for one in FAMILIES if type(one.model(0.0)).__name__ == name)
            model, processing, options = family.model(0.0), family.processing(), dict(family.options)
        model.save_pretrained(folder)
        captioner_for(model, processing, **options).processor.save_pretrained(folder)
    return {repository: folders[name] for repository, name in STAND_INS.items()}


def write_files(folder: Path, captioner: Path) -> None:
    """The files of a user: images, data in one file and with two splits, and a captioner that was tuned before."""
    tiny.caption_dataset().to_parquet(folder / "train.parquet")
    (folder / "flickr8k").mkdir()
    tiny.caption_dataset().to_parquet(folder / "flickr8k" / "train.parquet")
    tiny.caption_dataset(rows=6, seed=1).to_parquet(folder / "flickr8k" / "validation.parquet")
    (folder / "photographs").mkdir()
    image = tiny.images(1)[0]
    image.save(folder / "photo.jpg")
    image.save(folder / "photographs" / "1.png")
    shutil.copytree(captioner, folder / "tuned")


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page) and page not in RUN_ELSEWHERE])
def test_code_blocks_run(page: str, hub: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path, hub["nlpconnect/vit-gpt2-image-captioning"])
    names: dict[str, object] = {}
    for block in python_blocks(page):
        for repository, folder in hub.items():
            block = block.replace(repository, str(folder))
        exec(compile(block, page, "exec"), names)


def test_the_table_of_noise_ratios_is_what_its_block_prints(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = [text for text in python_blocks("docs/choosing.md") if "noise_ratio=noise_ratio" in text]
    exec(compile(block, "docs/choosing.md", "exec"), {})
    printed = [[float(number) for number in line.split()] for line in capsys.readouterr().out.splitlines()]
    table = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8").partition("| ν | first loss |")[2]
    rows = [line for line in table.partition("\n\n")[0].splitlines()[2:]]
    assert len(rows) == len(printed) == 4
    assert [[float(cell) for cell in row.strip("| ").split("|")] for row in rows] == printed


def test_every_python_block_is_run_or_says_why_not() -> None:
    run = {page: len(python_blocks(page)) for page in PAGES if python_blocks(page)}
    assert len(run) >= 14 and sum(run.values()) >= 35
    for page, test in RUN_ELSEWHERE.items():
        assert page in (ROOT / test).read_text(encoding="utf-8")
    left_out = [block for page in PAGES for block in blocks(page, "python") if block.reason is not None]
    assert [block for block in left_out if len(block.reason or "") < 15] == []
    for block in left_out:
        ast.parse(block.text)
    assert len(left_out) <= 4


def test_every_block_says_what_it_is() -> None:
    other = [(page, block.language) for page in PAGES for block in blocks(page) if block.language not in LANGUAGES]
    assert other == []
