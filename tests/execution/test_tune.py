"""Searches on a real Ray with trials that hang or processes that cannot start."""

from __future__ import annotations

import sys
import time
import types
from typing import TYPE_CHECKING

import pytest

from sftsearch.orchestrator.execution.placement import ResourceError
from sftsearch.orchestrator.study import run_study

from idle_workers import Idle
from journals import read_events

if TYPE_CHECKING:
    from pathlib import Path

    from sftsearch.orchestrator.execution.reports import WorkerReport
    from sftsearch.orchestrator.execution.trial_spec import TrialSpec

pytestmark = [
    pytest.mark.medium,
    pytest.mark.timeout(120),
    pytest.mark.usefixtures("four_cpus_and_a_gpu"),
]

STUDY = """
study: {name: placed}
dataset: {kind: synthetic}
search: {sampler: {kind: exhaustive}, trials: 6}
resources: {cpus: 1}
space: [{kind: sft, num_heads: 1, dim: {kind: int, low: 1, high: 6}}]
"""


class Hanging(Idle):
    """Hangs in two of its trials: in one while starting, in one while training."""

    def start(self, spec: TrialSpec) -> None:
        super().start(spec)
        if spec.parameters["dim"] == 2:
            time.sleep(3600)

    def step(self) -> WorkerReport:
        if self.spec.parameters["dim"] == 5:
            time.sleep(3600)
        return super().step()


@pytest.mark.timeout(400)  # two processes are ended and replaced
def test_run_fails_a_trial_that_never_reports_and_continues(tmp_path: Path) -> None:
    file = tmp_path / "placed.yaml"
    resources = "resources: {cpus: 2, concurrent_trials: 2, max_trial_hours: 2e-3}"
    file.write_text(STUDY.replace("resources: {cpus: 1}", resources))
    result = run_study(file, runs=tmp_path, worker=Hanging, formats=())
    assert result.complete
    assert result.reason == "all trials ran"
    outcomes = {t.configuration["dim"]: t.reason or t.status for t in result.record.trials}
    overdue = "it ran for longer than `resources.max_trial_hours` allows (0.002)"
    assert outcomes == {dim: overdue if dim in (2, 5) else "finished" for dim in range(1, 7)}


def test_run_stops_immediately_if_processes_cannot_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a cluster whose nodes lack a package: every trial would fail after some retries."""

    class DriverOnly(Idle):
        """A worker of a module that only the driver has."""

    module = types.ModuleType("driver_only")
    module.DriverOnly = DriverOnly  # type: ignore[attr-defined]
    DriverOnly.__module__, DriverOnly.__qualname__ = module.__name__, "DriverOnly"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    file = tmp_path / "placed.yaml"
    file.write_text(STUDY)
    with pytest.raises(ResourceError, match=r"ModuleNotFoundError.* 'driver_only'"):
        run_study(file, runs=tmp_path, worker=DriverOnly, formats=())
    kinds = [event.kind for event in read_events(tmp_path / "placed")]
    assert not {"failed", "retried"} & set(kinds)
    result = run_study(file, runs=tmp_path, worker=Idle, resume=True, formats=())
    assert result.complete
    assert {trial.status for trial in result.record.trials} == {"finished"}
