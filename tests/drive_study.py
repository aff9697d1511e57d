"""A driver for tests: run a study in a process of its own, and die where the test says.

    python -P tests/drive_study.py FILE RUNS [--resume] [--kill-after KIND NUMBER]

The last line printed is JSON: what Optuna holds at the end. With `--kill-after` the process sends
itself SIGKILL as soon as the journal holds NUMBER events of that KIND, written by this process.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from sftsearch.orchestrator.study import Watcher, run_study

if TYPE_CHECKING:
    from sftsearch.orchestrator.journal import Event


class Assassin(Watcher):
    """Kills this process after an event."""

    def __init__(self, kind: str, number: int) -> None:
        self._kind, self._left = kind, number

    def event(self, event: Event) -> None:
        """Count, and die."""
        self._left -= event.kind == self._kind
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Run the study and print what Optuna was told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("runs", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--kill-after", nargs=2, default=("never", "1"))
    asked = parser.parse_args()
    kind, number = asked.kill_after
    watcher = Assassin(kind, int(number))
    result = run_study(asked.file, runs=asked.runs, resume=asked.resume, watcher=watcher)
    assert result.sampler_study is not None
    trials = [
        {"params": trial.params, "state": trial.state.name, "values": trial.values}
        for trial in result.sampler_study.trials
    ]
    print(json.dumps({"complete": result.complete, "optuna": trials}))


if __name__ == "__main__":
    main()
