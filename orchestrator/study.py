"""The story of a study, from its file to its front. Also the Python API.

Example:
    >>> from sftsearch.orchestrator.study import run_study
    >>> result = run_study("search_spaces/stride.yaml")
    >>> print(result.record.trials)
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import math
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftsearch.datasets.catalog import describe, open_dataset
from sftsearch.datasets.errors import UserError
from sftsearch.orchestrator.analysis.families import names_of_families
from sftsearch.orchestrator.candidates import binding
from sftsearch.orchestrator.candidates.admission import Admission
from sftsearch.orchestrator.candidates.study_checks import check_names
from sftsearch.orchestrator.execution.worker import Job, TrainingWorker
from sftsearch.orchestrator.metrics import COSTS
from sftsearch.orchestrator.search import warm_start
from sftsearch.orchestrator.storage import study_record
from sftsearch.orchestrator.storage.backup import (
    Backup,
    elsewhere_of,
    pull,
    pull_all,
    running_driver,
    runs_folder,
    shown,
)
from sftsearch.orchestrator.storage.journal import FILE_NAME, Journal, driver_of, read_events
from sftsearch.orchestrator.storage.retention import Retention
from sftsearch.orchestrator.storage.trial_files import CHECKPOINT, open_trial_folder
from sftsearch.search_spaces.load import Source, find_study_file, on_dataset, read_study
from sftsearch.search_spaces.schema import NAME_PATTERN

if TYPE_CHECKING:
    from collections.abc import Iterator

    import optuna

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.orchestrator.execution.worker import Worker
    from sftsearch.orchestrator.search.engine import Assignment, Search
    from sftsearch.orchestrator.storage.journal import Event
    from sftsearch.orchestrator.storage.study_record import StudyRecord, TrialRecord

DEFAULT_RUNS = Path("runs")
REPORT_FORMATS = ("html", "csv", "json", "markdown", "png")
SHOWN_VERSIONS = ("sftsearch", "ray", "optuna", "mlflow", "torch")


class StudyError(UserError):
    """A study that cannot be run as asked: it exists, differs, or was confirmed."""


class Watcher:
    """Hears what a study does; this one keeps silent."""

    def stage(self, text: str) -> None:
        """Hear that something begins that may take seconds."""

    def opened(self, source: Source, admission: Admission, search: Search, slots: int) -> None:
        """Hear that trials begin."""

    def event(self, event: Event) -> None:
        """Hear of an event of the journal; may be called from another thread."""

    def notice(self, text: str) -> None:
        """Hear what a person should read at once."""


@dataclass(frozen=True, slots=True)
class StudyResult:
    """What a run of a study left."""

    name: str
    folder: Path
    record: StudyRecord
    complete: bool
    """False where the run was interrupted and can be resumed."""
    reason: str
    """Why it ended: `interrupted`, or what was reached."""
    tracking_uri: str
    tracking_problem: str
    """Why MLflow lacks something; empty if it has everything."""
    report: list[Path]
    sampler_study: optuna.Study | None
    """What the sampler was told; None where there was nothing to run."""


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
    source = read_study(find_study_file(str(file)))
    if dataset is not None:
        source.study  # noqa: B018 - raises where the form has mistakes
        source = on_dataset(source, dataset, root, list(describe(dataset, root=root).modalities))
    check_names(source)
    chosen = source.study.dataset
    spec = describe(chosen.kind, root=chosen.root)
    source = binding.with_objectives(source, spec)
    return source, spec, Admission(source, spec)


def run_study(
    file: str | Path,
    *,
    runs: str | Path = DEFAULT_RUNS,
    resume: bool = False,
    tracking_uri: str | None = None,
    address: str | None = None,
    dataset: str | None = None,
    root: str | None = None,
    ship_code: bool = False,
    watcher: Watcher | None = None,
    worker: type[Worker] = TrainingWorker,
    formats: tuple[str, ...] = REPORT_FORMATS,
) -> StudyResult:
    """Run a study to its end, or on from where it stopped, and write its report.

    Args:
        file: a study file, or the name of a shipped one.
        runs: the folder of all studies; this one's is `runs/<name>`. Or the URI of one elsewhere,
            see `backup`.
        resume: go on with a study that has begun; with more trials in the file, extend it.
        tracking_uri: MLflow's; None: an SQLite file in `runs`.
        address: a Ray cluster; None: this machine.
        dataset: another data set than the file's; see `load.on_dataset`.
        root: where that one's store is.
        ship_code: send this sftsearch to the cluster's nodes.
        watcher: hears of progress.
        worker: what trains a trial.
        formats: report formats to write at the end.

    Raises:
        UserError: the file has mistakes, the study exists with another definition or is being run
            by another process, or its resources are not there.
    """
    watch = watcher or Watcher()
    runs = runs_folder(runs)
    watch.stage("checking the study file")
    source, spec, admission = check_study(file, dataset=dataset, root=root)
    folder = runs / source.study.study.name
    pull(folder)
    refuse_surprises(source, spec, folder, resume=resume)
    watch.stage(f"opening the data set '{spec.name}'")
    open_dataset(spec.name, root=source.study.dataset.root)
    with Journal(folder) as journal, _backed_up(journal, watch) as backup:
        begin_or_continue(journal, source, spec, admission)
        told = _warm_start(journal, source, admission, runs)
        if told:
            watch.notice(told)
        journal.listen(watch.event)
        # Elsewhere it takes a request a trial to know what there is: not before the study begins.
        retention = functools.cache(functools.partial(_retention, source, journal, journal.last_id))
        for listener in (
            functools.partial(_drop_checkpoint, folder),
            lambda event: retention().event(event),
        ):
            journal.listen(backup.behind(listener) if backup else listener)
        watch.stage("starting Ray and MLflow")
        from sftsearch.orchestrator.tracking import (
            mirror as tracking,  # MLflow takes seconds to import
        )

        uri = tracking_uri or tracking.default_uri(runs)
        mirror = tracking.Mirror(journal, uri, runs)
        try:
            cluster = {"address": address, "ship_code": ship_code}
            search = _search(source, admission, journal, cluster, watch, worker)
        except BaseException:
            mirror.close(patience=5)
            raise
        watch.stage("completing MLflow's record")
        synced = mirror.close()
        watch.stage("writing the report")
        result = StudyResult(
            name=folder.name,
            folder=folder,
            record=study_record.from_events(journal.events()),
            complete=search.exhausted,
            reason=reason_of(search),
            tracking_uri=uri,
            tracking_problem="" if synced else mirror.problem or "MLflow is too slow",
            report=[],
            sampler_study=search.optuna.study,
        )
        result = _with_report(result, formats, mirror if synced else None)
        if backup:
            _back_up_report(backup, result.report, watch)
        return result


def _back_up_report(backup: Backup, files: list[Path], watch: Watcher) -> None:
    try:
        backup.put_files("report", files)
    except UserError as error:
        watch.notice(f"The report lies here alone. {error}")


@contextlib.contextmanager
def _backed_up(journal: Journal, watch: Watcher) -> Iterator[Backup | None]:
    """Back the study up for the time of the block, where its runs folder is elsewhere."""
    there = elsewhere_of(journal.folder.parent)
    if there is None:
        yield None
        return
    watch.stage(f"backing up to {there.uri}")
    backup = Backup(journal, there / journal.folder.name)
    if backup.taken_from:
        watch.notice(f"Taken over from {backup.taken_from}, which stops if it still runs.")
    journal.listen(backup.check)
    try:
        yield backup
    finally:
        watch.stage("completing the backup")
        backup.close()
        if backup.problem:
            watch.notice(f"The backup lacks a part of the study. {backup.problem}")


def _retention(source: Source, journal: Journal, through: int) -> Retention:
    objectives = source.study.objectives
    cost = next(one.metric for one in objectives if one.metric in COSTS)
    return Retention(
        lambda key: open_trial_folder(trial_folder(journal.folder, key)),
        journal.events(through=through),
        accuracy=(objectives[0].metric, objectives[0].goal),
        cost=cost,
        limit=1e9 * source.study.resources.keep_gb,
    )


def _warm_start(journal: Journal, source: Source, admission: Admission, runs: Path) -> str:
    """Take over what another study found, if the file names one; say what that is."""
    section = source.study.warm_start
    if section is None or any(event.kind == "imported" for event in journal.events()):
        return ""
    other = section.study
    is_name = re.fullmatch(NAME_PATTERN, other) is not None
    folder = find_study(other, runs) if is_name else Path(other)
    return warm_start.begin(journal, source, admission, folder)


def _search(
    source: Source,
    admission: Admission,
    journal: Journal,
    cluster: dict[str, Any],
    watch: Watcher,
    worker: type[Worker],
) -> Search:
    """Run the trials on Ray; journal the driver's beginning and end."""
    from sftsearch.orchestrator.execution import (
        placement,
        tune,  # Ray takes seconds to import
    )
    from sftsearch.orchestrator.search.engine import Search

    study = source.study
    with tune.connected(**cluster):
        slots = placement.count_slots(study.resources)
        journal.append("opened", trials=study.search.trials, slots=slots)
        search = Search(study, journal, admission, slots=slots)
        watch.opened(source, admission, search, slots)
        make_job = functools.partial(_job, source, journal.folder)
        is_alone = cluster["address"] is None
        patience = placement.NO_NODE_SECONDS if is_alone else placement.NO_NODES_SECONDS
        more: dict[str, Any] = {"slots": slots, "worker": worker, "patience": patience}
        tune.run(search, study.resources, make_job, notice=watch.notice, **more)
    search.conclude()
    journal.append("ended", reason=reason_of(search), complete=search.exhausted)
    return search


