"""Run a study from Python."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftsearch.datasets.errors import UserError
from sftsearch.orchestrator.api.study import Study, runs_folder
from sftsearch.orchestrator.callback import StudyCallback
from sftsearch.orchestrator.storage.trial_events import Failed, Finished, TrialEnd

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sftsearch.orchestrator.candidates.admission import Admission
    from sftsearch.orchestrator.search.engine import Search
    from sftsearch.orchestrator.storage.journal import Entry
    from sftsearch.search_spaces.load import StudySource


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """One step of a running study."""

    message: str
    """A stage that begins, a trial that ended, or a notice."""
    done: int
    """Trials that have ended."""
    total: int
    """Trials of the study, with fresh replicates once these are known; 0 before the search."""

    def __str__(self) -> str:
        return f"{self.done} of {self.total} trials: {self.message}" if self.total else self.message


def run_study(
    study: str | Path | Mapping[str, object],
    *,
    runs: str | Path | None = None,
    dataset: str | None = None,
    root: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    plugins: Sequence[str | Path] = (),
    address: str | None = None,
    tracking_uri: str | None = None,
) -> Study:
    """Run a study, or resume it, and write its report. Ctrl-C once finishes the running trials.

    Args:
        study: a study file, the name of a shipped one, or its content as a dictionary.
        runs: the folder of all studies, or a URI; see `load_study`.
        dataset: another dataset than the study's, which is adapted to it; `_NAME` is added to the
            study's name.
        root: folder or URI of this dataset; None: the local cache.
        resume: resume the study if it has begun, or extend it.
        progress: called with each stage and trial, also from another thread.
        plugins: Python files with models of your own, which are imported; see `docs/plugins.md`.
        address: of a Ray cluster, or `auto`; None: this machine.
        tracking_uri: of MLflow; None: $MLFLOW_TRACKING_URI, else a file in the runs folder.

    Returns:
        The study, which is not complete if it was interrupted.

    Raises:
        UserError: the study has errors (all are listed), it exists and `resume` is false or it has
            another definition, or its resources do not exist.
    """
    from sftsearch.orchestrator import study as running

    followed = _Followed(progress or (lambda step: None))
    result = running.run_study(
        _source_of(study, plugins) if isinstance(study, Mapping) else study,
        runs=runs_folder(runs),
        callback=followed,
        resume=resume,
        dataset=dataset,
        root=None if root is None else str(root),
        plugins=plugins,
        address=address,
        tracking_uri=tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"),
    )
    if result.tracking_problem:
        followed.on_notice(f"MLflow is incomplete: {result.tracking_problem}")
    return Study(result.folder)


def _source_of(study: Mapping[str, object], plugins: Sequence[str | Path]) -> StudySource:
    """Return the source of a study that is given as a dictionary."""
    from sftsearch.orchestrator.candidates.binding import parameter_names
    from sftsearch.orchestrator.plugins import load_installed, load_plugins
    from sftsearch.search_spaces.load import parse_study

    try:
        text = json.dumps(dict(study), indent=1)  # JSON is YAML
    except (TypeError, ValueError) as error:
        raise UserError(
            f"A study must consist of dictionaries, lists, text and numbers: {error}."
        ) from error
    load_installed()
    load_plugins(plugins)  # `space.shared` is for the parameters of these models, too
    return parse_study(text.encode(), parameter_names, name="study")


class _Followed(StudyCallback):
    """Passes on the progress of a study."""

    def __init__(self, report: Callable[[Progress], None]) -> None:
        self._report, self._planned = report, 0
        self._search: Search | None = None

    def on_stage(self, text: str) -> None:
        self._send(text)

    def on_notice(self, text: str) -> None:
        self._send(text)

    def on_open(
        self, source: StudySource, admission: Admission, search: Search, max_concurrent_trials: int
    ) -> None:
        self._search, self._planned = search, source.study.search.trials
        self._send(f"searching, {max_concurrent_trials} trials at a time")

    def on_event(self, entry: Entry) -> None:
        event = entry.event
        if not isinstance(event, TrialEnd):
            return
        text = f"trial {event.trial} stopped early"
        if isinstance(event, Finished):
            text = f"trial {event.trial} finished"
        elif isinstance(event, Failed):
            text = f"trial {event.trial} failed: {event.reason}"
        self._send(text)

    def _send(self, message: str) -> None:
        done = total = 0
        if self._search is not None:
            done = self._search.state.num_ended.total()
            total = max(self._planned, self._search.state.num_trials, done)
        self._report(Progress(message=message, done=done, total=total))
