"""Runs units: each in a process of its own, those that others need first, none of them twice."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, get_args

import common
import torch
from datasets import Dataset

from hf_contrastive_caption.fingerprints import model_digest
from hf_contrastive_caption.loading import load_captioner
from studies.files import Place, claimed, read_json, write_json
from studies.measuring import measure
from studies.plan import Split, Unit
from studies.training import finished, load_data, train

SCRIPT = Path(__file__).parents[1] / "study.py"


def run_unit(unit: Unit, place: Place) -> None:
    """Train, measure and store one unit in this process; a result that is stored stands, whatever is made again.

    Raises:
        ValueError: If the data lacks a split, another process is at the unit, or its captioner was made with other
            settings; if what it is made of is missing, or has other weights than those whose result is stored; or if
            it was made again and came out with other weights. Nothing that is stored is changed.
    """
    start = perf_counter()
    data = load_data(place)
    with claimed(place, unit):
        _run_claimed(unit, place, data, start)


def _run_claimed(unit: Unit, place: Place, data: Mapping[str, Dataset], start: float) -> None:
    made_of = {needed.row.name: _weights(needed, place) for needed in unit.needs()}
    for needed in unit.needs():
        _check_same(needed, place, made_of[needed.row.name])
    stored = place.load(unit)
    if stored is not None:
        _warn_of_other_machine(stored)
    trained = train(unit, place, data)
    weights = _weights(unit, place)
    _check_same(unit, place, weights)
    if stored is not None:
        print(f"{unit.key} has the weights whose result is stored in {place.result(unit)}; delete it to measure again")
        return
    measured = measure(unit, place, data)
    content = {
        "settings": unit.settings(place.scale),
        "contents": place.contents,
        "machine": common.machine(),
        "versions": common.versions(),
        "training_seconds": trained["seconds"],
        "seconds": round(perf_counter() - start, 1),
        "logged": trained["logged"],
        "weights": weights,
        "made_of": made_of,
        **measured,
    }
    write_json(place.result(unit), content)


def _check_same(unit: Unit, place: Place, weights: str) -> None:
    """Rows of a seed are comparable if they are made of the captioners whose results are stored, of either split."""
    for split in get_args(Split):
        measured = replace(unit, split=split)
        stored = place.load(measured)
        if stored is not None and stored["weights"] != weights:
            raise ValueError(
                f"{place.captioner(unit)} has other weights than those whose result is stored in "
                f"{place.result(measured)}: the same seed gives others on another processor (stored: "
                f"{_processor(stored['machine'])}, here: {_processor(common.machine())}). Bring the folder of that "
                f"captioner, run seeds of this machine's own (--from-seed), or delete the results of seed {unit.seed} "
                "and run all of its rows here."
            )


def _warn_of_other_machine(stored: dict[str, Any]) -> None:
    there, here = _processor(stored["machine"]), _processor(common.machine())
    if there != here:
        print(f"its result was made on {there}; made again on {here} it may come out with other weights")


def _processor(machine: dict[str, Any]) -> str:
    """What weights may depend on; results from before its vector instructions were noted do not have these."""
    return " with ".join([machine["processor"], *filter(None, [machine.get("vector_instructions")])])


def _weights(unit: Unit, place: Place) -> str:
    """A hash of the captioner's weights."""
    if finished(place.captioner(unit)) is None:
        raise ValueError(f"there is no finished captioner in {place.captioner(unit)}; run {unit.row.name} first")
    return model_digest(load_captioner(place.captioner(unit), device="cpu").model)


def pending(units: Iterable[Unit], place: Place) -> list[Unit]:
    """The units without a result, and those that have one but whose weights are needed and gone.

    Args:
        units: Those that others need stand before them.
        place: Where everything is.
    """
    wanted = list(units)
    to_run = {unit.key for unit in wanted if place.load(unit) is None}
    for unit in reversed(wanted):
        if unit.key in to_run:
            to_run |= {needed.key for needed in unit.needs() if finished(place.captioner(needed)) is None}
    return [unit for unit in wanted if unit.key in to_run]


def cost(units: Sequence[Unit], place: Place) -> tuple[float, list[str]]:
    """Seconds that units will take one after the other, by finished ones of the same row, else of the same steps.

    Returns:
        The sum over the units of which anything is known, and the rows of which nothing is.
    """
    taken: dict[str, list[float]] = {}
    for file in sorted((place.results / place.data).glob("*.json")):
        found = read_json(file)
        row = found["settings"]
        # Of a captioner that an earlier process made, the seconds are those of measuring alone.
        seconds = found["seconds"] + (found["training_seconds"] if found["seconds"] < found["training_seconds"] else 0)
        for name in (row["name"], _kind(row["objective"], row["model"])):
            taken.setdefault(name, []).append(seconds)
    total, unknown = 0.0, []
    for unit in units:
        seconds = taken.get(unit.row.name) or taken.get(_kind(unit.row.objective, unit.row.model))
        if seconds is None:
            unknown.append(unit.row.name)
        else:
            total += sum(seconds) / len(seconds)
    return total, list(dict.fromkeys(unknown))


def _kind(objective: str, model: str) -> str:
    return f"{objective} of {model}"


def run_units(wanted: Sequence[Unit], place: Place, words: Sequence[str], jobs: int) -> None:
    """Run what is not finished, each unit in a process of its own.

    Args:
        wanted: The units, those that others need first.
        place: Where everything is.
        words: The words of the command line that a unit's process is given beside its row, seed and split.
        jobs: How many units run at once, each on its share of the cores; on several GPUs, each on one of them.

    Raises:
        RuntimeError: If a unit failed; what does not need it has been run.
    """
    failed: set[str] = set()
    waiting = pending(wanted, place)
    running: dict[Future[int], tuple[Unit, int]] = {}
    slots = list(range(jobs))
    with ThreadPoolExecutor(jobs) as pool:
        while waiting or running:
            open_keys = {unit.key for unit in waiting} | {unit.key for unit, _ in running.values()}
            for unit in [unit for unit in waiting if not {needed.key for needed in unit.needs()} & open_keys]:
                if slots:
                    waiting.remove(unit)
                    if failed & {needed.key for needed in unit.needs()}:
                        failed.add(unit.key)
                    else:
                        slot = slots.pop(0)
                        running[pool.submit(_run_in_process, unit, place, words, slot, jobs)] = (unit, slot)
            done, _ = wait(running, return_when=FIRST_COMPLETED) if running else (set(), None)
            for future in done:
                unit, slot = running.pop(future)
                slots.append(slot)
                if future.result():
                    failed.add(unit.key)
                    print(f"{unit.key} FAILED; see {place.log(unit)}", flush=True)
                else:
                    left = len(waiting) + len(running)
                    print(f"{unit.key}: {place.load(unit)['seconds']:.0f} s; {left} left", flush=True)
    if failed:
        raise RuntimeError(f"{len(failed)} units are not finished: {', '.join(sorted(failed))}")


def _run_in_process(unit: Unit, place: Place, words: Sequence[str], slot: int, jobs: int) -> int:
    log = place.log(unit)
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // jobs))}
    if torch.cuda.device_count() > 1:
        environment["CUDA_VISIBLE_DEVICES"] = str(slot % torch.cuda.device_count())
    command = [sys.executable, str(SCRIPT), "unit", unit.row.name, "--seed", str(unit.seed), "--split", unit.split]
    print(f"{unit.key}: running; see {log}", flush=True)
    with log.open("a") as file:
        return subprocess.run([*command, *words], stdout=file, stderr=subprocess.STDOUT, env=environment).returncode
