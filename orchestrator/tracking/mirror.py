"""MLflow from the journal: one writer, idempotent, that catches up after an outage.

One experiment a study, a parent run for the study, a child run for each trial. What a study
concluded of a configuration stands on the runs of its trials, all else of the study as a whole on
the parent run. A thread of the driver reads what the journal gained and writes it in batches; a
tracking server that is slow or away never holds up or fails a trial. Runs are found again by their
tags, metrics carry the journal's times, so writing the same event twice changes nothing.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TypeVar

# Read by MLflow at each request: fail soon, the mirror tries again by itself.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunStatus, RunTag, ViewType
from mlflow.exceptions import MlflowException

from sftsearch.datasets.errors import UserError
from sftsearch.orchestrator.storage.study_record import (
    StudyRecord,
    TrialRecord,
    as_groups,
    milliseconds,
    no_facts,
    reached,
    study_record,
    update_facts,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from mlflow.entities import Run

    from sftsearch.orchestrator.storage.journal import Event, Journal

T = TypeVar("T")
PREFIX = "sftsearch."
TEST = "test_"
NUM_WRITERS = 8
"""Runs that are written at a time to a server."""
MAX_PAUSE = 5.0
"""Seconds between two tries to reach a server that is away: one connection costs little."""
MAX_EVENTS = 5_000
"""Events of one batch of writes."""
MAX_METRICS = 800
MAX_PARAMS = 100
"""MLflow takes 1,000 entries in one call, of them 100 parameters and 100 tags."""
_PASSWORDS = (
    (r"(://[^/@\s]*?):[^/\s]*@", r"\1@"),
    # SQLAlchemy takes a `/` in a password as it is; after http://host: digits are a port.
    (r"((?<!http)(?<!https)://[^/@:\s]*):[^@\s]*@", r"\1@"),
    (r"(://[^/@:\s]*):(?!\d+/)[^@\s]*@", r"\1@"),
    (r"([?&](?:ssl)?passw(?:or)?d=)[^&\s'\")]*", r"\1***"),
)
"""Where a URI may hold a password, and what is shown instead."""
RUNNING = RunStatus.to_string(RunStatus.RUNNING)
BELIEFS = {"mean": "belief_mean", "sd": "belief_sd", "on_front": "front_probability"}
"""What a study concluded of a configuration -> the metric of its trials' runs."""

logging.getLogger("alembic").setLevel(logging.ERROR)
logging.getLogger("mlflow").setLevel(logging.ERROR)


class TrackingError(UserError):
    """MLflow cannot be reached, or does not have the study."""


def default_uri(runs: Path) -> str:
    """Return the tracking URI beside the runs: an SQLite file."""
    return f"sqlite:///{(runs / 'mlflow.db').absolute()}"


def masked(text: str) -> str:
    """Return a URI, or a text with URIs, without passwords: `postgresql://user@host/db`."""
    for pattern, shown in _PASSWORDS:
        text = re.sub(pattern, shown, text)
    return text


def open_client(uri: str, runs: Path) -> MlflowClient:
    """Return a client whose store exists.

    The first use of an SQLite store migrates its tables; two processes doing so at once would break
    each other, so it happens under a lock.

    Raises:
        TrackingError: the URI is not one MLflow knows, or the store does not answer.
    """
    runs.mkdir(parents=True, exist_ok=True)
    try:
        with (runs / "mlflow.lock").open("a") as lock:
            if uri.startswith("sqlite:"):
                fcntl.flock(lock, fcntl.LOCK_EX)
            client = MlflowClient(tracking_uri=uri)
            client.search_experiments(max_results=1)
    except Exception as error:  # MLflow lets errors of SQLAlchemy, requests and its own through
        raise _no_answer(uri, error) from None  # the cause's text may hold the password
    return client


# ------------------------------------------------------------------ writing


@dataclass(slots=True)
class _Writes:
    """What one run gains from a batch of events."""

    started: Event | None = None
    """The `started` event, if it is in the batch: what a new run is made from."""
    metrics: list[Metric] = field(default_factory=list)
    params: list[Param] = field(default_factory=list)
    tags: list[RunTag] = field(default_factory=list)
    status: str = ""
    ended: int = 0