def reason_of(search: Search) -> str:
    """Say in one phrase why a search is not going on."""
    return search.why_ended() if search.exhausted else "interrupted"


def _with_report(result: StudyResult, formats: tuple[str, ...], mirror: Any | None) -> StudyResult:
    """Write the report beside the study and, if MLflow has everything, into MLflow."""
    from sftsearch.orchestrator.report import formats as report
    from sftsearch.orchestrator.tracking.mirror import TrackingError

    if not formats or not any(trial.status == "finished" for trial in result.record.trials):
        return result
    x, y = axes_of(result.record)
    files = report.write(result.record, formats, result.folder / "report", x=x, y=y)
    problem = result.tracking_problem
    if mirror is not None:
        try:
            mirror.log_artifacts(files)
        except TrackingError as error:
            problem = str(error)
    return replace(result, report=files, tracking_problem=problem)


def axes_of(study: StudyRecord) -> tuple[str, str]:
    """Return the cost and the accuracy a study was searched for: the axes of its front."""
    cost = next(metric for metric, _ in study.objectives if metric in COSTS)
    return cost, study.objectives[0][0]


def _job(source: Source, folder: Path, assignment: Assignment) -> Job:
    from sftsearch.orchestrator.execution import placement

    study, where = source.study, trial_folder(folder, assignment.key)
    given = study.resources.of(assignment.cost)
    if assignment.alone:
        given = given.model_copy(update={"gpus": max(1.0, given.gpus)})
    return Job(
        key=assignment.key,
        folder=where,
        dataset=study.dataset.kind,
        root=study.dataset.root,
        num_folds=study.dataset.folds,
        model=assignment.model,
        parameters=assignment.parameters,
        training=dict(study.training),
        seed=assignment.seed,
        cost=assignment.cost,
        num_journalled=assignment.num_journalled,
        threads=max(1, math.floor(given.cpus)),
        device="cuda" if given.gpus else "cpu",
        # Greater also where the journal is an older one, restored.
        token=max(assignment.token, open_trial_folder(where).owner() + 1),
        resources=placement.bundle_of(given),
        workers=given.workers,
    )


