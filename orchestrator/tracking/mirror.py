"""Mirror a study's journal to MLflow: idempotent, catching up after an outage.

A study has one experiment, a parent run and a child run for each trial. A thread of the driver
writes new events in batches, so a slow or unreachable tracking server never delays or fails a
trial. Runs are found by their tags and metrics have the journal's times, so writing an event twice
changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, TypeVar

from mlflow.entities import RunTag

from sftsearch.orchestrator.storage.events import Created
from sftsearch.orchestrator.storage.study_record import StudyFacts
from sftsearch.orchestrator.tracking.bookkeeping import Bookkeeping, read_bookkeeping
from sftsearch.orchestrator.tracking.client import (
    PREFIX,
    TrackingError,
    find_experiment,
    find_runs,
    first_line,
    open_client,
)
from sftsearch.orchestrator.tracking.long_values import NOTE, split_long
from sftsearch.orchestrator.tracking.writes import RUNNING, RunWrites, Writes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from mlflow import MlflowClient

    from sftsearch.orchestrator.storage.baseline_events import BaselineResult
    from sftsearch.orchestrator.storage.journal import Entry, Journal

T = TypeVar("T")
NUM_WRITERS = 8
"""Runs written concurrently to a server."""
MAX_PAUSE = 5.0
"""Longest pause, in seconds, between two attempts to reach a server."""
MAX_EVENTS = 5_000
"""Most events in one batch of writes."""
MAX_METRICS = 800
MAX_PARAMS = 100
"""MLflow accepts 1,000 entries per call, with at most 100 parameters and 100 tags."""


class Mirror:
    """Writes one study's journal to MLflow, in its own thread."""

    def __init__(
        self,
        journal: Journal,
        uri: str,
        runs: Path,
        *,
        created: Created | None = None,
        interval: float = 1.0,
        on_problem: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Start mirroring.

        Args:
            journal: of the study.
            uri: tracking URI.
            runs: the folder of all studies.
            created: the study's first event; None: read it from the journal.
            interval: seconds between two batches.
            on_problem: called by the mirror's thread when MLflow stops answering, with the reason,
                and with an empty text when it answers again.
        """
        self._on_problem = on_problem
        self.uri = uri
        self.problem = ""
        """Why the last attempt failed; empty if it succeeded."""
        self.parent_id = ""
        self._journal = journal
        self._runs = runs
        self._interval = interval
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        self._created = created
        self._run_ids: dict[str, str] = {}
        mirrored = read_bookkeeping(journal.folder) or Bookkeeping()
        self._mirrored = mirrored if _matches(mirrored, journal) else Bookkeeping()
        self._stop = threading.Event()
        self._give_up_at = float("inf")
        self._thread = threading.Thread(target=self._loop, name="mlflow-mirror", daemon=True)
        self._thread.start()

    def close(self, *, patience: float = 20.0) -> bool:
        """Write the remaining events within `patience` seconds; return whether all are written."""
        self._give_up_at = time.monotonic() + patience
        self._stop.set()
        self._thread.join(patience + 15)
        return not self._thread.is_alive() and not self.problem

    def write_note(self, text: str) -> None:
        """Replace the note of the study's parent run; call it after `close`.

        Raises:
            TrackingError: MLflow does not accept it.
        """
        try:
            short, _ = split_long({NOTE: text})
            self._open().set_tag(self.parent_id, NOTE, short[NOTE])
        except Exception as error:
            raise TrackingError(
                f"The note could not be written to MLflow: {first_line(error)}"
            ) from None

    def log_artifacts(self, files: Iterable[Path]) -> None:
        """Upload files to the study's parent run; call it after `close`.

        Raises:
            TrackingError: MLflow does not accept them.
        """
        try:
            for file in files:
                self._open().log_artifact(self.parent_id, str(file), artifact_path="report")
        except Exception as error:
            raise TrackingError(
                f"The report could not be uploaded to MLflow: {first_line(error)}"
            ) from None

    def _loop(self) -> None:
        pause = 0.0
        while True:
            stopping = self._stop.wait(pause)
            try:
                while self._catch_up():
                    pass
                self._report("")
                pause = self._interval
                if stopping:
                    return
            except Exception as error:  # never fail the study; try again after a pause
                self._report(first_line(error))
                self._client = None
                pause = min(max(2 * pause, self._interval), MAX_PAUSE)
                if time.monotonic() > self._give_up_at:
                    return
                if stopping:
                    time.sleep(0.5)

    def _report(self, problem: str) -> None:
        """Set `problem`, and call back if MLflow stopped or began to answer."""
        has_changed = bool(problem) != bool(self.problem)
        self.problem = problem
        if has_changed:
            self._on_problem(problem)

    def _open(self) -> MlflowClient:
        """Connect and find the runs that earlier attempts or drivers created."""
        if self._client is None:
            client = open_client(self.uri, self._runs)
            self._created = self._created or _read_created(self._journal)
            self._experiment_id = find_experiment(client, self._created, self._runs, self.uri)
            found = find_runs(client, self._experiment_id)
            self._run_ids = {key: run.info.run_id for key, run in found.items()}
            if "" not in self._run_ids:
                self._run_ids[""] = self._create_parent(client, self._created)
            self.parent_id = self._run_ids[""]
            if self._mirrored.run_id != self.parent_id:  # write everything again; idempotent
                self._mirrored = Bookkeeping(self.parent_id)
            self._client = client
        return self._client

    def _catch_up(self) -> bool:
        """Write one batch; return whether there may be more."""
        last = self._journal.last_id
        if last == self._mirrored.through and (self._client is not None or not last):
            return False
        client = self._open()
        with contextlib.closing(self._journal.entries(after=self._mirrored.through)) as found:
            entries = list(islice(found, MAX_EVENTS))
        if not entries:  # only events of retired kinds are left
            return False
        facts = StudyFacts.from_json(self._mirrored.facts.to_json())  # a copy: writing may fail
        self._write_runs(client, self._gather(entries, facts))
        self._mirrored = Bookkeeping(self.parent_id, entries[-1].id, entries[-1].time, facts)
        self._mirrored.write(self._journal.folder)
        return True

    def _gather(self, entries: Iterable[Entry], facts: StudyFacts) -> Writes:
        """Return the events' writes by run; the parent run gets the facts that changed."""
        writes = Writes()
        changed: dict[str, None] = {}
        for entry in entries:
            writes.add(entry)
            changed |= dict.fromkeys(facts.apply(entry.event))
            writes.add_posteriors(entry, {*self._run_ids, *writes})
        # Written even if the value is the same as before the batch: an earlier attempt may have
        # written an intermediate value.
        known = facts.to_json()
        for name in changed:
            writes[""].tag(name, json.dumps(known[name]))
        return writes

    def _write_runs(self, client: MlflowClient, writes: Writes) -> None:
        """Write to all runs; over HTTP to several concurrently."""

        def write(key: str, written: RunWrites) -> None:
            if key not in self._run_ids and written.started is not None:
                self._run_ids[key] = self._create_child(client, written)
            if key not in self._run_ids and written.baseline is not None:
                self._run_ids[key] = self._create_baseline(client, written, written.baseline)
            if key in self._run_ids:  # a run that the user deleted stays deleted
                _write(client, self._run_ids[key], written)

        remote = self.uri.startswith(("http:", "https:"))
        with ThreadPoolExecutor(NUM_WRITERS if remote else 1) as pool:
            try:
                for _ in pool.map(write, writes, writes.values()):
                    pass
            except BaseException:
                pool.shutdown(cancel_futures=True)  # the other writes would fail too
                raise

    def _create_child(self, client: MlflowClient, written: RunWrites) -> str:
        started, created = written.started, self._created
        assert started is not None
        assert created is not None
        folds, replicate = created.folds, started.trial.replicate
        return _create_run(
            client,
            self._experiment_id,
            f"{started.model} {started.trial}",
            {
                "mlflow.parentRunId": self.parent_id,
                f"{PREFIX}trial": str(started.trial),
                f"{PREFIX}configuration_id": started.configuration_id,
                f"{PREFIX}model": started.model,
                f"{PREFIX}seed": str(started.seed),
                f"{PREFIX}replicate": str(replicate),
                f"{PREFIX}fold": "" if folds is None else str(replicate % folds),
                f"{PREFIX}configuration": json.dumps(started.parameters),
                f"{PREFIX}cost": json.dumps(started.cost),
                f"{PREFIX}fingerprint": created.facts.get("fingerprint", ""),
                f"{PREFIX}version": created.facts.get("sftsearch", ""),
            },
            written.start_time,
        )

    def _create_baseline(
        self, client: MlflowClient, written: RunWrites, baseline: BaselineResult
    ) -> str:
        return _create_run(
            client,
            self._experiment_id,
            f"baseline {baseline.key}",
            {
                "mlflow.parentRunId": self.parent_id,
                NOTE: baseline.description,
                f"{PREFIX}baseline": baseline.key,
                f"{PREFIX}model": baseline.name,
                f"{PREFIX}modalities": json.dumps(baseline.modalities),
                f"{PREFIX}parameters": json.dumps(baseline.parameters),
                f"{PREFIX}seed": str(baseline.seed),
                f"{PREFIX}fold": "" if baseline.fold is None else str(baseline.fold),
            },
            written.start_time,
        )

    def _create_parent(self, client: MlflowClient, created: Created) -> str:
        full = created.definition
        part = {name: full[name] for name in ("folds", "replicates") if name in full}
        body = created.to_json() | {"definition": part}  # reports need no more
        return _create_run(
            client,
            self._experiment_id,
            created.name,
            {
                f"{PREFIX}trial": "",
                f"{PREFIX}created": json.dumps(body),
                NOTE: created.description,
            },
        )


def _matches(mirrored: Bookkeeping, journal: Journal) -> bool:
    """Return whether the bookkeeping is of this journal, which may have been replaced."""
    last = mirrored.through
    with contextlib.closing(journal.entries(after=last - 1, through=last)) as found:
        return last == 0 or any(entry.time == mirrored.time for entry in found)


def _read_created(journal: Journal) -> Created:
    # Close the generator here: SQLite fails if another thread collects an unfinished read.
    with contextlib.closing(journal.entries()) as entries:
        return next(entry.event for entry in entries if isinstance(entry.event, Created))


def _create_run(
    client: MlflowClient, experiment_id: str, name: str, tags: dict[str, str], start: int = 0
) -> str:
    """Create a run and return its id; values too long for tags become artifacts."""
    short, artifacts = split_long(tags)
    run = client.create_run(experiment_id, run_name=name, tags=short, start_time=start or None)
    run_id: str = run.info.run_id
    for path, text in artifacts.items():
        client.log_text(run_id, text, path)
    return run_id


def _write(client: MlflowClient, run_id: str, written: RunWrites) -> None:
    short, artifacts = split_long({tag.key: tag.value for tag in written.tags})
    for path, text in artifacts.items():  # before the tags that refer to them
        client.log_text(run_id, text, path)
    for metrics, params, tags in zip_longest(
        _batched(written.metrics, MAX_METRICS),
        _batched(written.params, MAX_PARAMS),
        _batched([RunTag(key, value) for key, value in short.items()], MAX_PARAMS),
        fillvalue=(),
    ):
        client.log_batch(run_id, metrics=metrics, params=params, tags=tags)
    if written.status == RUNNING:
        client.update_run(run_id, status=RUNNING)
    elif written.status:
        client.set_terminated(run_id, written.status, written.ended)


def _batched(entries: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield the entries in order, at most `size` at a time."""
    return (entries[start : start + size] for start in range(0, len(entries), size))
