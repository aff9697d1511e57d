"""Run a study from its file to its report; `api/running.py` is the public function."""

from __future__ import annotations

import functools
import importlib.metadata
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from sftsearch.datasets.catalog import open_dataset
from sftsearch.datasets.errors import UserError
from sftsearch.orchestrator.analysis.families import names_of_families
from sftsearch.orchestrator.callback import StudyCallback
from sftsearch.orchestrator.candidates import binding
from sftsearch.orchestrator.execution.trial_spec import TrialSpec
from sftsearch.orchestrator.execution.worker import TrainingWorker
from sftsearch.orchestrator.objectives import Objectives
from sftsearch.orchestrator.plugins import check_plugins, describe_plugins, load_plugins, to_json
from sftsearch.orchestrator.search.state import StudyState, record_of
from sftsearch.orchestrator.search.warm_start import import_study
from sftsearch.orchestrator.storage.backup import pull
from sftsearch.orchestrator.storage.events import Created, Opened
from sftsearch.orchestrator.storage.journal import FILE_NAME, Journal, read_entries
from sftsearch.orchestrator.storage.retention import Retention
from sftsearch.orchestrator.storage.runs_folder import local_runs_folder
from sftsearch.orchestrator.storage.trial_events import TrialEnd
from sftsearch.orchestrator.storage.trial_files import CHECKPOINT, open_trial_folder
from sftsearch.orchestrator.studies import DEFAULT_RUNS, backed_up, find_study, trial_folder
from sftsearch.orchestrator.study_file import (
    check_needed_plugins,
    check_resumable,
    check_source,
    definition_hash,
    read_source,
)
from sftsearch.orchestrator.tracking.uris import check_uri
from sftsearch.search_spaces.study_name import NAME_PATTERN

if TYPE_CHECKING:
    from collections.abc import Sequence

    import optuna

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.orchestrator.analysis.analyse import Analysis
    from sftsearch.orchestrator.candidates.admission import Admission
    from sftsearch.orchestrator.execution.worker import Worker
    from sftsearch.orchestrator.search.engine import Search, TrialSuggestion
    from sftsearch.orchestrator.storage.backup import Backup
    from sftsearch.orchestrator.storage.event import Event
    from sftsearch.orchestrator.storage.journal import Entry
    from sftsearch.orchestrator.storage.study_record import StudyRecord
    from sftsearch.orchestrator.tracking.mirror import Mirror
    from sftsearch.search_spaces.load import StudySource

    StudyInput = str | Path | StudySource
    """A study file, the name of a shipped one, or a study that was parsed."""

REPORT_FORMATS = ("html", "csv", "json", "markdown", "png")
SHOWN_VERSIONS = ("sftsearch", "ray", "optuna", "mlflow", "torch")


@dataclass
class StudyResult:
    """The result of running a study."""

    name: str
    folder: Path
    record: StudyRecord
    complete: bool
    """False if the run was interrupted and can be resumed."""
    reason: str
    """Why the study ended, such as `interrupted` or a limit."""
    tracking_uri: str
    tracking_problem: str
    """Why MLflow is incomplete; empty if it is complete."""
    report: list[Path]
    sampler_study: optuna.Study | None
    """The sampler's Optuna study; None if there was nothing to run."""

    @functools.cached_property
    def analysis(self) -> Analysis:
        """The analysis that reports show, computed once."""
        from sftsearch.orchestrator.analysis.analyse import analyse

        return analyse(self.record)


class RunOptions(TypedDict, total=False):
    """Options of `run_study` that do not change what is searched."""

    resume: bool
    """Resume a study that has begun, or extend it if the file has more trials."""
    tracking_uri: str | None
    """URI of MLflow; None: an SQLite file in the runs folder."""
    address: str | None
    """Address of a Ray cluster; None: this machine."""
    dataset: str | None
    """Another dataset than the file's; see `load.on_dataset`."""
    root: str | None
    """Folder or URI of that dataset's store."""
    ship_code: bool
    """Send this version of sftsearch to the cluster's nodes."""
    plugins: Sequence[str | Path]
    """Python files with models of your own; they are imported. See `plugins`."""
    worker: type[Worker]
    """Class that trains a trial; by default `TrainingWorker`. With another no baselines are fitted:
    its values may not be of the dataset."""
    formats: tuple[str, ...]
    """Report formats to write at the end; by default `REPORT_FORMATS`."""


def run_study(
    file: StudyInput,
    *,
    runs: str | Path = DEFAULT_RUNS,
    callback: StudyCallback | None = None,
    **options: Unpack[RunOptions],
) -> StudyResult:
    """Run or resume a study, and write its report.

    Args:
        file: a study file, the name of a shipped one, or a study that was parsed.
        runs: the folder of all studies (this one's is `runs/<name>`), or the URI of a remote one;
            see `backup`.
        callback: receives progress.
        options: see `RunOptions`.

    Raises:
        UserError: the file has errors, the study exists with another definition or is being run
            by another process, or its resources do not exist.
    """
    return StudySession(file, runs, callback or StudyCallback(), options).run()