def trial_folder(folder: Path, key: str) -> str:
    """Return where a trial keeps its log, checkpoint and weights: a path, or a URI.

    Raises:
        StudyError: the key, which may be of somebody else's journal, is not one of a trial.
    """
    if not re.fullmatch(r"\w+-\d+", key, re.ASCII):
        raise StudyError(f"{key!r:.80} is not the key of a trial.")
    runs = elsewhere_of(folder.parent)
    where = folder / "trials" / key
    return str(where) if runs is None else f"{runs.uri}/{folder.name}/trials/{key}"


def _drop_checkpoint(folder: Path, event: Event) -> None:
    """Remove the checkpoint of a trial whose end is in the journal."""
    if event.kind in ("finished", "failed", "stopped"):
        open_trial_folder(trial_folder(folder, event.body["trial"])).remove(CHECKPOINT)


# ------------------------------------------------------- a study's folder


def find_study(name: str, runs: str | Path = DEFAULT_RUNS) -> Path:
    """Return the folder of the study called `name`.

    Raises:
        StudyError: the name is not one of a study, or there is none of it.
    """
    runs = runs_folder(runs)
    if not re.fullmatch(NAME_PATTERN, name):
        raise StudyError(f"'{name}' is not the name of a study: `sftsearch list` shows them.")
    pull(runs / name)
    if not (runs / name / FILE_NAME).is_file():
        known = ", ".join(study.name for study in list_studies(runs)) or "none"
        raise StudyError(f"There is no study '{name}' in '{shown(runs)}'. Known: {known}.")
    return runs / name


