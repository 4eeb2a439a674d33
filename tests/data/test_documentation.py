"""The code blocks of docs/data.md run as they stand, one after the other."""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path

from hf_contrastive_caption.data import ContrastiveCaptionStream, find_columns

from .conftest import make_columns, make_dataset


def write_files(folder: Path) -> None:
    """The files that the page reads: six images with two captions each, or one."""
    for name in ("shards", "with-texts", "with-json"):
        (folder / name).mkdir()
    make_dataset(6, 2).to_parquet(folder / "shards" / "0.parquet")
    columns = make_columns(6, 2)
    with (
        tarfile.open(folder / "with-texts" / "0.tar", "w") as texts,
        tarfile.open(folder / "with-json" / "0.tar", "w") as documents,
    ):
        for row, (image, captions) in enumerate(zip(columns["image"], columns["captions"], strict=True)):
            document = json.dumps({"captions": captions, "url": "example.org"}).encode()
            for archive, extension, content in (
                (texts, "jpg", image["bytes"]),
                (texts, "txt", captions[0].encode()),
                (documents, "jpg", image["bytes"]),
                (documents, "json", document),
            ):
                entry = tarfile.TarInfo(f"{row:04d}.{extension}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))


def test_the_page_about_data_runs(capsys, tmp_path, monkeypatch, processor):
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 8
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "docs"}
    for block in blocks:
        exec(compile(block, "docs/data.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "Row 3: an image of 12 bytes (cat.jpg) does not open" in printed
    assert "[4, 5, 5, 5] [1.0, 1.0, 0.0, 0.0]" in printed
    for name, image, captions in (
        ("parquet", "image", "captions"),
        ("texts", "jpg", "txt"),
        ("tars", "jpg", "captions"),
    ):
        columns = find_columns(names[name].features)
        assert (columns.image, columns.captions) == (image, (captions,))
        examples = list(ContrastiveCaptionStream(names[name], [processor], 1))
        assert [example.open_image().getpixel((0, 0)) for example in examples] == [(row, 0, 7) for row in range(6)]
