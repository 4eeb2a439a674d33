"""What a contrastive training step costs: four ways to score 1 + K captions per image, and a plain MLE step beside.

    python benchmarks/training_step.py

Two captioners from configs, with seeded weights, float32, no dropout: ``small`` (ViT of width 192, 6 layers, 145
positions; GPT-2 of width 192, 4 layers, vocabulary 4,000; 16 images) and ``base`` (ViT-B/16 at 224 pixels; GPT-2 with
the sizes of the 124M one, vocabulary 50,257; 2 images). Captions have 8 to 20 tokens, 12 on the average.

1. Forward and backward of the target plus forward of the reference, of 1 + K captions per image:

   - ``one_by_one``: a plain forward of the model per (image, caption), a backward per image;
   - ``padded``: each (image, caption) is a row of one padded batch, so an image is encoded 1 + K times;
   - ``repeated``: images are encoded once and their states repeated, a decoder row per caption;
   - ``packed``: images are encoded once, all captions of an image are in one decoder row.

   Before anything is timed, all ways must give the same loss and the same gradient; the script stops if not.
2. A whole step of fused AdamW: the contrastive one (packed) and the MLE one of transformers, with one caption per
   image, ``model(pixel_values=..., labels=...).loss``, on the same model and images.
3. The share of the machine's matrix-product rate that the contrastive step reaches: the operations of the matrix
   products and convolutions that it runs (counted by PyTorch as they run, with eager attention), over its time, over
   a rate timed in the same run. *Large*: the quickest of several square float32 products. *Own*: the products that the
   step consists of, with their shapes and layouts, by themselves; what is missing there was not spent on products.
4. Peak memory of each way, in a process of its own: VmHWM after one forward and backward less VmRSS before it, when
   both models are built, the scoring is verified, a plain forward has started thread pools and lazy imports, and freed
   memory is given back. So it is activations and the target's gradients (as large as its weights, in every way),
   without weights, reference and optimizer. Linux only.

Everything is timed in one process, in turns, and medians are compared.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import out_argument, write_results
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from training_ways import QUICK_SIZES, SIZES, WAYS, Bench, K, Size, build, padded_labels, plain_log_prob
from transformers import logging

TARGETS = {"one_by_one_over_packed": 4.0, "repeated_over_packed": 1.25, "contrastive_step_over_mle_step": 2.2}
LOSS_TOLERANCE = 1e-4  # nats; scores of some 100 nats in float32
GRADIENT_TOLERANCE = 1e-3  # relative L2 over all weights


# What is measured ----------------------------------------------------------------------------------------------------


def check_equal(bench: Bench) -> dict[str, float]:
    """Loss and gradient of every way against those of the first; also the warm-up.

    Raises:
        SystemExit: If one differs by more than the tolerance.
    """
    weights = [weight for weight in bench.model.parameters() if weight.requires_grad]
    found: dict[str, float] = {}
    expected, size = torch.empty(0), 0.0
    for name, way in WAYS.items():
        bench.model.zero_grad()
        loss = way(bench)
        gradient = torch.cat([weight.grad.flatten() for weight in weights])  # (n_weights,)
        if not found:
            expected, size = gradient, float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
            found = {"loss": loss, "gradient_norm": size}
            continue
        difference = float(torch.linalg.vector_norm(gradient - expected, dtype=torch.float64)) / size
        found[f"{name}_loss_difference"] = abs(loss - found["loss"])
        found[f"{name}_gradient_difference"] = difference
        if not (found[f"{name}_loss_difference"] <= LOSS_TOLERANCE and difference <= GRADIENT_TOLERANCE):
            raise SystemExit(f"{name} does not compute what one_by_one computes: {found}")
    return found


def steps(bench: Bench) -> dict[str, Callable[[], Any]]:
    """A contrastive and an MLE step on the same images, with one optimizer."""
    weights = [weight for weight in bench.model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-6, fused=True)  # the trainer's default optimizer
    labels = padded_labels(bench.captions[:: 1 + K])

    def contrastive() -> None:
        optimizer.zero_grad()
        WAYS["packed"](bench)
        optimizer.step()

    def mle() -> None:
        optimizer.zero_grad()
        bench.model(pixel_values=bench.pixel_values, labels=labels).loss.backward()
        optimizer.step()

    return {"contrastive_step": contrastive, "mle_step": mle}


def timed(action: Callable[[], Any]) -> float:
    """Seconds that it takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def large_products(widths: tuple[int, ...]) -> dict[str, Callable[[], Any]]:
    """Square float32 products by name."""
    products = {}
    for width in widths:
        left, right, out = (torch.randn(width, width) for _ in range(3))
        products[f"{width} x {width} x {width}"] = functools.partial(torch.mm, left, right, out=out)
    return products