class Mirror:
    """Writes one study's journal to MLflow, in a thread of its own."""

    def __init__(self, journal: Journal, uri: str, runs: Path, *, interval: float = 1.0) -> None:
        """Begin to mirror; `interval` seconds lie between two batches."""
        self.uri = uri
        self.problem = ""
        """Why the last try failed; empty while all is well."""
        self.parent_id = ""
        self._journal = journal
        self._runs = runs
        self._interval = interval
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        self._created: dict[str, Any] = {}
        self._run_ids: dict[str, str] = {}
        self._facts = no_facts()
        self._through = max((e.body["through"] for e in _of_kind(journal, "mirrored")), default=0)
        self._stop = threading.Event()
        self._give_up_at = float("inf")
        self._thread = threading.Thread(target=self._loop, name="mlflow-mirror", daemon=True)
        self._thread.start()

    def lag(self) -> int:
        """Return how many events MLflow does not have yet."""
        return self._journal.last_id - self._through

    def close(self, *, patience: float = 20.0) -> bool:
        """Write what is left, trying for `patience` seconds; return whether all is written."""
        self._give_up_at = time.monotonic() + patience
        self._stop.set()
        self._thread.join(patience + 15)
        return not self._thread.is_alive() and not self.problem

    def log_artifacts(self, files: Iterable[Path]) -> None:
        """Put files beside the study's parent run. Call it after `close`.

        Raises:
            TrackingError: MLflow does not take them.
        """
        try:
            for file in files:
                self._open().log_artifact(self.parent_id, str(file), artifact_path="report")
        except Exception as error:
            raise TrackingError(f"MLflow did not take the report: {_first_line(error)}") from None

    def _loop(self) -> None:
        pause = 0.0
        while True:
            stopping = self._stop.wait(pause)
            try:
                while self._catch_up():
                    pass
                self.problem, pause = "", self._interval
                if stopping:
                    return
            except Exception as error:  # whatever it is, the study goes on and this is tried again
                self.problem = _first_line(error)
                self._client = None
                pause = min(max(2 * pause, self._interval), MAX_PAUSE)
                if time.monotonic() > self._give_up_at:
                    return
                if stopping:
                    time.sleep(0.5)

    def _open(self) -> MlflowClient:
        """Connect, and learn which runs an earlier try or driver made."""
        if self._client is None:
            client = open_client(self.uri, self._runs)
            self._created = next(iter(_of_kind(self._journal, "created"))).body
            self._experiment_id = _experiment(client, self._created, self._runs, self.uri)
            self._run_ids = _find_runs(client, self._experiment_id)
            if "" not in self._run_ids:
                self._run_ids[""] = self._make_parent(client)
                self._through = 0  # another store than the last one, which had it all
            self.parent_id = self._run_ids[""]
            self._facts = no_facts()
            for event in self._journal.events(through=self._through):
                update_facts(self._facts, event)
            self._client = client
        return self._client

    def _catch_up(self) -> bool:
        """Write one batch; return whether there is more."""
        if self._journal.last_id == self._through:
            return False
        client = self._open()
        through = min(self._journal.last_id, self._through + MAX_EVENTS)
        events = list(self._journal.events(after=self._through, through=through))
        news = any(event.kind != "mirrored" for event in events)
        writes = self._gather(events)
        self._write_runs(client, writes)
        self._through = through
        if news:  # that something was mirrored is no news itself, or this would never end
            self._journal.append("mirrored", through=through)
        return news

    def _gather(self, events: Iterable[Event]) -> dict[str, _Writes]:
        """Return what each run gains from the events, the parent's with the facts they touch."""
        writes: dict[str, _Writes] = defaultdict(_Writes)
        touched: dict[str, None] = {}
        for event in events:
            _translate(event, writes)
            touched |= dict.fromkeys(update_facts(self._facts, event))
            if event.kind == "concluded":
                _translate_beliefs(event, {*self._run_ids, *writes}, writes)
        # Also where it is again what it was: an earlier try may have written what lay between.
        for name in touched:
            writes[""].tags.append(RunTag(f"{PREFIX}{name}", json.dumps(self._facts[name])))
        return writes

    def _write_runs(self, client: MlflowClient, writes: dict[str, _Writes]) -> None:
        """Write to each run what it gains; over HTTP to several at a time."""

        def write(key: str, written: _Writes) -> None:
            if key not in self._run_ids and written.started is not None:
                self._run_ids[key] = self._make_child(client, written.started)
            if key in self._run_ids:  # a run that somebody deleted stays deleted
                self._write(client, self._run_ids[key], written)

        remote = self.uri.startswith(("http:", "https:"))
        with ThreadPoolExecutor(NUM_WRITERS if remote else 1) as pool:
            try:
                for _ in pool.map(write, writes, writes.values()):
                    pass
            except BaseException:
                pool.shutdown(cancel_futures=True)  # a server that is away is away for all
                raise

    @staticmethod
    def _write(client: MlflowClient, run_id: str, written: _Writes) -> None:
        for metrics, params, tags in zip_longest(
            _batched(written.metrics, MAX_METRICS),
            _batched(written.params, MAX_PARAMS),
            _batched(written.tags, MAX_PARAMS),
            fillvalue=(),
        ):
            client.log_batch(run_id, metrics=metrics, params=params, tags=tags)
        if written.status == RUNNING:
            client.update_run(run_id, status=RUNNING)
        elif written.status:
            client.set_terminated(run_id, written.status, written.ended)

    def _make_child(self, client: MlflowClient, started: Event) -> str:
        body, facts = started.body, self._created["facts"]
        folds = self._created["definition"].get("folds")
        run = client.create_run(
            self._experiment_id,
            start_time=milliseconds(started.time),
            run_name=f"{body['model']} {body['trial']}",
            tags={
                "mlflow.parentRunId": self.parent_id,
                f"{PREFIX}trial": body["trial"],
                f"{PREFIX}configuration_id": body["configuration_id"],
                f"{PREFIX}model": body["model"],
                f"{PREFIX}seed": str(body["seed"]),
                f"{PREFIX}replicate": str(body["seed"]),
                f"{PREFIX}fold": "" if folds is None else str(body["seed"] % folds),
                f"{PREFIX}configuration": json.dumps(body["parameters"]),
                f"{PREFIX}cost": json.dumps(body["cost"]),
                f"{PREFIX}fingerprint": facts.get("fingerprint", ""),
                f"{PREFIX}version": facts.get("sftsearch", ""),
            },
        )
        run_id: str = run.info.run_id
        return run_id

    def _make_parent(self, client: MlflowClient) -> str:
        whole = self._created["definition"]
        some = {name: whole[name] for name in ("folds", "replicates") if name in whole}
        created = self._created | {"definition": some}  # all of it may be too long for a tag
        run = client.create_run(
            self._experiment_id,
            run_name=self._created["name"],
            tags={
                f"{PREFIX}trial": "",
                f"{PREFIX}created": json.dumps(created),
                "mlflow.note.content": self._created["description"],
            },
        )
        run_id: str = run.info.run_id
        return run_id


