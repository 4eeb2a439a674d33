"""Two real processes on gloo that divide a stream: whose rows are whose, how many steps, and a resume."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset, load_dataset

from hf_contrastive_caption import ContrastiveCaptionConfig, ContrastiveCaptionTrainer
from tests import tiny
from tests.processes import torchrun

SHARDS = (11, 4, 3, 6)
"""Rows of each file: processes 0 and 1 have 14 and 10 rows, their workers 11, 3, 4 and 6."""
STEPS = 7


def write_files(folder: Path) -> None:
    """Parquet files of unequal length; every row has an image id of its own, in order."""
    folder.mkdir(parents=True)
    rows = tiny.caption_dataset(sum(SHARDS), 3).add_column("image_id", list(range(sum(SHARDS))))
    for shard, n_rows in enumerate(SHARDS):
        start = sum(SHARDS[:shard])
        rows.select(range(start, start + n_rows)).to_parquet(folder / f"{shard}.parquet")


def stream_of(folder: Path) -> IterableDataset:
    return load_dataset("parquet", data_files=f"{folder}/*.parquet", split="train", streaming=True)


class Recording(ContrastiveCaptionTrainer):
    """Keeps what each step was trained on: the rows of the stream, and a hash of pixels and of all captions."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        pixels = inputs["images"]["pixel_values"].double().sum((1, 2, 3)).tolist()
        self.batches.append([inputs["rows"].tolist(), pixels, inputs["captions"]["input_ids"].tolist()])
        return super().training_step(model, inputs, num_items_in_batch)


def run(folder: Path, data: Path, workers: int, resume: int, options: dict[str, Any]) -> None:
    """Train, or go on from checkpoint ``resume``, and write what was seen."""
    logging.basicConfig()
    args = ContrastiveCaptionConfig(
        output_dir=str(folder),
        report_to="none",
        use_cpu=True,
        save_strategy="steps",
        save_steps=4,
        logging_steps=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=STEPS,
        learning_rate=1e-3,
        num_negatives=2,
        reservoir_size=6,
        dataloader_num_workers=workers,
        disable_tqdm=True,
        **options,
    )
    trainer = Recording(
        model=tiny.captioner_model(),
        args=args,
        train_dataset=stream_of(data),
        eval_dataset=stream_of(data),
        processing_class=tiny.processing(),
    )
    trainer.batches = []
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{resume}") if resume else None)
    metrics = trainer.evaluate()
    seen = {
        "world": args.world_size,
        "steps": trainer.state.global_step,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "eval_loss": metrics["eval_loss"],
        "batches": trainer.batches,
    }
    (folder / f"rank{args.process_index}.json").write_text(json.dumps(seen))


def launch(
    folder: Path, data: Path, workers: int = 0, resume: int = 0, **options: Any
) -> tuple[list[dict[str, Any]], str]:
    """Two processes: what each has seen, and what they printed."""
    folder.mkdir(parents=True, exist_ok=True)
    # Workers are forked from a process of many threads, which can hang (docs/faq.md): a second try, with a warning.
    words = (folder, data, workers, resume, json.dumps(options))
    printed = torchrun("tests.test_distributed_streams", *words, timeout=250, tries=2 if workers else 1)
    seen = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert [one["world"] for one in seen] == [2, 2]
    return seen, printed


def images_of(data: Path) -> dict[float, int]:
    """From the sum of an image's pixel values to its row."""
    rows: Dataset = tiny.caption_dataset(sum(SHARDS), 3)
    values = tiny.image_processor()(images=rows["image"][:], return_tensors="pt")["pixel_values"]
    return {round(value, 4): row for row, value in enumerate(values.double().sum((1, 2, 3)).tolist())}


def rows_seen(rank: dict[str, Any], image_rows: dict[float, int]) -> list[int]:
    return [image_rows[round(pixels, 4)] for batch in rank["batches"] for pixels in batch[1]]


def check_division(seen: list[dict[str, Any]], data: Path) -> None:
    """Disjoint files, every row in the first round, and full windows in the same number of steps."""
    image_rows = images_of(data)
    ends = [sum(SHARDS[: shard + 1]) for shard in range(len(SHARDS))]
    whose = [next(shard for shard, end in enumerate(ends) if row < end) % 2 for row in range(sum(SHARDS))]
    for process, rank in enumerate(seen):
        assert rank["steps"] == STEPS and len(rank["losses"]) == STEPS
        assert [len(batch[0]) for batch in rank["batches"]] == [2] * (2 * STEPS)  # two batches in every window
        assert {row % 2 for batch in rank["batches"] for row in batch[0]} == {process}
        mine = [row for row in range(sum(SHARDS)) if whose[row] == process]
        assert sorted(rows_seen(rank, image_rows)[: len(mine)]) == mine
    assert seen[0]["losses"] == seen[1]["losses"]
    assert seen[0]["eval_loss"] == seen[1]["eval_loss"]


@pytest.mark.slow
def test_two_processes_read_files_of_their_own(tmp_path: Path) -> None:
    write_files(tmp_path / "data")
    seen, printed = launch(tmp_path / "run", tmp_path / "data", save_only_model=True)
    check_division(seen, tmp_path / "data")
    assert "reads the whole training stream" not in printed


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("sharding", ["shards", "replicate"])
def test_a_resume_goes_on_with_the_same_rows_and_negatives(tmp_path: Path, workers: int, sharding: str) -> None:
    """Eight batches into streams of five to seven batches, so beyond the end of the first round."""
    write_files(tmp_path / "data")
    whole, _ = launch(tmp_path / "run", tmp_path / "data", workers, stream_sharding=sharding)
    if sharding == "shards" and not workers:
        check_division(whole, tmp_path / "data")
    resumed, _ = launch(tmp_path / "run", tmp_path / "data", workers, resume=4, stream_sharding=sharding)
    for one, other in zip(whole, resumed, strict=True):
        assert len(one["batches"]) == 2 * STEPS
        assert other["batches"] == one["batches"][8:]
        assert other["losses"] == one["losses"]  # the log of a resumed training begins with that before it
        assert other["eval_loss"] == one["eval_loss"]


@pytest.mark.slow
def test_a_stream_that_cannot_be_divided_is_read_by_both(tmp_path: Path) -> None:
    """Three files for two processes: the same global batches as one process makes, and a line that says so."""
    write_files(tmp_path / "data")
    (tmp_path / "data" / "3.parquet").unlink()
    seen, printed = launch(tmp_path / "run", tmp_path / "data", save_only_model=True)
    assert printed.count("every process reads the whole training stream") == 1
    assert "3 shards (files, usually), which is no multiple of the 2 processes" in printed
    rows = [[batch[0] for batch in rank["batches"]] for rank in seen]
    together = [row for pair in zip(*rows, strict=True) for batch in pair for row in batch]
    assert together == [place % 18 for place in range(8 * STEPS)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), json.loads(sys.argv[5]))
