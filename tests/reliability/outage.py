"""Kill the MLflow server during a study and measure how fast the mirror catches up.

A study whose trials train nothing runs on a real Ray, mirrored over HTTP to a real MLflow server
with a real PostgreSQL database. The server is killed and restarted later on the same port.

    python tests/reliability/outage.py --seconds 600

The last line printed is JSON: trials that ended during the outage, seconds from the restart until
MLflow had all of them, and trials lost and duplicated at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))  # to be run as a program

from sftsearch.orchestrator.callback import StudyCallback
from sftsearch.orchestrator.studies import read_record
from sftsearch.orchestrator.study import run_study
from sftsearch.orchestrator.tracking.bookkeeping import num_mirrored
from sftsearch.orchestrator.tracking.client import open_client
from sftsearch.orchestrator.tracking.reader import read_study

from journals import read_events
from servers import team_servers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow import MlflowClient
    from mlflow.entities import Run

    from sftsearch.orchestrator.execution.reports import WorkerReport
    from sftsearch.orchestrator.execution.trial_spec import TrialSpec
    from sftsearch.orchestrator.storage.journal import Entry

    from servers import MlflowServer

STUDY = """
study: {{name: outage}}
dataset: {{kind: wearables}}
search: {{baselines: false, sampler: random, trials: {trials}}}
training: {{epochs: 3}}
space:
  - kind: sft
    patch: 8
    num_heads: 4
    stride: {{kind: int, low: 1, high: 16}}
    dim: {{kind: int, low: 8, high: 128, step: 8}}
    fused_layers: {{kind: int, low: 1, high: 11}}
    learning_rate: {{kind: float, low: 1e-4, high: 1e-1, log: true}}
"""
BEFORE = 20
"""Number of finished trials when the server is killed."""


class Pausing:
    """A worker that only sleeps."""

    pause = 0.0

    def start(self, spec: TrialSpec) -> None:
        self.spec, self.epoch = spec, 0

    def step(self) -> WorkerReport:
        time.sleep(self.pause)
        self.epoch += 1
        epoch = {"epoch": self.epoch, "loss": 1.0, "top1": 0.5, "seconds": 0.0}
        report: WorkerReport = {"epochs": [epoch]}
        if self.epoch == 3:
            values = {"top1": 0.5, "loss": 1.0, **self.spec.cost}
            report["final"] = {"values": values, "groups": {"a": [1.0, 2.0]}, "facts": {}}
        return report


class Outage(StudyCallback):
    """Kills the server, restarts it later, and waits until MLflow has the missed events."""

    def __init__(self, server: MlflowServer, folder: Path, seconds: float) -> None:
        self.server, self.folder, self.seconds = server, folder, seconds
        self.finished = 0
        self.missed, self.caught_up = 0, float("nan")
        self.thread = threading.Thread(target=self.interrupt_server)
        self.over = threading.Event()

    def on_event(self, entry: Entry) -> None:
        self.finished += entry.event.kind == "finished"
        if self.finished == BEFORE and not self.thread.ident:
            self.thread.start()

    def interrupt_server(self) -> None:
        self.server.kill()
        time.sleep(self.seconds)
        self.missed = self.finished - BEFORE
        last = max(event.id for event in read_events(self.folder))
        self.server.start()
        started = time.monotonic()
        while (num_mirrored(self.folder) or 0) < last and not self.over.wait(0.05):
            pass
        self.caught_up = time.monotonic() - started


def run(seconds: float, trials: int) -> dict[str, Any]:
    """Run the study; return figures.

    Raises:
        AssertionError: MLflow and the journal differ at the end.
    """
    with tempfile.TemporaryDirectory() as name, team_servers() as (_, server):
        runs = Path(name)
        (runs / "outage.yaml").write_text(STUDY.format(trials=trials))
        outage = Outage(server, runs / "outage", seconds)
        # Two concurrent trials of three epochs: nearly all that are left end during the outage.
        pause = 2 * seconds / (trials - BEFORE) / 3
        worker = type("Pausing", (Pausing,), {"pause": pause})
        result = run_study(
            runs / "outage.yaml",
            runs=runs,
            tracking_uri=server.uri,
            callback=outage,
            worker=worker,
            formats=(),
        )
        outage.over.set()
        outage.thread.join()
        assert result.complete
        assert not result.tracking_problem, result.tracking_problem
        journal = read_record(runs / "outage")
        assert read_study(server.uri, "outage", runs) == journal
        client = open_client(server.uri, runs)
        number = client.get_experiment_by_name("outage").experiment_id
        seen = Counter(run.data.tags["sftsearch.trial"] for run in all_runs(client, number))
    del seen[""]
    return {
        "away_seconds": seconds,
        "trials": trials,
        "ended_while_away": outage.missed,
        "caught_up_seconds": round(outage.caught_up, 1),
        "lost": trials - len(seen),
        "twice": seen.total() - len(seen),
    }


def all_runs(client: MlflowClient, experiment: str) -> Iterator[Run]:
    """Yield all runs of an experiment, page by page."""
    token = None
    while True:
        page = client.search_runs([experiment], max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def main() -> None:
    """Run the outage and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--trials", type=int, default=1200)
    options = parser.parse_args()
    print(json.dumps(run(options.seconds, options.trials)))


if __name__ == "__main__":
    main()
