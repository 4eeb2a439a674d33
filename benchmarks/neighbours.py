"""How long it takes to find the neighbours of all images, where an index pays, and what the guard refuses.

    python benchmarks/neighbours.py

Search: vectors of the given width around centres (200 vectors for each; images of one kind), and for each image the 80
nearest, as hard_negative_pool=100 asks for with five captions an image. Exact search compares all pairs by blocks; the
index is Faiss's, as hard_negative_index="faiss" uses it. Search takes time in proportion to the images that are asked
for, so a part is asked for and the time of all is computed from it. Times are those of the processor, of one thread
unless more are asked for, so that other work on the machine hardly counts. Memory is the most anonymous memory of the
process beside what was there before, against a table of all pairs.

Guard: drawn scenes, of which it is known what is true. A caption is true of a scene if any of 3,000 captions drawn
for that scene is the same. The captions of its 20 nearest scenes, by pixels and by words, are judged by CIDEr-D
against the scene's own five captions; one that is equal to one of them is refused at any threshold.
"""

from __future__ import annotations

import argparse
import random
import threading
import time
from functools import cache, partial
from pathlib import Path
from typing import Any

import datasets
import faiss
import numpy as np
import torch
from common import out_argument, print_table, write_results
from numpy.typing import NDArray

from hf_contrastive_caption.data.scenes import caption_scene, sample_scene, scenes
from hf_contrastive_caption.evaluation.metrics.cider_pairs import CiderDPairs
from hf_contrastive_caption.evaluation.metrics.prepared import PreparedReferences
from hf_contrastive_caption.evaluation.metrics.tokenization import ptb_tokenize
from hf_contrastive_caption.neighbours.features import word_features
from hf_contrastive_caption.neighbours.search import DenseFeatures, FaissIndex, Features, nearest

K = 80
BLOCK = 1024
NEAR_SCENES = 20
DRAWN = 3000
THRESHOLDS = (0.5, 1.0, 2.0, 10.0)


class PeakMemory:
    """The most anonymous memory of the process while it runs, beside what was there before, in MB. Linux only."""

    def __enter__(self) -> PeakMemory:
        self._stop = threading.Event()
        self._before = self.mb = _anonymous_mb()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self.mb -= self._before

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.mb = max(self.mb, _anonymous_mb())


def _anonymous_mb() -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) * 1024 / 1e6


def measure_search(n_images: int, width: int, queries: int) -> dict[str, Any]:
    """Exact search and the index on one set of vectors."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(max(1, n_images // 200), width, generator=generator)
    kind = torch.randint(0, len(centres), (n_images,), generator=generator)
    features = DenseFeatures(centres[kind] + torch.randn(n_images, width, generator=generator), centred=True)
    queries = min(queries, n_images)
    starts = range(0, queries, BLOCK)

    def search(find: Any) -> list[NDArray[np.int64]]:
        return [find(start, min(start + BLOCK, queries), K) for start in starts]

    with PeakMemory() as memory:
        begin = time.process_time()
        exact = search(partial(nearest, features))
        exact_s = (time.process_time() - begin) * n_images / queries
    begin = time.process_time()
    index = FaissIndex(features)
    build_s = time.process_time() - begin
    begin = time.process_time()
    found = search(index.nearest)
    index_s = (time.process_time() - begin) * n_images / queries
    rows = zip(np.concatenate(exact).tolist(), np.concatenate(found).tolist(), strict=True)
    return {
        "asked_for": queries,
        "exact_cpu_s": exact_s,
        "exact_extra_memory_mb": memory.mb,
        "all_pairs_mb": 4 * n_images**2 / 1e6,
        "index_build_cpu_s": build_s,
        "index_search_cpu_s": index_s,
        "index_recall": float(np.mean([len(set(one) & set(other)) / len(one) for one, other in rows])),
    }


def measure_guard(n_scenes: int, judged: int) -> dict[str, float]:
    """What the guard refuses among the captions of near scenes, and how much of it is true."""
    drawn = [sample_scene(0, "train", number)[0] for number in range(n_scenes)]
    dataset = scenes(n_scenes, 0, 0, image_size=16)["train"]
    references = PreparedReferences.from_strings(list(dataset["captions"]), ptb_tokenize)
    pixels = torch.stack([torch.from_numpy(np.asarray(image, np.float32)).flatten() for image in dataset["image"]])
    pairs = CiderDPairs(references)
    texts = [text for of_one in dataset["captions"] for text in of_one]
    rng = random.Random(0)

    @cache
    def true_of(scene: int) -> frozenset[str]:
        return frozenset(caption_scene(rng, drawn[scene]) for _ in range(DRAWN))

    found: dict[str, float] = {}
    ways: dict[str, Features] = {"pixels": DenseFeatures(pixels, centred=True), "words": word_features(references)}
    for way, features in ways.items():
        near = nearest(features, 0, judged, NEAR_SCENES)
        true, score = [], []
        for scene in range(judged):
            captions = (5 * near[scene][:, None] + np.arange(5)).ravel()
            own = np.arange(5 * scene, 5 * scene + 5)
            same = np.isin([texts[one] for one in captions], [texts[one] for one in own])
            score.append(np.where(same, np.inf, pairs.scores(captions, own)))
            true.append([texts[one] in true_of(scene) for one in captions])
        is_true, scores = np.concatenate(true), np.concatenate(score)
        found[f"{way}_true_share"] = float(is_true.mean())
        for threshold in THRESHOLDS:
            refused, name = scores > threshold, f"{way}_above_{threshold:g}".replace(".", "_")
            found[f"{name}_refused_share"] = float(refused.mean())
            found[f"{name}_refused_of_true"] = float(refused[is_true].mean())
            found[f"{name}_refused_of_false"] = float(refused[~is_true].mean())
            found[f"{name}_true_of_taken"] = float(is_true[~refused].mean())
    return found


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[30_000, 120_000], help="(default: %(default)s)")
    parser.add_argument("--width", type=int, default=768, help="numbers in a vector (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=2048, help="images asked for at most (default: %(default)s)")
    parser.add_argument("--scenes", type=int, default=6000, help="drawn scenes (default: %(default)s)")
    parser.add_argument("--judged", type=int, default=500, help="scenes judged (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads (default: %(default)s)")
    out_argument(parser, __file__)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    faiss.omp_set_num_threads(arguments.threads)
    datasets.disable_progress_bars()

    measurements: dict[str, Any] = {"width": arguments.width, "neighbours": K}
    ratios = {}
    for n_images in arguments.images:
        one = measure_search(n_images, arguments.width, arguments.queries)
        by_index = one["index_build_cpu_s"] + one["index_search_cpu_s"]
        ratios[f"exact_over_index_at_{n_images}"] = one["exact_cpu_s"] / by_index
        ratios[f"extra_memory_over_all_pairs_at_{n_images}"] = one["exact_extra_memory_mb"] / one["all_pairs_mb"]
        measurements |= {f"at_{n_images}_{name}": value for name, value in one.items()}
    guard = measure_guard(arguments.scenes, arguments.judged)
    measurements |= {"scenes": arguments.scenes, "scenes_judged": arguments.judged, **guard}
    print_table("Neighbours", [(name, f"{value:,.3f}") for name, value in measurements.items()])
    write_results(__file__, ratios, measurements, arguments.out)


if __name__ == "__main__":
    main()
