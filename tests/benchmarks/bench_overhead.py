"""Compare the overhead of a search with plain Ray Tune, Optuna and MLflow, without training.

`ours` is the complete driver: journal, admission, TPE, Ray Tune with warm actors, MLflow. `plain`
is Ray Tune with `OptunaSearch`, `MLflowLoggerCallback` and warm actors, on the same space,
objectives, number of epochs and SQLite store. The arms run in turns, each in its own process. Time
is from the first proposal to the end, without the start of Ray. Memory is the growth of the
driver's resident size per trial, between a small and a large study of the same arm.

Run with `python -P tests/benchmarks/bench_overhead.py`; the last line is JSON. For many concurrent
trials on logical CPUs: `--trials 500 2000 --concurrent 64`.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

EPOCHS = 3
SPACE = """
study: {{name: overhead}}
dataset: {{kind: wearables}}
search: {{baselines: false, sampler: {{kind: tpe}}, trials: {trials}, replicates: 1}}
training: {{epochs: 3}}
space:
  - kind: sft
    patch: 8
    num_heads: 4
    stride: {{kind: int, low: 1, high: 16}}
    dim: {{kind: int, low: 8, high: 128, step: 8}}
    fused_layers: {{kind: int, low: 1, high: 11}}
"""


def resident_mb() -> float:
    """Return the resident size of this process in MiB, after freeing unused memory."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 2**10


class NoTraining:
    """A worker that reports like a real one but does not train."""

    def start(self, spec: Any) -> None:
        """Start a trial."""
        self._spec, self._epoch = spec, 0

    def step(self) -> dict[str, Any]:
        """Report an epoch."""
        self._epoch += 1
        value = 0.5 + self._spec.cost["gflops"]
        epoch = {"epoch": self._epoch, "loss": 1.0, "top1": value, "seconds": 0.0}
        report: dict[str, Any] = {"epochs": [epoch]}
        if self._epoch == EPOCHS:
            values = {"top1": value, "loss": 1.0, **self._spec.cost}
            report["final"] = {"values": values, "groups": {"a": [1.0, 2.0]}, "facts": {}}
        return report


def start_ray(num_cpus: int | None) -> None:
    """Start Ray with `num_cpus` logical CPUs; None for those of the machine."""
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    ray.init(address="local", include_dashboard=False, num_cpus=num_cpus, **quiet)


def run_ours(num_trials: int, folder: Path, concurrent: int | None) -> dict[str, float]:
    """Run the complete driver; return seconds and growth of resident memory."""
    from sftsearch.orchestrator.callback import StudyCallback
    from sftsearch.orchestrator.execution.cluster import disconnect  # sets variables that Ray reads
    from sftsearch.orchestrator.study import run_study

    class Clock(StudyCallback):
        began = 0.0

        def on_open(self, *_: Any) -> None:
            self.began = time.perf_counter()

    file, clock = folder / "overhead.yaml", Clock()
    file.write_text(SPACE.format(trials=num_trials))
    start_ray(concurrent)
    before = resident_mb()
    run_study(file, runs=folder, callback=clock, worker=NoTraining, formats=())
    seconds = time.perf_counter() - clock.began
    grown = resident_mb() - before
    disconnect()
    return {"seconds": seconds, "grown_mb": grown}


def run_plain(num_trials: int, folder: Path, concurrent: int | None) -> dict[str, float]:
    """Run Ray Tune with OptunaSearch and the MLflow callback; return the same figures."""
    import optuna
    import ray
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.tune.search.optuna import OptunaSearch

    class Plain(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.value, self.epoch = 0.5 + 1e-3 * new_config["dim"], 0
            return True

        def step(self) -> dict[str, Any]:
            self.epoch += 1
            cost = {"gflops": self.value, "gmacs": 1.0, "parameters": 1.0}
            return {"top1": self.value, "loss": 1.0, **cost, "done": self.epoch == EPOCHS}

        def save_checkpoint(self, checkpoint_dir: str) -> None: ...

        def load_checkpoint(self, checkpoint: Any) -> None: ...

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    start_ray(concurrent)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    callback = MLflowLoggerCallback(tracking_uri=uri, experiment_name="overhead")
    space = {
        "stride": tune.randint(1, 17),
        "dim": tune.qrandint(8, 128, 8),
        "fused_layers": tune.randint(1, 12),
    }
    search = OptunaSearch(metric=["top1", "gflops"], mode=["max", "min"])
    tuner = tune.Tuner(
        tune.with_resources(Plain, {"cpu": 1}),
        param_space=space,
        tune_config=tune.TuneConfig(
            search_alg=search,
            num_samples=num_trials,
            reuse_actors=True,
            max_concurrent_trials=concurrent or 2,
        ),
        run_config=tune.RunConfig(
            name="plain", storage_path=str(folder), verbose=0, callbacks=[callback]
        ),
    )
    before, began = resident_mb(), time.perf_counter()
    tuner.fit()
    figures = {"seconds": time.perf_counter() - began, "grown_mb": resident_mb() - before}
    ray.shutdown()
    return figures


def measure(arm: str, num_trials: int, concurrent: int | None) -> dict[str, float]:
    """Run one arm in a fresh process."""
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    if arm == "plain":  # no csv, json and tensorboard files, as in ours
        environment["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-P", __file__, "--arm", arm, "--folder", folder]
        done = subprocess.run(
            [*command, "--trials", str(num_trials), "--concurrent", str(concurrent or 0)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"{arm} failed:\n{done.stderr[-4000:]}")
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def main() -> None:
    """Measure both arms in turns and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=[300, 1000])
    parser.add_argument("--concurrent", type=int, default=0)
    parser.add_argument("--arm", choices=["ours", "plain"])
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.arm:
        run = run_ours if options.arm == "ours" else run_plain
        print(json.dumps(run(options.trials[0], options.folder, options.concurrent or None)))
        return
    rows: list[dict[str, Any]] = []
    for num_trials in options.trials:
        for arm in ("ours", "plain"):
            figures = measure(arm, num_trials, options.concurrent)
            rows.append({"arm": arm, "trials": num_trials, **figures})
            each = 1e3 * figures["seconds"] / num_trials
            print(
                f"{arm:<6} {num_trials:>5} trials {figures['seconds']:8.1f} s {each:7.1f} ms each, "
                f"driver grew {figures['grown_mb']:7.1f} MiB",
                flush=True,
            )
    print(json.dumps({"concurrent": options.concurrent or 2, "rows": rows, **ratios(rows)}))


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the ratios of ours to plain: seconds by size, and memory per trial."""
    of = {(row["arm"], row["trials"]): row for row in rows}
    sizes = sorted({row["trials"] for row in rows})
    found = {
        f"seconds_ratio_{n}": of["ours", n]["seconds"] / of["plain", n]["seconds"] for n in sizes
    }
    if len(sizes) > 1:
        low, high = sizes[0], sizes[-1]
        for arm in ("ours", "plain"):
            grown = of[arm, high]["grown_mb"] - of[arm, low]["grown_mb"]
            found[f"kib_a_trial_{arm}"] = 2**10 * grown / (high - low)
        found["memory_ratio"] = found["kib_a_trial_ours"] / found["kib_a_trial_plain"]
    return found


if __name__ == "__main__":
    main()
