"""Define the record of a study and its trials that reports read: plain values."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, cast

from sftsearch.orchestrator.storage.events import (
    Admitted,
    Concluded,
    Confirmed,
    Created,
    Frozen,
    Opened,
    Recorded,
    Refused,
    Replicated,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sftsearch.orchestrator.storage.baseline_events import BaselineResult
    from sftsearch.orchestrator.storage.event import JSON, Event, Numbers

Groups = dict[str, tuple[float, float]]
"""Samples by subject, or by fixed parts of a split without subjects: name -> (correct, count)."""
REFUSED, FRESH, CONCLUDED = "refused", "fresh", "concluded"
RECORDED, CONFIRMED, REFIT, ENSEMBLES = "recorded", "confirmed", "refit", "ensembles"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRecord:
    """One configuration trained once, with one seed."""

    key: str
    """A `TrialKey` as text, unique within the study."""
    configuration_id: str
    model: str
    configuration: JSON
    """Parameter names of the study file and their values in this trial."""
    seed: int
    """The number of the replicate; with folds, it was validated on fold `seed` modulo `folds`."""
    status: str
    """`finished`, `stopped` (before its last epoch, by early stopping), `failed` or `running`."""
    values: dict[str, float] = field(default_factory=dict)
    """Final validation metrics and costs by name. A stopped trial has those of its last epoch, a
    failed or running one only its costs."""
    groups: Groups = field(default_factory=dict)
    curve: tuple[float, ...] = ()
    """The study's first objective on validation after each epoch; empty while the trial runs."""
    reason: str = ""
    """Why the trial failed or was stopped; empty otherwise."""
    epoch: int | None = None
    """The epoch after which it was stopped; None for other trials."""
    started: float = 0.0
    """Unix seconds; 0 if the trial never started."""
    ended: float = 0.0
    test_values: dict[str, float] | None = None
    """Test metrics; None until the study's front is confirmed."""
    test_groups: Groups | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class BaselineRecord:
    """A baseline fitted once, on the dataset's own split or one fold; it is no trial."""

    name: str
    """`majority` or `mean`, `linear`, `mlp`."""
    description: str
    """What it is in words, for example its statistics and modalities."""
    modalities: tuple[str, ...]
    parameters: JSON
    seed: int
    fold: int | None
    values: dict[str, float]
    """Validation metrics and costs by name."""
    groups: Groups = field(default_factory=dict)
    test_values: dict[str, float] | None = None
    """Test metrics; None until the study's front is confirmed."""
    test_groups: Groups | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class EnsembleRecord:
    """The mean of the probabilities of a configuration's replicates, on the test split."""

    num_members: int
    """It costs as many times a replicate."""
    test_values: dict[str, float]
    test_groups: Groups