class Products(TorchDispatchMode):
    """Writes down the matrix products that run: shapes and strides of both factors, and how often."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[tuple[tuple[int, ...], ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm):
            left, right = args[-2:]
            self.seen[tuple(left.shape), left.stride(), tuple(right.shape), right.stride()] += 1
        return func(*args, **(kwargs or {}))

    def replay(self) -> tuple[float, float]:
        """Run them again on numbers: operations, and seconds (median of three for each layout)."""
        operations, seconds = 0.0, 0.0
        for (shape, stride, right_shape, right_stride), count in self.seen.items():
            left, right = _factor(shape, stride), _factor(right_shape, right_stride)
            product = functools.partial(torch.bmm if left.dim() == 3 else torch.mm, left, right)
            product()
            seconds += count * statistics.median(timed(product) for _ in range(3))
            operations += count * 2.0 * left.numel() * right.shape[-1]
        return operations, seconds


def _factor(shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Random numbers in the given layout; a stride may be 0."""
    places = 1 + sum(max(0, size - 1) * step for size, step in zip(shape, stride, strict=True))
    return torch.randn(places).as_strided(shape, stride)


def count_operations(bench: Bench) -> tuple[float, Products]:
    """Operations of the packed way, and its matrix products.

    Leaves both models with eager attention: the counter does not know the fused attention of CPUs.
    """
    for model in (bench.model, bench.reference):
        model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, Products() as products:
        WAYS["packed"](bench)
    return float(counter.get_total_flops()), products


def measure_times(size: Size, repeats: int, quick: bool) -> dict[str, Any]:
    """Everything that one process measures, by name."""
    bench = build(size)
    found: dict[str, Any] = {
        "images": size.images,
        "captions": len(bench.captions),
        "mean_caption_tokens": statistics.mean(len(ids) for ids in bench.captions),
        "weights_million": sum(weight.numel() for weight in bench.model.parameters()) / 1e6,
        "repeats": repeats,
        **check_equal(bench),
    }
    large = large_products((64,) if quick else (1024, 2048, 4096))
    actions = {name: functools.partial(way, bench) for name, way in WAYS.items()} | steps(bench) | large
    times: dict[str, list[float]] = {name: [] for name in actions}
    for name in actions.keys() - WAYS.keys():  # the ways were warmed up by the comparison
        actions[name]()
    for repeat in range(repeats):
        for name, action in actions.items():
            bench.model.zero_grad()
            gc.collect()
            times[name].append(timed(action))
        print(f"  round {repeat + 1} of {repeats}: {sum(series[-1] for series in times.values()):.1f} s", flush=True)
    medians = {name: statistics.median(series) for name, series in times.items()}
    rates = {name: 2 * int(name.split()[0]) ** 3 / medians.pop(name) / 1e9 for name in large}
    best = max(rates, key=lambda name: rates[name])
    operations, products = count_operations(bench)
    own_operations, own_seconds = products.replay()
    return {
        **found,
        **{f"{name}_s": seconds for name, seconds in medians.items()},
        "packed_operations_g": operations / 1e9,
        "large_product": best,
        "large_product_gflop_per_s": rates[best],
        "own_products_operations_g": own_operations / 1e9,
        "own_products_s": own_seconds,
        "own_product_gflop_per_s": own_operations / own_seconds / 1e9,
    }


def ratios_of(found: dict[str, Any]) -> dict[str, float]:
    """What is claimed, from what was measured."""
    ratios = {f"{way}_over_packed": found[f"{way}_s"] / found["packed_s"] for way in WAYS if way != "packed"}
    ratios["contrastive_step_over_mle_step"] = found["contrastive_step_s"] / found["mle_step_s"]
    for action, name in (("contrastive_step", "step"), ("packed", "forward_backward")):
        for kind in ("large", "own"):
            rate = found["packed_operations_g"] / found[f"{action}_s"]
            ratios[f"{name}_share_of_{kind}_product_rate"] = rate / found[f"{kind}_product_gflop_per_s"]
    if "packed_peak_mb" in found:
        for way in WAYS:
            if way != "packed":
                ratios[f"{way}_peak_over_packed_peak"] = found[f"{way}_peak_mb"] / found["packed_peak_mb"]
    return ratios


# Memory --------------------------------------------------------------------------------------------------------------


def peak_mb(size: Size, way: str) -> float:
    """Peak of the resident memory during one forward and backward, less resident memory before, in MB."""
    bench = build(size)
    with torch.no_grad():
        plain_log_prob(bench.model, bench.pixel_values[:1], bench.captions[0])
    if way in ("packed", "repeated"):
        bench.scorer(way)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = status_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here, see proc(5)
    WAYS[way](bench)
    return status_mb("VmHWM") - before


