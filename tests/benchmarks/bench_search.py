"""Measure how much training our search and others need for a good front, on recorded tables.

Every search runs with a simulated clock and four asynchronous workers. The same repetition of all
searches uses the same order of recorded replicates. After each trial the search reports its front,
and the budget regret B is computed: the distance of the best affordable reported configuration
below the best affordable one of the table, by true means (over all recorded replicates), averaged
over the logarithm of the budget, in percentage points of accuracy.

The expected running time to a B is the training time of all repetitions, censored ones included,
divided by the number that reached it. Levels of B below its two standard errors, which come from
the finite number of recorded replicates, are raised to them. A speed-up is another search's
expected running time divided by ours, as a geometric mean over tables; its interval is a paired
bootstrap over repetitions.

Defaults were tuned on the tables of `TUNED_ON`; results are reported for the others.

Run with `python -P tests/benchmarks/bench_search.py --tables FOLDER`. The folder contains our
tables (`*.parquet`) and those of `rivals/convert_hpo_bench.py` (`*.npz`). The last line is JSON.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import multiprocessing
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` omits it
from sftsearch.orchestrator.benchmark.simulator import Replay, simulate

from rivals.optuna_samplers import optuna_rival
from search_tables import Case, own_case, public_case

if TYPE_CHECKING:
    from collections.abc import Callable

    from sftsearch.orchestrator.search.engine import Search

WORKERS = 4
LEVELS = (2.0, 1.0, 0.5)
"""Levels of budget regret, in points, for which running times are measured."""
TUNED_ON = (
    "digits",
    "hpobench-australian",
    "hpobench-car",
    "hpobench-credit_g",
    "hpobench-kc1",
    "hpobench-phoneme",
    "hpolib-naval_propulsion",
    "hpolib-parkinsons_telemonitoring",
    "nasbench201-cifar100",
)
OURS = "ehvi"
PLANS: dict[str, dict[str, Any]] = {
    "ehvi": {"sampler": {"kind": "ehvi"}},
    "ehvi+stop": {"sampler": {"kind": "ehvi"}, "early_stopping": {"kind": "dominated"}},
    "ehvi+replicates": {"sampler": {"kind": "ehvi"}, "replicates": {"min": 1, "max": 5}},
    "ehvi 5 each": {"sampler": {"kind": "ehvi"}, "replicates": 5},
    "random": {"sampler": {"kind": "random"}},
    "random+stop": {"sampler": {"kind": "random"}, "early_stopping": {"kind": "dominated"}},
    "our tpe": {"sampler": {"kind": "tpe"}},
}
"""Our searches: the `search` sections of their study files."""
RIVALS = ("optuna random", "optuna tpe", "optuna nsga2", "optuna gp")


@dataclass(frozen=True)
class Trace:
    """One search: the regret after every trial."""

    seconds: list[float]
    """Total training seconds of the workers: four times the clock."""
    regrets: list[float]
    """In points."""
    trials: int

    def until(self, level: float) -> float:
        """Return the training seconds to a regret of at most `level`; infinite if never."""
        return next(
            (s for s, b in zip(self.seconds, self.regrets, strict=True) if b <= level), math.inf
        )


def posterior_front(case: Case, search: Search) -> list[int]:
    """Return the rows on the front of the posterior means, which our search reports."""
    return [case.row_of[identity] for identity in search.known.surrogate.front()]


def plain_front(costs: dict[int, float], means: dict[int, float]) -> list[int]:
    """Return the rows whose mean exceeds that of all cheaper ones."""
    chosen, best = [], -math.inf
    for row in sorted(means, key=lambda r: (costs[r], -means[r])):
        if means[row] > best:
            chosen.append(row)
            best = means[row]
    return chosen


def run_ours(case: Case, plan: dict[str, Any], repetition: int, trials: int) -> Trace:
    """Run one of our searches; without a surrogate its front is that of plain means."""
    case.admission.release()
    sampler = {**plan["sampler"], "seed": repetition}
    each = plan.get("replicates", 1)
    rounded = trials - trials % each if isinstance(each, int) else trials
    source = case.source(**{**plan, "sampler": sampler, "trials": rounded})
    has_surrogate = sampler["kind"] == "ehvi"
    seconds: list[float] = []
    regrets: list[float] = []

    def note(search: Search, now: float) -> None:
        reported = []
        if search.known.past.has_values:
            if has_surrogate:
                reported = posterior_front(case, search)
            else:
                found = [one for one in search.known.past.all if one.is_complete]
                means = {
                    case.row_of[o.id]: np.mean([v[0] for v in o.values.values()]) for o in found
                }
                reported = plain_front({r: float(case.u[r]) for r in means}, means)
        seconds.append(WORKERS * now)
        regrets.append(100 * case.regret(reported))

    done = simulate(
        source, case.admission, case.table, workers=WORKERS, repetition=repetition, on_end=note
    )
    return Trace(seconds, regrets, done.search.state.num_ended["finished"])


def run_rival(case: Case, kind: str, repetition: int, trials: int) -> Trace:
    """Run Optuna's sampler as its users do: ask, train, tell; a repeat trains another replicate."""
    rival = optuna_rival(kind, case.grid, repetition, missing="nearest")
    return _drive(case, repetition, trials, rival.ask, rival.tell, None, rival.drop)


