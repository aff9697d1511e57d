"""The records of a study: trials, configurations and baselines, in typed lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Generic, TypeVar, overload

from sftsearch.datasets.errors import UserError
from sftsearch.orchestrator.report.csv_report import configuration_row, parameter_columns

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from pandas import DataFrame

    from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary
    from sftsearch.orchestrator.analysis.front import Front
    from sftsearch.orchestrator.api.prediction import Predictor
    from sftsearch.orchestrator.storage.study_record import StudyRecord, TrialRecord

Interval = tuple[float, float]
"""Lower and upper end of a 95 % interval."""
Row = dict[str, object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One configuration trained once."""

    key: str
    """Unique within the study: the configuration and the replicate."""
    configuration_id: str
    model: str
    parameters: Mapping[str, object]
    replicate: int
    """With folds, it was validated on fold `replicate` modulo the number of folds."""
    is_fresh: bool
    """Whether it ran after the search had chosen what to report."""
    status: str
    """`finished`, `stopped` (by early stopping), `failed` or `running`."""
    values: Mapping[str, float]
    """Validation metrics and costs by name; of a failed or running trial only costs."""
    curve: tuple[float, ...]
    """The study's accuracy on validation after each epoch."""
    reason: str
    """Why it failed or was stopped."""
    epoch: int | None
    """The epoch after which it was stopped."""
    started: datetime | None
    """None if it never started."""
    ended: datetime | None
    test_values: Mapping[str, float]
    """Test metrics by name; empty unless it was evaluated by `sftsearch confirm`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Configuration:
    """One point of the search space, with the results of its trials."""

    id: str
    model: str
    parameters: Mapping[str, object]
    status: str
    """`finished`, `incomplete`, `stopped` or `failed`."""
    reasons: tuple[str, ...]
    """Why it is not finished."""
    replicates: tuple[int, ...]
    """The finished replicates that `values` are means of."""
    is_fresh: bool
    """Whether these are fresh replicates only, which the search did not choose by."""
    values: Mapping[str, float]
    """Mean validation metrics and costs by name."""
    deviations: Mapping[str, float]
    """Standard deviations over replicates by metric; empty with fewer than two."""
    intervals: Mapping[str, Interval]
    """95 % intervals of means by metric: of the accuracy, if it was counted by subject."""
    front_probability: float | None
    """Probability of being on the front; see `docs/metrics.md`."""
    on_front: bool
    is_knee: bool
    test_values: Mapping[str, float]
    """Mean test metrics by name; empty unless it was evaluated by `sftsearch confirm`."""
    test_intervals: Mapping[str, Interval]
    _study: Path = field(repr=False, compare=False)

    def load(self, *, replicate: int | None = None, ensemble: bool = False) -> Predictor:
        """Load the trained model.

        Args:
            replicate: which replicate; None: the first one with weights, of the fresh ones if there
                are any. The best on validation is not chosen, because its accuracy would be biased
                by the choice.
            ensemble: average the scores of all replicates with weights (or all fresh ones) instead.

        Raises:
            UserError: there is no such replicate, its weights are missing or damaged, the dataset
                is missing or has changed, a plug-in is not loaded, or both arguments are given.
        """
        from sftsearch.orchestrator.api.prediction import load_predictor

        if ensemble and replicate is not None:
            raise UserError("Give `replicate` or `ensemble=True`, not both.")
        return load_predictor(self._study, self.id, replicate=replicate, ensemble=ensemble)


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """A simple model fitted beside the trials, which the front should beat."""

    name: str
    """`majority` or `mean`, `linear`, `mlp`."""
    description: str
    values: Mapping[str, float]
    """Mean validation metrics and costs over folds by name."""
    intervals: Mapping[str, Interval]
    """95 % intervals of means by metric."""
    test_values: Mapping[str, float]
    """Mean test metrics by name; empty until the study is confirmed."""


T = TypeVar("T")


class Records(Sequence[T], Generic[T]):
    """A list of records, which is also a pandas DataFrame: `to_pandas`."""

    def __init__(self, items: Iterable[T], rows: Iterable[Row]) -> None:
        """Combine the records with their rows of the DataFrame."""
        self._items, self._rows = tuple(items), tuple(rows)

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Records[T]: ...
    def __getitem__(self, index: int | slice) -> T | Records[T]:
        if isinstance(index, slice):
            return Records(self._items[index], self._rows[index])
        return self._items[index]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} records)"

    def to_pandas(self) -> DataFrame:
        """Return one row per record; columns as in `report.csv`, parameters as `parameter.NAME`."""
        import pandas as pd

        header = dict.fromkeys(name for row in self._rows for name in row)
        return pd.DataFrame(list(self._rows), columns=list(header))


def trials_of(study: StudyRecord) -> Records[Trial]:
    """Return the trials of a study, in the order of their start."""
    found = [_trial(one, study) for one in study.trials]
    return Records(found, map(_trial_row, found))


def _trial(trial: TrialRecord, study: StudyRecord) -> Trial:
    return Trial(
        key=trial.key,
        configuration_id=trial.configuration_id,
        model=trial.model,
        parameters=dict(trial.configuration),
        replicate=trial.seed,
        is_fresh=trial.seed in study.fresh.get(trial.configuration_id, ()),
        status=trial.status,
        values=dict(trial.values),
        curve=trial.curve,
        reason=trial.reason,
        epoch=trial.epoch,
        started=_moment(trial.started),
        ended=_moment(trial.ended),
        test_values=dict(trial.test_values or {}),
    )


def _moment(seconds: float) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds else None


def _trial_row(trial: Trial) -> Row:
    return {
        "key": trial.key,
        "configuration_id": trial.configuration_id,
        "model": trial.model,
        "replicate": trial.replicate,
        "fresh": trial.is_fresh,
        "status": trial.status,
        "reason": trial.reason,
        "epoch": trial.epoch,
        "started": trial.started,
        "ended": trial.ended,
        **trial.values,
        **{f"test_{name}": value for name, value in trial.test_values.items()},
        **parameter_columns(trial.parameters),
    }


def configurations_of(front: Front, folder: Path) -> Records[Configuration]:
    """Return all configurations: the front by rising cost, then the others by accuracy."""
    found = front.configurations
    rows = (configuration_row(c, front) for c in found)
    return Records((_configuration(c, front, folder) for c in found), rows)


def _configuration(c: ConfigurationSummary, front: Front, folder: Path) -> Configuration:
    return Configuration(
        id=c.configuration_id,
        model=c.model,
        parameters=dict(c.parameters),
        status=c.status,
        reasons=c.reasons,
        replicates=c.seeds,
        is_fresh=c.is_fresh,
        values=dict(c.values),
        deviations=dict(c.deviations),
        intervals=_named(front.y, c.interval),
        front_probability=c.front_probability,
        on_front=c.on_front,
        is_knee=c.is_knee,
        test_values=dict(c.test_values),
        test_intervals=_named(front.y, c.test_interval),
        _study=folder,
    )


def baselines_of(front: Front) -> Records[Baseline]:
    """Return the baselines of a study, the best first."""
    found = () if front.baselines is None else tuple(reversed(front.baselines.summaries))
    records = (
        Baseline(
            name=c.model,
            description="; ".join(c.reasons),
            values=dict(c.values),
            intervals=_named(front.y, c.interval),
            test_values=dict(c.test_values),
        )
        for c in found
    )
    return Records(records, (configuration_row(c, front) for c in found))


def _named(name: str, interval: Interval | None) -> dict[str, Interval]:
    return {} if interval is None else {name: interval}