def list_studies(runs: str | Path = DEFAULT_RUNS) -> list[Path]:
    """Return the folders of all studies, by name."""
    runs = runs_folder(runs)
    pull_all(runs)
    return sorted(path.parent for path in runs.glob(f"*/{FILE_NAME}"))


def read_record(folder: Path) -> StudyRecord:
    """Read a study's record from its journal, also while it runs.

    Raises:
        StudyError: the study was made but never began.
    """
    try:
        return study_record.from_events(read_events(folder))
    except ValueError as error:
        raise error if isinstance(error, UserError) else StudyError(str(error)) from error


def refuse_surprises(source: Source, spec: DatasetSpec, folder: Path, *, resume: bool) -> None:
    """Refuse what would surprise: a begun study without `--resume`, or one of another definition.

    Raises:
        StudyError: as above; the study is left as it is.
    """
    if not (folder / FILE_NAME).is_file():
        return
    name = folder.name
    events = list(read_events(folder))
    created = next((event.body for event in events if event.kind == "created"), None)
    if created is None:
        return
    definition = binding.definition_of(source, spec)
    if _hash(definition) != created["definition_hash"]:
        theirs = created["definition"]
        differs = ", ".join(f"`{k}`" for k in definition if definition[k] != theirs.get(k))
        raise StudyError(
            f"The study '{name}' exists with another definition (it differs in {differs}). Give "
            f"this one another `study.name`, or delete '{folder}'."
        )
    asked_for = [event for event in events if event.kind in ("admitted", "replicated")]
    admitted = sum(len(event.body["seeds"]) for event in asked_for)
    if any(event.kind == "confirmed" for event in events) and source.study.search.trials > admitted:
        raise StudyError(
            f"The study '{name}' was confirmed: its front is frozen, more trials would be chosen "
            "by somebody who has seen the test split. Give this one another `study.name`."
        )
    _refuse_another_start(source, events, name)
    if not resume and any(event.kind == "opened" for event in events):
        ended = sum(event.kind in ("finished", "failed", "stopped") for event in events)
        raise StudyError(
            f"The study '{name}' exists in '{shown(folder.parent)}' with {ended} of "
            f"{source.study.search.trials} trials done. Add --resume to go on, "
            f"`sftsearch pareto {name}` for its front, or give this one another `study.name`."
        )


def _refuse_another_start(source: Source, events: list[Event], name: str) -> None:
    """Refuse a warm start that comes too late, or from another study than the first."""
    section = source.study.warm_start
    if section is None:
        return
    imported = [event.body["study"] for event in events if event.kind == "imported"]
    if not imported and any(event.kind == "proposed" for event in events):
        raise StudyError(
            f"The study '{name}' has begun without a warm start: leave `warm_start` out, or give "
            "this one another `study.name`."
        )
    if imported and imported[0] != Path(section.study).name:
        raise StudyError(
            f"The study '{name}' began with '{imported[0]}': leave `warm_start` as it was, or give "
            "this one another `study.name`."
        )


