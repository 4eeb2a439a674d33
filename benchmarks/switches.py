"""What bfloat16, gradient checkpointing and compiled layers change in a training step, on the machine that runs it.

    python benchmarks/switches.py --threads 1

One contrastive step (forward and backward of the target, forward of the reference) of the small captioner of
``training_step.py``, with K = 5 packed captions for each of 16 images, in float32 and with each switch by itself. All
take turns in one process. Layers are compiled one by one (``module.compile()`` of each layer of encoder and decoder,
of target and reference), which leaves the model's own forward and the hooks that score in it as they are; how long the
first step takes is measured as well, and the first step with captions of another length. A C++ compiler must be there.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import time
from collections.abc import Callable, Iterator
from statistics import median

import torch
from common import out_argument, print_table, write_results
from torch import nn
from training_ways import QUICK_SIZES, SIZES, WAYS, Bench, build

Step = Callable[[Bench], float]


def plain(bench: Bench) -> float:
    """Seconds of one step."""
    bench.model.zero_grad()
    gc.collect()
    start = time.perf_counter()
    WAYS["packed"](bench)
    return time.perf_counter() - start


def in_bfloat16(bench: Bench) -> float:
    """Seconds of one step under autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        return plain(bench)


def layers(model: nn.Module) -> Iterator[nn.Module]:
    """The transformer blocks of encoder and decoder."""
    blocks = ("ViTLayer", "GPT2Block")
    return (module for module in model.modules() if type(module).__name__ in blocks)


def compiled(bench: Bench) -> Bench:
    """With compiled layers."""
    found = [*layers(bench.model), *layers(bench.reference)]
    assert found
    for layer in found:
        layer.compile()
    return bench


def checkpointed(bench: Bench) -> Bench:
    """With gradient checkpointing in the target, which needs training mode; there is no dropout."""
    bench.model.train()
    bench.model.gradient_checkpointing_enable({"use_reentrant": False})
    return bench


def shorter(bench: Bench) -> Bench:
    """With captions that are a token shorter."""
    return dataclasses.replace(bench, captions=[torch.cat([ids[:1], ids[2:]]) for ids in bench.captions])


def main(arguments: list[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="turns of each (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of PyTorch")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs")
    out_argument(parser, __file__)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    size = (QUICK_SIZES if options.quick else SIZES)["small"]
    ways: dict[str, tuple[Bench, Step]] = {
        "float32": (build(size), plain),
        "bfloat16": (build(size), in_bfloat16),
        "checkpointing": (checkpointed(build(size)), plain),
        "compiled": (build(size), plain),
    }
    for bench, _ in ways.values():
        bench.scorer("packed")  # checks itself before anything is compiled
    compiled(ways["compiled"][0])
    measurements = {f"{name}_first_step_s": step(bench) for name, (bench, step) in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, (bench, step) in ways.items():
            seconds[name].append(step(bench))
    measurements |= {f"{name}_step_s": median(times) for name, times in seconds.items()}
    measurements["compiled_first_step_of_another_length_s"] = plain(shorter(ways["compiled"][0]))
    ratios = {
        f"float32_time_over_{name}_time": measurements["float32_step_s"] / measurements[f"{name}_step_s"]
        for name in ways
        if name != "float32"
    }
    print_table("a step", [(name, f"{value:.3g}") for name, value in {**ratios, **measurements}.items()])
    write_results(__file__, ratios, measurements, options.out)


if __name__ == "__main__":
    main()
