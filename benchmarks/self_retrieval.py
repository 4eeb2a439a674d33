"""What scoring N generated captions against N images costs, as self-retrieval does: three ways to do it.

    python benchmarks/self_retrieval.py --data DIR --captioner DIR --captions captions.json

``--data`` is a folder with parquet files that have an ``image`` column (``test*.parquet``, ``validation*.parquet``,
``train*.parquet``, read in this order), ``--captioner`` a trained captioner, which writes the captions; they are kept
in the file that ``--captions`` names. Two models are timed, in float32: ``base``, a ViT-B/16 at 224 pixels with a
GPT-2 of the sizes of the 124M one and 50,257 tokens, with random weights, and ``small``, the given captioner itself.

- ``tries``: the package's way. Distinct captions as prefix tries, keys and values of an image computed once.
- ``repeated``: the image encoded once, its states repeated, a decoder row for each distinct caption, sorted by length,
  as many rows at once as a trial finds quickest. Without looking for equal captions it would take longer; that is
  stated as well (``with_duplicates``), scaled by the number of tokens.
- ``one_by_one``: a plain forward of encoder and decoder for each (image, caption). Timed for some random pairs and
  scaled by the number of pairs.

All captions are scored against some images, drawn at random; what N images take is scaled from that. Everything is
timed in one process and in turns: for each of four batches of them tries and repeated for every N, then some of the
pairs and large square matrix products; ``small`` goes through the batches five times. Medians are compared, per image
and per pair. All ways must agree in every score that more than one of them computes; the script stops if not.

The cost of all pairs is N times that of an image plus building the tries. Its exponent is fitted by least squares on
the logarithms; so are the operations, which PyTorch counts as they run, with attention made of plain products.
5,000 x 5,000 follows from both fits: the hours on the machine that ran it from the seconds, the hours at a stated
rate of a GPU from the operations.

Peak memory is measured in a process of its own, with as many images at once as the package's plan says: VmHWM after
the scoring less VmRSS before it, when model and tries are built. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import random
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import out_argument, write_results
from retrieval_report import TOLERANCE, print_report, ratios_of, reference_of, with_tables
from retrieval_ways import (
    Bench,
    CaptionSet,
    caption_set,
    first_images,
    load_captions,
    one_by_one,
    quickest_rows,
    random_bench,
    trained_bench,
)
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from training_step import large_products, status_mb, timed
from training_ways import QUICK_SIZES, SIZES
from transformers import logging

from hf_contrastive_caption.captioners.determinism import largest_difference
from hf_contrastive_caption.captioners.pairs import DEFAULT_MAX_MEMORY_BYTES, PairScorer
from hf_contrastive_caption.data.images import open_image

BATCHES = 4
"""Into how many batches the sampled images are cut."""
ROUNDS = {"base": 1, "small": 5}
"""How often they are gone through."""


# What is measured ----------------------------------------------------------------------------------------------------


def check(difference: float, what: str) -> float:
    """The difference, if it is within the tolerance.

    Raises:
        SystemExit: If not.
    """
    if not difference <= TOLERANCE:
        raise SystemExit(f"{what} do not agree: they differ by {difference:.2g} nats, more than {TOLERANCE:g}")
    return difference


def with_seconds(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What a function returns, and the seconds that it took."""
    start = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - start


def warm_up(bench: Bench, one: CaptionSet, pixel_values: Tensor) -> dict[str, float]:
    """Run every way on one image, compare scores, and time what an estimate needs.

    Args:
        bench: The model.
        one: The smallest set of captions.
        pixel_values: One image, (1, channels, height, width).

    Returns:
        Seconds per image of ``tries`` and ``repeated``, and per pair of ``one_by_one``.
    """
    images, few = {"pixel_values": pixel_values}, one.input_ids[:4]
    scores = one.tries.scores(images)[0]
    check(largest_difference(scores, one.repeated.scores(images)[0]), "tries and repeated")
    plain = torch.tensor([one_by_one(bench.tries, pixel_values, ids) for ids in few])
    check(largest_difference(scores[: len(few)], plain), "tries and one_by_one")
    return {
        "tries": with_seconds(one.tries.scores, images)[1],
        "repeated": with_seconds(one.repeated.scores, images)[1],
        "one_by_one": with_seconds(one_by_one, bench.tries, pixel_values, few[0])[1],
    }


def estimated_seconds(
    sets: dict[int, CaptionSet], images: int, pairs: int, warm: dict[str, float], memory: bool
) -> float:
    """How long timing, counting and, if asked for, measuring memory will take, from the smallest set."""
    first, total = sets[min(sets)].tries.plan, pairs * warm["one_by_one"]
    tries = {count: warm["tries"] * one.tries.plan.num_positions / first.num_positions for count, one in sets.items()}
    for count, one in sets.items():
        total += (images + 1) * tries[count]
        if one.repeated is not None:
            total += images * warm["repeated"] * one.tries.plan.num_tokens / first.num_tokens
    reference = reference_of(sets)
    return total + memory * sets[reference].tries.plan.images_at_once * tries[reference]


