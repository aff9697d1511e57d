"""Inject faults into studies, resume them, and check that no trial is lost or duplicated.

Small studies run one after another in their own drivers, on a real Ray, a real MLflow server and a
real PostgreSQL. Each gets some faults at random moments: SIGKILL of the driver, of a trial's
process, of one of a trial's workers, of Ray's own process, of the MLflow server, of PostgreSQL;
SIGTERM; a full disk; a clock that jumps. Then it is resumed to its end. Journal, Optuna and MLflow
must have each trial exactly once, with the values of an undisturbed run and, as the studies are
`deterministic`, the same trials.

    python tests/reliability/chaos.py --faults 200

The last line printed is JSON. Needs Linux, PostgreSQL's programs, and the permission to mount a
small disk in memory; without it, the full disk is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))  # to be run as a program

from sftsearch.orchestrator.studies import read_record
from sftsearch.orchestrator.tracking.client import open_client
from sftsearch.orchestrator.tracking.reader import read_study

import drive_study
from journals import read_events
from servers import team_servers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from servers import MlflowServer, Postgres, Server

STUDY = """
study: {{name: {name}}}
dataset: {{kind: synthetic}}
search:
  {{sampler: {{kind: tpe, startup_configurations: 2}}, trials: 8, replicates: 2,
    deterministic: true, baselines: false}}
constraints: [{{metric: parameters, max: 6000}}]
training: {{epochs: 3, batch_size: 256}}
resources: {{cpus: 1, workers: {workers}, concurrent_trials: {slots}}}
space:
  - kind: sft
    num_heads: 2
    stride: {{kind: choice, values: [1, 2]}}
    dim: {{kind: int, low: 4, high: 24, step: 4}}
    fused_layers: {{kind: int, low: 1, high: 3}}
  - kind: concat
    num_heads: 2
    dim: {{kind: int, low: 4, high: 24, step: 4}}
    num_layers: {{kind: int, low: 1, high: 3}}
"""
TRIALS, EPOCHS = 8, 3
FAULTS_A_STUDY = 5
DISK_MB = 64
MEASURED = {"latency_ms", "train_step_ms", "seconds"}
PATIENCE = 240.0
"""Seconds that a driver may take; one that takes longer hangs, which is a bug."""


@dataclass
class Study:
    """One study in its own folder, with the driver that runs it, if any."""

    name: str
    workers: int
    disk: Path
    server: MlflowServer
    postgres: Postgres
    driver: subprocess.Popen[str] | None = None
    drivers: int = 0
    codes: list[int] = field(default_factory=list)
    """Exit codes of the drivers."""

    @property
    def folder(self) -> Path:
        return self.disk / "runs" / self.name

    def start(self) -> None:
        """Start a driver, which resumes the study if it exists."""
        file = self.disk / f"{self.name}.yaml"
        slots = 2 // self.workers
        file.write_text(STUDY.format(name=self.name, workers=self.workers, slots=slots))
        options = ["--resume", "--tracking-uri", self.server.uri, "--jump", "-3600.5"]
        self.drivers += 1
        self.driver = drive_study.start(file, self.disk / "runs", *options)

    def wait(self) -> tuple[str, str]:
        """Wait for the driver to end; return what it printed."""
        assert self.driver is not None
        out, err = self.driver.communicate(timeout=PATIENCE)
        self.codes.append(self.driver.returncode)
        self.driver = None
        return out, err

    def is_running(self) -> bool:
        """Return whether a driver is alive."""
        return self.driver is not None and self.driver.poll() is None

    def num_events(self) -> int:
        """Return the number of events in the journal."""
        if not (self.folder / "journal.sqlite").is_file():
            return 0
        return sum(1 for _ in read_events(self.folder))

    def is_complete(self) -> bool:
        """Return whether the study has ended completely."""
        if not self.num_events():
            return False
        ended = [e.body["complete"] for e in read_events(self.folder) if e.kind == "ended"]
        return bool(ended and ended[-1])

    def processes(self, title: str) -> list[psutil.Process]:
        """Return the driver's descendants whose command line contains a title."""
        assert self.driver is not None
        found = []
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.driver.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if title in " ".join(child.cmdline())[:300]:
                        found.append(child)
        return found


# ------------------------------------------------------------------ faults