def status_mb(name: str) -> float:
    """A line of /proc/self/status in MB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024 / 1e6


def measure_memory(size_name: str, threads: int, quick: bool) -> dict[str, float]:
    """Peak of each way, each in a fresh process."""
    found = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--peak-of", size_name, way, "--threads", str(threads)]
        finished = subprocess.run(command + ["--quick"] * quick, stdout=subprocess.PIPE, text=True, check=True)
        found[f"{way}_peak_mb"] = float(finished.stdout.split()[-1])
    return found


# Report --------------------------------------------------------------------------------------------------------------


def print_report(name: str, found: dict[str, Any], ratios: dict[str, float]) -> None:
    """The figures of one size."""
    print(f"\n{name}: {found['weights_million']:.1f} million weights, {found['images']} images, 1 + {K} captions each")
    print(f"  {'target forward + backward, reference forward':<46}{'seconds':>9}{'x packed':>10}{'peak MB':>9}")
    for way in WAYS:
        peak = f"{found[f'{way}_peak_mb']:,.0f}" if f"{way}_peak_mb" in found else "-"
        ratio = found[f"{way}_s"] / found["packed_s"]
        target = TARGETS.get(f"{way}_over_packed")
        note = "" if target is None else f"   target: at least {target:g}"
        print(f"  {way:<46}{found[f'{way}_s']:>9.3f}{ratio:>10.2f}{peak:>9}{note}")
    print(f"  {'whole step with AdamW':<46}{'seconds':>9}{'x MLE':>10}")
    for step in ("mle_step", "contrastive_step"):
        note = f"{'':>9}   target: at most {TARGETS['contrastive_step_over_mle_step']:g}" * (step != "mle_step")
        print(f"  {step:<46}{found[f'{step}_s']:>9.3f}{found[f'{step}_s'] / found['mle_step_s']:>10.2f}{note}")
    print(f"  {'matrix products':<46}{'GFLOP/s':>9}{'of step':>10}{'of f + b':>9}")
    for label, kind in ((f"large, {found['large_product']}", "large"), ("those of the step itself", "own")):
        step, part = (ratios[f"{name}_share_of_{kind}_product_rate"] for name in ("step", "forward_backward"))
        print(f"  {label:<46}{found[f'{kind}_product_gflop_per_s']:>9.1f}{step:>10.0%}{part:>9.0%}")
    worst = [max(v for k, v in found.items() if k.endswith(f"_{of}_difference")) for of in ("loss", "gradient")]
    print(
        f"  same loss to {worst[0]:.1e} nats (tolerance {LOSS_TOLERANCE:g}), same gradient to {worst[1]:.1e} "
        f"(relative L2, tolerance {GRADIENT_TOLERANCE:g})"
    )


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="default: %(default)s")
    defaults = ", ".join(f"{size.repeats} for {name}" for name, size in SIZES.items())
    parser.add_argument("--repeats", type=int, help=f"rounds of timing (default: {defaults})")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--skip-memory", action="store_true", help="start no processes that measure peak memory")
    parser.add_argument("--quick", action="store_true", help="toy sizes, to see that it runs; writes only with --out")
    parser.add_argument("--peak-of", nargs=2, metavar=("SIZE", "WAY"), help=argparse.SUPPRESS)
    out_argument(parser, __file__)
    standard = parser.get_default("out")
    arguments = parser.parse_args(argv)
    if arguments.repeats is not None and arguments.repeats < 1:
        parser.error(f"--repeats must be at least 1, but is {arguments.repeats}")
    if arguments.quick and arguments.out == standard:
        arguments.out = None  # toy figures must not replace real ones
    return arguments


def main(argv: list[str] | None = None) -> None:
    """Run it."""
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    logging.set_verbosity_error()  # the plain ways give no mask where no real token could see padding
    sizes = QUICK_SIZES if arguments.quick else SIZES
    if arguments.peak_of:
        name, way = arguments.peak_of
        print(peak_mb(sizes[name], way))
        return
    ratios: dict[str, float] = {}
    measurements: dict[str, Any] = {"num_negatives": K}
    for name in arguments.sizes:
        print(f"{name} ...", flush=True)
        found = measure_times(sizes[name], arguments.repeats or sizes[name].repeats, arguments.quick)
        gc.collect()
        if not arguments.skip_memory:
            found |= measure_memory(name, arguments.threads, arguments.quick)
        own = ratios_of(found)
        print_report(name, found, own)
        measurements |= {f"{name}_{key}": value for key, value in found.items()}
        ratios |= {f"{name}_{key}": value for key, value in own.items()}
    if arguments.out is not None:
        write_results(__file__, ratios, measurements, arguments.out)


if __name__ == "__main__":
    main()
