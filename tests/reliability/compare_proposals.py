"""Compare the proposals and stops of two checkouts, for every sampler and early-stopping rule.

`.venv/bin/python -P tests/reliability/compare_proposals.py OTHER` simulates the same searches on a
recorded table with the code of this checkout and with that of OTHER. For each sampler and rule it
prints whether proposals and stops are equal, or where they first differ. It exits with 1 if any
differ.

Each checkout's code runs in its own process, which finds it by links in a temporary folder; both
use this Python and its packages. Only `plain_events` and `simulate_one` call the product; `MODULES`
has the names of modules that moved.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

HERE = Path(__file__).resolve().parents[2]
PACKAGES = ("datasets", "orchestrator", "search_spaces", "trainables")
MODULES = {
    "check_study": ("study", "studies", "study_file"),
    "simulate": ("simulate", "benchmark.simulator", "benchmark.simulate"),
    "read_table": ("table", "benchmark.table", "storage.table"),
}
"""Modules of `sftsearch.orchestrator` in which a function is, by version."""
SAMPLERS = ("ehvi", "tpe", "nsga2", "nsga3", "gp", "quasi_random", "random")
RULES = ("none", "dominated", "mo_asha", "median")
OLD_NAMES = {"ehvi": "front", "dominated": "front", "early_stopping": "stopping"}
"""Current names of options -> earlier ones."""
SEEDS = (0, 1)
SLOW = {"gp": 16}
"""Most trials of samplers that take seconds per proposal."""
POPULATION = 8
"""Population of the genetic samplers, so that a search has several generations."""
MIN_PROBABILITY = 0.45
"""Of the rule `dominated`; with the default it would hardly stop any of so few trials."""
TOLERANCE = 1e-9
"""Relative tolerance of numbers."""

Run = list[list[Any]]
"""Proposals and stops of a search, in order: `[kind, content]`."""


# ------------------------------------------------------------------ in a checkout's process


def find(name: str) -> Any:
    """Return a function of the product from the module that has it in this checkout."""
    for module in MODULES[name]:
        try:
            found = importlib.import_module(f"sftsearch.orchestrator.{module}")
            if hasattr(found, name):
                return getattr(found, name)
        except ModuleNotFoundError as error:
            if not f"sftsearch.orchestrator.{module}".startswith(str(error.name)):
                raise
    raise ImportError(f"No module of {MODULES[name]} has `{name}`.")


def option_names() -> dict[str, str]:
    """Return the names of renamed options in this checkout, if it has the old names."""
    plan = importlib.import_module("sftsearch.search_spaces.search_plan").SearchPlan
    return {} if "early_stopping" in plan.model_fields else OLD_NAMES


def plain_events(events: Iterable[Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return kind and body of events, raw or typed."""
    found = []
    for event in events:
        typed = getattr(event, "event", None)
        kind, body = (event.kind, event.body) if typed is None else (typed.kind, typed.to_json())
        found.append((str(kind), json.loads(json.dumps(body))))
    return found


def simulate_one(sampler: str, rule: str, seed: int, trials: int, table: Any, file: Path) -> Run:
    """Simulate a search on a recorded table and return its proposals and stops."""
    check_study, names = find("check_study"), option_names()
    facts = table.facts
    settings = {"population": POPULATION} if sampler.startswith("nsga") else {}
    stopping: dict[str, Any] = {"kind": names.get(rule, rule)}
    if rule != "none":
        stopping["seed"] = seed
    if rule == "dominated":
        stopping["min_probability"] = MIN_PROBABILITY
    study = {
        "study": {"name": file.stem},
        "dataset": {"kind": facts["dataset"], "folds": facts["folds"]},
        "search": {
            "sampler": {"kind": names.get(sampler, sampler), "seed": seed, **settings},
            "trials": min(trials, SLOW.get(sampler, trials)),
            names.get("early_stopping", "early_stopping"): stopping,
        },
        "training": facts["training"],
        "space": facts["space"],
    }
    file.write_text(json.dumps(study))  # JSON is YAML
    source, _, admission = check_study(file)
    done = find("simulate")(source, admission, table, workers=4, repetition=seed)
    run: Run = []
    journal = done.journal
    entries = journal.events() if hasattr(journal, "events") else journal.entries()
    for kind, body in plain_events(entries):
        if kind == "proposed":
            run.append([kind, [body["number"], body["branch"], body["values"]]])
        elif kind == "stopped":
            run.append([kind, [body["trial"], int(body["epoch"])]])
    return run