class Turns:
    """Times all ways in turns, batch of images by batch of images.

    Attributes:
        times: Seconds by name, per image and per pair.
        worst: Largest difference of two ways, in nats.
    """

    def __init__(self, bench: Bench, sets: dict[int, CaptionSet]) -> None:
        self.times: dict[str, list[float]] = defaultdict(list)
        self.worst = 0.0
        self._bench, self._sets, self._drawn = bench, sets, random.Random(0)

    def batch(self, pixel_values: Tensor, num_pairs: int) -> None:
        """Score every set against some images, and some random pairs of them and of the captions of the reference."""
        images, reference = {"pixel_values": pixel_values}, reference_of(self._sets)
        scores = torch.empty(0)
        for count, one in self._sets.items():
            tries, seconds = with_seconds(one.tries.scores, images)
            self.times[f"at_{count}_tries_image_s"].append(seconds / len(pixel_values))
            if one.repeated is not None:
                repeated, seconds = with_seconds(one.repeated.scores, images)
                self.times[f"at_{count}_repeated_image_s"].append(seconds / len(pixel_values))
                self._compare(largest_difference(tries, repeated), f"tries and repeated at {count} captions")
            if count == reference:
                scores = tries
        for _ in range(num_pairs):
            image, caption = self._drawn.randrange(len(pixel_values)), self._drawn.randrange(reference)
            ids = self._sets[reference].input_ids[caption]
            plain, seconds = with_seconds(one_by_one, self._bench.tries, pixel_values[image : image + 1], ids)
            self.times["one_by_one_pair_s"].append(seconds)
            self._compare(abs(plain - float(scores[image, caption])), "tries and one_by_one")

    def _compare(self, difference: float, what: str) -> None:
        self.worst = max(self.worst, check(difference, what))


def time_all(
    turns: Turns, pixel_values: Tensor, num_pairs: int, rounds: int, widths: tuple[int, ...]
) -> dict[str, Any]:
    """Medians by name, and the rate of the quickest of large matrix products."""
    products = large_products(widths)
    batches = pixel_values.tensor_split(min(BATCHES, len(pixel_values))) * rounds
    for number, batch in enumerate(batches):
        gc.collect()
        _, seconds = with_seconds(turns.batch, batch, len(range(number, num_pairs, len(batches))))
        for name, product in products.items():
            product()
            turns.times[name].append(timed(product))
        print(f"  batch {number + 1} of {len(batches)}: {seconds:.1f} s", flush=True)
    medians = {name: statistics.median(series) for name, series in turns.times.items()}
    rates = {name: 2 * int(name.split()[0]) ** 3 / medians.pop(name) / 1e9 for name in products}
    best = max(rates, key=lambda name: rates[name])
    largest = {"large_product": best, "large_product_gflop_per_s": rates[best]}
    return {**medians, **largest, "largest_difference_nats": turns.worst}


