"""Convert a study's events to writes to its MLflow runs; equal events give equal writes.

The posterior of a configuration goes to the runs of its trials; all other facts about the study as
a whole go to the parent run, whose key is empty.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from mlflow.entities import Metric, Param, RunStatus, RunTag

from sftsearch.orchestrator.storage.baseline_events import BaselineResult, BaselinesFitted
from sftsearch.orchestrator.storage.event import Event, Numbers, TrialKey
from sftsearch.orchestrator.storage.events import Concluded, Confirmed, Ended, Opened
from sftsearch.orchestrator.storage.study_record import milliseconds
from sftsearch.orchestrator.storage.trial_events import (
    EpochEnded,
    Failed,
    Finished,
    Started,
    Stopped,
)
from sftsearch.orchestrator.tracking.client import BASELINE, POSTERIOR, PREFIX, TEST
from sftsearch.orchestrator.tracking.long_values import shortened_param

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sftsearch.orchestrator.storage.journal import Entry

RUNNING = RunStatus.to_string(RunStatus.RUNNING)
FINISHED = RunStatus.to_string(RunStatus.FINISHED)
FAILED = RunStatus.to_string(RunStatus.FAILED)
KILLED = RunStatus.to_string(RunStatus.KILLED)


@dataclass(slots=True)
class RunWrites:
    """Writes to one run from a batch of events."""

    started: Started | None = None
    """The trial's start, if it is in the batch; a new run is created from it."""
    baseline: BaselineResult | None = None
    """The baseline, if it is in the batch; a new run is created from it."""
    start_time: int = 0
    """Time of `started` or of the baseline, in milliseconds."""
    metrics: list[Metric] = field(default_factory=list)
    params: list[Param] = field(default_factory=list)
    tags: list[RunTag] = field(default_factory=list)
    status: str = ""
    ended: int = 0

    def tag(self, name: str, value: str) -> None:
        """Add a tag with our prefix."""
        self.tags.append(RunTag(f"{PREFIX}{name}", value))

    def measure(self, values: Numbers, moment: int, *, prefix: str = "", step: int = 0) -> None:
        """Add metrics at a time in milliseconds."""
        self.metrics += [Metric(f"{prefix}{n}", v, moment, step) for n, v in values.items()]


class Writes(dict[str, RunWrites]):
    """Writes by trial key as text; the parent run's key is empty, and see `client.find_runs`."""

    def __missing__(self, key: str) -> RunWrites:
        self[key] = RunWrites()
        return self[key]

    def add(self, entry: Entry) -> None:
        """Add the writes of an event."""
        self._add(entry.event, milliseconds(entry.time))

    def add_posteriors(self, entry: Entry, keys: Iterable[str]) -> None:
        """Add the posterior of each configuration to the runs of its trials.

        Args:
            entry: a `Concluded` event; others add nothing.
            keys: of the trials that have a run or get one in this batch.
        """
        if not isinstance(entry.event, Concluded):
            return
        for key in keys:
            if not key or key.startswith(BASELINE):
                continue
            posterior = entry.event.beliefs.get(TrialKey.parse(key).configuration_id)
            if posterior:
                named = {name: posterior[part] for part, name in POSTERIOR.items()}
                self[key].measure(named, milliseconds(entry.time))

    @functools.singledispatchmethod
    def _add(self, event: Event, moment: int) -> None:
        """Do nothing: MLflow does not show events of this kind."""

    @_add.register
    def _opened(self, event: Opened, moment: int) -> None:
        self[""].tag("trials", str(event.trials))
        self[""].status = RUNNING

    @_add.register
    def _started(self, event: Started, moment: int) -> None:
        written = self[str(event.trial)]
        if written.started is None:  # a retried trial keeps its run
            written.started, written.start_time = event, moment
        shown = {"model": event.model, **event.parameters, "seed": event.seed}
        written.params = [Param(name, _text(value)) for name, value in shown.items()]

    @_add.register
    def _epoch_ended(self, event: EpochEnded, moment: int) -> None:
        metrics = {name: value for name, value in event.metrics.items() if name != "epoch"}
        self[str(event.trial)].measure(metrics, moment, prefix="epoch/", step=event.epoch)

    @_add.register
    def _finished(self, event: Finished, moment: int) -> None:
        written = self[str(event.trial)]
        written.measure(event.values, moment)
        for name, fact in event.facts.items():
            written.tag(name, str(fact))
        written.tag("groups", json.dumps(event.groups))
        written.tag("stopped", "false")
        written.status, written.ended = FINISHED, moment

    @_add.register
    def _failed(self, event: Failed, moment: int) -> None:
        written = self[str(event.trial)]
        written.tag("reason", event.reason)
        written.tag("stopped", "false")
        written.status, written.ended = FAILED, moment

    @_add.register
    def _stopped(self, event: Stopped, moment: int) -> None:
        written = self[str(event.trial)]
        written.tag("reason", event.reason)
        written.tag("stopped", "true")
        written.tag("epoch", str(event.epoch))
        # A tag: as a metric it would look like a final value.
        written.tag("reached", json.dumps(event.reached))
        written.status, written.ended = KILLED, moment

    @_add.register
    def _concluded(self, event: Concluded, moment: int) -> None:
        found = {"within_delta": event.within_delta}
        if event.audits is not None:
            found |= {"false_stop_rate": event.audits["rate"]}
        self[""].measure(found, moment)

    @_add.register
    def _baselines(self, event: BaselinesFitted, moment: int) -> None:
        for one in event.results:
            written = self[f"{BASELINE}{one.key}"]
            written.baseline, written.start_time = one, moment
            shown = {"model": one.name, "modalities": [*one.modalities], "seed": one.seed}
            written.params = [Param(name, _text(value)) for name, value in shown.items()]
            written.measure(one.values, moment)
            written.tag("groups", json.dumps(one.groups))
            written.status, written.ended = FINISHED, moment

    @_add.register
    def _confirmed(self, event: Confirmed, moment: int) -> None:
        for key, values in event.values.items():
            self[str(key)].measure(values, moment, prefix=TEST)
            self[str(key)].tag("test_groups", json.dumps(event.groups[key]))
        for name, test in event.baselines.items():
            written = self[f"{BASELINE}{name}"]
            written.measure(cast("Numbers", test["values"]), moment, prefix=TEST)
            written.tag("test_groups", json.dumps(test["groups"]))

    @_add.register
    def _ended(self, event: Ended, moment: int) -> None:
        self[""].status = FINISHED if event.complete else KILLED
        self[""].ended = moment


def _text(value: object) -> str:
    text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    return shortened_param(text)
