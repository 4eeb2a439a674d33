"""How long it takes to draw the negatives of a batch, and what memory the draws need.

    python benchmarks/negatives.py

Writes arrays of the given size to a temporary folder (10 million rows of 1 to 9 captions: about 760 MB), maps them as
they are mapped beside a data set on disk, and draws for batches that are spread over all of them. Measured are

- the time of one draw, median and 99th percentile, and that of a naive loop that draws one caption at a time with
  ``random`` from tables in memory;
- extra anonymous memory (RssAnon, sampled between draws, less its value before the arrays were mapped): what every
  process and every worker needs for itself. The arrays that a draw makes for itself live for a millisecond and are a
  few hundred kilobytes;
- pages of the mapped files that were looked at (RssFile): page cache. They count as resident memory of the process,
  but exist once for all processes and workers, and the operating system drops them when it needs the memory.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from common import out_argument, print_table, write_results
from numpy.typing import NDArray

from hf_contrastive_caption.data.arrays import FlatArrays, store_arrays
from hf_contrastive_caption.data.negatives import ShuffledNegatives
from hf_contrastive_caption.data.table import CaptionIndex

TARGET_MS, TARGET_MB = 1.0, 50.0


def pieces_of_texts(n_rows: int, scratch: Path | None, totals: dict[str, int]) -> Iterator[dict[str, NDArray]]:
    """Rows with 1 to 9 captions (5 on the average), in pieces of 100,000 rows."""
    rng, start = np.random.default_rng(0), 0
    yield {"row_start": np.zeros(1, np.int64)}
    for first in range(0, n_rows, 100_000):
        counts = rng.integers(1, 10, min(100_000, n_rows - first))
        ends = start + np.cumsum(counts)
        rows = np.repeat(np.arange(first, first + len(counts), dtype=np.uint32), counts)
        keys = rng.integers(0, 2**63, int(ends[-1]) - start).astype(np.uint64)
        start = int(ends[-1])
        yield {"row_start": ends, "caption_row": rows, "text_key": keys}


def pieces_of_images(n_rows: int, scratch: Path | None, totals: dict[str, int]) -> Iterator[dict[str, NDArray]]:
    """A key for each row."""
    rng = np.random.default_rng(1)
    for first in range(0, n_rows, 100_000):
        yield {"image_key": rng.integers(0, 2**63, min(100_000, n_rows - first)).astype(np.uint64)}


def build(folder: Path, n_rows: int) -> None:
    """Write the arrays."""
    store_arrays(
        folder / "texts",
        {"row_start": np.int64, "caption_row": np.uint32, "text_key": np.uint64},
        lambda scratch, totals: pieces_of_texts(n_rows, scratch, totals),
    )
    store_arrays(
        folder / "images",
        {"image_key": np.uint64},
        lambda scratch, totals: pieces_of_images(n_rows, scratch, totals),
    )


def memory_mb() -> dict[str, float]:
    """Resident memory of this process in MB: anonymous, and pages of files. Linux only."""
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(status[name].split()[0]) * 1024 / 1e6 for name in ("RssAnon", "RssFile")}


class NaiveNegatives:
    """Draws one caption at a time with ``random``, from tables in memory: what people write first."""

    def __init__(self, index: CaptionIndex, k: int) -> None:
        counts = np.diff(index.row_start)
        self.image_of = np.repeat(index.image_key, counts)
        self.text_of = np.array(index.text_key)
        self.k = k

    def draw(self, captions: list[int]) -> list[list[int]]:
        """K captions of other images with other texts for each caption."""
        return [[self._one(caption) for _ in range(self.k)] for caption in captions]

    def _one(self, caption: int) -> int:
        while True:
            drawn = random.randrange(len(self.text_of))
            if self.image_of[drawn] != self.image_of[caption] and self.text_of[drawn] != self.text_of[caption]:
                return drawn


def batches(index: CaptionIndex, size: int, n: int) -> list[NDArray]:
    """Captions that are spread over the whole data set, as in a shuffled epoch."""
    rng = np.random.default_rng(2)
    return [rng.integers(0, index.n_captions, size) for _ in range(n)]


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows of the data set (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=256, help="positives in a batch (default: %(default)s)")
    parser.add_argument("--num-negatives", type=int, default=5, help="K (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=500, help="batches to draw (default: %(default)s)")
    parser.add_argument("--skip-naive", action="store_true", help="do not build the naive tables (8 bytes a caption)")
    out_argument(parser, __file__)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own, so that memory which building leaves behind does not hide what drawing takes.
        builder = multiprocessing.get_context("spawn").Process(target=build, args=(Path(folder), arguments.rows))
        builder.start()
        builder.join()
        if builder.exitcode:
            raise SystemExit(f"building the arrays failed with exit code {builder.exitcode}")
        before = memory_mb()
        index = CaptionIndex(FlatArrays.load(Path(folder) / "texts"), FlatArrays.load(Path(folder) / "images"))
        negatives = ShuffledNegatives(index, arguments.num_negatives)
        todo = batches(index, arguments.batch, arguments.draws)
        negatives.draw(todo[0], 0)
        times, peak = [], 0.0
        for epoch, captions in enumerate(todo):
            start = time.perf_counter()
            negatives.draw(captions, epoch)
            times.append((time.perf_counter() - start) * 1e3)
            if epoch % 50 == 0:
                peak = max(peak, memory_mb()["RssAnon"])
        after = memory_mb()
        extra = max(peak, after["RssAnon"]) - before["RssAnon"]
        naive_ms, naive_mb = None, None
        if not arguments.skip_naive:
            naive_ms, naive_mb = measure_naive(index, negatives, todo[:20])
        arrays_mb = sum(file.stat().st_size for file in Path(folder).rglob("*.npy")) / 1e6
        n_captions = index.n_captions

    median, slow = statistics.median(times), float(np.quantile(times, 0.99))
    measurements = {
        "rows": arguments.rows,
        "captions": n_captions,
        "batch": arguments.batch,
        "num_negatives": arguments.num_negatives,
        "draws": arguments.draws,
        "draw_median_ms": median,
        "draw_99th_percentile_ms": slow,
        "extra_anonymous_memory_mb": extra,
        "mapped_file_pages_mb": after["RssFile"] - before["RssFile"],
        "arrays_on_disk_mb": arrays_mb,
        "naive_median_ms": naive_ms,
        "naive_tables_mb": naive_mb,
    }
    ratios = {"draw_time_over_1_ms": median / TARGET_MS, "extra_memory_over_50_mb": extra / TARGET_MB}
    if naive_ms is not None:
        ratios["naive_time_over_draw_time"] = naive_ms / median
    print_table(
        f"Negatives for {arguments.batch} captions, K = {arguments.num_negatives}, "
        f"of {arguments.rows:,} rows with {n_captions:,} captions",
        [
            ("one draw, median", f"{median:.3f} ms (target {TARGET_MS:g} ms)"),
            ("one draw, 99th percentile", f"{slow:.3f} ms"),
            ("extra memory of the process, anonymous", f"{extra:.1f} MB (target {TARGET_MB:g} MB)"),
            ("pages of mapped files looked at (page cache, shared)", f"{measurements['mapped_file_pages_mb']:.1f} MB"),
            ("arrays on disk", f"{arrays_mb:.1f} MB"),
            ("naive loop, median", "not run" if naive_ms is None else f"{naive_ms:.3f} ms"),
            ("naive loop, its tables in memory", "not run" if naive_mb is None else f"{naive_mb:.1f} MB"),
        ],
    )
    write_results(__file__, ratios, measurements, arguments.out)


def measure_naive(index: CaptionIndex, negatives: ShuffledNegatives, todo: list[NDArray]) -> tuple[float, float]:
    """Median time of the naive loop in ms, interleaved with ours, and the size of its tables in MB."""
    naive = NaiveNegatives(index, negatives.num_negatives)
    times = []
    for captions in todo:
        negatives.draw(captions, 0)
        start = time.perf_counter()
        naive.draw(captions.tolist())
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times), (naive.image_of.nbytes + naive.text_of.nbytes) / 1e6


if __name__ == "__main__":
    main()