def kill_driver(study: Study, random_: random.Random) -> bool:
    assert study.driver is not None
    study.driver.kill()
    study.wait()
    return study.codes[-1] == -signal.SIGKILL


def end_driver(study: Study, random_: random.Random) -> bool:
    assert study.driver is not None
    study.driver.terminate()
    study.wait()
    return True


def _kill_one(study: Study, random_: random.Random, title: str) -> bool:
    while study.is_running():
        found = study.processes(title)
        if found:
            random_.choice(found).kill()
            return True
        time.sleep(0.02)
    return False


def kill_trial(study: Study, random_: random.Random) -> bool:
    return _kill_one(study, random_, "ray::TrialActor")


def kill_worker(study: Study, random_: random.Random) -> bool:
    return _kill_one(study, random_, "ray::WorkerActor")


def kill_ray(study: Study, random_: random.Random) -> bool:
    return _kill_one(study, random_, "/raylet ")


def _restart(server: Server, random_: random.Random) -> bool:
    server.kill()
    time.sleep(4 * random_.random())
    server.start()
    return True


def kill_mlflow(study: Study, random_: random.Random) -> bool:
    return _restart(study.server, random_)


def kill_postgres(study: Study, random_: random.Random) -> bool:
    return _restart(study.postgres, random_)


def fill_disk(study: Study, random_: random.Random) -> bool:
    """Fill the disk for a while, or until the driver has ended."""
    filler = study.disk / "filler"
    with filler.open("wb", buffering=0) as stream:
        for size in (1 << 20, 1 << 9):
            with contextlib.suppress(OSError):
                while True:
                    stream.write(bytes(size))
    deadline = time.monotonic() + 10 * random_.random() + 2
    while study.is_running() and time.monotonic() < deadline:
        time.sleep(0.05)
    filler.unlink()
    return True


def jump(study: Study, random_: random.Random) -> bool:
    """Set the driver's clock back by more than an hour."""
    assert study.driver is not None
    study.driver.send_signal(signal.SIGUSR1)
    return True


FAULTS: dict[str, Callable[[Study, random.Random], bool]] = {
    "SIGKILL of the driver": kill_driver,
    "SIGKILL of a trial's process": kill_trial,
    "SIGKILL of a trial's worker": kill_worker,
    "SIGKILL of the raylet": kill_ray,
    "SIGKILL of the MLflow server": kill_mlflow,
    "SIGKILL of PostgreSQL": kill_postgres,
    "SIGTERM of the driver": end_driver,
    "full disk": fill_disk,
    "clock set back": jump,
}
OF_WORKERS = "SIGKILL of a trial's worker"
FULL = "full disk"


# ------------------------------------------------------------------ running


@contextlib.contextmanager
def disks() -> Iterator[tuple[Path, bool]]:
    """Provide a folder for studies, and whether it is a small disk."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        folder = Path(name)
        options = ["-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", name]
        mounted = subprocess.run(["mount", *options], capture_output=True, check=False)
        try:
            yield folder, mounted.returncode == 0
        finally:
            if mounted.returncode == 0:
                subprocess.run(["umount", "-l", name], check=True)


def disturb(study: Study, faults: list[str], random_: random.Random) -> list[str]:
    """Inject faults into a study, each at a random moment; return those injected.

    If the study ends before, the remaining faults are not injected.
    """
    injected = []
    for fault in faults:
        if not study.is_running():
            if study.driver is not None:
                study.wait()
            if study.is_complete():
                break
            study.start()
        target = study.num_events() + random_.randint(1, 8)
        deadline = time.monotonic() + PATIENCE
        while study.is_running() and study.num_events() < target:
            assert time.monotonic() < deadline, f"the driver hangs before {fault}"
            time.sleep(0.05)
        time.sleep(random_.random() / 5)
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if study.is_running() and FAULTS[fault](study, random_):
                injected.append(fault)
    if study.driver is not None:
        study.wait()
    return injected


def finish(study: Study) -> dict[str, Any]:
    """Resume the study to its end and return the driver's result."""
    study.start()
    out, err = study.wait()
    assert study.codes[-1] == 0, err[-3000:]
    result: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    assert result["complete"], result
    assert not result["problem"], result
    return result


