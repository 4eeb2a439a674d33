"""What each way to hold the reference costs in memory and time, beside MLE training that scores the same captions.

    python benchmarks/reference_memory.py

Every strategy runs in a process of its own through the trainer's own ``train()``: its data loader opens JPEG images of
640 x 480 pixels, or reads cached states from disk, and its steps include clipping and fused AdamW. The captioners are
those of ``training_step.py`` (``small``; ``base`` with ``--sizes base``), float32. Each image brings 1 + K captions to
a step, K = 5, of 12 tokens each, so that every step of every strategy has the same shape; *MLE* scores as many, in the
same layout, and has no reference. An adapter is LoRA of rank 8 on all layers of encoder and decoder.

- Time: the strategies of a comparison are alive together and take a step each in turns, one at a time. A step lies
  between the trainer's ``on_step_begin`` and ``on_step_end``; *loading* between the end of a step and the beginning of
  the next one, and is mostly the making of its batch (in the main process, as by default). Medians.
- Memory: in another process, with the allocator set to give freed memory back at once, the peak over steady steps of
  the memory that is the process's own, less what it had after imports: VmHWM without RssFile, less RssAnon. On a GPU
  ``torch.cuda.max_memory_allocated``. *Held* is counted: weights, gradients, optimizer states, reference. Linux only.
- Operations: of one more step, counted as it runs, beside those of ``cost_model.py``.

What is computed ahead is computed before the steps and not timed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Any

import cost_model
import torch
from common import out_argument, write_results
from cost_model import ADAPTERS, STRATEGIES, count_forwards, held_bytes, scores_bytes, states_bytes, step_operations
from reference_worker import STEPS_IN_EPOCH, TOKENS, lora, make_processing, work
from training_ways import QUICK_SIZES, SIZES, K, Size
from turns import WARM_UP, Worker

from hf_contrastive_caption import ContrastiveCaptionConfig
from hf_contrastive_caption.adapting import with_adapter
from hf_contrastive_caption.captioners import caption_batch, captioner_for
from hf_contrastive_caption.models import small_captioner

COMPARISONS = (
    ("mle", "default", "scores_ahead"),
    ("default", "shared_encoder", "cached_states", "cached_states_scores_ahead"),
    ("mle_adapter", "adapters_off"),
)
"""Strategies that are timed in turns; a ratio is never taken across."""
BASELINES = {name: "mle_adapter" if name in ADAPTERS else "mle" for name in STRATEGIES}
GOALS = {
    "adapters_off_peak_over_mle_adapter_peak": "at most 1.05",
    "scores_ahead_step_over_mle_step": "at most 1.3",
    "default_step_over_cached_states_step": "at least 2",
    "default_step_over_cached_states_scores_ahead_step": "at least 2.7",
}


def start(strategy: str, arguments: argparse.Namespace, size: str, *, memory: bool, steps: int) -> Worker:
    """A strategy in a process of its own."""
    command = [sys.executable, __file__, "--work", size, strategy, "--repeats", str(steps)]
    command += ["--threads", str(arguments.threads)]
    command += ["--quick"] * arguments.quick + ["--checkpointing"] * arguments.checkpointing
    return Worker(command, memory=memory)


def measure_times(arguments: argparse.Namespace, size: str, repeats: int) -> dict[str, float]:
    """Medians of each strategy in each comparison: seconds of a step, and of loading."""
    found = {}
    for number, names in enumerate(COMPARISONS):
        workers = {name: start(name, arguments, size, memory=False, steps=repeats) for name in names}
        taken: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for worker in workers.values():
            worker.answer()  # warmed up, with a batch
        for _ in range(repeats):
            for name, worker in workers.items():
                taken[name].append(worker.step())
        for name, worker in workers.items():
            worker.end()
            for what in ("step_s", "loading_s"):
                value = statistics.median(one[what] for one in taken[name])
                found[f"comparison_{number}_{name}_{what}"] = value
        medians = [f"{name} {found[f'comparison_{number}_{name}_step_s']:.3f} s" for name in names]
        print("  timed: " + ", ".join(medians), flush=True)
    return found


def measure_memory(arguments: argparse.Namespace, size: str) -> dict[str, float]:
    """Peak, held tensors, operations and bytes on disk of each strategy, one after the other."""
    found = {}
    sizes = QUICK_SIZES if arguments.quick else SIZES
    for name in STRATEGIES:
        worker = start(name, arguments, size, memory=True, steps=STEPS_IN_EPOCH)
        worker.answer()  # warmed up, with a batch
        for _ in range(STEPS_IN_EPOCH):
            worker.step()
        last = worker.end()
        found |= {f"{name}_{what}": last[what] for what in ("peak_mb", "held_mb")}
        found[f"{name}_operations_g"] = last["operations"] / 1e9
        print(f"  {name}: peak {last['peak_mb']:.0f} MB, {last['operations'] / 1e9:.1f} GFLOP", flush=True)
        if name == "cached_states":
            found["states_bytes_per_image"] = last["ahead_bytes"] / (sizes[size].images * STEPS_IN_EPOCH)
    return found


def predict(size: Size, *, checkpointing: bool) -> dict[str, float]:
    """Operations, held bytes and bytes on disk of each strategy, by the cost model."""
    processing = make_processing(size)
    captioner = captioner_for(small_captioner(processing[0], seed=0, **size.model), processing)
    captioner.verify()
    width, pixels = size.model["width"], size.model["image_size"]
    images = {"pixel_values": torch.randn(size.images, 3, pixels, pixels)}
    ids = torch.randint(4, size.vocabulary, (size.images * (1 + K), TOKENS)).tolist()
    captions = caption_batch(ids, [number // (1 + K) for number in range(len(ids))])
    model: Any = captioner.base_model
    encoder = sum(weight.numel() for weight in model.encoder.parameters())
    decoder = sum(weight.numel() for weight in model.decoder.parameters())
    plain = count_forwards(captioner, images, captions)
    arguments = ContrastiveCaptionConfig(output_dir="unused", report_to="none", bf16=False)
    adapted = with_adapter(captioner, lora(), arguments)
    adapted.verify()
    extra = sum(weight.numel() for weight in adapted.model.parameters() if weight.requires_grad)
    forwards = cost_model.with_adapter(plain, count_forwards(adapted, images, captions))
    positions = (pixels // size.model["patch_size"]) ** 2 + 1
    epochs = -(-(WARM_UP + STEPS_IN_EPOCH + 1) // STEPS_IN_EPOCH)
    found: dict[str, float] = {
        "encoder_forward_operations_g": forwards.encoder.forward / 1e9,
        "decoder_forward_operations_g": forwards.decoder.forward / 1e9,
        "predicted_states_bytes_per_image": states_bytes(positions, width),
        "predicted_scores_bytes_per_image": scores_bytes(K, epochs),
    }
    for name in STRATEGIES:
        found[f"{name}_predicted_operations_g"] = step_operations(name, forwards, checkpointing=checkpointing) / 1e9
        found[f"{name}_predicted_held_mb"] = held_bytes(name, encoder, decoder, extra) / 1e6
    return found


# Report --------------------------------------------------------------------------------------------------------------


def ratios_of(found: dict[str, Any]) -> dict[str, float]:
    """What is claimed, from what was measured; beside each ratio of times the one of predicted operations."""
    ratios: dict[str, float] = {}
    for number, names in enumerate(COMPARISONS):
        base = names[0]
        for name in names[1:]:
            pair = (base, name) if base == "default" else (name, base)  # how much quicker, or how much longer
            label = f"{pair[0]}_step_over_{pair[1]}_step"
            times = [found[f"comparison_{number}_{one}_step_s"] for one in pair]
            loading = [found[f"comparison_{number}_{one}_loading_s"] for one in pair]
            ratios[label] = times[0] / times[1]
            ratios[f"{label}_with_loading"] = (times[0] + loading[0]) / (times[1] + loading[1])
            predicted = [found[f"{one}_predicted_operations_g"] for one in pair]
            ratios[f"{label}_predicted"] = predicted[0] / predicted[1]
    for name in STRATEGIES:
        ratios[f"{name}_operations_over_predicted"] = (
            found[f"{name}_operations_g"] / found[f"{name}_predicted_operations_g"]
        )
        ratios[f"{name}_held_over_predicted"] = found[f"{name}_held_mb"] / found[f"{name}_predicted_held_mb"]
        if name != BASELINES[name]:
            base = BASELINES[name]
            ratios[f"{name}_peak_over_{base}_peak"] = found[f"{name}_peak_mb"] / found[f"{base}_peak_mb"]
    return ratios


def print_report(size: str, found: dict[str, Any], ratios: dict[str, float]) -> None:
    """The figures of one size."""
    print(
        f"\n{size}: {found['images']} images, 1 + {K} captions of {TOKENS} tokens each; x is over MLE (of an adapter)"
    )
    print(f"  {'strategy':<28}{'peak MB':>9}{'x':>7}{'held MB':>9}{'model':>9}{'GFLOP':>9}{'model':>9}")
    for name, base in BASELINES.items():
        shown = [found[f"{name}_{what}"] for what in ("held_mb", "predicted_held_mb")]
        counted = [found[f"{name}_{what}"] for what in ("operations_g", "predicted_operations_g")]
        peak = found[f"{name}_peak_mb"]
        over = peak / found[f"{base}_peak_mb"]
        print(
            f"  {name:<28}{peak:>9.0f}{over:>7.3f}{shown[0]:>9.1f}{shown[1]:>9.1f}{counted[0]:>9.1f}{counted[1]:>9.1f}"
        )
    print(f"  {'timed in turns':<28}{'step ms':>9}{'loading ms':>12}")
    for number, names in enumerate(COMPARISONS):
        for name in names:
            times = [1e3 * found[f"comparison_{number}_{name}_{what}"] for what in ("step_s", "loading_s")]
            print(f"  {name:<28}{times[0]:>9.1f}{times[1]:>12.1f}")
    print(f"  {'ratio of steps':<54}{'measured':>9}{'loading too':>13}{'model':>7}")
    for label in [name for name in ratios if name.endswith("_step")]:
        others = [ratios[f"{label}_{what}"] for what in ("with_loading", "predicted")]
        print(f"  {label:<54}{ratios[label]:>9.2f}{others[0]:>13.2f}{others[1]:>7.2f}")
    for label, goal in GOALS.items():
        print(f"  {label:<54}{ratios[label]:>9.2f}   goal: {goal}")
    print(f"  cached states of an image on disk: {found['states_bytes_per_image']:,.0f} bytes")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["small"], help="default: small")
    parser.add_argument("--repeats", type=int, help="timed steps of each strategy (default: 15 for small, 5 for base)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--checkpointing", action="store_true", help="with gradient checkpointing")
    parser.add_argument("--quick", action="store_true", help="toy sizes, to see that it runs; writes only with --out")
    parser.add_argument("--work", nargs=2, metavar=("SIZE", "STRATEGY"), help=argparse.SUPPRESS)
    out_argument(parser, __file__)
    standard = parser.get_default("out")
    arguments = parser.parse_args(argv)
    if arguments.repeats is not None and arguments.repeats < 1:
        parser.error(f"--repeats must be at least 1, but is {arguments.repeats}")
    if arguments.out == standard and (arguments.quick or arguments.checkpointing):
        arguments.out = None  # neither toy figures nor those of another setting replace the page's
    return arguments


def main(argv: list[str] | None = None) -> None:
    """Run it."""
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    sizes = QUICK_SIZES if arguments.quick else SIZES
    if arguments.work:
        size, strategy = arguments.work
        work(strategy, sizes[size], arguments.repeats, arguments.checkpointing)
        return
    ratios: dict[str, float] = {}
    measurements: dict[str, Any] = {"num_negatives": K, "caption_tokens": TOKENS, "seed": 0}
    for name in arguments.sizes:
        print(f"{name} ...", flush=True)
        repeats = arguments.repeats or {"small": 15, "base": 5}[name]
        found: dict[str, Any] = {"images": sizes[name].images, "repeats": repeats}
        found |= predict(sizes[name], checkpointing=arguments.checkpointing)
        found |= measure_memory(arguments, name) | measure_times(arguments, name, repeats)
        own = ratios_of(found)
        print_report(name, found, own)
        measurements |= {f"{name}_{key}": value for key, value in found.items()}
        ratios |= {f"{name}_{key}": value for key, value in own.items()}
    if arguments.out is not None:
        write_results(__file__, ratios, measurements, arguments.out)


if __name__ == "__main__":
    main()