def begin_or_continue(
    journal: Journal, source: Source, spec: DatasetSpec, admission: Admission
) -> None:
    """Begin a new study's journal; leave one that has begun as it is."""
    for event in journal.events(through=journal.last_id):
        if event.kind == "created":
            return
    study, definition = source.study, binding.definition_of(source, spec)
    versions = {name: importlib.metadata.version(name) for name in SHOWN_VERSIONS}
    facts = {
        "data set": spec.name,
        "licence": spec.licence,
        "attribution": spec.attribution,
        "fingerprint": spec.fingerprint,
        **versions,
    }
    body = {
        "name": study.study.name,
        "description": study.study.description.strip(),
        "dataset": spec.name,
        "root": study.dataset.root,
        "num_seeds": study.search.replicates.min,
        "objectives": [[objective.metric, objective.goal] for objective in study.objectives],
        "facts": facts,
        "families": names_of_families(study.space),
        "refused": admission.num_refused,
        "definition": definition,
        "definition_hash": _hash(definition),
    }
    journal.append("created", **body)


def _hash(definition: dict[str, Any]) -> str:
    text = json.dumps(definition, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_state(folder: Path) -> dict[str, Any]:
    """Return where a study stands: state, trials planned, events MLflow lacks.

    Raises:
        UserError: its backup cannot be read.
    """
    state, trials, through, last = "never began", 0, 0, 0
    for event in read_events(folder):
        last = event.id
        if event.kind == "opened":
            state, trials = "", event.body["trials"]
        elif event.kind == "ended":
            state = "complete" if event.body["complete"] else "interrupted"
            state += f" ({event.body['reason']})"
        elif event.kind == "confirmed":
            state = "confirmed"
        elif event.kind == "mirrored":
            through = event.body["through"]
    unmirrored = max(0, last - through - 1)
    if not state:
        process = driver_of(folder)
        driver = f"process {process}" if process else running_driver(folder)
        state = f"running ({driver})" if driver else "killed (`sftsearch run --resume` goes on)"
    return {"state": state, "trials": trials, "unmirrored": unmirrored}


def find_trial(key: str, runs: str | Path = DEFAULT_RUNS) -> tuple[TrialRecord, str, str]:
    """Return a trial by its key or the beginning of it: its record, folder or URI, and log.

    Raises:
        StudyError: no trial, or more than one, has such a key.
    """
    runs = runs_folder(runs)
    found = [
        (trial, folder)
        for folder in list_studies(runs)
        for trial in read_record(folder).trials
        if trial.key.startswith(key)
    ]
    if not found:
        raise StudyError(
            f"No trial's key begins with '{key}' in '{shown(runs)}': see `sftsearch status`."
        )
    if len(found) > 1:
        some = ", ".join(f"{trial.key} ({folder.name})" for trial, folder in found[:8])
        raise StudyError(f"{len(found)} trials' keys begin with '{key}': {some}. Say more of it.")
    trial, study_folder = found[0]
    folder = trial_folder(study_folder, trial.key)
    return trial, folder, open_trial_folder(folder).read_log()


def mirror_study(folder: Path, runs: str | Path, tracking_uri: str | None) -> str:
    """Write what MLflow lacks of a study that is not running; return why that failed, if it did."""
    from sftsearch.orchestrator.tracking import mirror as tracking

    runs = runs_folder(runs)
    with Journal(folder) as journal, _backed_up(journal, Watcher()):
        mirror = tracking.Mirror(journal, tracking_uri or tracking.default_uri(runs), runs)
        return "" if mirror.close() else mirror.problem or "MLflow is too slow"


def delete_study(folder: Path, runs: str | Path, tracking_uri: str | None) -> str:
    """Delete a study that is not running, in MLflow too; return why that failed, if it did.

    MLflow keeps what was deleted until `mlflow gc`; the study's name is free again at once.

    Raises:
        UserError: a driver runs the study.
    """
    from sftsearch.orchestrator.tracking import mirror as tracking

    runs = runs_folder(runs)
    there = elsewhere_of(runs)
    with Journal(folder):
        if driver := running_driver(folder):
            raise StudyError(
                f"The study '{folder.name}' is run by {driver}: stop it there. If that machine is "
                "gone, it counts as stopped a few minutes after its last sign of life."
            )
        if there:
            (there / folder.name).remove_all()
        problem = ""
        try:
            uri = tracking_uri or tracking.default_uri(runs)
            tracking.delete_study(uri, folder.name, runs)
        except tracking.TrackingError as error:
            problem = str(error)
        shutil.rmtree(folder)
    return problem
