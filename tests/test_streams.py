"""Trainings on streams: parquet and tar files, workers, resumes, and the options of reading."""

from __future__ import annotations

import io
import json
import math
import tarfile
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from hf_contrastive_caption.captioners import captioner_for
from hf_contrastive_caption.construction import make_data
from hf_contrastive_caption.data import BadImageError, ContrastiveCaptionStream
from tests import tiny
from tests.training import arguments, logged, trainer

OPTIONS = {"max_steps": 5, "reservoir_size": 12}  # three steps of four are a pass


def parquet_files(folder: Path, rows: int = 12, files: int = 2) -> str:
    folder.mkdir()
    for shard in range(files):
        source = tiny.caption_dataset(rows, 2)
        source.shard(files, shard, contiguous=True).to_parquet(folder / f"{shard}.parquet")
    return f"{folder}/*.parquet"


def tar_file(file: Path, fields: dict[str, Any], rows: int = 12) -> str:
    """A tar file with, for each row, ``<key>.<extension>`` for each field."""
    with tarfile.open(file, "w") as archive:
        for number, row in enumerate(tiny.caption_dataset(rows, 2)):
            for extension, content in fields.items():
                data = content(row, number)
                entry = tarfile.TarInfo(f"{number:05d}.{extension}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    return str(file)


def png(row: dict[str, Any], number: int) -> bytes:
    file = io.BytesIO()
    row["image"].save(file, "PNG")
    return file.getvalue()


def json_captions(row: dict[str, Any], number: int) -> bytes:
    return json.dumps({"captions": row["captions"], "width": 40, "url": "example.org"}).encode()


def first_caption(row: dict[str, Any], number: int) -> bytes:
    return row["captions"][0].encode()


def tar_stream(file: str) -> datasets.IterableDataset:
    return datasets.load_dataset("webdataset", data_files=file, split="train", streaming=True)


def losses(folder: Path, data: Any, **options: Any) -> list[float]:
    run = trainer(folder, data=data, options={**OPTIONS, **options})
    run.train()
    return logged(run, "loss")


def test_parquet_files_train_as_the_same_rows_from_memory(tmp_path: Path) -> None:
    files = parquet_files(tmp_path / "data")
    stream = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    assert stream.num_shards == 2
    found = losses(tmp_path / "a", stream)
    assert found == losses(tmp_path / "b", tiny.caption_dataset(12, 2).to_iterable_dataset(num_shards=2))
    assert len(found) == 5 and found[0] == pytest.approx(2 * math.log(2), abs=1e-5)


def test_tar_files_with_texts_train_without_further_ado(tmp_path: Path) -> None:
    stream = tar_stream(tar_file(tmp_path / "a.tar", {"jpg": png, "txt": first_caption}))
    single = tiny.caption_dataset(12, 2).map(lambda row: {"captions": row["captions"][:1]}).to_iterable_dataset()
    options = {"reservoir_size": 8}
    assert losses(tmp_path / "a", stream, **options) == pytest.approx(losses(tmp_path / "b", single, **options))


def test_captions_in_the_json_of_tar_files(tmp_path: Path) -> None:
    stream = tar_stream(tar_file(tmp_path / "a.tar", {"png": png, "json": json_captions}))
    with pytest.raises(ValueError, match=r"field 'captions' of 'json'.*row\[\"json\"\]\[\"captions\"\]"):
        trainer(tmp_path, data=stream)
    lifted = lift(stream)
    memory = tiny.caption_dataset(12, 2).to_iterable_dataset()
    assert losses(tmp_path / "a", lifted) == pytest.approx(losses(tmp_path / "b", memory))


def lift(stream: datasets.IterableDataset) -> datasets.IterableDataset:
    """As the page about data says."""
    stream = stream.cast_column("png", datasets.Image(decode=False))
    return stream.map(
        lambda row: {"captions": row["json"]["captions"]},
        features=datasets.Features({**stream.features, "captions": datasets.List(datasets.Value("string"))}),
    )


def test_a_broken_image_in_a_tar_file_can_be_skipped(tmp_path: Path) -> None:
    def broken(row: dict[str, Any], number: int) -> bytes:
        return b"no image" if number == 3 else png(row, number)

    stream = lift(tar_stream(tar_file(tmp_path / "a.tar", {"png": broken, "json": json_captions})))
    run = trainer(tmp_path, data=stream, options={**OPTIONS, "max_steps": 3, "on_bad_image": "skip"})
    run.train()
    assert logged(run, "skipped_images")[-1] == 1
    with pytest.raises(BadImageError, match="Row 3: an image of 8 bytes"):
        losses(tmp_path, stream)


def test_a_worker_changes_no_loss(tmp_path: Path) -> None:
    stream = tiny.caption_dataset(12, 2).to_iterable_dataset(num_shards=3)
    alone = losses(tmp_path / "a", stream, max_steps=7)
    for number, options in enumerate(({}, {"dataloader_persistent_workers": True, "dataloader_prefetch_factor": 4})):
        assert losses(tmp_path / str(number), stream, max_steps=7, dataloader_num_workers=1, **options) == alone


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [True, False])
def test_a_worker_that_is_not_forked_changes_no_loss(tmp_path: Path, streaming: bool) -> None:
    rows = tiny.caption_dataset(12, 2)
    data, options = (rows.to_iterable_dataset(num_shards=2), {}) if streaming else (rows, {"reservoir_size": None})
    alone = losses(tmp_path / "a", data, **options)
    spawned = {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "spawn", **options}
    assert losses(tmp_path / "b", data, **spawned) == alone


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resume_beyond_the_first_pass_goes_on_as_if_nothing_was(tmp_path: Path, workers: int) -> None:
    """Eleven rows in batches of four: batches and windows of accumulation lie across the ends of passes."""
    stream = tiny.caption_dataset(11, 2).to_iterable_dataset(num_shards=2).shuffle(seed=3, buffer_size=4)
    options = {**OPTIONS, "max_steps": 8, "gradient_accumulation_steps": 2, "dataloader_num_workers": workers}
    whole = trainer(tmp_path, data=stream, options={**options, "save_strategy": "steps", "save_steps": 5})
    whole.train()
    resumed = trainer(tmp_path, data=stream, options=options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert logged(resumed, "loss")[5:] == logged(whole, "loss")[5:]
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def made(folder: Path, world_size: int, process: int, shards: int, **options: Any) -> ContrastiveCaptionStream:
    """The training stream of one of several processes that are not there."""
    args = arguments(folder, **options)
    processors = [captioner_for(tiny.captioner_model(), tiny.processing()).processor]

    class OneOfMany:
        """The arguments, seen from another process."""

        def __getattr__(self, name: str) -> Any:
            return {"world_size": world_size, "process_index": process}.get(name, getattr(args, name))

    data: Any = tiny.caption_dataset(12, 2).to_iterable_dataset(num_shards=shards)
    return make_data(data, processors, 3, OneOfMany(), None, evaluation=False)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    ("world_size", "shards", "sharding", "divided"),
    [(2, 4, "auto", True), (2, 4, "shards", True), (2, 4, "replicate", False), (4, 6, "auto", False)],
)
def test_who_reads_what(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, world_size: int, shards: int, sharding: str, divided: bool
) -> None:
    streams = [made(tmp_path, world_size, rank, shards, stream_sharding=sharding) for rank in range(world_size)]
    assert [stream.num_processes for stream in streams] == [world_size if divided else 1] * world_size
    share = 12 // world_size if divided else 12
    rows = [{example.row for example in islice(stream, share)} for stream in streams]
    assert len(set.union(*rows)) == 12 and [len(part) for part in rows] == [share] * world_size
    said = [record.getMessage() for record in caplog.records if "whole training stream" in record.getMessage()]
    assert len(said) == (sharding == "auto" and not divided)
    assert all("6 shards (files, usually), which is no multiple of the 4 processes" in line for line in said)