@dataclass(frozen=True, kw_only=True, slots=True)
class Posterior:
    """Posterior of a configuration's true mean of the first objective at the end of a study."""

    mean: float
    sd: float
    on_front: float
    """Probability of being on the front of the first objective against the study's cost, within
    2 % and half a point; see `front_probability.front_probabilities`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FalseStops:
    """Estimated rate of wrong stops, from audits: trials that ran on instead of being stopped."""

    rate: float
    low: float
    """Lower end of the 95 % interval of the rate."""
    high: float
    """Upper end of the 95 % interval of the rate."""
    num: int
    """Audits that have finished."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conclusion:
    """A study's conclusions at its end, from the surrogate of its search."""

    reported: tuple[str, ...]
    """Ids of the configurations that the study reports as the front, by ascending cost."""
    within_delta: float
    """Probability that at every budget the best reported configuration is at most half a point
    worse than the best of all; see `front_probability.within_delta_everywhere`."""
    false_stops: FalseStops | None
    """None if no stop was audited."""
    posteriors: dict[str, Posterior]
    """By configuration, without those that have a stopped or failed trial."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyRecord:
    """A study and all its trials."""

    name: str
    description: str
    dataset: str
    num_seeds: int
    """Replicates that a configuration needs to have finished to be on the front."""
    objectives: tuple[tuple[str, str], ...]
    """(metric, `maximize` or `minimize`), accuracy first, cost second."""
    facts: dict[str, str]
    """Fingerprints, versions, device, license: shown in the footer of a report."""
    refused: dict[str, int]
    """Number of configurations that were refused before training, by reason.

    In an enumerated space these are points of the space, else proposals.
    """
    trials: tuple[TrialRecord, ...]
    confirmed: bool = False
    refit: bool = False
    """Whether test values are of models that were trained again on training and validation."""
    ensembles: dict[str, EnsembleRecord] = field(default_factory=dict)
    """Of the confirmed configurations with several replicates, by id."""
    root: str | None = None
    """Folder of the dataset's store; None: the machine's default."""
    families: tuple[str, ...] = ()
    """Parameters that, with the model, define families of configurations."""
    max_replicates: int | None = None
    """Most replicates that a configuration may get; None: each has `num_seeds`."""
    folds: int | None = None
    """Number of grouped folds of training and validation, used by the replicates in turn; None:
    all use the dataset's own split."""
    fresh: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Replicates of the reported configurations that ran after these were chosen, by id."""
    conclusion: Conclusion | None = None
    """None while the study runs, and for studies without a surrogate."""
    recorded: bool = False
    """Whether the study is a recorded table, whose trials are also evaluated on the test split."""
    baselines: tuple[BaselineRecord, ...] = ()
    """The baselines, on each fold; empty if none were fitted."""


@dataclass(slots=True)
class StudyFacts:
    """Facts about a study as a whole, from its events."""

    refused: dict[str, int] = field(default_factory=dict)
    """Proposals that were refused, by reason."""
    fresh: dict[str, list[int]] = field(default_factory=dict)
    """Replicates of the reported configurations that ran after these were chosen, by id."""
    concluded: Concluded | None = None
    """The last conclusion, without the posteriors."""
    recorded: bool = False
    confirmed: bool = False
    refit: bool = False
    ensembles: dict[str, JSON] = field(default_factory=dict)

    def apply(self, event: Event) -> tuple[str, ...]:
        """Update the facts with an event; return the names of those it sets."""
        if isinstance(event, Refused):
            # A new dictionary, because a copy of these facts may share the old one.
            self.refused = self.refused | {event.reason: self.refused.get(event.reason, 0) + 1}
            return (REFUSED,)
        if isinstance(event, Admitted | Replicated) and self.fresh:
            self.fresh = {}  # the study continues, so these replicates influence what follows
            return (FRESH,)
        return self._apply_to_whole(event)

    def _apply_to_whole(self, event: Event) -> tuple[str, ...]:
        if isinstance(event, Frozen):
            self.fresh = event.seeds
            return (FRESH,)
        if isinstance(event, Opened):
            self.concluded = None
            return (CONCLUDED,)
        if isinstance(event, Concluded):
            self.concluded = dataclasses.replace(event, beliefs={})
            return (CONCLUDED,)
        if isinstance(event, Recorded):
            self.recorded = True
            return (RECORDED,)
        if isinstance(event, Confirmed):
            self.confirmed, self.refit, self.ensembles = True, event.refit, event.ensembles
            return (CONFIRMED, REFIT, ENSEMBLES)
        return ()

    def to_json(self) -> JSON:
        """Return the facts by name."""
        concluded = None if self.concluded is None else self.concluded.to_json()
        kept = ("reported", "within_delta", "audits")
        return {
            REFUSED: self.refused,
            FRESH: self.fresh,
            CONCLUDED: concluded and {name: concluded[name] for name in kept},
            RECORDED: self.recorded,
            CONFIRMED: self.confirmed,
            REFIT: self.refit,
            ENSEMBLES: self.ensembles,
        }

    @classmethod
    def from_json(cls, facts: JSON) -> Self:
        """Parse facts written by `to_json`; missing ones have their defaults."""
        known = {one.name: facts[one.name] for one in dataclasses.fields(cls) if one.name in facts}
        concluded = known.get(CONCLUDED)
        if isinstance(concluded, dict):
            known[CONCLUDED] = Concluded.from_json({**concluded, "beliefs": {}})
        return cls(**known)  # type: ignore[arg-type]


def build_record(
    created: Created,
    facts: StudyFacts,
    trials: Iterable[TrialRecord],
    posteriors: Mapping[str, Numbers],
    baselines: Iterable[BaselineRecord] = (),
) -> StudyRecord:
    """Build the record of a study.

    Args:
        created: the study's first event; only folds and replicates of its definition are used.
        facts: of the study as a whole.
        trials: the trials that were started.
        posteriors: mean, sd and on_front by configuration, from the last `Concluded`.
        baselines: with their test values, if the study is confirmed.
    """
    trials = tuple(sorted(trials, key=lambda trial: (trial.started, trial.key)))
    return StudyRecord(
        name=created.name,
        description=created.description,
        dataset=created.dataset,
        root=created.root,
        num_seeds=created.num_seeds,
        objectives=tuple((metric, direction) for metric, direction in created.objectives),
        facts=dict(created.facts),
        families=tuple(created.families),
        refused=dict(Counter(created.refused) + Counter(facts.refused)),
        trials=trials,
        confirmed=facts.confirmed,
        refit=facts.refit,
        ensembles={key: ensemble_record(one) for key, one in facts.ensembles.items()},
        recorded=facts.recorded,
        max_replicates=created.max_replicates,
        folds=created.folds,
        fresh={identity: tuple(seeds) for identity, seeds in facts.fresh.items()},
        conclusion=_conclusion(facts.concluded, posteriors, trials),
        baselines=tuple(sorted(baselines, key=lambda one: (one.name, one.fold or 0))),
    )


def _conclusion(
    concluded: Concluded | None, posteriors: Mapping[str, Numbers], trials: Iterable[TrialRecord]
) -> Conclusion | None:
    if concluded is None:
        return None
    audits = concluded.audits
    # A posterior no longer holds once a trial of its configuration was stopped or failed.
    outdated = {t.configuration_id for t in trials if t.status in ("stopped", "failed")}
    return Conclusion(
        reported=tuple(concluded.reported),
        within_delta=concluded.within_delta,
        false_stops=None if audits is None else FalseStops(**audits),  # type: ignore[arg-type]
        posteriors={i: Posterior(**one) for i, one in posteriors.items() if i not in outdated},
    )


def baseline_record(result: BaselineResult) -> BaselineRecord:
    """Return the record of a baseline's result."""
    return BaselineRecord(
        name=result.name,
        description=result.description,
        modalities=result.modalities,
        parameters=dict(result.parameters),
        seed=result.seed,
        fold=result.fold,
        values=dict(result.values),
        groups=as_groups(result.groups),
    )


def with_test(baseline: BaselineRecord, test: JSON) -> BaselineRecord:
    """Return a baseline with its `values` and `groups` on the test split."""
    values = cast("dict[str, float]", test["values"])
    groups = as_groups(cast("dict[str, Sequence[float]]", test["groups"]))
    return dataclasses.replace(baseline, test_values=values, test_groups=groups)


def ensemble_record(test: JSON) -> EnsembleRecord:
    """Parse `members`, `values` and `groups` of an ensemble on the test split."""
    return EnsembleRecord(
        num_members=cast("int", test["members"]),
        test_values=cast("dict[str, float]", test["values"]),
        test_groups=as_groups(cast("dict[str, Sequence[float]]", test["groups"])),
    )


def milliseconds(seconds: float) -> int:
    """Round a time to milliseconds as MLflow does, so that both records of a study agree."""
    return round(seconds * 1000)


def as_groups(groups: Mapping[str, Sequence[float]]) -> Groups:
    """Convert the lists of JSON to pairs."""
    return {name: (float(correct), float(count)) for name, (correct, count) in groups.items()}