def check(study: Study, result: dict[str, Any]) -> tuple[dict[str, Any], int, int]:
    """Compare the three stores; return what must not change, and trials lost and duplicated."""
    events = list(read_events(study.folder))
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    ended = Counter(e.body["trial"] for e in events if e.kind in ("finished", "failed", "stopped"))
    epochs = Counter((e.body["trial"], e.body["epoch"]) for e in events if e.kind == "epoch")
    in_mlflow = runs_by_trial(study)
    in_optuna = sum(trial["state"] == "COMPLETE" for trial in result["optuna"])
    lost = max(
        TRIALS - len(ended),
        TRIALS - len(in_mlflow),
        TRIALS // 2 - in_optuna,
        TRIALS * EPOCHS - len(epochs),
    )
    twice = sum(count - 1 for counts in (ended, epochs, in_mlflow) for count in counts.values())
    journal = read_record(study.folder)
    mlflow = read_study(study.server.uri, study.name, study.folder.parent)
    assert mlflow == journal
    kept = {
        "optuna": result["optuna"],
        "trials": {
            trial.key: [
                trial.status,
                {k: v for k, v in trial.values.items() if k not in MEASURED},
                {name: list(pair) for name, pair in trial.groups.items()},
            ]
            for trial in journal.trials
        },
    }
    return kept, max(0, lost), twice


def differences(kept: dict[str, Any], undisturbed: dict[str, Any]) -> list[Any]:
    """Return the trials that differ, with their results here and in the undisturbed study."""
    ours, theirs = kept["trials"], undisturbed["trials"]
    trials = [[key, ours.get(key), theirs.get(key)] for key in sorted(ours.keys() | theirs.keys())]
    found = [trial for trial in trials if trial[1] != trial[2]]
    return found or [["optuna", kept["optuna"], undisturbed["optuna"]]]


def runs_by_trial(study: Study) -> Counter[str]:
    """Return the number of MLflow runs of each trial."""
    client = open_client(study.server.uri, study.folder.parent)
    experiment = client.get_experiment_by_name(study.name)
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    return Counter(key for run in runs if (key := run.data.tags["sftsearch.trial"]))


def run(number: int, seed: int, log: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Inject `number` faults into studies; return figures.

    A study that differs from the undisturbed one is logged and counted.

    Raises:
        AssertionError: a study does not reach its end, or its stores contradict each other.
    """
    random_ = random.Random(seed)
    started, undisturbed = time.monotonic(), {}
    figures: Counter[str] = Counter()
    by_kind: Counter[str] = Counter()
    with disks() as (disk, is_small), team_servers() as (postgres, server):
        kinds = [kind for kind in FAULTS if kind != FULL or is_small]
        for workers in (1, 2):
            study = Study(f"undisturbed-{workers}", workers, disk, server, postgres)
            undisturbed[workers], lost, twice = check(study, finish(study))
            assert lost == twice == 0
        left = [kinds[i % len(kinds)] for i in range(number)]
        random_.shuffle(left)
        # Trials with several workers are slower: put the faults of workers into few studies.
        left.sort(key=lambda fault: fault == OF_WORKERS)
        while left:
            faults = left[:FAULTS_A_STUDY]
            workers = 2 if OF_WORKERS in faults else 1
            study = Study(f"chaos-{figures['studies']}", workers, disk, server, postgres)
            injected = disturb(study, faults, random_)
            for fault in injected:
                left.remove(fault)
            kept, lost, twice = check(study, finish(study))
            same = kept == undisturbed[workers]
            by_kind.update(injected)
            figures.update(studies=1, trials=TRIALS, lost=lost, twice=twice)
            figures.update(drivers=study.drivers, differing=not same)
            log(f"{study.name}: {', '.join(injected)}: {study.drivers} drivers, {lost=}, {twice=}, "
                f"{same=}, {time.monotonic() - started:.0f} s")  # fmt: skip
            if not same:
                log(f"{study.name} differs: {differences(kept, undisturbed[workers])}")
            shutil.rmtree(study.folder)
    return {"faults": by_kind.total(), **figures, "by_kind": dict(by_kind), "seed": seed,
            "seconds": round(time.monotonic() - started)}  # fmt: skip


def main() -> None:
    """Run the chaos test and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    figures = run(options.faults, options.seed, lambda line: print(line, flush=True))
    print(json.dumps(figures))
    if figures["lost"] or figures["twice"] or figures["differing"]:
        sys.exit("chaos: trials were lost or duplicated, or differ from the undisturbed study")


if __name__ == "__main__":
    main()