class StudySession:
    """One run of a study: check, open, search, report."""

    def __init__(
        self, file: StudyInput, runs: str | Path, callback: StudyCallback, options: RunOptions
    ) -> None:
        """Check everything that can be checked before opening the study; see `run_study`."""
        self._callback, self._options = callback, options
        self._runs = local_runs_folder(runs)
        callback.on_stage("checking the study file")
        check_uri(options.get("tracking_uri"))
        load_plugins(options.get("plugins", ()), callback.on_notice)
        source = read_source(file, dataset=options.get("dataset"), root=options.get("root"))
        try:
            self._source, self._spec, self.admission = check_source(source)
        except UserError:
            check_needed_plugins(source, self._runs)  # explains names that a plug-in had
            raise
        self.study = self._source.study
        for change in self._source.adapted:
            callback.on_notice(f"Adapted to '{self._spec.name}': {change}")
        self._folder = self._runs / self.study.study.name
        pull(self._folder)
        exists = (self._folder / FILE_NAME).is_file()
        self._entries = list(read_entries(self._folder)) if exists else []
        """Entries of the journal, which is read once."""
        self._state = StudyState.of(self._entries)
        """The state after these entries."""
        if (created := self._state.created) is not None:
            check_plugins(created.name, created.definition, created.facts)
        resume = options.get("resume", False)
        check_resumable(self._source, self._spec, self._folder, self._state, resume=resume)
        callback.on_stage(f"opening the dataset '{self._spec.name}'")
        open_dataset(self._spec.name, root=self.study.dataset.root)

    def run(self) -> StudyResult:
        """Search until the end or an interruption, complete MLflow and write the report."""
        with Journal(self._folder) as journal, backed_up(journal, self._callback) as backup:
            created = self.create_or_open(journal)
            self._callback.on_stage("starting Ray and MLflow")
            from sftsearch.orchestrator.tracking.client import default_uri
            from sftsearch.orchestrator.tracking.mirror import Mirror  # MLflow takes seconds

            uri = self._options.get("tracking_uri") or default_uri(self._runs)
            noticed = self._callback.on_tracking
            mirror = Mirror(journal, uri, self._runs, created=created, on_problem=noticed)
            try:
                search = self._search(journal, backup)
            except BaseException:
                mirror.close(patience=5)
                raise
            self._callback.on_stage("completing the MLflow record")
            synced = mirror.close()
            self._callback.on_stage("writing the report")
            ended = search.state.ended
            assert ended is not None
            result = StudyResult(
                name=self._folder.name,
                folder=self._folder,
                record=record_of(search.state),
                complete=ended.complete,
                reason=ended.reason,
                tracking_uri=uri,
                tracking_problem="" if synced else mirror.problem or "MLflow is too slow",
                report=[],
                sampler_study=search.known.optuna.study,
            )
            result = self._with_report(result, mirror if synced else None)
            if backup:
                self._back_up(backup, result.report)
            return result

    # ------------------------------------------------------------ opening

    def create_or_open(self, journal: Journal) -> Created:
        """Read new entries of the journal, and create the study if it is new.

        Returns:
            The `created` event.
        """
        known = self._entries[-1].id if self._entries else 0
        since = list(journal.entries(after=known, through=journal.last_id))
        self._entries += since
        state = StudyState.of(self._entries) if since else self._state
        created = state.created or _created(self._source, self._spec, self.admission)
        if state.created is None:
            self._append(journal, created)
        section = self.study.warm_start
        if section is not None and state.imported is None and not state.num_proposals:
            is_name = re.fullmatch(NAME_PATTERN, section.study) is not None
            other = find_study(section.study, self._runs) if is_name else Path(section.study)
            imported, text = import_study(self._source, self.admission, self._folder, other)
            self._append(journal, imported)
            self._callback.on_notice(text)
        return created

    def _append(self, journal: Journal, event: Event) -> None:
        """Append an event to the journal before the search exists."""
        self._entries.append(journal.append(event))

    # ------------------------------------------------------------ searching

    def _search(self, journal: Journal, backup: Backup | None) -> Search:
        """Run the trials on Ray, and conclude the study."""
        # Ray takes seconds to import.
        from sftsearch.orchestrator.execution import baselines, placement, tune
        from sftsearch.orchestrator.execution.cluster import connected
        from sftsearch.orchestrator.search.engine import Search

        study, address = self.study, self._options.get("address")
        with connected(address, ship_code=self._options.get("ship_code", False)):
            max_concurrent_trials = placement.count_concurrent_trials(study.resources)
            self._append(journal, Opened(study.search.trials, max_concurrent_trials))
            entries, self._entries = self._entries, []  # frees memory when the search drops them
            search = Search(
                study,
                journal,
                self.admission,
                max_concurrent_trials=max_concurrent_trials,
                entries=entries,
            )
            self._follow(search, backup)
            self._callback.on_open(self._source, self.admission, search, max_concurrent_trials)
            search.finish_what_was_begun()
            is_alone = address is None
            # The values of another worker may not be of the dataset.
            wanted = "worker" not in self._options and study.search.baselines
            with baselines.fitted(search, study, self._callback, wanted=wanted) as poll:
                tune.run(
                    search,
                    study.resources,
                    self._trial_spec,
                    max_concurrent_trials=max_concurrent_trials,
                    patience=placement.NO_NODE_SECONDS if is_alone else placement.NO_NODES_SECONDS,
                    worker=self._options.get("worker", TrainingWorker),
                    notice=self._callback.on_notice,
                    poll=poll,
                )
        search.conclude()
        search.close()
        return search

    def _follow(self, search: Search, backup: Backup | None) -> None:
        """Register the listeners: backup, callback and removal of files."""
        if backup:
            search.listen(backup.check)
        search.listen(self._callback.on_event)
        objectives = self.study.objectives
        finished = [
            (key, trial.values)
            for key, trial in search.state.trials.items()
            if trial.status == "finished"
        ]

        @functools.cache
        def retention() -> Retention:
            """Create on first use, because a remote folder needs one request per trial."""
            return Retention(
                lambda key: open_trial_folder(trial_folder(self._folder, key)),
                finished,
                accuracy=(objectives[0].metric, objectives[0].direction),
                cost=Objectives.of_study(self.study).x,
                limit=1e9 * self.study.resources.max_weights_gb,
            )

        def remove_checkpoint(entry: Entry) -> None:
            """Remove the checkpoint of a trial that ended."""
            if isinstance(entry.event, TrialEnd):
                where = trial_folder(self._folder, entry.event.trial)
                open_trial_folder(where).remove(CHECKPOINT)

        def remove_weights(entry: Entry) -> None:
            """Remove weights beyond the limit."""
            if isinstance(entry.event, TrialEnd):
                retention().on_event(entry)

        for listener in (remove_checkpoint, remove_weights):  # separate, because one may fail
            search.listen(backup.behind(listener) if backup else listener)

    def _trial_spec(self, suggestion: TrialSuggestion) -> TrialSpec:
        from sftsearch.orchestrator.execution import placement

        study, where = self.study, trial_folder(self._folder, suggestion.key)
        given = study.resources.of(suggestion.cost)
        if suggestion.alone:
            given = given.model_copy(update={"gpus": max(1.0, given.gpus)})
        return TrialSpec(
            key=str(suggestion.key),
            folder=where,
            dataset=study.dataset.kind,
            root=study.dataset.root,
            num_folds=study.dataset.folds,
            model=suggestion.model,
            parameters=suggestion.parameters,
            plugins=to_json(binding.names_used(suggestion.model, study, suggestion.parameters)),
            training=dict(study.training),
            seed=suggestion.seed,
            cost=suggestion.cost,
            num_journalled=suggestion.num_journalled,
            threads=max(1, math.floor(given.cpus)),
            device="cuda" if given.gpus else "cpu",
            # Greater than the owner's, also if an older journal was restored.
            fencing_token=max(suggestion.token, open_trial_folder(where).owner() + 1),
            resources=placement.bundle_of(given),
            workers=given.workers,
        )

    # ------------------------------------------------------------ closing

    def _with_report(self, result: StudyResult, mirror: Mirror | None) -> StudyResult:
        """Write the report to the study's folder and, if MLflow is complete, to MLflow."""
        from sftsearch.orchestrator.report.formats import write_report
        from sftsearch.orchestrator.report.note import describe_study
        from sftsearch.orchestrator.tracking.client import TrackingError

        formats = self._options.get("formats", REPORT_FORMATS)
        if not formats or not any(trial.status == "finished" for trial in result.record.trials):
            return result
        files = write_report(result.analysis, formats, result.folder / "report")
        problem = result.tracking_problem
        if mirror is not None:
            try:
                mirror.log_artifacts(files)
                mirror.write_note(describe_study(result.analysis))
            except TrackingError as error:
                problem = str(error)
        result.report, result.tracking_problem = files, problem
        return result

    def _back_up(self, backup: Backup, files: list[Path]) -> None:
        try:
            backup.put_files("report", files)
        except UserError as error:
            self._callback.on_notice(f"The report was not backed up. {error}")


def _created(source: StudySource, spec: DatasetSpec, admission: Admission) -> Created:
    """Return the first event of a study."""
    study = source.study
    definition = binding.definition_of(source, spec)
    versions = {name: importlib.metadata.version(name) for name in SHOWN_VERSIONS}
    facts = {
        "data set": spec.name,
        "licence": spec.licence,
        "attribution": spec.attribution,
        "fingerprint": spec.fingerprint,
        **versions,
        **describe_plugins(binding.names_in(study)),
    }
    return Created(
        name=study.study.name,
        description=study.study.description.strip(),
        dataset=spec.name,
        root=study.dataset.root,
        num_seeds=study.search.replicates.min,
        objectives=[[objective.metric, objective.direction] for objective in study.objectives],
        facts=facts,
        families=list(names_of_families(study.space)),
        refused=admission.num_refused,
        definition=definition,
        definition_hash=definition_hash(definition),
    )
