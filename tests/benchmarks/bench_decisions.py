"""Measure the milliseconds of each decision of a search after 10,000 recorded trials.

The study is synthetic: 20,000 configurations in two branches of eight parameters. A search replays
a journal of the trials and continues. Each decision follows the end of a trial, so that nothing is
cached, and is timed separately:

- `propose`: the sampler `ehvi` proposes a configuration;
- `stop`: the rule `dominated` evaluates a trial at a rung;
- `replicate`: find the configuration whose next replicate changes the front most;
- `front`: compute the front of the posterior means;
- `end`: record the end of a trial.

Run with `python -P tests/benchmarks/bench_decisions.py`; the last line is JSON, medians of
`--rounds` in milliseconds of the process.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sftsearch.datasets.catalog import describe
from sftsearch.orchestrator.benchmark.table import Table
from sftsearch.orchestrator.candidates.admission import Admission
from sftsearch.orchestrator.search.engine import Search
from sftsearch.orchestrator.storage.event import TrialKey
from sftsearch.orchestrator.storage.events import Admitted, Proposed, Told
from sftsearch.orchestrator.storage.journal import MemoryJournal
from sftsearch.orchestrator.storage.trial_events import Finished
from sftsearch.search_spaces.load import parse_study
from sftsearch.search_spaces.space import Space

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` omits it
from recorded_prices import recorded_prices

if TYPE_CHECKING:
    from collections.abc import Callable

    from sftsearch.orchestrator.search.engine import TrialSuggestion
    from sftsearch.search_spaces.load import StudySource

BRANCH = """
  - kind: {kind}
    dim: {{kind: choice, values: [8, 16, 32, 64, 128]}}
    stride: {{kind: choice, values: [1, 2, 4, 8, 16]}}
    num_heads: {{kind: choice, values: [2, 4]}}
    fused_layers: {{kind: choice, values: [1, 2, 3, 4, 5]}}
    mixup: {{kind: choice, values: [none, manifold]}}
    pooling: {{kind: choice, values: [max, average]}}
    learning_rate: {{kind: choice, values: [0.0003, 0.001, 0.003, 0.01, 0.03]}}
    modalities: {{kind: choice, values: [[a], [a, b]]}}
"""
STUDY = """
study: {name: synthetic}
dataset: {kind: wearables}
search: {sampler: ehvi, trials: 1000000, replicates: {min: 1, max: 5}, early_stopping: dominated}
training: {epochs: 8}
space:
"""
EPOCHS, RUNG = 8, 2


def make_source() -> StudySource:
    """Return the study file."""
    text = STUDY + "".join(BRANCH.format(kind=kind) for kind in ("sft", "concat"))
    return parse_study(text.encode())


def make_table(source: StudySource) -> Table:
    """Return a table of all configurations with their costs, without metrics."""
    space = Space(source.study.space)
    points = list(space.points())
    costs = [
        p.values["dim"] ** 1.5 * p.values["fused_layers"] / p.values["stride"] ** 0.7
        * (1 + p.branch) * len(p.values["modalities"])
        for p in points
    ]  # fmt: skip
    number = len(points)
    return Table(
        ids=[f"{i:012x}" for i in range(number)],
        models=[space.models[p.branch] for p in points],
        parameters=[dict(p.parameters) for p in points],
        costs={"gflops": np.array(costs) / 1e5},
        metrics={},
        seconds=np.ones((number, 1, EPOCHS)),
        facts={},
    )


def truth(parameters: dict[str, Any], cost: float, noise: float) -> float:
    """Return an accuracy that grows with cost and depends on the learning rate."""
    rate = np.log(parameters["learning_rate"] / 0.003)
    return float(0.9 - 0.3 / (1 + 300 * cost) - 0.01 * rate**2 + 0.01 * noise)


def record(journal: MemoryJournal, admission: Admission, table: Table, number: int) -> None:
    """Append `number` random configurations to the journal, each trained once."""
    random_ = np.random.default_rng(0)
    candidates = list((admission.table or {}).values())
    for n, i in enumerate(random_.choice(len(candidates), number, replace=False)):
        candidate = candidates[i]
        cost = {"gflops": candidate.cost.gflops, "gmacs": 0.0, "parameters": 0}
        parameters = candidate.configuration.parameters
        proposed = Proposed(n, candidate.point)
        admitted = Admitted(
            number=n,
            configuration_id=candidate.id,
            model=candidate.configuration.model,
            parameters=parameters,
            cost=cost,
            seeds=[0],
            epochs=EPOCHS,
            warmup=0,
            group=f"{candidate.point.branch} none",
        )
        value = truth(parameters, candidate.cost.gflops, random_.normal())
        values = {"top1": value, "seconds": 10.0, **cost}
        finished = Finished(TrialKey(candidate.id, 0), values, {}, {})
        for event in (proposed, admitted, finished, Told(n, "complete", [value, cost["gflops"]])):
            journal.append(event)


class Bench:
    """A study that continues trial by trial."""

    def __init__(self, number: int) -> None:
        source = make_source()
        table = make_table(source)
        prices = recorded_prices(source, table)
        admission = Admission(source, describe("wearables"), price=prices)
        journal = MemoryJournal(clock=time.time)
        record(journal, admission, table, number)
        self.search = Search(source.study, journal, admission, max_concurrent_trials=2)
        self.random_ = np.random.default_rng(1)
        self.milliseconds: dict[str, list[float]] = {}
        self.other = self.next()

    def next(self) -> TrialSuggestion:
        """Return the next trial."""
        suggestion = self.search.propose()
        assert suggestion is not None
        return suggestion

    def timed(self, name: str, act: Callable[[], Any]) -> Any:
        """Run a function and record its CPU time."""
        start = time.process_time()
        result = act()
        self.milliseconds.setdefault(name, []).append(1e3 * (time.process_time() - start))
        return result

    def end(self, suggestion: TrialSuggestion) -> None:
        """Finish a trial, which invalidates cached results."""
        cost = suggestion.cost
        value = truth(suggestion.parameters, cost["gflops"], self.random_.normal())
        values = {"top1": value, "seconds": 10.0, **cost}
        self.timed("end", lambda: self.search.finish(suggestion.key, values, {}))

    def report(self, suggestion: TrialSuggestion) -> bool:
        """Report the epochs up to a rung."""
        for epoch in range(1, RUNG):
            self.search.report(suggestion.key, {"epoch": epoch, "top1": 0.5})
        return self.search.report(suggestion.key, {"epoch": RUNG, "top1": 0.9})

    def round(self) -> None:
        """Take every decision once, each after the end of a trial."""
        surrogate = self.search.known.surrogate
        self.end(self.other)
        first = self.timed("propose", self.next)
        second = self.next()
        self.end(second)
        self.timed("stop", lambda: self.report(first))
        self.end(first)
        self.timed("replicate", lambda: surrogate.best_replicate(5))
        self.other = self.next()
        self.end(self.other)
        self.timed("front", surrogate.front)
        self.other = self.next()


def main() -> None:
    """Measure all decisions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    start = time.process_time()
    bench = Bench(options.trials)
    first = time.process_time() - start
    for _ in range(options.rounds):
        bench.round()
    medians = {name: round(float(np.median(ms)), 1) for name, ms in bench.milliseconds.items()}
    print(json.dumps({"num_trials": options.trials, "opened_seconds": round(first, 1), **medians}))


if __name__ == "__main__":
    main()
