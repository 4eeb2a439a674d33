"""Whether a pass over a stream needs more memory the longer it lasts, and how many rows it brings in a second.

    python benchmarks/stream_memory.py

Draws scenes (200,000 with five captions each, all drawn anew; about 300 MB) into parquet files in a temporary folder
and goes once through them as a training does: ``load_dataset(..., streaming=True)``, negatives from a reservoir, the
collator, a data loader without and with one worker, each in a fresh process. Measured are

- resident memory after 1 %, 10 %, 50 % and 100 % of the rows: anonymous memory of the process and its worker together,
  in which a page that both share counts once (Pss_Anon). Pages of files, such as libraries, are left out: how many of
  them count depends on what else runs on the machine. Linux only;
- rows per second over the whole pass, and over the time from 1 % on, when the reservoir is full.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch
from common import out_argument, print_table, write_results
from datasets import Dataset, Features, Image, List, Value, load_dataset
from torch.utils.data import DataLoader

from hf_contrastive_caption.data import CaptionCollator, ContrastiveCaptionStream
from hf_contrastive_caption.data.scenes import draw_scene, sample_scene
from hf_contrastive_caption.models import small_image_processor, word_level_tokenizer
from hf_contrastive_caption.processing import CaptionProcessor

ROWS_PER_FILE, ROWS_PER_GROUP = 10_000, 500
MARKS = (1, 10, 50, 100)
"""Per cent of the rows after which memory is read."""
TARGET = 1.05


def build(folder: str, n_rows: int) -> None:
    """Draw the scenes and write them to parquet files."""
    features = Features({"image": Image(), "captions": List(Value("string"))})
    for start in range(0, n_rows, ROWS_PER_FILE):
        rows = []
        for index in range(start, min(start + ROWS_PER_FILE, n_rows)):
            scene, captions = sample_scene(0, "stream", index)
            file = io.BytesIO()
            draw_scene(scene).save(file, format="PNG")
            rows.append({"image": {"bytes": file.getvalue(), "path": None}, "captions": captions})
        dataset = Dataset.from_list(rows, features=features)
        dataset.to_parquet(f"{folder}/{start // ROWS_PER_FILE:05d}.parquet", batch_size=ROWS_PER_GROUP)


def memory_mb() -> float:
    """Resident anonymous memory of this process and its children, in MB."""
    total = 0
    for process in [os.getpid(), *(child.pid for child in multiprocessing.active_children())]:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))
    return total * 1024 / 1e6


def measure(folder: str, n_rows: int, workers: int, options: dict[str, int], found: Queue[dict[str, float]]) -> None:
    """Go once through the stream."""
    torch.set_num_threads(1)
    tokenizer = word_level_tokenizer(
        caption for index in range(2_000) for caption in sample_scene(0, "stream", index)[1]
    )
    assert isinstance(tokenizer.eos_token_id, int)
    processor = CaptionProcessor(tokenizer, small_image_processor(), end_token_id=tokenizer.eos_token_id)
    files = load_dataset("parquet", data_files=f"{folder}/*.parquet", split="train", streaming=True, cache_dir=folder)
    stream = ContrastiveCaptionStream(
        files, [processor], options["num_negatives"], reservoir_size=options["reservoir_size"]
    )
    collator = CaptionCollator([processor], options["num_negatives"])
    loader = DataLoader(stream, options["batch"], collate_fn=collator, num_workers=workers)

    measured: dict[str, float] = {"before_mb": memory_mb()}
    marks, seen, start, full = list(MARKS), 0, time.perf_counter(), 0.0
    for batch in loader:
        seen += len(batch["rows"])
        while marks and seen * 100 >= marks[0] * n_rows:
            measured[f"at_{marks.pop(0)}_percent_mb"] = memory_mb()
            full = full or time.perf_counter() - start
    total = time.perf_counter() - start
    assert seen == n_rows and not marks, (seen, marks)
    measured["rows_per_s"] = n_rows / total
    measured["rows_per_s_from_1_percent"] = n_rows * (1 - MARKS[0] / 100) / (total - full)
    found.put(measured)


def in_a_fresh_process(target: Callable[..., None], *arguments: Any) -> None:
    """Run a function where nothing is left in memory from before."""
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{target.__name__} failed with exit code {process.exitcode}")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000, help="rows of the stream (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="rows of a batch (default: %(default)s)")
    parser.add_argument("--num-negatives", type=int, default=5, help="K (default: %(default)s)")
    parser.add_argument("--reservoir-size", type=int, default=5_000, help="captions kept (default: %(default)s)")
    out_argument(parser, __file__)
    arguments = parser.parse_args()
    options = {name: getattr(arguments, name) for name in ("batch", "num_negatives", "reservoir_size")}

    measurements: dict[str, Any] = {"rows": arguments.rows, **options}
    with tempfile.TemporaryDirectory() as folder:
        in_a_fresh_process(build, folder, arguments.rows)
        measurements["files_mb"] = sum(file.stat().st_size for file in Path(folder).glob("*.parquet")) / 1e6
        for workers, name in enumerate(("no_worker", "one_worker")):
            found: Queue[dict[str, float]] = multiprocessing.get_context("spawn").Queue()
            in_a_fresh_process(measure, folder, arguments.rows, workers, options, found)
            measurements |= {f"{name}_{key}": value for key, value in found.get().items()}
    ratios = {}
    for name in ("no_worker", "one_worker"):
        reached = {mark: measurements[f"{name}_at_{mark}_percent_mb"] for mark in MARKS}
        ratios[f"{name}_memory_at_100_over_10_percent"] = reached[100] / reached[10]
        print_table(
            f"A pass over {arguments.rows:,} rows, {name.replace('_', ' ')}",
            [
                ("memory before", f"{measurements[f'{name}_before_mb']:.0f} MB"),
                *((f"memory after {mark} % of the rows", f"{value:.0f} MB") for mark, value in reached.items()),
                ("100 % over 10 %", f"{reached[100] / reached[10]:.3f} (target at most {TARGET:g})"),
                ("rows per second", f"{measurements[f'{name}_rows_per_s']:.0f}"),
            ],
        )
    write_results(__file__, ratios, measurements, arguments.out)


if __name__ == "__main__":
    main()
