"""Search: decides everything, and knows neither Ray nor a clock.

It is asked for the next trial (`propose`), hears of epochs (`report`) and of ends (`finish`,
`fail`), and writes each decision to the journal before anybody acts on it. `replay` brings back the
state of an earlier driver from the journal, so that a study can be killed at any moment and
resumed.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sftsearch.orchestrator.admission import Candidate, Refusal
from sftsearch.orchestrator.samplers import OptunaStudy, propose_uniform, sampler_of
from sftsearch.search_spaces.space import Point

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sftsearch.orchestrator.admission import Admission
    from sftsearch.orchestrator.journal import Event, Journal
    from sftsearch.search_spaces.schema import StudyFile

MAX_REFUSALS = 20
"""Refusals in a row after which the next configuration is drawn uniformly from the admissible."""
UNREPEATABLE = frozenset({"seconds"})
"""Values of an epoch that differ from run to run."""


@dataclass(slots=True)
class Trial:
    """One configuration with one seed, on its way."""

    key: str
    number: int
    seed: int
    epochs: dict[int, dict[str, float]] = field(default_factory=dict)
    """Metrics of the journalled epochs; emptied when the trial ends."""


@dataclass(slots=True)
class _Proposed:
    """A proposal and what became of it; `outcomes` has the objectives of each ended seed."""

    point: Point
    candidate_id: str = ""
    model: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    pending: int = 0
    outcomes: list[list[float] | None] = field(default_factory=list)
    refused: float | None = None
    told: bool = False


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a worker needs to train a trial."""

    key: str
    model: str
    parameters: dict[str, Any]
    seed: int
    cost: dict[str, float]
    num_journalled: int
    """Epochs the journal already has: a resumed trial reports the ones after it."""


