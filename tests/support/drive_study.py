"""Driver process for tests: run a study, and die at a given event.

    python -P tests/support/drive_study.py FILE RUNS [--resume] [--tracking-uri URI]
        [--kill-after KIND NUMBER] [--jump SECONDS] [--plugin FILE]

The last line printed is JSON with the final trials of Optuna. With `--kill-after` the process kills
itself with SIGKILL after it has written NUMBER events of this KIND to the journal; for the KIND
`mirrored`, after NUMBER updates of the mirror's bookkeeping. With `--jump` its clock jumps by
SECONDS at each SIGUSR1.
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
    """Start this program in a new session."""
    return subprocess.Popen(
        [sys.executable, "-P", __file__, str(file), str(runs), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
        start_new_session=True,
    )


class Assassin(StudyCallback):
    """Callback that kills this process after an event."""

    def __init__(self, kind: str, number: int) -> None:
        self._kind, self._left = kind, number

    def on_event(self, entry: Entry) -> None:
        """Count an event, and kill the process after the last one."""
        self._count(entry.event.kind)

    def watch_mirror(self) -> None:
        """Also count updates of the mirror's bookkeeping."""
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
    """Run the study and print the trials of Optuna."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("runs", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--tracking-uri")
    parser.add_argument("--kill-after", nargs=2, default=("never", "1"))
    parser.add_argument("--jump", type=float, default=0.0)
    parser.add_argument("--plugin", action="append", default=[])
    arguments = parser.parse_args()
    let_clock_jump(arguments.jump)
    kind, number = arguments.kill_after
    watcher = Assassin(kind, int(number))
    watcher.watch_mirror()
    result = run_study(
        arguments.file,
        runs=arguments.runs,
        callback=watcher,
        resume=arguments.resume,
        tracking_uri=arguments.tracking_uri,
        plugins=arguments.plugin,
    )
    assert result.sampler_study is not None
    trials = [
        {"params": trial.params, "state": trial.state.name, "values": trial.values}
        for trial in result.sampler_study.trials
    ]
    output = {"complete": result.complete, "problem": result.tracking_problem, "optuna": trials}
    print(json.dumps(output))


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
