"""Studies and their folders: check a study file, find, list, read and delete studies."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sftsearch.datasets.catalog import describe
from sftsearch.datasets.errors import UserError
from sftsearch.orchestrator.callback import StudyCallback
from sftsearch.orchestrator.candidates import binding
from sftsearch.orchestrator.candidates.admission import Admission
from sftsearch.orchestrator.candidates.study_checks import check_names
from sftsearch.orchestrator.metrics import COSTS
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
from sftsearch.search_spaces.load import Source, find_study_file, on_dataset, read_study
from sftsearch.search_spaces.schema import NAME_PATTERN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.orchestrator.storage.event import JSON
    from sftsearch.orchestrator.storage.study_record import StudyRecord, TrialRecord

DEFAULT_RUNS = Path("runs")


class StudyError(UserError):
    """A study that cannot be run as asked: it exists, differs, or was confirmed."""


def check_study(
    file: str | Path, *, dataset: str | None = None, root: str | None = None
) -> tuple[Source, DatasetSpec, Admission]:
    """Read a study file and check everything that can be checked before a trial runs.

    Args:
        file: a study file, or the name of a shipped one.
        dataset: another data set than the file's; see `load.on_dataset`.
        root: where that one's store is.

    Raises:
        UserError: the file has mistakes; all of them are listed.
    """
    source = read_study(find_study_file(str(file)), binding.parameter_names)
    if dataset is not None:
        source.study  # noqa: B018 - raises where the form has mistakes
        source = on_dataset(source, dataset, root, list(describe(dataset, root=root).modalities))
    check_names(source)
    chosen = source.study.dataset
    spec = describe(chosen.kind, root=chosen.root)
    source = binding.with_objectives(source, spec)
    return source, spec, Admission(source, spec)


def check_resumable(
    source: Source, spec: DatasetSpec, folder: Path, state: StudyState, *, resume: bool
) -> None:
    """Raise if the study cannot be begun or resumed from this file.

    Args:
        source: the checked study file.
        spec: of its dataset.
        folder: of the study.
        state: of the study, where it has begun.
        resume: whether the user asked to go on.

    Raises:
        StudyError: a begun study without `--resume`, one of another definition, or one that was
            confirmed and asks for more trials; the study is left as it is.
    """
    name, created = folder.name, state.created
    if created is None:
        return
    definition = binding.definition_of(source, spec)
    if definition_hash(definition) != created.definition_hash:
        theirs = created.definition
        differs = ", ".join(f"`{k}`" for k in definition if definition[k] != theirs.get(k))
        raise StudyError(
            f"The study '{name}' exists with another definition (it differs in {differs}). Give "
            f"this one another `study.name`, or delete '{folder}'."
        )
    if state.facts.confirmed and source.study.search.trials > state.num_admitted:
        raise StudyError(
            f"The study '{name}' was confirmed: its front is frozen, more trials would be chosen "
            "by somebody who has seen the test split. Give this one another `study.name`."
        )
    _check_warm_start(source, state, name)
    if not resume and state.opened is not None:
        raise StudyError(
            f"The study '{name}' exists in '{describe_runs_folder(folder.parent)}' with "
            f"{state.num_ended.total()} of {source.study.search.trials} trials done. Add --resume "
            f"to go on, `sftsearch pareto {name}` for its front, or give this one another "
            "`study.name`."
        )


def _check_warm_start(source: Source, state: StudyState, name: str) -> None:
    """Raise if a warm start comes too late, or from another study than the first."""
    section = source.study.warm_start
    if section is None:
        return
    if state.imported is None and state.num_proposals:
        raise StudyError(
            f"The study '{name}' has begun without a warm start: leave `warm_start` out, or give "
            "this one another `study.name`."
        )
    if state.imported is not None and state.imported.study != Path(section.study).name:
        raise StudyError(
            f"The study '{name}' began with '{state.imported.study}': leave `warm_start` as it "
            "was, or give this one another `study.name`."
        )


def definition_hash(definition: JSON) -> str:
    """Return the hash of what must not change from one driver of a study to the next."""
    text = json.dumps(definition, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def axes_of(study: StudyRecord) -> tuple[str, str]:
    """Return the cost and the accuracy a study was searched for: the axes of its front."""
    cost = next(metric for metric, _ in study.objectives if metric in COSTS)
    return cost, study.objectives[0][0]


def trial_folder(folder: Path, key: TrialKey | str) -> str:
    """Return where a trial keeps its log, checkpoint and weights: a path, or a URI.

    Raises:
        StudyError: the key, which may be of somebody else's journal, is not one of a trial.
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
        StudyError: the name is not one of a study, or there is none of it.
    """
    runs = local_runs_folder(runs)
    if not re.fullmatch(NAME_PATTERN, name):
        raise StudyError(f"'{name}' is not the name of a study: `sftsearch list` shows them.")
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
        StudyError: the study was made but never began.
    """
    state = StudyState.of(read_entries(folder))
    if state.created is None:
        raise StudyError("The journal has no `created` event: the study never began.")
    return record_of(state)


@dataclass(frozen=True, slots=True)
class StudyStanding:
    """Where a study stands."""

    state: str
    """`complete`, `running` or the like, with the reason or the driver."""
    trials: int
    """Planned by its last driver."""
    unmirrored: int | None
    """Events that MLflow lacks; None where nothing was noted, as of a study of another machine."""


def read_state(folder: Path) -> StudyStanding:
    """Return where a study stands.

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
    return StudyStanding(_describe(folder, latest), trials, unmirrored)


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
    """Return a trial by its key or the beginning of it: its record, folder or URI, and log.

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
            f"No trial's key begins with '{key}' in '{describe_runs_folder(runs)}': see "
            "`sftsearch status`."
        )
    if len(found) > 1:
        some = ", ".join(f"{trial.key} ({folder.name})" for trial, folder in found[:8])
        raise StudyError(f"{len(found)} trials' keys begin with '{key}': {some}. Say more of it.")
    trial, study_folder = found[0]
    folder = trial_folder(study_folder, trial.key)
    return trial, folder, open_trial_folder(folder).read_log()


@contextlib.contextmanager
def backed_up(journal: Journal, callback: StudyCallback) -> Iterator[Backup | None]:
    """Back a study up for the time of the block, where its runs folder is remote."""
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
            callback.on_notice(f"The backup lacks a part of the study. {backup.problem}")


def mirror_study(folder: Path, runs: str | Path, tracking_uri: str | None) -> str:
    """Write what MLflow lacks of a study that is not running; return why that failed, if it did."""
    from sftsearch.orchestrator.tracking.client import default_uri
    from sftsearch.orchestrator.tracking.mirror import Mirror

    runs = local_runs_folder(runs)
    with Journal(folder) as journal, backed_up(journal, StudyCallback()):
        mirror = Mirror(journal, tracking_uri or default_uri(runs), runs)
        return "" if mirror.close() else mirror.problem or "MLflow is too slow"


def delete_study(folder: Path, runs: str | Path, tracking_uri: str | None) -> str:
    """Delete a study that is not running, in MLflow too; return why that failed, if it did.

    MLflow keeps what was deleted until `mlflow gc`; the study's name is free again at once.

    Raises:
        UserError: a driver runs the study.
    """
    from sftsearch.orchestrator.tracking import client

    runs = local_runs_folder(runs)
    remote = remote_of(runs)
    with Journal(folder):
        if driver := running_driver(folder):
            raise StudyError(
                f"The study '{folder.name}' is run by {driver}: stop it there. If that machine is "
                "gone, it counts as stopped a few minutes after its last sign of life."
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
