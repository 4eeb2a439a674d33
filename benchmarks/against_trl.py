"""Contrastive training of chat models beside TRL's ``DPOTrainer``: the same losses, pairs in a second, peak memory.

    python benchmarks/against_trl.py --threads 1

Both train the same model on the same pairs in the same order, with ``loss_type="bco_pair"`` and ``beta=1`` there and
one negative and ``noise_ratio=1`` here, which is the same loss: float32, no gradient checkpointing, no dropout, same
schedule, clipping and fused AdamW, same closing token. A pair is an image with a caption of its own and one of another
image. Models have random weights and the proportions of SmolVLM-256M (64 image tokens from 1,024 patches: most of the
work is the vision encoder's) and of LLaVA-1.5-7B (576 image tokens: most is the decoder's), scaled down.

- ``smolvlm``, ``llava``: the whole model is trained; ``_frozen``: all but the vision encoder.
- ``smolvlm_5``: five negatives for an image here, five pairs with the same image there: the same loss again.

Three sides take part: ``ours``; ``trl`` as it runs on a processor, where it projects every position to the vocabulary;
and ``trl_gpu_way``, in which it projects the tokens of completions only, as on a GPU.

- Losses of all steps must agree to 1e-4, or the script stops.
- Time: the sides of a setting are alive together, each in a process of its own, and take a step each in turns. A step
  lies between the trainer's ``on_step_begin`` and ``on_step_end``; *loading* between steps is mostly the making of the
  batch from JPEG files. Pairs in a second count both. Medians. ``cpu`` is time of the processor in place of that of
  the clock: on one thread the same on an idle machine, and hardly changed by other work on a shared one.
- Memory and operations: as in ``reference_memory.py``. Linux only.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import out_argument, write_results
from transformers import logging
from trl_sides import QUICK_SETTINGS, SETTINGS, SIDES, Setting, side_context
from turns import WARM_UP, Turns, Worker, say, start_mb

LOSS_TOLERANCE = 1e-4
GOAL = 1.5
MEMORY_STEPS = 3
COLUMNS = {
    "pairs_per_s": "9.2f",
    "pairs_per_cpu_s": "13.2f",
    "step_cpu_s": "12.3f",
    "loading_cpu_s": "15.3f",
    "operations_g": "9.1f",
    "peak_mb": "9.0f",
}
SECONDS = ("step_s", "loading_s", "step_cpu_s", "loading_cpu_s")
PEERS = tuple(side for side in SIDES if side != "ours")


def work(settings: list[Setting], side: str, repeats: int) -> None:
    """Train in one setting after the other, a step at each turn."""
    for setting in settings:
        gc.collect()
        turns = Turns(repeats, start_mb())
        with tempfile.TemporaryDirectory() as folder, side_context(side):
            trainer = SIDES[side](setting, Path(folder), WARM_UP + repeats + 1)
            trainer.add_callback(turns)
            trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        say({**turns.found, "operations": turns.counter.get_total_flops(), "losses": losses})
        del trainer


def start(arguments: argparse.Namespace, *, memory: bool, steps: int) -> dict[str, Worker]:
    """Each side in a process of its own, which goes through all settings."""
    command = [sys.executable, __file__, "--settings", *arguments.settings, "--repeats", str(steps)]
    command += ["--threads", str(arguments.threads)] + ["--quick"] * arguments.quick
    return {side: Worker([*command, "--work", side], memory=memory) for side in SIDES}


def measure_times(workers: dict[str, Worker], repeats: int) -> dict[str, Any]:
    """Medians of each side, operations of a step, and how far its losses are from those of this package."""
    taken: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side, worker in workers.items():
            taken[side].append(worker.step())
    found: dict[str, Any] = {}
    losses: dict[str, list[float]] = {}
    for side, worker in workers.items():
        last = worker.step()
        losses[side] = last["losses"]
        found[f"{side}_operations_g"] = last["operations"] / 1e9
        found |= {f"{side}_{what}": statistics.median(step[what] for step in taken[side]) for what in SECONDS}
    found |= {"first_loss": losses["ours"][0], "last_loss": losses["ours"][-1]}
    return found | compare_losses(losses)


def measure_memory(workers: dict[str, Worker]) -> dict[str, float]:
    """Peak of each side."""
    found = {}
    for side, worker in workers.items():
        for _ in range(MEMORY_STEPS):
            worker.step()
        found[f"{side}_peak_mb"] = worker.step()["peak_mb"]
    return found


def compare_losses(losses: dict[str, list[float]]) -> dict[str, Any]:
    """The largest difference of a step's loss between this package and each of the others.

    Raises:
        SystemExit: If one is above the tolerance.
    """
    found: dict[str, Any] = {"losses": len(losses["ours"])}
    for side in PEERS:
        difference = max(abs(one - other) for one, other in zip(losses["ours"], losses[side], strict=True))
        found[f"{side}_loss_difference"] = difference
        if not difference <= LOSS_TOLERANCE:
            raise SystemExit(f"{side} does not compute the losses of ours, tolerance {LOSS_TOLERANCE}: {losses}")
    return found


def rates_of(found: dict[str, Any], pairs: int) -> dict[str, float]:
    """Pairs in a second, loading included, by the clock and of the processor."""
    return {
        f"{side}_pairs_per_{unit}": pairs / (found[f"{side}_step_{unit}"] + found[f"{side}_loading_{unit}"])
        for side in SIDES
        for unit in ("s", "cpu_s")
    }


def ratios_of(found: dict[str, Any]) -> dict[str, float]:
    """What is claimed, from what was measured."""
    ratios = {}
    for side in PEERS:
        for unit in ("s", "cpu_s"):
            label = f"pairs_per_{unit}"
            ratios[f"{label}_over_{side}"] = found[f"ours_{label}"] / found[f"{side}_{label}"]
        ratios[f"{side}_step_over_step"] = found[f"{side}_step_cpu_s"] / found["ours_step_cpu_s"]
        ratios[f"{side}_operations_over_operations"] = found[f"{side}_operations_g"] / found["ours_operations_g"]
        ratios[f"peak_over_{side}_peak"] = found["ours_peak_mb"] / found[f"{side}_peak_mb"]
    return ratios


def print_report(name: str, found: dict[str, Any], ratios: dict[str, float]) -> None:
    """The figures of one setting."""
    print(f"\n{name}: {found['pairs']} pairs in a step, loss {found['first_loss']:.4f} to {found['last_loss']:.4f}")
    heads = ("pairs/s", "pairs/cpu s", "step cpu s", "loading cpu s", "GFLOP", "peak MB")
    shown = [format(head, f">{form.partition('.')[0]}") for head, form in zip(heads, COLUMNS.values(), strict=True)]
    print(f"  {'side':<14}{''.join(shown)}{'loss off':>10}", flush=True)
    for side in SIDES:
        off = f"{found[f'{side}_loss_difference']:.1e}" if side in PEERS else "-"
        shown = [format(found[f"{side}_{what}"], form) for what, form in COLUMNS.items()]
        print(f"  {side:<14}{''.join(shown)}{off:>10}")
    for label, value in ratios.items():
        goal = f"   goal: at least {GOAL:g}" if label.startswith("pairs_per_") else ""
        print(f"  {label:<42}{value:>7.2f}{goal}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="default: all")
    parser.add_argument("--repeats", type=int, default=20, help="timed steps of each side (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="toy sizes, to see that it runs; writes only with --out")
    parser.add_argument("--work", choices=SIDES, help=argparse.SUPPRESS)
    out_argument(parser, __file__)
    standard = parser.get_default("out")
    arguments = parser.parse_args(argv)
    if arguments.repeats < 1:
        parser.error(f"--repeats must be at least 1, but is {arguments.repeats}")
    if arguments.quick and arguments.out == standard:
        arguments.out = None  # toy figures must not replace real ones
    return arguments


def main(argv: list[str] | None = None) -> None:
    """Run it."""
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    logging.set_verbosity_error()
    settings = QUICK_SETTINGS if arguments.quick else SETTINGS
    if arguments.work:
        work([settings[name] for name in arguments.settings], arguments.work, arguments.repeats)
        return
    timed = start(arguments, memory=False, steps=arguments.repeats)
    weighed = start(arguments, memory=True, steps=MEMORY_STEPS)
    ratios: dict[str, float] = {}
    measurements: dict[str, Any] = {"repeats": arguments.repeats, "seed": 0}
    for name in arguments.settings:
        for worker in (*timed.values(), *weighed.values()):
            worker.answer()  # warmed up, with a batch; nothing else runs while steps are timed
        found: dict[str, Any] = {"pairs": settings[name].images * settings[name].negatives}
        found |= measure_times(timed, arguments.repeats) | measure_memory(weighed)
        found |= rates_of(found, found["pairs"])
        own = ratios_of(found)
        print_report(name, found, own)
        measurements |= {f"{name}_{key}": value for key, value in found.items()}
        ratios |= {f"{name}_{key}": value for key, value in own.items()}
        if arguments.out is not None:
            write_results(__file__, ratios, measurements, arguments.out)
    for worker in (*timed.values(), *weighed.values()):
        worker.wait()


if __name__ == "__main__":
    main()