def dump(options: argparse.Namespace) -> None:
    """Print all runs of the code that this process imports, one line of JSON each."""
    import sftsearch.orchestrator.study as product

    at = Path(str(product.__file__)).resolve()
    assert at.is_relative_to(options.dump.resolve()), f"{at} is not of {options.dump}"
    table = find("read_table")(options.table)
    with tempfile.TemporaryDirectory() as folder:
        for sampler, rule, seed in cases(options):
            file = Path(folder) / "compared.yaml"
            run = simulate_one(sampler, rule, seed, options.trials, table, file)
            sys.stdout.write(json.dumps([sampler, rule, seed, run]) + "\n")
            sys.stdout.flush()


# ------------------------------------------------------------------ comparing two checkouts


def cases(options: argparse.Namespace) -> Iterable[tuple[str, str, int]]:
    """Return every combination of the selected samplers and rules with the seeds."""
    return itertools.product(options.samplers, options.rules, SEEDS)


def start(checkout: Path, links: Path, options: argparse.Namespace) -> subprocess.Popen[str]:
    """Start the process that runs a checkout's code."""
    (links / "sftsearch").mkdir(parents=True)
    for package in PACKAGES:
        (links / "sftsearch" / package).symlink_to(checkout / package)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    command = [sys.executable, "-P", __file__, str(checkout), "--dump", str(checkout)]
    command += ["--table", str(options.table), "--trials", str(options.trials)]
    command += ["--samplers", *options.samplers, "--rules", *options.rules]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **threads, "PYTHONPATH": str(links)},
    )


def read(process: subprocess.Popen[str], checkout: Path) -> dict[tuple[str, str, int], Run]:
    """Wait for a checkout's process and return its runs."""
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"The code of {checkout} failed; see above.")
    lines = [json.loads(line) for line in out.splitlines()]
    return {(sampler, rule, seed): run for sampler, rule, seed, run in lines}


def first_difference(one: Run, other: Run) -> str:
    """Describe where two runs first differ; empty if they are equal."""
    for number, (mine, theirs) in enumerate(itertools.zip_longest(one, other)):
        if not is_same(mine, theirs):
            return f"at {number}: this has {json.dumps(mine)}, OTHER has {json.dumps(theirs)}"
    return ""


def is_same(one: Any, other: Any) -> bool:
    """Return whether two JSON values are equal, numbers within the tolerance."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=TOLERANCE)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_same(one[n], other[n]) for n in one)
    return bool(one == other)


def compare(options: argparse.Namespace) -> int:
    """Run both checkouts in parallel and print the result; return how many pairs differ."""
    started, checkouts = time.monotonic(), (HERE, options.other.resolve())
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            start(checkout, Path(folder) / str(i), options) for i, checkout in enumerate(checkouts)
        ]
        ours, others = (read(*pair) for pair in zip(processes, checkouts, strict=True))
    num_differ = 0
    for sampler, rule in itertools.product(options.samplers, options.rules):
        keys = [(sampler, rule, seed) for seed in SEEDS]
        found = [(key[-1], first_difference(ours[key], others[key])) for key in keys]
        text = "; ".join(f"seed {seed}, {text}" for seed, text in found if text)
        num_differ += bool(text)
        kinds = [kind for key in keys for kind, _ in ours[key]]
        count = f"{kinds.count('proposed')} proposals, {kinds.count('stopped')} stops"
        verdict = f"DIFFERENT: {text}" if text else "identical"
        sys.stdout.write(f"{sampler:13} {rule:8} {count:26} {verdict}\n")
    pairs = len(options.samplers) * len(options.rules)
    seconds = time.monotonic() - started
    sys.stdout.write(f"{pairs - num_differ} of {pairs} identical, in {seconds:.0f} s\n")
    return num_differ


def main() -> None:
    """Read the command line; compare, or dump for a comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("other", type=Path, help="the folder of the other checkout")
    table = HERE / "tests" / "benchmarks" / "tables" / "wearables.parquet"
    parser.add_argument("--table", type=Path, default=table, help="the recorded table to search")
    parser.add_argument("--trials", type=int, default=40, help="trials per search")
    parser.add_argument("--samplers", nargs="+", default=SAMPLERS, choices=SAMPLERS)
    parser.add_argument("--rules", nargs="+", default=RULES, choices=RULES)
    parser.add_argument("--dump", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.dump is not None:
        dump(options)
    else:
        sys.exit(1 if compare(options) else 0)


if __name__ == "__main__":
    main()
