"""MLflow from the journal: one writer, idempotent, that catches up after an outage.

One experiment a study, a parent run for the study, a child run for each trial. A thread of the
driver reads what the journal gained and writes it in batches; a tracking server that is slow or
away never holds up or fails a trial. Runs are found again by their tags, metrics carry the
journal's times, so writing the same event twice changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, TypeVar

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
from sftsearch.orchestrator.tracking.writes import RUNNING, RunWrites, Writes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from mlflow import MlflowClient

    from sftsearch.orchestrator.storage.journal import Entry, Journal

T = TypeVar("T")
NUM_WRITERS = 8
"""Runs that are written at a time to a server."""
MAX_PAUSE = 5.0
"""Seconds between two tries to reach a server that is away: one connection costs little."""
MAX_EVENTS = 5_000
"""Events of one batch of writes."""
MAX_METRICS = 800
MAX_PARAMS = 100
"""MLflow takes 1,000 entries in one call, of them 100 parameters and 100 tags."""


class Mirror:
    """Writes one study's journal to MLflow, in a thread of its own."""

    def __init__(
        self,
        journal: Journal,
        uri: str,
        runs: Path,
        *,
        created: Created | None = None,
        interval: float = 1.0,
    ) -> None:
        """Begin to mirror.

        Args:
            journal: of the study.
            uri: MLflow's.
            runs: the folder of all studies.
            created: how the study began; None: it is looked up in the journal.
            interval: seconds between two batches.
        """
        self.uri = uri
        self.problem = ""
        """Why the last try failed; empty while all is well."""
        self.parent_id = ""
        self._journal = journal
        self._runs = runs
        self._interval = interval
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        self._created = created
        self._run_ids: dict[str, str] = {}
        done = read_bookkeeping(journal.folder)
        self._done = done if done is not None and _is_of(done, journal) else Bookkeeping()
        self._stop = threading.Event()
        self._give_up_at = float("inf")
        self._thread = threading.Thread(target=self._loop, name="mlflow-mirror", daemon=True)
        self._thread.start()

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
            raise TrackingError(f"MLflow did not take the report: {first_line(error)}") from None

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
                self.problem = first_line(error)
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
            self._created = self._created or _read_created(self._journal)
            self._experiment_id = find_experiment(client, self._created, self._runs, self.uri)
            found = find_runs(client, self._experiment_id)
            self._run_ids = {key: run.info.run_id for key, run in found.items()}
            if "" not in self._run_ids:
                self._run_ids[""] = self._make_parent(client, self._created)
            self.parent_id = self._run_ids[""]
            if self._done.run_id != self.parent_id:  # all is written again, which changes nothing
                self._done = Bookkeeping(self.parent_id)
            self._client = client
        return self._client

    def _catch_up(self) -> bool:
        """Write one batch; return whether there is more."""
        last = self._journal.last_id
        if last == self._done.through and (self._client is not None or not last):
            return False
        client = self._open()
        with contextlib.closing(self._journal.entries(after=self._done.through)) as found:
            entries = list(islice(found, MAX_EVENTS))
        if not entries:  # what is left are events of kinds that are no longer journalled
            return False
        facts = StudyFacts.from_json(self._done.facts.to_json())  # what fails is tried again
        self._write_runs(client, self._gather(entries, facts))
        self._done = Bookkeeping(self.parent_id, entries[-1].id, entries[-1].time, facts)
        self._done.write(self._journal.folder)
        return True

    def _gather(self, entries: Iterable[Entry], facts: StudyFacts) -> Writes:
        """Return what each run gains from the events, the parent's with the facts they touch."""
        writes = Writes()
        touched: dict[str, None] = {}
        for entry in entries:
            writes.add(entry)
            touched |= dict.fromkeys(facts.apply(entry.event))
            writes.add_posteriors(entry, {*self._run_ids, *writes})
        # Also where it is again what it was: an earlier try may have written what lay between.
        known = facts.to_json()
        for name in touched:
            writes[""].tag(name, json.dumps(known[name]))
        return writes

    def _write_runs(self, client: MlflowClient, writes: Writes) -> None:
        """Write to each run what it gains; over HTTP to several at a time."""

        def write(key: str, written: RunWrites) -> None:
            if key not in self._run_ids and written.started is not None:
                self._run_ids[key] = self._make_child(client, written)
            if key in self._run_ids:  # a run that somebody deleted stays deleted
                _write(client, self._run_ids[key], written)

        remote = self.uri.startswith(("http:", "https:"))
        with ThreadPoolExecutor(NUM_WRITERS if remote else 1) as pool:
            try:
                for _ in pool.map(write, writes, writes.values()):
                    pass
            except BaseException:
                pool.shutdown(cancel_futures=True)  # a server that is away is away for all
                raise

    def _make_child(self, client: MlflowClient, written: RunWrites) -> str:
        started, created = written.started, self._created
        assert started is not None
        assert created is not None
        folds, replicate = created.folds, started.trial.replicate
        run = client.create_run(
            self._experiment_id,
            start_time=written.start_time,
            run_name=f"{started.model} {started.trial}",
            tags={
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
        )
        run_id: str = run.info.run_id
        return run_id

    def _make_parent(self, client: MlflowClient, created: Created) -> str:
        whole = created.definition
        some = {name: whole[name] for name in ("folds", "replicates") if name in whole}
        shown = created.to_json() | {"definition": some}  # all of it may be too long for a tag
        run = client.create_run(
            self._experiment_id,
            run_name=created.name,
            tags={
                f"{PREFIX}trial": "",
                f"{PREFIX}created": json.dumps(shown),
                "mlflow.note.content": created.description,
            },
        )
        run_id: str = run.info.run_id
        return run_id


def _is_of(done: Bookkeeping, journal: Journal) -> bool:
    """Tell whether it is of this journal, and not of one that was in its place."""
    with contextlib.closing(journal.entries(after=done.through - 1, through=done.through)) as found:
        return done.through == 0 or any(entry.time == done.time for entry in found)


def _read_created(journal: Journal) -> Created:
    # Closed here: SQLite takes offence where another thread collects what was not read to its end.
    with contextlib.closing(journal.entries()) as entries:
        return next(entry.event for entry in entries if isinstance(entry.event, Created))


def _write(client: MlflowClient, run_id: str, written: RunWrites) -> None:
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


def _batched(entries: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield the entries in order, at most `size` at a time."""
    return (entries[start : start + size] for start in range(0, len(entries), size))