def test_shards_that_cannot_be_divided_are_an_error_on_demand(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stream_sharding='shards' is not possible: The stream has 1 shard .*'auto'"):
        made(tmp_path, 2, 0, 1, stream_sharding="shards")
    with pytest.raises(ValueError, match="stream_sharding is 'files', but must be one of auto, shards, replicate"):
        arguments(tmp_path, stream_sharding="files")


@pytest.mark.parametrize("strategy", ["group_by_length", "sequential"])
def test_a_stream_has_no_other_order(tmp_path: Path, strategy: str) -> None:
    stream = tiny.caption_dataset(12, 2).to_iterable_dataset()
    with pytest.raises(ValueError, match=f"train_sampling_strategy='{strategy}' needs a data set with a length"):
        trainer(tmp_path, data=stream, options={"train_sampling_strategy": strategy})


def test_streams_made_by_the_user(tmp_path: Path) -> None:
    processors = [captioner_for(tiny.captioner_model(), tiny.processing()).processor]
    source = tiny.caption_dataset(12, 2).to_iterable_dataset(num_shards=2)
    own = ContrastiveCaptionStream(source, processors, 3, reservoir_size=12, repeat=True, seed=42)
    assert losses(tmp_path / "a", own) == losses(tmp_path / "b", source)
    with pytest.raises(ValueError, match=r"ends after one pass.*repeat=True"):
        trainer(tmp_path, data=ContrastiveCaptionStream(source, processors, 3))
    with pytest.raises(ValueError, match="an evaluation would never end"):
        trainer(tmp_path, eval_dataset=own)
    other = ContrastiveCaptionStream(source, processors, 3, repeat=True, process_index=1, num_processes=2)
    with pytest.raises(ValueError, match="made for process 1 of 2, but this is process 0 of 1"):
        trainer(tmp_path, data=other)
