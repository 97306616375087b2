#!/usr/bin/env python
"""The paper's tables, trained anew: several seeds, paired intervals, a verdict for every claim.

    python benchmarks/reproduce_tables.py run --scale tiny --rows core --seeds 0 1 2 3 4 --parallel 2 [--hours 2.5]
    python benchmarks/reproduce_tables.py list --scale tiny             what is done, begun and missing
    python benchmarks/reproduce_tables.py report --scale tiny           tables from the results alone
    python benchmarks/reproduce_tables.py pilot --scale tiny            how many steps the baseline needs

`run` trains what is missing. It may be interrupted at any time; the same command goes on. Every finished run leaves a
small file below benchmarks/results/<scale>/; everything large lies below --work. What the rows and scales are stands in
benchmarks/reproduction/rows.py and scales/*.yaml.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

# Through sst_d2 alone: it says what is missing where Detectron2 cannot be imported.
from sst_d2.arguments import positive_number, whole_number
from sst_d2.errors import SSTConfigError, SSTError
from sst_d2.launch import report_user_error

sys.path.insert(0, str(Path(__file__).resolve().parent))
from reproduction.inventory import DONE, Inventory
from reproduction.pilot import described
from reproduction.places import Places, locked, read_json
from reproduction.prepare import digest, make_people, trunk_of
from reproduction.report import JSON, MARKDOWN, make_report
from reproduction.rows import GROUPS, chosen
from reproduction.runner import Runner, hours
from reproduction.scales import Scale, load_scale, scale_names
from reproduction.settings import PILOT, ROOT, Run


def say(text: str) -> None:
    """Print a line at once, also into a file."""
    print(text, flush=True)


def run(args: argparse.Namespace, scale: Scale, places: Places) -> int:
    """Train what is missing of rows and seeds."""
    inventory = Inventory(scale, places)
    seeds = args.seeds if args.seeds is not None else scale.seeds
    runs = inventory.runs(chosen(args.rows), seeds)
    return train(args, scale, places, inventory, runs)


def train(args: argparse.Namespace, scale: Scale, places: Places, inventory: Inventory, runs: list[Run]) -> int:
    """Train what is missing of runs; returns the exit status."""
    deadline = None if args.hours is None else time.monotonic() + 3600 * args.hours
    with locked(places.work) as lock:
        trunk = trunk_of(scale, places, args.weights)
        start = digest(trunk)
        missing = inventory.unfinished(runs, start)
        say(f"{len(runs) - len(missing)} of {len(runs)} runs are done")
        if not missing:
            return 0
        make_people(scale, places)
        runner = Runner(places, (trunk, start), args.parallel or scale.parallel, deadline, lock, say, inventory.minutes)
        outcome = runner.train(missing)
    reached = len(outcome.finished) + len(outcome.failed) + len(outcome.skipped)
    say(
        f"{len(outcome.finished)} finished, {len(outcome.failed)} failed, {len(outcome.skipped)} skipped, "
        f"{len(missing) - reached} left" + (f": {outcome.stopped}; the same command goes on" if outcome.stopped else "")
    )
    for failed in outcome.failed:
        say(f"failed: {failed.name}, see {places.console(failed)}")
    if outcome.failed:
        return 1
    return 128 + outcome.signal if outcome.signal else 0


def show(args: argparse.Namespace, scale: Scale, places: Places) -> int:
    """List runs with their state and the time that they will take."""
    inventory, total = Inventory(scale, places), 0.0
    for one in inventory.runs(chosen(args.rows), args.seeds if args.seeds is not None else scale.seeds):
        state, minutes = inventory.state(one), 0.0
        if state != DONE:
            minutes = inventory.minutes(one)
            steps = f", {places.steps_done(one)} of {one.steps or '?'} steps" if state == "part" else ""
            state += f"{steps}, about {hours(minutes)}"
        total += minutes
        print(f"{one.row:24} seed {one.seed:<3} {state}")
    parallel = args.parallel or scale.parallel
    print(f"about {hours(total / parallel)} are left with {parallel} run(s) at a time")
    return 0


def pilot(args: argparse.Namespace, scale: Scale, places: Places) -> int:
    """Train Multi-datasets with a constant learning rate."""
    if scale.pilot is None:
        raise SSTConfigError(f"scale '{scale.name}' has no pilot; its steps are the paper's")
    one = Run(PILOT, 0, scale)
    status = train(args, scale, places, Inventory(scale, places), [one])
    if places.result(one).is_file():
        print(described(read_json(places.result(one)), scale.heldout))
    return status


def report(args: argparse.Namespace, scale: Scale, places: Places) -> int:
    """Write the tables from the results alone."""
    print(make_report(scale, places))
    print(f"\nwritten: {places.results / MARKDOWN}, {places.results / JSON}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    whole = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shared = argparse.ArgumentParser(add_help=False)
    add = shared.add_argument
    add("--scale", default="tiny", metavar="NAME", help=f"{', '.join(scale_names())}, or a file (default: tiny)")
    add("--work", type=Path, default=Path("output/reproduction"), metavar="DIR", help="for data, checkpoints and logs")
    add("--results", type=Path, default=ROOT / "benchmarks/results", metavar="DIR", help="for the small result files")
    choice = argparse.ArgumentParser(add_help=False)
    add = choice.add_argument
    add("--rows", nargs="+", default=["core"], metavar="ROW", help=f"rows, or {', '.join(GROUPS)} (default: core)")
    add("--seeds", type=whole_number, nargs="+", metavar="N", help="default: the scale's")
    training = argparse.ArgumentParser(add_help=False)
    add = training.add_argument
    add("--parallel", type=positive_number, metavar="N", help="runs at a time (default: the scale's)")
    add("--hours", type=float, metavar="H", help="end after so many hours; the same command goes on")
    add("--weights", default="", metavar="FILE", help="backbone that all rows start from, in place of the scale's")
    for name, function, parents in (
        ("run", run, [shared, choice, training]),
        ("list", show, [shared, choice, training]),
        ("report", report, [shared]),
        ("pilot", pilot, [shared, training]),
    ):
        one = commands.add_parser(name, parents=parents, help=function.__doc__.splitlines()[0].lower())
        one.set_defaults(function=function)
    return whole


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Returns:
        the exit status: 0 done, or the time is over; 1 something failed; 128 + n ended by signal n. Wrong arguments
        exit with 2.
    """
    args = parser().parse_args(argv)
    scale = load_scale(args.scale)
    work, results = args.work.expanduser().resolve(), args.results.expanduser().resolve()
    return args.function(args, scale, Places(work / scale.name, results / scale.name))


if __name__ == "__main__":
    try:
        status = main()
    except SSTError as error:
        report_user_error(error)
        status = 1
    except KeyboardInterrupt:
        say("interrupted; the same command goes on")
        status = 128 + signal.SIGINT
    sys.exit(status)
