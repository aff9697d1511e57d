"""What is known of a study and its trials, as reports read it: plain values without a database."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Groups = dict[str, tuple[float, float]]
"""Samples by subject, or by a fixed part of a split without subjects: name -> (correct, count)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRecord:
    """One configuration trained once, with one seed."""

    key: str
    """`<configuration id>-<seed>`, unique within the study."""
    configuration_id: str
    model: str
    configuration: dict[str, Any]
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
class Belief:
    """What a study believes of a configuration's true mean at its end."""

    mean: float
    """Of the first objective."""
    sd: float
    on_front: float
    """Probability that it is on the (2 %, half a point)-front of the first objective against the
    study's cost; see `membership.front_probabilities`."""


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
    """What a study believes at its end, by the model that its search used."""

    reported: tuple[str, ...]
    """Ids of the configurations it takes for the front, by rising cost."""
    within_delta: float
    """Probability that at every budget the best that is reported is at most half a point worse
    than the best of all; see `membership.within_delta_everywhere`."""
    false_stops: FalseStops | None
    """None where no stop was audited."""
    beliefs: dict[str, Belief]
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


def from_events(events: Iterable[Any]) -> StudyRecord:
    """Build the record of a study from its journal's events (`kind`, `time`, `body`), in order.

    Raises:
        ValueError: there is no `created` event.
    """
    created: dict[str, Any] | None = None
    facts, beliefs = no_facts(), {}
    admitted: dict[str, dict[str, Any]] = {}
    trials: dict[str, TrialRecord] = {}
    for event in events:
        update_facts(facts, event)
        if event.kind == "created":
            created = event.body
        elif event.kind == "admitted":
            admitted[event.body["configuration_id"]] = event.body
        elif event.kind == "concluded":
            beliefs = event.body["beliefs"]
        for identity, seeds in _new_seeds(event).items():
            made = _trials(admitted[identity], seeds)
            trials.update((trial.key, trial) for trial in made)
        _change(trials, event)
    if created is None:
        raise ValueError("The journal has no `created` event: the study never began.")
    started = [trial for trial in trials.values() if trial.started]
    return study_record(created, facts, started, beliefs)


def no_facts() -> dict[str, Any]:
    """Return what is known of a study as a whole before anything happened, as JSON values."""
    return copy.deepcopy(
        {"refused": {}, "fresh": {}, "concluded": None, "recorded": False, "confirmed": False}
    )


def update_facts(facts: dict[str, Any], event: Any) -> tuple[str, ...]:
    """Take in what an event of the journal says of the study as a whole; return which facts."""
    kind, body = event.kind, event.body
    if kind == "refused":
        refused = facts["refused"]
        refused[body["reason"]] = refused.get(body["reason"], 0) + 1
        return ("refused",)
    if kind in ("admitted", "replicated") and facts["fresh"]:
        facts["fresh"] = {}  # the study goes on: these replicates will have been looked at
        return ("fresh",)
    new: dict[str, Any] = {}
    if kind == "frozen":
        new = {"fresh": body["seeds"]}
    elif kind == "opened":
        new = {"concluded": None}
    elif kind == "concluded":
        new = {"concluded": {name: body[name] for name in ("reported", "within_delta", "audits")}}
    elif kind in ("recorded", "confirmed"):
        new = {kind: True}
    facts.update(new)
    return tuple(new)


