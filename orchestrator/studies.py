"""Find, list, read and delete studies in a runs folder."""

from __future__ import annotations

import contextlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sftsearch.datasets.errors import UserError
from sftsearch.orchestrator.callback import StudyCallback
from sftsearch.orchestrator.search.state import StudyState, record_of
from sftsearch.orchestrator.storage.backup import Backup, pull, pull_all
from sftsearch.orchestrator.storage.event import EventError, TrialKey
from sftsearch.orchestrator.storage.events import Confirmed, Ended, Opened
from sftsearch.orchestrator.storage.journal import FILE_NAME, Journal, driver_of, read_entries
from sftsearch.orchestrator.storage.lease import running_driver
from sftsearch.orchestrator.storage.runs_folder import (
    describe_runs_folder,
    local_runs_folder,
    remote_of,
)
from sftsearch.orchestrator.storage.trial_files import open_trial_folder
from sftsearch.search_spaces.study_name import NAME_PATTERN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sftsearch.orchestrator.storage.study_record import StudyRecord, TrialRecord

DEFAULT_RUNS = Path("runs")


class StudyError(UserError):
    """A study that is missing, or that cannot be run or confirmed as requested."""


def trial_folder(folder: Path, key: TrialKey | str) -> str:
    """Return the folder of a trial's log, checkpoint and weights: a path or a URI.

    Raises:
        StudyError: the key is invalid; a journal may come from an untrusted source.
    """
    try:
        key = TrialKey.parse(str(key))
    except EventError as error:
        raise StudyError(f"{error}.") from error
    runs = remote_of(folder.parent)
    where = folder / "trials" / str(key)
    return str(where) if runs is None else f"{runs.uri}/{folder.name}/trials/{key}"


# ------------------------------------------------------- a study's folder


def find_study(name: str, runs: str | Path = DEFAULT_RUNS) -> Path:
    """Return the folder of the study called `name`.

    Raises:
        StudyError: the name is invalid, or there is no such study.
    """
    runs = local_runs_folder(runs)
    if not re.fullmatch(NAME_PATTERN, name):
        raise StudyError(f"'{name}' is not the name of a study: `sftsearch list` shows all.")
    pull(runs / name)
    if not (runs / name / FILE_NAME).is_file():
        known = ", ".join(study.name for study in list_studies(runs)) or "none"
        raise StudyError(
            f"There is no study '{name}' in '{describe_runs_folder(runs)}'. Known: {known}."
        )
    return runs / name


def list_studies(runs: str | Path = DEFAULT_RUNS) -> list[Path]:
    """Return the folders of all studies, by name."""
    runs = local_runs_folder(runs)
    pull_all(runs)
    return sorted(path.parent for path in runs.glob(f"*/{FILE_NAME}"))


def read_record(folder: Path) -> StudyRecord:
    """Read a study's record from its journal, also while it runs.

    Raises:
        StudyError: the study never began.
    """
    state = StudyState.of(read_entries(folder))
    if state.created is None:
        raise StudyError("The journal has no `created` event: the study never began.")
    return record_of(state)


@dataclass(frozen=True, slots=True)
class StudyStatus:
    """The state of a study."""

    state: str
    """Such as `complete` or `running`, with the reason or the driver."""
    trials: int
    """Number of trials planned by the last driver."""
    unmirrored: int | None
    """Number of events that MLflow lacks; None if unknown, as for a study of another machine."""


def read_state(folder: Path) -> StudyStatus:
    """Read the state of a study.

    Raises:
        UserError: its backup cannot be read.
    """
    from sftsearch.orchestrator.tracking.bookkeeping import num_mirrored

    last, trials, latest = 0, 0, None
    for entry in read_entries(folder):
        last = entry.id
        if isinstance(entry.event, Opened | Ended | Confirmed):
            latest = entry.event
        if isinstance(entry.event, Opened):
            trials = entry.event.trials
    mirrored = num_mirrored(folder)
    unmirrored = None if mirrored is None else max(0, last - mirrored)
    return StudyStatus(_describe(folder, latest), trials, unmirrored)


