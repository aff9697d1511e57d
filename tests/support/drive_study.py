"""A driver for tests: run a study in a process of its own, and die where the test says.

    python -P tests/support/drive_study.py FILE RUNS [--resume] [--tracking-uri URI]
        [--kill-after KIND NUMBER] [--jump SECONDS]

The last line printed is JSON: what Optuna holds at the end. With `--kill-after` the process sends
itself SIGKILL as soon as the journal holds NUMBER events of that KIND, written by this process;
for the KIND `mirrored`, as soon as the mirror has noted so often what MLflow has.
With `--jump` its clock jumps, by so many seconds, when it gets SIGUSR1.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sftsearch.orchestrator.callback import StudyCallback
from sftsearch.orchestrator.storage.journal import Journal
from sftsearch.orchestrator.study import run_study
from sftsearch.orchestrator.tracking.bookkeeping import Bookkeeping

if TYPE_CHECKING:
    from sftsearch.orchestrator.storage.journal import Entry


def start(file: Path, runs: Path, *options: str) -> subprocess.Popen[str]:
    """Start this as a driver, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-P", __file__, str(file), str(runs), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
        start_new_session=True,
    )


class Assassin(StudyCallback):
    """Kills this process after an event."""

    def __init__(self, kind: str, number: int) -> None:
        self._kind, self._left = kind, number

    def on_event(self, entry: Entry) -> None:
        """Count an event, and die."""
        self._count(entry.event.kind)

    def watch_mirror(self) -> None:
        """Count what the mirror notes, too."""
        write = Bookkeeping.write

        def write_and_count(done: Bookkeeping, folder: Path) -> None:
            write(done, folder)
            self._count("mirrored")

        Bookkeeping.write = write_and_count  # type: ignore[method-assign]

    def _count(self, kind: str) -> None:
        self._left -= kind == self._kind
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Run the study and print what Optuna was told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("runs", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--tracking-uri")
    parser.add_argument("--kill-after", nargs=2, default=("never", "1"))
    parser.add_argument("--jump", type=float, default=0.0)
    asked = parser.parse_args()
    let_clock_jump(asked.jump)
    kind, number = asked.kill_after
    watcher = Assassin(kind, int(number))
    watcher.watch_mirror()
    options = {"resume": asked.resume, "tracking_uri": asked.tracking_uri}
    result = run_study(asked.file, runs=asked.runs, callback=watcher, **options)
    assert result.sampler_study is not None
    trials = [
        {"params": trial.params, "state": trial.state.name, "values": trial.values}
        for trial in result.sampler_study.trials
    ]
    told = {"complete": result.complete, "problem": result.tracking_problem, "optuna": trials}
    print(json.dumps(told))


def let_clock_jump(seconds: float) -> None:
    """Make the journal's clock jump at each SIGUSR1."""
    offset = 0.0

    def jump(*_: object) -> None:
        nonlocal offset
        offset += seconds

    signal.signal(signal.SIGUSR1, jump)
    Journal.__init__.__kwdefaults__["clock"] = lambda: time.time() + offset


if __name__ == "__main__":
    main()
