"""Choose what a study trains next: a new configuration, a replicate, or nothing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from sftsearch.orchestrator.candidates.admission import Refusal
from sftsearch.orchestrator.samplers.base import History
from sftsearch.orchestrator.samplers.catalog import build_sampler
from sftsearch.orchestrator.search.budget import Use
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
"""Refusals in a row after which the next configuration is drawn uniformly."""


class Planner:
    """Adds trials to a study, one decision at a time.

    Decisions depend only on the journal, so a resumed study makes the same ones.
    """

    def __init__(
        self,
        plan: SearchPlan,
        known: Knowledge,
        admission: Admission,
        commit: Callable[[Event], object],
        max_concurrent_trials: int,
    ) -> None:
        """Continue from the current state of the study.

        Args:
            plan: the search section of the study file.
            known: of the study; it changes as events are committed.
            admission: computes costs and admits proposals.
            commit: journals an event and updates `known`.
            max_concurrent_trials: with `deterministic`, proposals depend on it.
        """
        self.used_up = False
        """Whether the sampler had nothing left to propose."""
        self.expects_baselines = False
        """Whether the study's baselines are being fitted."""
        self._limit_reached = ""
        self._plan, self._known, self._state = plan, known, known.state
        self._admission, self._commit, self._max_concurrent_trials = (
            admission,
            commit,
            max_concurrent_trials,
        )
        self._sampler = build_sampler(plan.sampler)
        self._history = History(known.optuna, admission, known.surrogate)

    def fill(self) -> None:
        """Add trials until one waits, or none can be added now."""
        state = self._state
        if state.waiting or not self._may_ask():
            return
        while not state.waiting and not self.at_end():
            self._add_next()
        if self._plan.deterministic and self.at_end():
            self._tell_decided()
        if not state.waiting and not state.running and self.fresh_is_due():
            self._freeze()

    def at_end(self) -> bool:
        """Return whether no trial will be added, except fresh replicates."""
        if self._exceeded():
            return True
        may_admit = self._has_trials_left() and not self.used_up
        if not may_admit and self._may_replicate():
            return self._known.surrogate.best_replicate(self._plan.replicates.max) is None
        return not may_admit

    def fresh_is_due(self) -> bool:
        """Return whether the reported front must still be chosen and get fresh replicates."""
        is_missing = self._plan.replicates.fresh > 0 and not self._state.frozen
        return is_missing and self._known.past.has_values

    def why_ended(self) -> str:
        """Return why the study adds no further trials, as a phrase."""
        used_up = self.used_up and self._has_trials_left()
        return self._exceeded() or ("the space is used up" if used_up else "all trials ran")

    def finish_what_was_begun(self) -> None:
        """Make the decisions that were due when an earlier driver was killed."""
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

    def tell_sampler(self, number: int) -> None:
        """Tell the sampler the result of proposal `number`, if it is complete."""
        if self._plan.deterministic:
            if self.at_end():
                self._tell_decided()
        elif number in self._state.proposals and not self._state.proposals[number].pending:
            self._tell(number)

    # ------------------------------------------------------------ adding trials

    def _has_trials_left(self) -> bool:
        """Return whether enough trials are left for another configuration."""
        return self._state.num_trials + self._plan.replicates.min <= self._plan.trials

    def _may_replicate(self) -> bool:
        """Return whether configurations may get more than their first replicates."""
        return (
            self._plan.replicates.max > self._plan.replicates.min
            and self._state.num_trials < self._plan.trials
        )

    def _may_ask(self) -> bool:
        """Return whether the sampler may be asked for a proposal now.

        With `deterministic`, the n-th proposal waits until the result of the (n - width)-th is
        known. The width allows for one more than the concurrent trials, so that no process idles.
        """
        if not self._plan.deterministic:
            return True
        if self._waits_for_baselines():
            return False
        width = math.ceil((self._max_concurrent_trials + 1) / self._plan.replicates.min)
        while len(self._state.untold) >= width:
            if self._state.proposals[self._state.untold[0]].pending:
                return False
            self._tell(self._state.untold[0])
        return True

    def _waits_for_baselines(self) -> bool:
        """Return whether the next proposal would depend on when the baselines are known."""
        sampler, past = self._plan.sampler, self._known.past
        is_known = self._state.baselines is not None
        if sampler.kind != "ehvi" or not self.expects_baselines or is_known:
            return False
        return len(past) + len(past.imported) >= sampler.startup_configurations

    def _add_next(self) -> None:
        """Add a configuration, or a replicate if it is expected to change the front more.

        It adds neither if the space is used up or the study has converged.
        """
        surrogate = self._known.surrogate
        replicate, may_admit = None, self._has_trials_left() and not self.used_up
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
        """Compute the expected gain once before each proposal; return whether to end the study."""
        number = self._state.num_proposals
        is_due = self._plan.until_converged and self._known.surrogate.can_judge()
        if is_due and number != self._state.last_expected:
            gain = self._known.surrogate.gain_ahead(number, self._plan.replicates.max)
            self._commit(Expected(number, gain))
        return bool(self._exceeded())

    def _exceeded(self) -> str:
        """Return which limit was reached, with what the fresh replicates will use; empty if none.

        A limit that was once reached stays so: fresh replicates that take less than expected do not
        make room for more configurations.
        """
        if not self._limit_reached:
            self._limit_reached = self._known.budget.exceeded(self._reserved())
        return self._limit_reached

    def _reserved(self) -> Use:
        """Return what fresh replicates of the front as measured so far will use."""
        past, number = self._known.past, self._plan.replicates.fresh
        if not number or not past.has_values:
            return Use()
        measured = past.measured()
        order = np.lexsort((-measured.means, measured.costs))
        means = measured.means[order]
        rows = order[means > np.append(-np.inf, np.maximum.accumulate(means)[:-1])]
        trials = [
            (self._state.configurations[measured.ids[row]], float(measured.seconds[row]))
            for row in rows
            for _ in range(number)
        ]
        return self._known.budget.use_of(trials, self._max_concurrent_trials)

    def _freeze(self) -> None:
        """Choose the configurations to report; only fresh replicates will count for their means."""
        number = self._plan.replicates.fresh
        seeds = {}
        for identity in self._known.surrogate.front():
            first = self._state.configurations[identity].num_replicates
            seeds[identity] = [first + k for k in range(number)]
        self._commit(Frozen(seeds))

    # ------------------------------------------------------------ new configurations

    def _admit_next(self) -> None:
        """Admit a configuration; with `balance`, from the branch that has the fewest."""
        if self._plan.balance == "branches":
            branches = range(self._known.optuna.num_branches)
            turns = sorted(branches, key=lambda branch: self._state.admitted[branch])
            self.used_up = not any(self._admit_of(branch) for branch in turns)
        else:
            self.used_up = not self._admit_of(None)

    def _admit_of(self, branch: int | None) -> bool:
        """Admit a configuration of a branch (None: any); return whether one was left."""
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
        """Propose a point of a branch, warm-start points first; None if there are none left."""
        starts = (point for point in self._state.starts if branch in (None, point.branch))
        start = next(starts, None)
        if start is not None:
            return self._sampler.given(self._history, start, branch)
        if self._state.refusals[branch] >= MAX_REFUSALS:
            return self._sampler.draw_uniform(self._history, branch)
        return self._sampler.propose(self._history, branch)

    def _admit_or_refuse(self, number: int) -> bool:
        """Admit or refuse a proposal and journal it; return whether it was admitted."""
        decided = self._admission.decide(self._state.proposals[number].point)
        if isinstance(decided, Refusal):
            self._commit(Refused(number, decided.reason, decided.detail, decided.excess))
            return False
        best = None
        if self._plan.deterministic and self._plan.early_stopping.kind != "none":
            best = self._known.affordable(decided.costs())
        self._commit(_admitted(number, decided, self._plan.replicates.min, best))
        return True

    # ------------------------------------------------------------ results for the sampler

    def _tell_decided(self) -> None:
        while self._state.untold and not self._state.proposals[self._state.untold[0]].pending:
            self._tell(self._state.untold[0])

    def _tell(self, number: int) -> None:
        """Tell the sampler the mean over the first replicates, or that there is none."""
        outcome, values = _outcome(self._state.proposals[number], self._known.objectives)
        self._commit(Told(number, outcome, values))


def _admitted(
    number: int, candidate: Candidate, num_replicates: int, best: float | None
) -> Admitted:
    training = candidate.configuration.train_config
    mixes = training.mixup != "none"
    return Admitted(
        number=number,
        configuration_id=candidate.id,
        model=candidate.configuration.model,
        parameters=candidate.configuration.parameters,
        cost=candidate.costs(),
        seeds=list(range(num_replicates)),
        epochs=training.epochs,
        warmup=training.mixup_warmup if mixes else 0,
        group=f"{candidate.point.branch} {training.mixup}",
        best=best,
    )


def _outcome(proposal: OpenProposal, objectives: list[str]) -> tuple[str, list[float] | None]:
    """Return the state and the objectives' means of a proposal, to tell the sampler."""
    if proposal.stopped:
        return "stopped", None
    ended = [outcome for outcome in proposal.outcomes if outcome is not None]
    if len(ended) < len(proposal.outcomes):
        return "failed", None
    columns = ([values[name] for values in ended] for name in objectives)
    return "complete", [math.fsum(column) / len(column) for column in columns]