def _describe(folder: Path, latest: Opened | Ended | Confirmed | None) -> str:
    if latest is None:
        return "never began"
    if isinstance(latest, Confirmed):
        return "confirmed"
    if isinstance(latest, Ended):
        return f"{'complete' if latest.complete else 'interrupted'} ({latest.reason})"
    process = driver_of(folder)
    driver = f"process {process}" if process else running_driver(folder)
    return f"running ({driver})" if driver else "killed (`sftsearch run --resume` goes on)"


def find_trial(key: str, runs: str | Path = DEFAULT_RUNS) -> tuple[TrialRecord, str, str]:
    """Find a trial by a prefix of its key: its record, folder or URI, and log.

    Raises:
        StudyError: no trial, or more than one, has such a key.
    """
    runs = local_runs_folder(runs)
    found = [
        (trial, folder)
        for folder in list_studies(runs)
        for trial in read_record(folder).trials
        if trial.key.startswith(key)
    ]
    if not found:
        raise StudyError(
            f"No trial's key begins with '{key}' in '{describe_runs_folder(runs)}'. MLflow and "
            "report.json list the keys."
        )
    if len(found) > 1:
        some = ", ".join(f"{trial.key} ({folder.name})" for trial, folder in found[:8])
        raise StudyError(f"{len(found)} trials' keys begin with '{key}': {some}. Give more of it.")
    trial, study_folder = found[0]
    folder = trial_folder(study_folder, trial.key)
    return trial, folder, open_trial_folder(folder).read_log()


@contextlib.contextmanager
def backed_up(journal: Journal, callback: StudyCallback) -> Iterator[Backup | None]:
    """Back up a study during the block, if its runs folder is remote."""
    remote = remote_of(journal.folder.parent)
    if remote is None:
        yield None
        return
    callback.on_stage(f"backing up to {remote.uri}")
    backup = Backup(journal, remote / journal.folder.name)
    if backup.taken_from:
        callback.on_notice(f"Taken over from {backup.taken_from}, which stops if it still runs.")
    try:
        yield backup
    finally:
        callback.on_stage("completing the backup")
        backup.close()
        if backup.problem:
            callback.on_notice(f"The backup is incomplete. {backup.problem}")


def mirror_study(
    folder: Path, runs: str | Path, tracking_uri: str | None, *, note: str = ""
) -> str:
    """Complete a study in MLflow; return the reason if that fails, else an empty text.

    A note, if given, replaces that of the study's run.
    """
    from sftsearch.orchestrator.tracking.client import TrackingError, default_uri
    from sftsearch.orchestrator.tracking.mirror import Mirror

    runs = local_runs_folder(runs)
    with Journal(folder) as journal, backed_up(journal, StudyCallback()):
        mirror = Mirror(journal, tracking_uri or default_uri(runs), runs)
        if not mirror.close():
            return mirror.problem or "MLflow is too slow"
        try:
            if note:
                mirror.write_note(note)
        except TrackingError as error:
            return str(error)
        return ""


def delete_study(folder: Path, runs: str | Path, tracking_uri: str | None) -> str:
    """Delete a study, also in MLflow; return the reason if MLflow fails, else an empty text.

    MLflow keeps deleted experiments until `mlflow gc`; the name can be reused immediately.

    Raises:
        UserError: the study is running.
    """
    from sftsearch.orchestrator.tracking import client

    runs = local_runs_folder(runs)
    remote = remote_of(runs)
    with Journal(folder):
        if driver := running_driver(folder):
            raise StudyError(
                f"The study '{folder.name}' is being run by {driver}: stop it there. If that "
                "machine is gone, try again in a few minutes."
            )
        if remote:
            (remote / folder.name).remove_all()
        problem = ""
        try:
            uri = tracking_uri or client.default_uri(runs)
            client.delete_study(uri, folder.name, runs)
        except client.TrackingError as error:
            problem = str(error)
        shutil.rmtree(folder)
    return problem
