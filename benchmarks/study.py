"""The paper's studies and what goes beyond them, in one command that can be stopped and goes on.

    python benchmarks/study.py run                          # drawn scenes, all studies, three seeds
    python benchmarks/study.py run --data DIR               # photographs: main, ablation, hard
    python benchmarks/study.py run --data DIR --only ways --seeds 1
    python benchmarks/study.py table --write docs/results.md
    python benchmarks/study.py table --seed 0               # one seed alone
    python benchmarks/study.py table --against contrastive  # differences to another row than the control
    python benchmarks/study.py quotients --of dpo           # what part of a row's gain others have; else how long
    python benchmarks/study.py plots

DIR holds parquet files of images with several captions each, named train, validation and test; its name is the data
set's name in the results. ``--only`` takes studies (main, ablation, ways, models, replacement, knobs, hard, trade-off)
and single rows of them, such as ``dpo``; ``--list`` names all of it and what it will cost, and runs nothing.

A unit is one training of one seed and what is measured of it: captions of all test images by beam search, each ranked
among all of them, caption metrics, diversity, invented words, log-probabilities. It runs in a process of its own and
writes one JSON file to ``benchmarks/results/study``; its captioner stays in ``--output``. A unit that is finished is
never run again, one that was stopped goes on at its last checkpoint. All rows of a seed begin with the same reference,
and train as many steps on as many images as the control; as the same seed gives other weights on another processor,
all rows of a seed belong to one machine, and others are refused; another machine takes seeds of its own, such as those
``--from-seed 3``. ``--jobs 2`` runs two units at once, each on half of the cores, or on a GPU of its own where there
are several.

While something is being chosen, ``--split validation`` captions the validation images, whose results are kept apart.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import common
from studies.files import Place
from studies.plan import ON_PHOTOGRAPHS, ROWS, SCALES, STUDIES, Unit, units
from studies.plots import draw_plots
from studies.quotients import durations, shares
from studies.running import cost, pending, run_unit, run_units
from studies.tables import render, write_into
from studies.training import load_data


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    try:
        options.act(options)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on where it was") from None


def run(options: argparse.Namespace) -> None:
    place = place_of(options)
    only = options.only or (STUDIES if options.data is None else ON_PHOTOGRAPHS)
    seeds = range(options.from_seed, options.from_seed + options.seeds)
    wanted = units(place.data, list(only), seeds, options.split)
    if place.source is not None:
        load_data(place)  # what is wrong with it is said before hours of work
    left = pending(wanted, place)
    seconds, unknown = cost(left, place)
    print(f"{len(wanted)} units, {len(wanted) - len(left)} of them finished")
    if seconds:
        print(f"the others will take about {seconds / options.jobs / 3600:.1f} hours, by those that were run")
    if unknown:
        print(f"{'not counted' if seconds else 'cost not known'}, as none was run yet: {', '.join(unknown)}")
    if options.list:
        for unit in wanted:
            print(f"  {unit.key}{' (to run)' if unit in left else ''}")
        return
    words = [*("--output", str(options.output)), *("--results", str(options.results))]
    words += ["--data", str(options.data)] if options.data else []
    words += ["--scale", options.scale] if options.scale else []
    try:
        run_units(wanted, place, words, options.jobs)
    except RuntimeError as error:
        raise SystemExit(str(error)) from error


def one(options: argparse.Namespace) -> None:
    place = place_of(options)
    run_unit(Unit(place.data, ROWS[options.row], options.seed, options.split), place)


def table(options: argparse.Namespace) -> None:
    _check_results(options.results)
    if options.write is not None:
        if options.against is not None:
            raise ValueError("a page has differences to the control; leave out --against, or --write")
        write_into(options.write, options.results)
        return
    for name, text in render(options.results, options.seed, options.against).items():
        print(f"{name}\n\n{text}\n")


def quotients(options: argparse.Namespace) -> None:
    _check_results(options.results)
    wanted = (options.results, options.seed)
    for name, text in (shares(*wanted, of=options.of) if options.of else durations(*wanted)).items():
        print(f"{name}\n\n{text}\n")


def plots(options: argparse.Namespace) -> None:
    _check_results(options.results)
    for file in draw_plots(options.results, options.folder):
        print(file)


def _check_results(folder: Path) -> None:
    if not any(folder.glob("*/*.json")):
        raise ValueError(f"{folder} has no results; study.py run makes them, or name their folder as --results")


def place_of(options: argparse.Namespace) -> Place:
    data = "scenes" if options.data is None else options.data.resolve().name
    if options.data is not None and data == "scenes":
        raise SystemExit(f"--data {options.data}: a folder cannot be called scenes, as the drawn scenes are")
    scale = SCALES[options.scale or ("scenes" if options.data is None else "photographs")]
    return Place(data, options.data, scale, options.results, options.output)


def _count(text: str) -> int:
    return _at_least(1, text)


def _seed(text: str) -> int:
    return _at_least(0, text)


def _at_least(lowest: int, text: str) -> int:
    if not text.isdecimal() or int(text) < lowest:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least {lowest}")
    return int(text)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(required=True, metavar="run|table|quotients|plots|unit")

    def action(name: str, act: object, text: str) -> argparse.ArgumentParser:
        of_action = actions.add_parser(name, help=text, description=text)
        of_action.set_defaults(act=act)
        folder = common.RESULTS / "study"
        of_action.add_argument("--results", type=Path, default=folder, help="folder of results (default: %(default)s)")
        return of_action

    running = action("run", run, "run what is not finished")
    running.add_argument("--only", nargs="+", metavar="STUDY_OR_ROW", help=f"of {', '.join(STUDIES)}, or rows of them")
    running.add_argument("--seeds", type=_count, default=3, help="how many seeds (default: %(default)s)")
    running.add_argument("--from-seed", type=_seed, default=0, help="the first of them (default: %(default)s)")
    running.add_argument("--jobs", type=_count, default=1, help="units at once (default: %(default)s)")
    running.add_argument("--list", action="store_true", help="say what would be run and at what cost")
    single = action("unit", one, "run one unit in this process")
    single.add_argument("row", choices=ROWS)
    single.add_argument("--seed", type=_seed, default=0)
    for which in (running, single):
        which.add_argument("--data", type=Path, help="folder with the splits of a data set; drawn scenes if not given")
        which.add_argument("--output", type=Path, default=Path("runs/study"), help="captioners (default: %(default)s)")
        which.add_argument("--split", choices=("test", "validation"), default="test", help="default: %(default)s")
        which.add_argument("--scale", choices=SCALES, help="sizes; by the data if not given, tiny to try it out")
    tables = action("table", table, "print the tables of what is stored")
    which_tables = tables.add_mutually_exclusive_group()
    which_tables.add_argument("--write", type=Path, metavar="FILE", help="put them into the marked places of a page")
    which_tables.add_argument("--seed", type=_seed, help="of one seed alone")
    tables.add_argument("--against", choices=ROWS, metavar="ROW", help="differences to this row, not to the control")
    dividing = action("quotients", quotients, "print how long trainings took, or shares of a row, by what is stored")
    dividing.add_argument("--of", choices=ROWS, metavar="ROW", help="what part of its differences every other row has")
    dividing.add_argument("--seed", type=_seed, help="of one seed alone")
    drawing = action("plots", plots, "draw what is stored")
    drawing.add_argument("--folder", type=Path, default=Path("docs/pictures"), help="default: %(default)s")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