class Search:
    """The decisions of one study."""

    def __init__(
        self, study: StudyFile, journal: Journal, admission: Admission, *, slots: int = 1
    ) -> None:
        """Take up the study where the journal stands.

        Args:
            study: the checked study file.
            journal: open for writing; replayed here.
            admission: prices and admits.
            slots: trials that run at a time; with `ordered`, proposals depend on it.
        """
        self.objectives = [objective.metric for objective in study.objectives]
        directions = [objective.goal for objective in study.objectives]
        self.optuna = OptunaStudy(admission.space, directions)
        self.num_finished = 0
        self.num_failed = 0
        self.num_admitted = 0
        """Trials, that is configurations times seeds."""
        self._plan = study.search
        self._sample = sampler_of(study.search.sampler)
        self._sample_uniformly = functools.partial(propose_uniform, study.search.sampler)
        self._journal = journal
        self._admission = admission
        self._slots = slots
        self._proposals: dict[int, _Proposed] = {}
        """By number, until the sampler knows what became of them."""
        self._running: dict[str, Trial] = {}
        self._waiting: list[Trial] = []
        self._untold: list[int] = []
        """Numbers of admitted configurations that the sampler was not told of, in order."""
        self._admitted = [0] * len(admission.space.axes)
        """Configurations by branch."""
        self._refused: Counter[int | None] = Counter()
        """Refusals in a row; by branch, where they take turns."""
        self.used_up = False
        """Whether the sampler had nothing left to propose."""
        self._replay()

    # ------------------------------------------------------------ proposing

    @property
    def num_running(self) -> int:
        """Trials that were handed out and have not ended."""
        return len(self._running)

    @property
    def exhausted(self) -> bool:
        """Tell whether every trial has ended and none will be added."""
        return not self._waiting and not self._running and self._at_end()

    def propose(self) -> Assignment | None:
        """Hand out the next trial, journalled; None if there is none now (see `exhausted`)."""
        if not self._waiting and not self._at_end() and self._may_ask():
            self._admit_next()
        if not self._waiting:
            return None
        trial = self._waiting.pop(0)
        self._running[trial.key] = trial
        proposed = self._proposals[trial.number]
        self._journal.append(
            "started",
            trial=trial.key,
            epoch=len(trial.epochs),
            configuration_id=proposed.candidate_id,
            model=proposed.model,
            parameters=proposed.parameters,
            seed=trial.seed,
            cost=proposed.cost,
        )
        return Assignment(
            trial.key,
            proposed.model,
            proposed.parameters,
            trial.seed,
            proposed.cost,
            len(trial.epochs),
        )

    def _at_end(self) -> bool:
        return self.used_up or self.num_admitted + self._plan.seeds > self._plan.trials

    def _may_ask(self) -> bool:
        """With `ordered`, the n-th proposal waits until the (n - width)-th is decided.

        The width is one trial more than run at a time, so that no process waits for its next one.
        """
        if not self._plan.ordered:
            return True
        width = math.ceil((self._slots + 1) / self._plan.seeds)
        while len(self._untold) >= width:
            if self._proposals[self._untold[0]].pending:
                return False
            self._tell(self._untold.pop(0))
        return True

    def _admit_next(self) -> None:
        """Admit a configuration; with `balance`, of the branch with the fewest that has one left.

        All of it follows from what the journal holds: a resumed study goes on the same.
        """
        if self._plan.balance == "branches":
            turns = sorted(range(len(self._admitted)), key=self._admitted.__getitem__)
            self.used_up = not any(self._admit_of(branch) for branch in turns)
        else:
            self.used_up = not self._admit_of(None)

    def _admit_of(self, branch: int | None) -> bool:
        """Admit a configuration, of a branch; return whether there was one left."""
        admitted = False
        while not admitted:
            starved = self._refused[branch] >= MAX_REFUSALS
            sample = self._sample_uniformly if starved else self._sample
            proposal = sample(self.optuna, self._admission, branch)
            if proposal is None:
                return False
            admitted = self._decide(*proposal)
        return True

    def _decide(self, number: int, point: Point) -> bool:
        """Journal a proposal and its admission or refusal; return whether it was admitted."""
        self._journal.append(
            "proposed", number=number, branch=point.branch, values=dict(point.values)
        )
        self._proposals[number] = _Proposed(point)
        return self._admit_or_refuse(number)

    def _admit_or_refuse(self, number: int) -> bool:
        proposed = self._proposals[number]
        decided = self._admission.decide(proposed.point)
        if isinstance(decided, Refusal):
            body = {"reason": decided.reason, "detail": decided.detail, "excess": decided.excess}
            self._journal.append("refused", number=number, **body)
            self.optuna.refuse(number, decided.excess)
            self._refused[self._turn_of(proposed)] += 1
            del self._proposals[number]
            return False
        body = _admitted_body(number, decided, self._plan.seeds)
        self._journal.append("admitted", **body)
        self._note_admitted(body)
        return True

    def _note_admitted(self, body: Mapping[str, Any]) -> None:
        number = body["number"]
        proposed = self._proposals[number]
        proposed.candidate_id = body["configuration_id"]
        proposed.model = body["model"]
        proposed.parameters = dict(body["parameters"])
        proposed.cost = dict(body["cost"])
        proposed.pending = len(body["seeds"])
        self._admission.take(proposed.candidate_id)
        self._admitted[proposed.point.branch] += 1
        self._refused[self._turn_of(proposed)] = 0
        self._untold.append(number)
        for seed in body["seeds"]:
            trial = Trial(trial_key(proposed.candidate_id, seed), number, seed)
            self._waiting.append(trial)
            self.num_admitted += 1

    def _turn_of(self, proposed: _Proposed) -> int | None:
        return proposed.point.branch if self._plan.balance == "branches" else None

    # ------------------------------------------------------------ listening

    def report(self, key: str, metrics: Mapping[str, float]) -> bool:
        """Journal an epoch of a trial; return whether the trial goes on.

        `metrics` has `epoch`, from 1. An epoch that the journal already has (a resumed trial) must
        repeat its values, or the trial fails: its values would not be reproducible.
        """
        trial = self._running.get(key)
        if trial is None:
            return False
        epoch = int(metrics["epoch"])
        known = trial.epochs.get(epoch)
        if known is not None:
            differs = {n for n in known if n not in UNREPEATABLE and known[n] != metrics.get(n)}
            if differs:
                names = ", ".join(sorted(differs))
                self.fail(key, f"epoch {epoch} gave other values when repeated ({names})")
            return not differs
        bad = [name for name, value in metrics.items() if not math.isfinite(value)]
        if bad:
            self.fail(key, f"`{bad[0]}` is not finite in epoch {epoch}")
            return False
        self._journal.append("epoch", trial=key, epoch=epoch, metrics=dict(metrics))
        trial.epochs[epoch] = dict(metrics)
        return True

    def finish(
        self,
        key: str,
        values: Mapping[str, float],
        groups: Mapping[str, Any],
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Journal the final values of a trial; tell the sampler when its configuration is done.

        Args:
            key: the trial.
            values: final metrics and costs.
            groups: validation by subject: name -> (correct, count).
            facts: where it ran: torch, device, threads.
        """
        if key not in self._running:
            return
        lacking = [n for n in self.objectives if not math.isfinite(values.get(n, math.nan))]
        if lacking:
            self.fail(key, f"the objective `{lacking[0]}` has no finite value")
            return
        body = {"values": dict(values), "groups": dict(groups), "facts": dict(facts or {})}
        self._journal.append("finished", trial=key, **body)
        self._end(key, [values[name] for name in self.objectives])

    def fail(self, key: str, reason: str) -> None:
        """Journal that a trial ended without values; the study goes on."""
        if key not in self._running:
            return
        self._journal.append("failed", trial=key, reason=reason)
        self._end(key, None)

    def _end(self, key: str, outcome: list[float] | None) -> None:
        trial = self._running.pop(key)
        self._note_end(trial, outcome)
        proposed = self._proposals[trial.number]
        if proposed.pending == 0 and not self._plan.ordered:
            self._untold.remove(trial.number)
            self._tell(trial.number)
        if self._plan.ordered and self._at_end():
            self._tell_decided()

    def _note_end(self, trial: Trial, outcome: list[float] | None) -> None:
        proposed = self._proposals[trial.number]
        proposed.pending -= 1
        proposed.outcomes.append(outcome)
        if outcome is None:
            self.num_failed += 1
        else:
            self.num_finished += 1

    def _tell_decided(self) -> None:
        while self._untold and not self._proposals[self._untold[0]].pending:
            self._tell(self._untold.pop(0))

    def _tell(self, number: int) -> None:
        """Tell the sampler, once, the mean over seeds; with a failed seed, a failure."""
        state, values = _outcome(self._proposals[number])
        self._journal.append("told", number=number, state=state, values=values)
        if values is None:
            self.optuna.fail(number)
        else:
            self.optuna.tell(number, values)
        del self._proposals[number]

    # ------------------------------------------------------------ replaying

    def _replay(self) -> None:
        """Rebuild everything from the journal."""
        trials: dict[str, Trial] = {}
        for event in self._journal.events(through=self._journal.last_id):
            self._replay_event(event, trials)
        for number, proposed in sorted(self._proposals.items()):
            self._replay_to_optuna(proposed)
            if proposed.told or proposed.refused is not None:
                del self._proposals[number]
        self._finish_what_was_begun()

    def _finish_what_was_begun(self) -> None:
        """Decide what was proposed and tell what was decided, where a kill came in between."""
        for number, proposed in list(self._proposals.items()):
            if not proposed.candidate_id:
                self._admit_or_refuse(number)
        for number in list(self._untold) if not self._plan.ordered else []:
            if not self._proposals[number].pending:
                self._untold.remove(number)
                self._tell(number)
        if self._plan.ordered and self._at_end():
            self._tell_decided()

    def _replay_event(self, event: Event, trials: dict[str, Trial]) -> None:
        body = event.body
        if event.kind == "proposed":
            self._proposals[body["number"]] = _Proposed(Point(body["branch"], body["values"]))
        elif event.kind == "refused":
            proposed = self._proposals[body["number"]]
            proposed.refused = body["excess"]
            self._refused[self._turn_of(proposed)] += 1
        elif event.kind == "admitted":
            self._note_admitted(body)
            trials.update((trial.key, trial) for trial in self._waiting[-len(body["seeds"]) :])
        elif event.kind == "epoch":
            trials[body["trial"]].epochs[body["epoch"]] = body["metrics"]
        elif event.kind in ("finished", "failed"):
            trial = trials.pop(body["trial"])
            self._waiting.remove(trial)
            values = body.get("values")
            outcome = [values[name] for name in self.objectives] if values is not None else None
            self._note_end(trial, outcome)
        elif event.kind == "told":
            self._proposals[body["number"]].told = True
            self._untold.remove(body["number"])

    def _replay_to_optuna(self, proposed: _Proposed) -> None:
        if proposed.refused is not None:
            state, values, excess = "refused", None, proposed.refused
        elif proposed.told:
            (state, values), excess = _outcome(proposed), 0.0
        else:
            state, values, excess = "running", None, 0.0
        self.optuna.replay(proposed.point, values=values, state=state, excess=excess)


def trial_key(configuration_id: str, seed: int) -> str:
    """Return the key of a trial within its study."""
    return f"{configuration_id}-{seed}"


def _admitted_body(number: int, candidate: Candidate, num_seeds: int) -> dict[str, Any]:
    cost = candidate.cost
    return {
        "number": number,
        "configuration_id": candidate.id,
        "model": candidate.configuration.model,
        "parameters": candidate.configuration.parameters,
        "cost": {"gflops": cost.gflops, "gmacs": cost.gmacs, "parameters": cost.parameters},
        "seeds": list(range(num_seeds)),
    }


def _outcome(proposed: _Proposed) -> tuple[str, list[float] | None]:
    """Return what the sampler is told: the mean of each objective, exact for known costs."""
    seeds = [outcome for outcome in proposed.outcomes if outcome is not None]
    if len(seeds) < len(proposed.outcomes):
        return "failed", None
    return "complete", [math.fsum(column) / len(column) for column in zip(*seeds, strict=True)]