def _batched(entries: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield the entries in order, at most `size` at a time."""
    return (entries[start : start + size] for start in range(0, len(entries), size))


def _of_kind(journal: Journal, kind: str) -> Iterator[Event]:
    return (event for event in journal.events() if event.kind == kind)


def _experiment(client: MlflowClient, created: dict[str, Any], runs: Path, uri: str) -> str:
    """Return the id of the study's experiment, making it if it is missing.

    Raises:
        TrackingError: an experiment of this name holds another study.
    """
    name, definition = created["name"], created["definition_hash"]
    found = client.get_experiment_by_name(name)
    if found is None:
        # Beside a local store the files lie with the runs; a server says itself where they go.
        local = uri.startswith("sqlite:")
        where = (runs / "mlartifacts").absolute().as_uri() if local else None
        # To MLflow this is about trained models, not about traces of language models.
        tags = {f"{PREFIX}definition": definition}
        tags["mlflow.experimentKind"] = "custom_model_development"
        made: str = client.create_experiment(name, artifact_location=where, tags=tags)
        return made
    theirs = found.tags.get(f"{PREFIX}definition")
    if found.lifecycle_stage != "active" or theirs != definition:
        why = "was deleted" if found.lifecycle_stage != "active" else "belongs to another study"
        raise TrackingError(
            f"The MLflow experiment '{name}' at '{masked(uri)}' {why}: give this study another "
            "name, or another --tracking-uri."
        )
    experiment_id: str = found.experiment_id
    return experiment_id


def _find_runs(client: MlflowClient, experiment_id: str) -> dict[str, str]:
    """Return the ids of a study's runs by trial key; the parent's key is empty."""
    tag = f"{PREFIX}trial"
    return {
        run.data.tags[tag]: run.info.run_id
        for run in _all_runs(client, experiment_id)
        if tag in run.data.tags
    }


def _all_runs(client: MlflowClient, experiment_id: str) -> Iterator[Run]:
    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment_id], run_view_type=ViewType.ACTIVE_ONLY, max_results=1000, page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def _translate(event: Event, writes: dict[str, _Writes]) -> None:
    """Turn one event into what its run gains; equal events give equal writes."""
    body, moment = event.body, milliseconds(event.time)
    if event.kind == "opened":
        writes[""].tags.append(RunTag(f"{PREFIX}trials", str(body["trials"])))
        writes[""].status = RUNNING
    elif event.kind == "started":
        written = writes[body["trial"]]
        written.started = written.started or event  # tried again, it is the same run
        shown = {"model": body["model"], **body["parameters"], "seed": body["seed"]}
        written.params = [Param(name, _text(value)) for name, value in shown.items()]
    elif event.kind == "epoch":
        step = body["epoch"]
        writes[body["trial"]].metrics += [
            Metric(f"epoch/{name}", value, moment, step)
            for name, value in body["metrics"].items()
            if name != "epoch"
        ]
    elif event.kind in ("finished", "stopped", "failed"):
        translate = _translate_finished if event.kind == "finished" else _translate_without_values
        translate(event, writes[body["trial"]])
    elif event.kind == "concluded":
        writes[""].metrics += _to_metrics(event)
    elif event.kind == "confirmed":
        _translate_confirmed(event, writes)
    elif event.kind == "ended":
        status = RunStatus.FINISHED if body["complete"] else RunStatus.KILLED
        writes[""].status, writes[""].ended = RunStatus.to_string(status), moment


def _translate_finished(event: Event, written: _Writes) -> None:
    body, moment = event.body, milliseconds(event.time)
    written.metrics += [Metric(name, value, moment, 0) for name, value in body["values"].items()]
    written.tags += [RunTag(f"{PREFIX}{name}", str(v)) for name, v in body["facts"].items()]
    written.tags.append(RunTag(f"{PREFIX}groups", json.dumps(body["groups"])))
    written.tags.append(RunTag(f"{PREFIX}stopped", "false"))
    written.status, written.ended = RunStatus.to_string(RunStatus.FINISHED), moment


def _translate_without_values(event: Event, written: _Writes) -> None:
    """Translate the end of a trial that failed or was stopped.

    What a stopped trial reached is a tag: among the metrics it would pass for a final value.
    """
    body, is_stopped = event.body, event.kind == "stopped"
    written.tags.append(RunTag(f"{PREFIX}reason", body["reason"]))
    written.tags.append(RunTag(f"{PREFIX}stopped", json.dumps(is_stopped)))
    if is_stopped:
        written.tags.append(RunTag(f"{PREFIX}epoch", str(body["epoch"])))
        written.tags.append(RunTag(f"{PREFIX}reached", json.dumps(reached(body))))
    status = RunStatus.KILLED if is_stopped else RunStatus.FAILED
    written.status, written.ended = RunStatus.to_string(status), milliseconds(event.time)


def _to_metrics(event: Event) -> list[Metric]:
    """Return what a study concluded of itself, as metrics of its run."""
    body, moment = event.body, milliseconds(event.time)
    found = {"within_delta": body["within_delta"]}
    if body["audits"] is not None:
        found |= {"false_stop_rate": body["audits"]["rate"]}
    return [Metric(name, value, moment, 0) for name, value in found.items()]


def _translate_beliefs(event: Event, keys: Iterable[str], writes: dict[str, _Writes]) -> None:
    """Write what is believed of each configuration to all runs of its trials.

    Args:
        event: the `concluded` one.
        keys: of the trials that have a run, or get one in this batch.
        writes: gains the metrics.
    """
    moment = milliseconds(event.time)
    for key in keys:
        belief = event.body["beliefs"].get(key.rpartition("-")[0], {})
        if belief:
            writes[key].metrics += [
                Metric(name, belief[part], moment, 0) for part, name in BELIEFS.items()
            ]


def _text(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def _translate_confirmed(event: Event, writes: dict[str, _Writes]) -> None:
    moment = milliseconds(event.time)
    for key, test in event.body["trials"].items():
        written = writes[key]
        written.metrics += [Metric(f"{TEST}{n}", v, moment, 0) for n, v in test["values"].items()]
        written.tags.append(RunTag(f"{PREFIX}test_groups", json.dumps(test["groups"])))


def _no_answer(uri: str, error: Exception) -> TrackingError:
    return TrackingError(f"MLflow does not answer at '{masked(uri)}': {_first_line(error)}")


def _first_line(error: Exception) -> str:
    lines = masked(str(error)).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


# ------------------------------------------------------------------ reading


def read_study(uri: str, name: str, runs: Path) -> StudyRecord:
    """Read a study from MLflow alone.

    Raises:
        TrackingError: MLflow does not answer, or has no such study.
    """
    client = open_client(uri, runs)
    try:
        experiment = client.get_experiment_by_name(name)
        found = list(_all_runs(client, experiment.experiment_id)) if experiment else []
    except MlflowException as error:
        raise _no_answer(uri, error) from None
    ours = {
        run.data.tags[f"{PREFIX}trial"]: run for run in found if f"{PREFIX}trial" in run.data.tags
    }
    parent = ours.pop("", None)
    if parent is None:
        raise TrackingError(
            f"MLflow at '{masked(uri)}' has no study '{name}'. `sftsearch list` shows the studies "
            "here; name another place with --runs or --tracking-uri."
        )
    tags = parent.data.tags
    facts = {
        name: json.loads(tags[f"{PREFIX}{name}"]) if f"{PREFIX}{name}" in tags else fact
        for name, fact in no_facts().items()
    }
    created = json.loads(tags[f"{PREFIX}created"])
    trials = [_trial_record(run) for run in ours.values()]
    return study_record(created, facts, trials, _beliefs(ours.values()))


def delete_study(uri: str, name: str, runs: Path) -> None:
    """Delete a study's experiment, and free its name; one that is not there is no mistake.

    Raises:
        TrackingError: MLflow does not answer, or the experiment is not one of ours.
    """
    client = open_client(uri, runs)
    try:
        experiment = client.get_experiment_by_name(name)
        if experiment is None or experiment.lifecycle_stage != "active":
            return
        if f"{PREFIX}definition" not in experiment.tags:
            raise TrackingError(f"The MLflow experiment '{name}' is not a study: it is left alone.")
        number = experiment.experiment_id
        client.rename_experiment(number, f"{name} (deleted, experiment {number})")
        client.delete_experiment(number)
    except MlflowException as error:
        raise _no_answer(uri, error) from None


_STATUS = {"FINISHED": "finished", "KILLED": "stopped", "FAILED": "failed"}


def _beliefs(runs: Iterable[Run]) -> dict[str, dict[str, float]]:
    """Return what is believed of every configuration; see `_translate_beliefs`."""
    return {
        run.data.tags[f"{PREFIX}configuration_id"]: {
            part: run.data.metrics[name] for part, name in BELIEFS.items()
        }
        for run in runs
        if set(BELIEFS.values()) <= set(run.data.metrics)
    }


def _trial_record(run: Run) -> TrialRecord:
    tags = {k.removeprefix(PREFIX): v for k, v in run.data.tags.items() if k.startswith(PREFIX)}
    metrics = {n: v for n, v in run.data.metrics.items() if n not in BELIEFS.values()}
    final = {n: v for n, v in metrics.items() if not n.startswith(("epoch/", TEST))}
    test = {n.removeprefix(TEST): v for n, v in metrics.items() if n.startswith(TEST)}
    groups = as_groups(json.loads(tags["test_groups"])) if "test_groups" in tags else None
    return TrialRecord(
        key=tags["trial"],
        configuration_id=tags["configuration_id"],
        model=tags["model"],
        configuration=json.loads(tags["configuration"]),
        seed=int(tags["seed"]),
        status=_STATUS.get(run.info.status, "running"),
        values=final or json.loads(tags.get("reached", tags["cost"])),
        groups=as_groups(json.loads(tags.get("groups", "{}"))),
        reason=tags.get("reason", ""),
        epoch=int(tags["epoch"]) if "epoch" in tags else None,
        started=run.info.start_time / 1e3,
        ended=(run.info.end_time or 0) / 1e3,
        test_values=test or None,
        test_groups=groups,
    )
