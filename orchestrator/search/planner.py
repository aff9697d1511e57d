"""What a study trains next: a new configuration, one more replicate of a known one, or nothing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sftsearch.orchestrator.candidates.admission import Refusal
from sftsearch.orchestrator.samplers.base import History
from sftsearch.orchestrator.samplers.catalog import build_sampler
from sftsearch.orchestrator.storage.events import (
    Admitted,
    Expected,
    Frozen,
    Proposed,
    Refused,
    Replicated,
    Told,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from sftsearch.orchestrator.candidates.admission import Admission, Candidate
    from sftsearch.orchestrator.samplers.base import Proposal
    from sftsearch.orchestrator.search.knowledge import Knowledge
    from sftsearch.orchestrator.storage.event import Event
    from sftsearch.orchestrator.storage.trial_state import OpenProposal
    from sftsearch.search_spaces.search_plan import SearchPlan

MAX_REFUSALS = 20
"""Refusals in a row after which the next configuration is drawn uniformly from the admissible."""


class Planner:
    """Adds trials to a study, one decision at a time.

    All of it follows from what the journal holds: a resumed study goes on the same.
    """

    def __init__(
        self,
        plan: SearchPlan,
        known: Knowledge,
        admission: Admission,
        commit: Callable[[Event], object],
        max_concurrent_trials: int,
    ) -> None:
        """Begin where the study stands.

        Args:
            plan: the search section of the study file.
            known: what the study knows; it changes as events are committed.
            admission: prices and admits.
            commit: journals an event and brings `known` up to date.
            max_concurrent_trials: with `deterministic`, proposals depend on it.
        """
        self.used_up = False
        """Whether the sampler had nothing left to propose."""
        self._plan, self._known, self._state = plan, known, known.state
        self._admission, self._commit, self._max_concurrent_trials = (
            admission,
            commit,
            max_concurrent_trials,
        )
        self._sampler = build_sampler(plan.sampler)
        self._history = History(known.optuna, admission, known.surrogate)

    def fill(self) -> None:
        """Add trials until one waits, or none is to be added now."""
        state = self._state
        if state.waiting or not self._may_ask():
            return
        while not state.waiting and not self.at_end():
            self._add_next()
        if not state.waiting and not state.running and self.fresh_is_due():
            self._freeze()

    def at_end(self) -> bool:
        """Tell whether no trial will be added, fresh replicates apart."""
        if self._known.budget.exceeded():
            return True
        may_admit = self._has_room() and not self.used_up
        if not may_admit and self._may_replicate():
            return self._known.surrogate.best_replicate(self._plan.replicates.max) is None
        return not may_admit

    def fresh_is_due(self) -> bool:
        """Tell whether what is reported is still to be chosen, and to get fresh replicates."""
        is_wanted = self._plan.replicates.fresh > 0 and not self._state.frozen
        return is_wanted and self._known.past.has_values

    def why_ended(self) -> str:
        """Say in one phrase why nothing is added any more."""
        used_up = self.used_up and self._has_room()
        exceeded = self._known.budget.exceeded()
        return exceeded or ("the space is used up" if used_up else "all trials ran")

    def finish_what_was_begun(self) -> None:
        """Decide and tell what is due, where an earlier driver was killed in between."""
        for number, proposal in list(self._state.proposals.items()):
            if not proposal.configuration_id:
                self._admit_or_refuse(number)
        if self._plan.deterministic:
            if self.at_end():
                self._tell_decided()
            return
        for number in list(self._state.untold):
            if not self._state.proposals[number].pending:
                self._tell(number)

    def tell_of(self, number: int) -> None:
        """Tell the sampler what is known after the end of a trial of proposal `number`."""
        if self._plan.deterministic:
            if self.at_end():
                self._tell_decided()
        elif number in self._state.proposals and not self._state.proposals[number].pending:
            self._tell(number)

    # ------------------------------------------------------------ what is added

    def _has_room(self) -> bool:
        """Tell whether the trials that are left hold a configuration."""
        return self._state.num_trials + self._plan.replicates.min <= self._plan.trials

    def _may_replicate(self) -> bool:
        """Tell whether configurations may earn replicates beyond their first ones."""
        return (
            self._plan.replicates.max > self._plan.replicates.min
            and self._state.num_trials < self._plan.trials
        )

    def _may_ask(self) -> bool:
        """With `deterministic`, the n-th proposal waits until the (n - width)-th is decided.

        The width is one trial more than run at a time, so that no process waits for its next one.
        """
        if not self._plan.deterministic:
            return True
        width = math.ceil((self._max_concurrent_trials + 1) / self._plan.replicates.min)
        while len(self._state.untold) >= width:
            if self._state.proposals[self._state.untold[0]].pending:
                return False
            self._tell(self._state.untold[0])
        return True

    def _add_next(self) -> None:
        """Add a configuration, or a replicate where that is expected to change the front more.

        Where it adds neither, the space is used up or nothing more is expected of going on.
        """
        surrogate = self._known.surrogate
        replicate, may_admit = None, self._has_room() and not self.used_up
        if self._may_replicate() and (not may_admit or surrogate.can_judge()):
            replicate = surrogate.best_replicate(self._plan.replicates.max)
        if replicate is not None and may_admit:
            new = surrogate.best_new(self._state.num_proposals, self._plan.replicates.min)
            if new is not None and new.rate >= replicate.rate:
                replicate = None
        if replicate is not None:
            configuration = self._state.configurations[replicate.configuration_id]
            self._commit(Replicated(configuration.id, [configuration.num_replicates]))
        elif may_admit and not self._has_converged():
            self._admit_next()

    def _has_converged(self) -> bool:
        """Ask, once before each proposal, what going on may gain; tell whether that is enough."""
        number = self._state.num_proposals
        is_due = self._plan.until_converged and self._known.surrogate.can_judge()
        if is_due and number != self._state.last_expected:
            gain = self._known.surrogate.gain_ahead(number, self._plan.replicates.max)
            self._commit(Expected(number, gain))
        return bool(self._known.budget.exceeded())

    def _freeze(self) -> None:
        """Choose what is reported; its means will be those of fresh replicates alone."""
        number = self._plan.replicates.fresh
        seeds = {}
        for identity in self._known.surrogate.front():
            first = self._state.configurations[identity].num_replicates
            seeds[identity] = [first + k for k in range(number)]
        self._commit(Frozen(seeds))

    # ------------------------------------------------------------ new configurations

    def _admit_next(self) -> None:
        """Admit a configuration; with `balance`, one of the branch with the fewest."""
        if self._plan.balance == "branches":
            branches = range(self._known.optuna.num_branches)
            turns = sorted(branches, key=lambda branch: self._state.admitted[branch])
            self.used_up = not any(self._admit_of(branch) for branch in turns)
        else:
            self.used_up = not self._admit_of(None)

    def _admit_of(self, branch: int | None) -> bool:
        """Admit a configuration, of a branch; return whether there was one left."""
        admitted = False
        while not admitted:
            proposal = self._propose(branch)
            if proposal is None:
                return False
            number = self._state.num_proposals
            self._commit(Proposed(number, proposal.point, dict(proposal.carried)))
            admitted = self._admit_or_refuse(number)
        return True

    def _propose(self, branch: int | None) -> Proposal | None:
        """Propose a point of a branch, what another study found best first; None: none is left."""
        starts = (point for point in self._state.starts if branch in (None, point.branch))
        start = next(starts, None)
        if start is not None:
            return self._sampler.given(self._history, start, branch)
        if self._state.refusals[branch] >= MAX_REFUSALS:
            return self._sampler.draw_uniform(self._history, branch)
        return self._sampler.propose(self._history, branch)

    def _admit_or_refuse(self, number: int) -> bool:
        """Journal the admission of a proposal, or its refusal; return whether it was admitted."""
        decided = self._admission.decide(self._state.proposals[number].point)
        if isinstance(decided, Refusal):
            self._commit(Refused(number, decided.reason, decided.detail, decided.excess))
            return False
        self._commit(_admitted(number, decided, self._plan.replicates.min))
        return True

    # ------------------------------------------------------------ what the sampler is told

    def _tell_decided(self) -> None:
        while self._state.untold and not self._state.proposals[self._state.untold[0]].pending:
            self._tell(self._state.untold[0])

    def _tell(self, number: int) -> None:
        """Tell the sampler, once, the mean over first replicates; else that there is none."""
        outcome, values = _outcome(self._state.proposals[number], self._known.objectives)
        self._commit(Told(number, outcome, values))


def _admitted(number: int, candidate: Candidate, num_replicates: int) -> Admitted:
    training = candidate.configuration.train_config
    mixes = training.mixup != "none"
    return Admitted(
        number=number,
        configuration_id=candidate.id,
        model=candidate.configuration.model,
        parameters=candidate.configuration.parameters,
        cost=candidate.cost.as_dict(),
        seeds=list(range(num_replicates)),
        epochs=training.epochs,
        warmup=training.mixup_warmup if mixes else 0,
        group=f"{candidate.point.branch} {training.mixup}",
    )


def _outcome(proposal: OpenProposal, objectives: list[str]) -> tuple[str, list[float] | None]:
    """Return what the sampler is told: the mean of each objective, exact for known costs."""
    if proposal.stopped:
        return "stopped", None
    ended = [outcome for outcome in proposal.outcomes if outcome is not None]
    if len(ended) < len(proposal.outcomes):
        return "failed", None
    columns = ([values[name] for values in ended] for name in objectives)
    return "complete", [math.fsum(column) / len(column) for column in columns]