def counted_operations(tries: PairScorer, pixel_values: Tensor) -> float:
    """Operations of the matrix products and convolutions that score all captions against one image.

    With attention made of plain products: the counter does not know the fused attention of CPUs.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        tries.scores({"pixel_values": pixel_values[:1]})
    return float(counter.get_total_flops())


def peak_mib(bench: Bench, input_ids: list[list[int]], image_size: int) -> float:
    """Growth of the resident memory while tries score noise, with as many images at once as planned, in MiB."""
    one_by_one(bench.tries, torch.zeros(1, 3, image_size, image_size), input_ids[0])
    tries = PairScorer(bench.tries, input_ids)
    images = {"pixel_values": torch.randn(tries.plan.images_at_once, 3, image_size, image_size)}
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = status_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here, see proc(5)
    tries.scores(images)
    return (status_mb("VmHWM") - before) * 1e6 / 2**20


# The script ----------------------------------------------------------------------------------------------------------


def bench_for(name: str, arguments: argparse.Namespace, captions: list[str]) -> Bench:
    """The model of a size."""
    if name == "small":
        return trained_bench(arguments.captioner)
    return random_bench((QUICK_SIZES if arguments.quick else SIZES)["base"], captions)


def measure(name: str, arguments: argparse.Namespace, captions: list[str]) -> tuple[dict[str, Any], dict[str, float]]:
    """Measurements and ratios of one size."""
    bench = bench_for(name, arguments, captions)
    numbers = sorted(set(arguments.numbers))
    input_ids = bench.tries.processor.tokenize(captions).input_ids
    pictures = first_images(arguments.data, numbers[0])
    drawn = random.Random(0).sample(pictures, arguments.images)
    pixel_values = bench.tries.processor.process_images([open_image(one) for one in drawn])["pixel_values"]
    reference = reference_of(numbers)
    rows = quickest_rows(bench.repeated, pixel_values[:1], input_ids[:reference])
    upto = arguments.repeated_up_to
    sets = {count: caption_set(bench, input_ids[:count], rows if count <= upto else None) for count in numbers}
    warm = warm_up(bench, sets[numbers[0]], pixel_values[:1])
    images, memory = ROUNDS[name] * arguments.images, not arguments.skip_memory
    estimate = estimated_seconds(sets, images, arguments.pairs, warm, memory)
    widths = (64,) if arguments.quick else (1024, 2048, 4096)
    print(f"{name}: {bench.tries.name}, about {estimate / 60:.1f} minutes from here", flush=True)
    found: dict[str, Any] = {
        "weights_million": sum(weight.numel() for weight in bench.model.parameters()) / 1e6,
        "vocabulary": len(bench.tries.processor.tokenizer),
        "rows_at_once": rows,
        "budget_mib": DEFAULT_MAX_MEMORY_BYTES / 2**20,
        "rounds": ROUNDS[name],
        **time_all(Turns(bench, sets), pixel_values, arguments.pairs, ROUNDS[name], widths),
    }
    for count, one in sets.items():
        operations = counted_operations(one.tries, pixel_values)
        found[f"at_{count}_operations_per_image_g"] = operations / 1e9
    if memory:
        found["tries_peak_mib"] = peak_in_own_process(name, arguments.given)
    found = with_tables(found, sets, arguments.gpu_tflops)
    return found, ratios_of(found, sets)


def peak_in_own_process(name: str, given: list[str]) -> float:
    """Peak of a size, with the arguments of this run."""
    command = [sys.executable, __file__, *given, "--peak-of", name]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(finished.stdout.split()[-1])


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with parquet files")
    parser.add_argument("--captioner", type=Path, required=True, help="folder of a trained captioner")
    parser.add_argument("--captions", type=Path, required=True, help="JSON file of its captions, made if missing")
    parser.add_argument("--numbers", type=int, nargs="+", default=[100, 300, 1000, 3000], help="default: %(default)s")
    parser.add_argument("--images", type=int, default=8, help="images that are sampled (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=64, help="pairs for one_by_one (default: %(default)s)")
    parser.add_argument(
        "--repeated-up-to", type=int, default=1000, help="largest N of repeated (default: %(default)s)"
    )
    parser.add_argument("--sizes", nargs="+", choices=("base", "small"), default=["base", "small"])
    parser.add_argument("--gpu-tflops", type=float, default=100.0, help="stated rate of a GPU (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--skip-memory", action="store_true", help="start no processes that measure peak memory")
    parser.add_argument("--quick", action="store_true", help="toy size as base, to see that it runs")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    out_argument(parser, __file__)
    standard = parser.get_default("out")
    arguments = parser.parse_args(argv)
    numbers = set(arguments.numbers)
    if len(numbers) < 2 or min(numbers) < 1:
        parser.error("--numbers takes two different numbers or more, of at least 1: an exponent is fitted to them")
    if not 1 <= arguments.images <= min(numbers):
        parser.error(
            f"--images must be from 1 to the smallest of --numbers, {min(numbers)}, but is {arguments.images}"
        )
    if arguments.pairs < BATCHES:
        parser.error(f"--pairs must be at least {BATCHES}, but is {arguments.pairs}")
    if arguments.repeated_up_to < reference_of(numbers):
        parser.error(f"--repeated-up-to must be at least {reference_of(numbers)}, where the ways are compared")
    arguments.given = sys.argv[1:] if argv is None else argv
    if arguments.quick and arguments.out == standard:
        arguments.out = None  # toy figures must not replace real ones
    return arguments


def main(argv: list[str] | None = None) -> None:
    """Run it."""
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    logging.set_verbosity_error()  # the plain ways give no mask where no real token could see padding
    numbers = sorted(set(arguments.numbers))
    captions = load_captions(arguments.captions, arguments.captioner, arguments.data, numbers[-1])
    if arguments.peak_of:
        bench = bench_for(arguments.peak_of, arguments, captions)
        input_ids = bench.tries.processor.tokenize(captions[: reference_of(numbers)]).input_ids
        print(peak_mib(bench, input_ids, bench.model.config.encoder.image_size))
        return
    ratios: dict[str, float] = {}
    measurements: dict[str, Any] = {
        "images": arguments.images,
        "pairs": arguments.pairs,
        "reference": reference_of(numbers),
    }
    for name in arguments.sizes:
        found, own = measure(name, arguments, captions)
        gc.collect()
        print_report(name, found, own, numbers, arguments.images)
        measurements |= {f"{name}_{key}": value for key, value in found.items()}
        ratios |= {f"{name}_{key}": value for key, value in own.items()}
    if arguments.out is not None:
        write_results(__file__, ratios, measurements, arguments.out)


if __name__ == "__main__":
    main()