def study_record(
    created: Mapping[str, Any],
    facts: Mapping[str, Any],
    trials: Iterable[TrialRecord],
    beliefs: Mapping[str, Mapping[str, float]],
) -> StudyRecord:
    """Put a record together.

    Args:
        created: the body of the `created` event; of its definition folds and replicates.
        facts: as `update_facts` leaves them.
        trials: those that were started.
        beliefs: mean, sd and on_front by configuration, from the last `concluded` event.
    """
    trials = tuple(sorted(trials, key=lambda trial: (trial.started, trial.key)))
    definition = created.get("definition", {})
    replicates = definition.get("replicates") or {}
    return StudyRecord(
        name=created["name"],
        description=created["description"],
        dataset=created["dataset"],
        root=created.get("root"),
        num_seeds=created["num_seeds"],
        objectives=tuple((metric, goal) for metric, goal in created["objectives"]),
        facts=dict(created["facts"]),
        families=tuple(created.get("families", ())),
        refused=dict(Counter(created.get("refused", {})) + Counter(facts["refused"])),
        trials=trials,
        confirmed=facts["confirmed"],
        recorded=facts["recorded"],
        max_replicates=replicates.get("max"),
        folds=definition.get("folds"),
        fresh={identity: tuple(seeds) for identity, seeds in facts["fresh"].items()},
        conclusion=_conclusion(facts["concluded"], beliefs, trials),
    )


def _conclusion(
    concluded: Mapping[str, Any] | None,
    beliefs: Mapping[str, Mapping[str, float]],
    trials: Iterable[TrialRecord],
) -> Conclusion | None:
    if concluded is None:
        return None
    audits = concluded["audits"]
    # What was believed of a configuration before one of its trials went wrong is no more.
    lost = {t.configuration_id for t in trials if t.status in ("stopped", "failed")}
    return Conclusion(
        reported=tuple(concluded["reported"]),
        within_delta=concluded["within_delta"],
        false_stops=None if audits is None else FalseStops(**audits),
        beliefs={i: Belief(**belief) for i, belief in beliefs.items() if i not in lost},
    )


def milliseconds(seconds: float) -> int:
    """Return a time as MLflow keeps it, so that both records of a study agree."""
    return round(seconds * 1000)


def as_groups(groups: Mapping[str, Any]) -> Groups:
    """Turn JSON's lists back into pairs."""
    return {name: (float(correct), float(count)) for name, (correct, count) in groups.items()}


def _new_seeds(event: Any) -> dict[str, list[int]]:
    """Return the trials that an event adds: seeds by configuration."""
    if event.kind in ("admitted", "replicated"):
        return {event.body["configuration_id"]: event.body["seeds"]}
    seeds: dict[str, list[int]] = event.body["seeds"] if event.kind == "frozen" else {}
    return seeds


def _trials(body: Mapping[str, Any], seeds: Iterable[int]) -> list[TrialRecord]:
    return [
        TrialRecord(
            key=f"{body['configuration_id']}-{seed}",
            configuration_id=body["configuration_id"],
            model=body["model"],
            configuration=dict(body["parameters"]),
            seed=seed,
            status="running",
            values=dict(body["cost"]),
        )
        for seed in seeds
    ]


def _change(trials: dict[str, TrialRecord], event: Any) -> None:
    """Bring the trials that an event is about up to date."""
    if event.kind in ("started", "finished", "stopped", "failed"):
        key = event.body["trial"]
        trials[key] = _changed(trials[key], event)
    elif event.kind == "confirmed":
        for key, test in event.body["trials"].items():
            groups = as_groups(test["groups"])
            trials[key] = replace(trials[key], test_values=dict(test["values"]), test_groups=groups)


def _changed(trial: TrialRecord, event: Any) -> TrialRecord:
    body, time = event.body, milliseconds(event.time) / 1e3
    if event.kind == "started":
        return replace(trial, started=trial.started or time)
    if event.kind == "failed":
        return replace(trial, status="failed", reason=body["reason"], ended=time)
    if event.kind == "stopped":
        told = {"reason": body["reason"], "epoch": body["epoch"], "values": reached(body)}
        return replace(trial, status="stopped", ended=time, **told)
    groups = as_groups(body["groups"])
    return replace(trial, status="finished", values=dict(body["values"]), groups=groups, ended=time)


def reached(body: Mapping[str, Any]) -> dict[str, float]:
    """Return the values of a `stopped` event without the number of their epoch."""
    return {name: value for name, value in body["values"].items() if name != "epoch"}