def run_moasha(case: Case, corrected: bool, repetition: int, trials: int, python: str) -> Trace:
    """Run Syne Tune's MO-ASHA on random proposals, as shipped or with its ranks corrected."""
    script = Path(__file__).parent / "rivals" / "moasha.py"
    random = np.random.default_rng(repetition)
    order = iter(random.permutation(len(case.table.ids)).tolist())
    with subprocess.Popen(
        [python, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        requests, replies = process.stdin, process.stdout

        def ask(message: dict[str, Any]) -> dict[str, Any]:
            requests.write(json.dumps(message) + "\n")
            requests.flush()
            answer: dict[str, Any] = json.loads(replies.readline())
            return answer

        options = {"num_epochs": case.table.num_epochs, "reduction_factor": 3, "seed": repetition}
        ask({"init": {**options, "corrected": corrected}})

        def stops(trial: int, row: int, epoch: int, accuracy: float) -> bool:
            report = {"trial": trial, "epoch": epoch, "accuracy": accuracy, "cost": case.u[row]}
            return bool(ask({"report": report})["stop"])

        trace = _drive(
            case, repetition, trials, lambda: next(order), lambda *_: None, stops, lambda _: None
        )
        process.stdin.close()
    return trace


def _drive(
    case: Case,
    repetition: int,
    trials: int,
    ask: Callable[[], int],
    tell: Callable[[int, float, float], None],
    stops: Callable[[int, int, int, float], bool] | None,
    drop: Callable[[int], None],
) -> Trace:
    """Simulate an external search with four workers on a table."""
    table, replay = case.table, Replay(case.table, repetition)
    values, curves = table.values("top1"), table.metrics["top1"]
    results: dict[int, list[float]] = {}
    started: dict[int, int] = {}
    events: list[tuple[float, int, int, int, int]] = []
    now, number = 0.0, itertools.count()
    seconds: list[float] = []
    regrets: list[float] = []

    def start(trial: int) -> None:
        row = ask()
        replicate = replay.find(row, started.get(row, 0))
        started[row] = started.get(row, 0) + 1
        heapq.heappush(events, (now + table.seconds[row, replicate, 0], trial, row, replicate, 1))

    for _ in range(min(WORKERS, trials)):
        start(next(number))
    while events:
        now, trial, row, replicate, epoch = heapq.heappop(events)
        ended = epoch == table.num_epochs
        if (
            not ended
            and stops
            and stops(trial, row, epoch, float(curves[row, replicate, epoch - 1]))
        ):
            drop(row)
            ended = True
        elif ended:
            value = float(values[row, replicate])
            tell(row, value, float(table.costs["gflops"][row]))
            results.setdefault(row, []).append(value)
        if not ended:
            then = now + table.seconds[row, replicate, epoch]
            heapq.heappush(events, (then, trial, row, replicate, epoch + 1))
            continue
        means = {r: float(np.mean(found)) for r, found in results.items()}
        reported = plain_front({r: float(case.u[r]) for r in means}, means)
        seconds.append(WORKERS * now)
        regrets.append(100 * case.regret(reported))
        if (following := next(number)) < trials:
            start(following)
    return Trace(seconds, regrets, sum(map(len, results.values())))


# ------------------------------------------------------------------ running times


def expected_time(traces: list[Trace], level: float, picks: np.ndarray | None = None) -> float:
    """Return the training time of all repetitions divided by the number that reached the level.

    If none did, it divides by half a repetition, which gives a lower bound.
    """
    chosen = traces if picks is None else [traces[i] for i in picks]
    times = [trace.until(level) for trace in chosen]
    spent = sum(min(t, trace.seconds[-1]) for t, trace in zip(times, chosen, strict=True))
    return spent / max(sum(map(math.isfinite, times)), 0.5)


def speed_up(
    ours: dict[str, list[Trace]], theirs: dict[str, list[Trace]], levels: dict[str, float]
) -> tuple[float, float, float]:
    """Return the geometric mean over tables of their time over ours, with a 95 % interval."""
    names = [name for name in ours if name in theirs]

    def mean(random: np.random.Generator | None) -> float:
        logs = []
        for name in names:
            number = min(len(ours[name]), len(theirs[name]))
            picks = np.arange(number) if random is None else random.integers(number, size=number)
            ratio = expected_time(theirs[name], levels[name], picks) / expected_time(
                ours[name], levels[name], picks
            )
            logs.append(math.log(ratio))
        return math.exp(float(np.mean(logs)))

    random = np.random.default_rng(0)
    draws = [mean(random) for _ in range(1000)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return mean(None), float(low), float(high)


def run_one(task: tuple[str, str, str, int, int, str]) -> tuple[str, str, Trace]:
    """Run one search on one table; runs in a worker process."""
    path, name, method, repetition, trials, python = task
    case = _case_of(path)
    if method in PLANS:
        return name, method, run_ours(case, PLANS[method], repetition, trials)
    if method.startswith("optuna "):
        return name, method, run_rival(case, method.split()[1], repetition, trials)
    corrected = method == "moasha corrected"
    return name, method, run_moasha(case, corrected, repetition, trials, python)


_CASES: dict[str, Case] = {}


def _case_of(path: str) -> Case:
    if path not in _CASES:
        _CASES.clear()
        _CASES[path] = (
            own_case(Path(path)) if path.endswith(".parquet") else public_case(Path(path))
        )
    return _CASES[path]


def main() -> None:
    """Run every search on every table; print times and speed-ups."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=Path, required=True, help="folder of tables")
    parser.add_argument("--only", nargs="*", help="names of the tables to use")
    parser.add_argument("--methods", nargs="*", default=["ehvi", "random", "optuna tpe"])
    parser.add_argument("--repetitions", type=int, default=50)
    parser.add_argument("--trials", type=int, default=150)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--syne-tune", default="", help="Python interpreter with syne-tune 0.15.0")
    parser.add_argument("--traces", type=Path, help="file to write all traces to, as JSON")
    parser.add_argument(
        "--with",
        dest="more",
        type=Path,
        nargs="*",
        default=[],
        help="trace files of earlier runs to include",
    )
    options = parser.parse_args()
    files = sorted([*options.tables.glob("*.parquet"), *options.tables.glob("*.npz")])
    files = [f for f in files if not options.only or f.stem in options.only]
    start = time.perf_counter()
    traces: dict[str, dict[str, list[Trace]]] = {}
    levels: dict[float, dict[str, float]] = {level: {} for level in LEVELS}
    for file in files:
        case = _case_of(str(file))
        error = 200 * case.standard_error()
        for level in LEVELS:
            levels[level][file.stem] = max(level, error)
        tasks = [
            (str(file), file.stem, method, repetition, options.trials, options.syne_tune)
            for method in options.methods
            for repetition in range(options.repetitions)
            if case.table.num_epochs > 1 or not method.startswith("moasha")
        ]
        for method, tables in itertools.chain(*(_read(path).items() for path in options.more)):
            if file.stem in tables:
                traces.setdefault(method, {})[file.stem] = tables[file.stem]
        context = multiprocessing.get_context("fork")
        with context.Pool(options.processes) as pool:
            for name, method, trace in pool.imap(run_one, tasks):
                traces.setdefault(method, {}).setdefault(name, []).append(trace)
        _print_table(file.stem, error, traces)
    if options.traces:
        options.traces.write_text(json.dumps(_as_json(traces)))
    _print_result(traces, levels, time.perf_counter() - start)


def _print_table(name: str, error: float, traces: dict[str, dict[str, list[Trace]]]) -> None:
    print(f"{name}: two standard errors of B are {error:.2f} points")
    for method in traces:
        found = traces.get(method, {}).get(name)
        if not found:
            continue
        shown = []
        for level in LEVELS:
            reached = sum(math.isfinite(t.until(max(level, error))) for t in found)
            taken = expected_time(found, max(level, error))
            shown.append(f"B<={level:g}: {taken:10.0f} s ({reached}/{len(found)})")
        last = np.mean([t.regrets[-1] for t in found])
        print(f"  {method:18s} {'  '.join(shown)}  at the end {last:.2f}", flush=True)


def _read(path: Path) -> dict[str, dict[str, list[Trace]]]:
    """Read traces that `_as_json` wrote."""
    return {
        method: {
            name: [Trace(*one, len(one[0])) for one in found] for name, found in tables.items()
        }
        for method, tables in json.loads(path.read_text()).items()
    }


def _as_json(traces: dict[str, dict[str, list[Trace]]]) -> Any:
    return {
        method: {
            name: [[t.seconds, [round(b, 4) for b in t.regrets]] for t in found]
            for name, found in tables.items()
        }
        for method, tables in traces.items()
    }


def _print_result(
    traces: dict[str, dict[str, list[Trace]]],
    levels: dict[float, dict[str, float]],
    wall_seconds: float,
) -> None:
    result: dict[str, Any] = {}
    for part in ("reported", "tuned on"):
        for method, level in itertools.product(traces, LEVELS):
            if method == OURS or OURS not in traces:
                continue
            mine = {
                n: t for n, t in traces[OURS].items() if (n in TUNED_ON) == (part != "reported")
            }
            if not set(mine) & set(traces[method]):
                continue
            mean, low, high = speed_up(mine, traces[method], levels[level])
            result.setdefault(part, {}).setdefault(method, {})[f"B={level:g}"] = [
                round(x, 2) for x in (mean, low, high)
            ]
    repetitions = max(len(t) for tables in traces.values() for t in tables.values())
    print(
        json.dumps(
            {"speed_up_of": OURS, "repetitions": repetitions, "workers": WORKERS, **result}
            | {"wall_seconds": round(wall_seconds)}
        )
    )


if __name__ == "__main__":
    main()
