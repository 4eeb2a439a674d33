"""Runs units: each in a process of its own, those that others need first, none of them twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from time import perf_counter

import common
import torch

from hf_contrastive_caption.fingerprints import model_digest
from hf_contrastive_caption.loading import load_captioner
from studies.files import Place, write_json
from studies.measuring import measure
from studies.plan import Unit
from studies.training import finished, load_data, train

SCRIPT = Path(__file__).parents[1] / "study.py"


def run_unit(unit: Unit, place: Place) -> None:
    """Train, measure and store one unit in this process."""
    start = perf_counter()
    data = load_data(place)
    trained = train(unit, place, data)
    made_of = {needed.row.name: _weights(needed, place) for needed in unit.needs()}
    _check_same(unit, place, made_of)
    measured = measure(unit, place, data)
    content = {
        "settings": unit.settings(place.scale),
        "machine": common.machine(),
        "versions": common.versions(),
        "training_seconds": trained["seconds"],
        "seconds": round(perf_counter() - start, 1),
        "logged": trained["logged"],
        "weights": _weights(unit, place),
        "made_of": made_of,
        **measured,
    }
    write_json(place.result(unit), content)


def _check_same(unit: Unit, place: Place, made_of: dict[str, str]) -> None:
    """A reference that was made again on another machine may not be the one whose result is stored."""
    for needed in unit.needs():
        stored = place.load(needed)
        if stored is not None and stored["weights"] != made_of[needed.row.name]:
            raise ValueError(
                f"{place.captioner(needed)} has other weights than the reference whose result is stored, made on "
                f"another machine perhaps. Delete the results of seed {unit.seed}, or bring its folder."
            )


def _weights(unit: Unit, place: Place) -> str:
    """A hash of the captioner's weights: rows of one seed can be compared if they are made of the same reference."""
    return model_digest(load_captioner(place.captioner(unit), device="cpu").model)


def pending(units: Iterable[Unit], place: Place) -> list[Unit]:
    """The units without a result, and those references that have one but whose weights are needed and gone."""
    wanted = list(units)
    without = {unit.key for unit in wanted if place.load(unit) is None}
    needed = {needed.key for unit in wanted if unit.key in without for needed in unit.needs()}
    gone = {unit.key for unit in wanted if unit.key in needed and finished(place.captioner(unit)) is None}
    return [unit for unit in wanted if unit.key in without | gone]


def cost(units: Sequence[Unit], place: Place) -> tuple[float, list[str]]:
    """Seconds that units will take one after the other, by finished ones of the same row, else of the same steps.

    Returns:
        The sum over the units of which anything is known, and the rows of which nothing is.
    """
    taken: dict[str, list[float]] = {}
    for file in sorted((place.results / place.data).glob("*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        row = found["settings"]
        for name in (row["name"], _kind(row["objective"], row["model"])):
            taken.setdefault(name, []).append(found["seconds"])
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
