"""A study that was run, read from its folder."""

from __future__ import annotations

import functools
import html
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from sftsearch.datasets.errors import UserError
from sftsearch.datasets.remote import is_remote
from sftsearch.orchestrator import studies
from sftsearch.orchestrator.api.records import baselines_of, configurations_of, trials_of
from sftsearch.orchestrator.search.state import StudyState, record_of
from sftsearch.orchestrator.storage.journal import read_entries
from sftsearch.search_spaces.study_name import NAME_PATTERN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sftsearch.orchestrator.analysis import front as analysis
    from sftsearch.orchestrator.api.front import Front
    from sftsearch.orchestrator.api.records import Baseline, Configuration, Records, Trial


def load_study(
    study: str | Path, *, runs: str | Path | None = None, plugins: Sequence[str | Path] = ()
) -> Study:
    """Load a study, which may still be running.

    Args:
        study: its name, or the path or URI of its folder.
        runs: the folder of all studies, or a URI (`s3://BUCKET/PREFIX`), if `study` is a name.
            None: $SFTSEARCH_RUNS, else `runs`.
        plugins: the Python files of models of your own, which are imported. Only
            `Configuration.load` needs them.

    Raises:
        UserError: there is no such study, it never began, or a plug-in cannot be imported.
    """
    if plugins:
        from sftsearch.orchestrator.plugins import load_plugins

        load_plugins(plugins)
    name, folder = str(study), runs_folder(runs)
    if is_remote(name):
        parent, _, name = name.rstrip("/").rpartition("/")
        folder = parent
    elif not re.fullmatch(NAME_PATTERN, name):
        path = Path(study).expanduser().absolute()
        name, folder = path.name, path.parent
    return Study(studies.find_study(name, folder))


def list_studies(*, runs: str | Path | None = None) -> list[str]:
    """Return the names of all studies of a runs folder; see `load_study`."""
    return [folder.name for folder in studies.list_studies(runs_folder(runs))]


def runs_folder(runs: str | Path | None) -> str | Path:
    """Return the runs folder: by default $SFTSEARCH_RUNS, else `runs`, as for the commands."""
    chosen = runs or os.environ.get("SFTSEARCH_RUNS") or studies.DEFAULT_RUNS
    return chosen if is_remote(str(chosen)) else Path(chosen).expanduser()


class Study:
    """A study as it was when it was loaded. A notebook shows its front."""

    def __init__(self, folder: Path) -> None:
        """Read the study in a folder; use `load_study`.

        Raises:
            UserError: the study never began.
        """
        state = StudyState.of(read_entries(folder))
        if state.created is None:
            raise UserError(f"The study '{folder.name}' never began.")
        self._folder, self._record = folder, record_of(state)
        self._is_complete = state.ended is not None and state.ended.complete

    @property
    def name(self) -> str:
        """The name of the study."""
        return self._record.name

    @property
    def folder(self) -> Path:
        """The folder of the study: its journal, report, and the weights of its trials."""
        return self._folder

    @property
    def description(self) -> str:
        """The description in the study file."""
        return self._record.description

    @property
    def dataset(self) -> str:
        """The name of the dataset; see `open_dataset`."""
        return self._record.dataset

    @property
    def is_complete(self) -> bool:
        """Whether the search ended by one of its limits, not by an interruption."""
        return self._is_complete

    @property
    def is_confirmed(self) -> bool:
        """Whether `sftsearch confirm` evaluated the front on the test split."""
        return self._record.confirmed

    @functools.cached_property
    def trials(self) -> Records[Trial]:
        """All trials, in the order of their start."""
        return trials_of(self._record)

    @functools.cached_property
    def configurations(self) -> Records[Configuration]:
        """All configurations: the front by rising cost, then the others by falling accuracy."""
        return configurations_of(self._analyzed, self._folder)

    @functools.cached_property
    def baselines(self) -> Records[Baseline]:
        """The baselines, the best first; empty if none were fitted."""
        return baselines_of(self._analyzed)

    @functools.cached_property
    def front(self) -> Front:
        """The configurations that no other one dominates, by rising cost."""
        from sftsearch.orchestrator.api.front import Front

        return Front(self._analyzed, self.configurations)

    @property
    def headline(self) -> str:
        """What the study shows, in sentences; the first says if a baseline is as good."""
        return self.front.headline

    def best(self, metric: str | None = None, **limits: float) -> Configuration:
        """Return the best configuration of the front within some limits; see `Front.best`."""
        return self.front.best(metric, **limits)

    def configuration(self, id: str) -> Configuration:
        """Return the configuration whose id begins with some characters.

        Raises:
            UserError: there is no such configuration, or more than one.
        """
        found = [c for c in self.configurations if c.id.startswith(id)]
        if len(found) == 1:
            return found[0]
        if not found:
            raise UserError(f"No configuration of '{self.name}' has an id that begins with '{id}'.")
        raise UserError(
            f"{len(found)} configurations of '{self.name}' have an id that begins with '{id}': "
            f"{', '.join(c.id for c in found[:8])}."
        )

    @functools.cached_property
    def _analyzed(self) -> analysis.Front:
        from sftsearch.orchestrator.analysis.front import FrontOptions, build_front, mark_front

        return build_front(mark_front(self._record, FrontOptions()))

    def __repr__(self) -> str:
        state = "confirmed" if self.is_confirmed else "complete" if self.is_complete else "open"
        return f"Study('{self.name}', {len(self._record.trials)} trials, {state})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the front."""
        return f"<h4>{html.escape(self.name)}</h4>{self.front._repr_html_()}"
