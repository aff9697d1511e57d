"""What is known of a study and its trials, as reports read it: plain values without a database."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

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

    from sftsearch.orchestrator.storage.event import JSON, Event, Numbers

Groups = dict[str, tuple[float, float]]
"""Samples by subject, or by a fixed part of a split without subjects: name -> (correct, count)."""
REFUSED, FRESH, CONCLUDED = "refused", "fresh", "concluded"
RECORDED, CONFIRMED = "recorded", "confirmed"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRecord:
    """One configuration trained once, with one seed."""

    key: str
    """A `TrialKey` as text, unique within the study."""
    configuration_id: str
    model: str
    configuration: JSON
    """The study file's parameter names and the values this trial had."""
    seed: int
    """The number of the replicate; with folds, it was validated on fold `seed` modulo `folds`."""
    status: str
    """`finished`, `stopped` (by the stopping rule, before its last epoch), `failed` or
    `running`."""
    values: dict[str, float] = field(default_factory=dict)
    """Final validation metrics and costs by name, as in `Search`'s journal; of a stopped trial
    those of the epoch it reached, of others without an end its costs alone."""
    groups: Groups = field(default_factory=dict)
    reason: str = ""
    """Why the trial failed or was stopped; empty otherwise."""
    epoch: int | None = None
    """The epoch after which it was stopped; None of other trials."""
    started: float = 0.0
    """Unix seconds; 0 where the trial never started."""
    ended: float = 0.0
    test_values: dict[str, float] | None = None
    """Test metrics: None until the study's front was confirmed."""
    test_groups: Groups | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Posterior:
    """The posterior of a configuration's true mean at the end of a study."""

    mean: float
    """Of the first objective."""
    sd: float
    on_front: float
    """Probability that it is on the (2 %, half a point)-front of the first objective against the
    study's cost; see `front_probability.front_probabilities`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FalseStops:
    """How often stopping would have been wrong, by the decided stops that ran on as audits."""

    rate: float
    low: float
    """The ends of the 95 % interval of the rate."""
    high: float
    num: int
    """Audits that have finished."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conclusion:
    """What a study concludes at its end, by the surrogate of its search."""

    reported: tuple[str, ...]
    """Ids of the configurations it takes for the front, by rising cost."""
    within_delta: float
    """Probability that at every budget the best that is reported is at most half a point worse
    than the best of all; see `front_probability.within_delta_everywhere`."""
    false_stops: FalseStops | None
    """None where no stop was audited."""
    posteriors: dict[str, Posterior]
    """By configuration; of those without a stopped or failed trial."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyRecord:
    """A study and all its trials."""

    name: str
    description: str
    dataset: str
    num_seeds: int
    """Replicates of every configuration; it can be on the front when so many have finished."""
    objectives: tuple[tuple[str, str], ...]
    """(metric, `maximize` or `minimize`), accuracy first, cost second."""
    facts: dict[str, str]
    """Fingerprints, versions, device, licence: shown at the foot of a report."""
    refused: dict[str, int]
    """Why configurations were refused before they trained -> how many were.

    In a space that is priced whole these are points of the space, else proposals.
    """
    trials: tuple[TrialRecord, ...]
    confirmed: bool = False
    root: str | None = None
    """Where the data set's store is, if it is not of the machine."""
    families: tuple[str, ...] = ()
    """Parameters that set families of configurations apart, beside the model."""
    max_replicates: int | None = None
    """Replicates that a configuration may earn; None: every one has `num_seeds`."""
    folds: int | None = None
    """Grouped folds of training and validation, which the replicates take in turn; None: all have
    the data set's own split."""
    fresh: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Replicates that the reported configurations got after they were chosen, by id."""
    conclusion: Conclusion | None = None
    """None while the study runs, and of studies that kept no model."""
    recorded: bool = False
    """Whether the study is a recorded table, whose trials looked at the test split."""


@dataclass(slots=True)
class StudyFacts:
    """What events say of a study as a whole."""

    refused: dict[str, int] = field(default_factory=dict)
    """Proposals that were refused, by reason."""
    fresh: dict[str, list[int]] = field(default_factory=dict)
    """Replicates that the reported configurations got after they were chosen, by id."""
    concluded: Concluded | None = None
    """Without the posteriors."""
    recorded: bool = False
    confirmed: bool = False

    def apply(self, event: Event) -> tuple[str, ...]:
        """Take in an event; return the names of the facts that it sets."""
        if isinstance(event, Refused):
            # A new dictionary: a copy of these facts may hold the old one.
            self.refused = self.refused | {event.reason: self.refused.get(event.reason, 0) + 1}
            return (REFUSED,)
        if isinstance(event, Admitted | Replicated) and self.fresh:
            self.fresh = {}  # the study goes on: these replicates will have been looked at
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
            self.confirmed = True
            return (CONFIRMED,)
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
        }

    @classmethod
    def from_json(cls, facts: JSON) -> Self:
        """Return the facts that `to_json` gave; those that are missing are as at the beginning."""
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
) -> StudyRecord:
    """Build the record of a study.

    Args:
        created: how the study began; of its definition folds and replicates.
        facts: of the study as a whole.
        trials: those that were started.
        posteriors: mean, sd and on_front by configuration, from the last `Concluded`.
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
        recorded=facts.recorded,
        max_replicates=created.max_replicates,
        folds=created.folds,
        fresh={identity: tuple(seeds) for identity, seeds in facts.fresh.items()},
        conclusion=_conclusion(facts.concluded, posteriors, trials),
    )


def _conclusion(
    concluded: Concluded | None, posteriors: Mapping[str, Numbers], trials: Iterable[TrialRecord]
) -> Conclusion | None:
    if concluded is None:
        return None
    audits = concluded.audits
    # A posterior from before one of its trials failed no longer holds.
    lost = {t.configuration_id for t in trials if t.status in ("stopped", "failed")}
    return Conclusion(
        reported=tuple(concluded.reported),
        within_delta=concluded.within_delta,
        false_stops=None if audits is None else FalseStops(**audits),  # type: ignore[arg-type]
        posteriors={i: Posterior(**one) for i, one in posteriors.items() if i not in lost},
    )


def milliseconds(seconds: float) -> int:
    """Return a time as MLflow keeps it, so that both records of a study agree."""
    return round(seconds * 1000)


def as_groups(groups: Mapping[str, Sequence[float]]) -> Groups:
    """Turn JSON's lists back into pairs."""
    return {name: (float(correct), float(count)) for name, (correct, count) in groups.items()}
