"""What follows from the measurements of ``self_retrieval.py``: cost of all pairs, ratios, fits, and the report."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from retrieval_ways import CaptionSet

GOALS = {"base_over_repeated": 5.0, "base_over_one_by_one": 40.0}
TOLERANCE = 1e-3  # nats; scores of some 100 nats in float32
REFERENCE, EXTRAPOLATED = 1_000, 5_000


def reference_of(numbers: Iterable[int]) -> int:
    """The number of captions at which ways are compared."""
    return REFERENCE if REFERENCE in numbers else max(numbers)


def power_law(numbers: Iterable[int], values: Iterable[float]) -> tuple[float, float]:
    """Fit ``values = factor * numbers ** exponent`` by least squares on logarithms: exponent and factor."""
    exponent, logarithm = np.polyfit(np.log(list(numbers)), np.log(list(values)), 1)
    return float(exponent), float(np.exp(logarithm))


def with_tables(found: dict[str, Any], sets: dict[int, CaptionSet], gpu_tflops: float) -> dict[str, Any]:
    """What was measured, with the sizes of the sets and the seconds of N captions against N images."""
    found = {**found, "gpu_tflop_per_s": gpu_tflops}
    for count, one in sets.items():
        at, plan = f"at_{count}_", one.tries.plan
        found |= {
            f"{at}distinct_captions": plan.num_distinct,
            f"{at}tokens": sum(map(len, one.input_ids)),
            f"{at}distinct_tokens": plan.num_tokens,
            f"{at}trie_positions": plan.num_positions,
            f"{at}chunk_positions": plan.chunk_size,
            f"{at}images_at_once": plan.images_at_once,
            f"{at}tries_build_s": one.build_s,
            f"{at}tries_table_s": one.build_s + count * found[f"{at}tries_image_s"],
            f"{at}one_by_one_table_s": count * count * found["one_by_one_pair_s"],
        }
        if one.repeated is not None:
            seconds = count * found[f"{at}repeated_image_s"]
            ratio = found[f"{at}tokens"] / plan.num_tokens
            found |= {f"{at}repeated_table_s": seconds, f"{at}repeated_with_duplicates_table_s": seconds * ratio}
    exponent, factor = power_law(sets, (found[f"at_{count}_tries_table_s"] for count in sets))
    operations = [count * found[f"at_{count}_operations_per_image_g"] * 1e9 for count in sets]
    counted, counted_factor = power_law(sets, operations)
    extrapolated = counted_factor * EXTRAPOLATED**counted
    return found | {
        "exponent": exponent,
        "operations_exponent": counted,
        f"at_{EXTRAPOLATED}_this_machine_hours": factor * EXTRAPOLATED**exponent / 3600,
        f"at_{EXTRAPOLATED}_gpu_hours": extrapolated / (gpu_tflops * 1e12) / 3600,
    }


def ratios_of(found: dict[str, Any], sets: dict[int, CaptionSet]) -> dict[str, float]:
    """What is claimed, from what was measured; without ``at_N`` for the reference."""
    ratios = {"exponent": found["exponent"]}
    reference = reference_of(sets)
    for count in sets:
        tries = found[f"at_{count}_tries_table_s"]
        for way in ("repeated", "repeated_with_duplicates", "one_by_one"):
            if f"at_{count}_{way}_table_s" in found:
                ratios[f"at_{count}_over_{way}"] = found[f"at_{count}_{way}_table_s"] / tries
        rate = found[f"at_{count}_operations_per_image_g"] / found[f"at_{count}_tries_image_s"]
        ratios[f"at_{count}_share_of_large_product_rate"] = rate / found["large_product_gflop_per_s"]
    at = f"at_{reference}_"
    ratios |= {key.removeprefix(at): value for key, value in ratios.items() if key.startswith(at)}
    if "tries_peak_mib" in found:
        ratios["peak_over_budget"] = found["tries_peak_mib"] / found["budget_mib"]
    return ratios


def print_report(name: str, found: dict[str, Any], ratios: dict[str, float], numbers: list[int], images: int) -> None:
    """The figures of one size."""
    print(f"\n{name}: {found['weights_million']:.1f} million weights, {found['vocabulary']:,} tokens")
    print(f"  seconds for N captions x N images, scaled from {images} images and from random pairs")
    heads = ("N", "distinct", "positions", "tries", "repeated", "x", "duplicates", "x", "one by one", "x")
    print("  " + "".join(f"{head:>11}" for head in heads))
    for count in numbers:
        at = f"at_{count}_"
        cells = [f"{count:,}", f"{found[f'{at}distinct_captions']:,}", f"{found[f'{at}trie_positions']:,}"]
        cells.append(f"{found[f'{at}tries_table_s']:,.1f}")
        for way in ("repeated", "repeated_with_duplicates", "one_by_one"):
            seconds, ratio = found.get(f"{at}{way}_table_s"), ratios.get(f"{at}over_{way}")
            cells += ["-", "-"] if seconds is None else [f"{seconds:,.0f}", f"{ratio:,.1f}"]
        print("  " + "".join(f"{cell:>11}" for cell in cells))
    reference = reference_of(numbers)
    for way in ("over_repeated", "over_one_by_one"):
        goal = GOALS.get(f"{name}_{way}")
        note = "" if goal is None else f"   goal: at least {goal:g}"
        print(f"  {way} at {reference:,}: {ratios[way]:.1f}{note}")
    cost, operations = found["exponent"], found["operations_exponent"]
    print(f"  exponent of the cost of N x N: {cost:.2f}, of its operations: {operations:.2f}")
    hours = [found[f"at_{EXTRAPOLATED}_{where}_hours"] for where in ("this_machine", "gpu")]
    print(
        f"  {EXTRAPOLATED:,} x {EXTRAPOLATED:,}, extrapolated: {hours[0]:.3g} hours on the machine that ran this, "
        f"{hours[1]:.2g} hours at a stated {found['gpu_tflop_per_s']:g} TFLOP/s"
    )
    print(
        f"  share of the rate of {found['large_product']}, {found['large_product_gflop_per_s']:.0f} GFLOP/s: "
        f"{ratios['share_of_large_product_rate']:.0%}"
    )
    if "tries_peak_mib" in found:
        print(f"  peak: {found['tries_peak_mib']:,.0f} MiB of a budget of {found['budget_mib']:,.0f}")
    print(f"  largest difference of two ways: {found['largest_difference_nats']:.1e} nats (tolerance {TOLERANCE:g})")
