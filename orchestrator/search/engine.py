"""Search: decides everything, and knows neither Ray nor a clock.

It is asked for the next trial (`propose`), hears of epochs (`report`) and of ends (`finish`,
`fail`, `lose`), and writes each decision to the journal before anybody acts on it. `replay` brings
back the state of an earlier driver from the journal, so that a study can be killed at any moment
and resumed. Time is what the journal's events say.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sftsearch.orchestrator.candidates.admission import Candidate, Refusal
from sftsearch.orchestrator.early_stopping import base
from sftsearch.orchestrator.metrics import EXACT_COSTS, metric
from sftsearch.orchestrator.samplers.base import propose_given, propose_uniform, sampler_of
from sftsearch.orchestrator.samplers.optuna_study import OptunaStudy
from sftsearch.orchestrator.search.budget import Budget
from sftsearch.orchestrator.surrogate.front_probability import (
    front_probabilities,
    within_delta_everywhere,
)
from sftsearch.orchestrator.surrogate.gp import Hyperparameters
from sftsearch.orchestrator.surrogate.model import Beliefs
from sftsearch.orchestrator.surrogate.observations import Imported, Observations
from sftsearch.search_spaces.space import Point

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sftsearch.orchestrator.candidates.admission import Admission
    from sftsearch.orchestrator.storage.journal import Event, Journal, MemoryJournal
    from sftsearch.orchestrator.surrogate.observations import Observed
    from sftsearch.search_spaces.schema import StudyFile
    from sftsearch.search_spaces.search_plan import SearchPlan

MAX_REFUSALS = 20
"""Refusals in a row after which the next configuration is drawn uniformly from the admissible."""
NUM_DRAWS = 1_000
"""Draws of the posterior behind a probability."""
MAX_LOSSES = 6
"""How often in a row, without an epoch to report, the process of a trial dies before the trial
fails: a trial that needs more memory than there is dies each time, while machines that are taken
away take others with them. As many tries as Kubernetes gives a job."""
UNREPEATABLE = frozenset({"seconds"})
"""Values of an epoch that differ from run to run."""


@dataclass(slots=True)
class Trial:
    """One configuration with one seed, on its way."""

    key: str
    observed: Observed
    seed: int
    """The number of the replicate."""
    epochs: dict[int, dict[str, float]] = field(default_factory=dict)
    """Metrics of the journalled epochs; emptied when the trial ends."""
    begun: bool = False
    """Whether it was handed out, by this driver or an earlier one."""
    judged: int = 0
    """The last epoch after which it was judged."""
    losses: int = 0
    """How often its process died since it last reported."""
    alone: bool = False
    """Whether it is to have whole GPUs, because it ran out of memory beside others."""


@dataclass(slots=True)
class _Proposed:
    """A proposal until the sampler knows what became of it; `outcomes` has one a first seed."""

    point: Point
    carried: dict[str, Any] = field(default_factory=dict)
    """What the sampler keeps with it; see `samplers.Generations`."""
    candidate_id: str = ""
    pending: int = 0
    outcomes: list[list[float] | None] = field(default_factory=list)
    stopped: bool = False
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
    token: int
    """Grows with each trial that is handed out."""
    alone: bool
    """Whether it is to have whole GPUs."""


class Search:
    """The decisions of one study."""

    def __init__(
        self,
        study: StudyFile,
        journal: Journal | MemoryJournal,
        admission: Admission,
        *,
        slots: int = 1,
    ) -> None:
        """Take up the study where the journal stands.

        Args:
            study: the checked study file.
            journal: open for writing; replayed here.
            admission: prices and admits.
            slots: trials that run at a time; with `ordered`, proposals depend on it.
        """
        self.objectives = [objective.metric for objective in study.objectives]
        self.optuna = OptunaStudy(
            admission.space, [objective.goal for objective in study.objectives]
        )
        self.past = _observations(study, admission)
        self.beliefs = Beliefs(admission, self.past, seed=getattr(study.search.sampler, "seed", 0))
        self.rule = _rule(study.search)
        self.budget = Budget(study.search)
        self.num_finished = 0
        self.num_failed = 0
        self.num_stopped = 0
        self.used_up = False
        """Whether the sampler had nothing left to propose."""
        self.frozen: list[str] = []
        """Configurations that are reported, where they get fresh replicates; see `Replicates`."""
        self._plan, self._resources = study.search, study.resources
        self._sample = sampler_of(study.search.sampler)
        self._journal = journal
        self._admission = admission
        self._slots = slots
        self._proposals: dict[int, _Proposed] = {}
        """By number, until the sampler knows what became of them."""
        self._running: dict[str, Trial] = {}
        self._waiting: list[Trial] = []
        self._starts: list[Point] = []
        """What another study found best, to be proposed first."""
        self._untold: list[int] = []
        """Numbers of admitted configurations that the sampler was not told of, in order."""
        self._admitted = [0] * len(admission.space.axes)
        """Configurations by branch."""
        self._refused: Counter[int | None] = Counter()
        """Refusals in a row; by branch, where they take turns."""
        self._num_fitted = 0
        """Configurations behind the hyperparameters that were journalled last."""
        self._last_expected = -1
        """Number of the proposal before which it was asked last what going on may gain."""
        self._replay()
        journal.listen(self.budget.note_time)

    # ------------------------------------------------------------ proposing

    @property
    def num_admitted(self) -> int:
        """Trials so far, fresh replicates not counted."""
        return self.budget.trials

    @property
    def num_running(self) -> int:
        """Trials that were handed out and have not ended."""
        return len(self._running)

    @property
    def exhausted(self) -> bool:
        """Tell whether every trial has ended and none will be added."""
        if self._waiting or self._running:
            return False
        return self._at_end() and not self._fresh_is_due()

    def propose(self) -> Assignment | None:
        """Hand out the next trial, journalled; None if there is none now (see `exhausted`)."""
        if not self._waiting and self._may_ask():
            while not self._waiting and not self._at_end():
                self._add_next()
            if not self._waiting and not self._running and self._fresh_is_due():
                self._freeze()
        if not self._waiting:
            return None
        trial = self._waiting.pop(0)
        trial.begun = True
        self._running[trial.key] = trial
        observed = trial.observed
        started = self._journal.append(
            "started",
            trial=trial.key,
            epoch=len(trial.epochs),
            configuration_id=observed.id,
            model=observed.model,
            parameters=observed.parameters,
            seed=trial.seed,
            cost=observed.cost,
        )
        return Assignment(
            trial.key,
            observed.model,
            observed.parameters,
            trial.seed,
            observed.cost,
            len(trial.epochs),
            started.id,
            trial.alone,
        )

    def why_ended(self) -> str:
        """Say in one phrase why nothing is added any more."""
        used_up = self.used_up and self._has_room()
        return self.budget.exceeded() or ("the space is used up" if used_up else "all trials ran")

    def _at_end(self) -> bool:
        if self.budget.exceeded():
            return True
        may_admit = self._has_room() and not self.used_up
        if not may_admit and self._may_replicate():
            return self.beliefs.best_replicate(self._plan.replicates.max) is None
        return not may_admit

    def _has_room(self) -> bool:
        """Tell whether the trials that are left hold a configuration."""
        return self.budget.trials + self._plan.replicates.min <= self._plan.trials

    def _may_replicate(self) -> bool:
        """Tell whether configurations may earn replicates beyond their first ones."""
        return (
            self._plan.replicates.max > self._plan.replicates.min
            and self.budget.trials < self._plan.trials
        )

    def _may_ask(self) -> bool:
        """With `ordered`, the n-th proposal waits until the (n - width)-th is decided.

        The width is one trial more than run at a time, so that no process waits for its next one.
        """
        if not self._plan.ordered:
            return True
        width = math.ceil((self._slots + 1) / self._plan.replicates.min)
        while len(self._untold) >= width:
            if self._proposals[self._untold[0]].pending:
                return False
            self._tell(self._untold.pop(0))
        return True

    def _add_next(self) -> None:
        """Add a configuration, or a replicate where that is expected to change the front more.

        Where it adds neither, the space is used up or nothing more is expected of going on.
        """
        replicate, may_admit = None, self._has_room() and not self.used_up
        if self._may_replicate() and (not may_admit or self.beliefs.can_judge()):
            replicate = self.beliefs.best_replicate(self._plan.replicates.max)
        if replicate is not None and may_admit:
            new = self.beliefs.best_new(self.optuna.num_proposals, self._plan.replicates.min)
            if new is not None and new.rate >= replicate.rate:
                replicate = None
        self._note_fit()
        if replicate is not None:
            self._replicate(replicate.configuration_id)
        elif may_admit and not self._has_converged():
            self._admit_next()

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
            known = self.optuna, self._admission, self.beliefs, branch
            proposal = self._next_start(branch)
            if proposal is None and self._refused[branch] >= MAX_REFUSALS:
                proposal = propose_uniform(self._plan.sampler, *known)
            elif proposal is None:
                proposal = self._sample(*known)
            if proposal is None:
                return False
            self._note_fit()
            admitted = self._decide(*proposal)
        return True

    def _next_start(self, branch: int | None) -> tuple[int, Point] | None:
        """Propose the next of what another study found best, of a branch; None: none is left."""
        starts = (point for point in self._starts if branch in (None, point.branch))
        point = next(starts, None)
        if point is None:
            return None
        self._starts.remove(point)
        return propose_given(self._plan.sampler, self.optuna, point, branch)

    def _decide(self, number: int, point: Point) -> bool:
        """Journal a proposal and its admission or refusal; return whether it was admitted."""
        carried = self.optuna.carried(number)
        more = {"carried": carried} if carried else {}
        self._journal.append(
            "proposed", number=number, branch=point.branch, values=dict(point.values), **more
        )
        self._proposals[number] = _Proposed(point, carried)
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
        body = _admitted_body(number, decided, self._plan.replicates.min)
        self._journal.append("admitted", **body)
        self._note_admitted(body)
        return True

    def _note_admitted(self, body: Mapping[str, Any]) -> None:
        number = body["number"]
        proposed = self._proposals[number]
        proposed.candidate_id = body["configuration_id"]
        proposed.pending = len(body["seeds"])
        observed = self.past.admit(number, proposed.candidate_id, proposed.point, body)
        self._admission.take(proposed.candidate_id)
        self._admitted[proposed.point.branch] += 1
        self._refused[self._turn_of(proposed)] = 0
        self._untold.append(number)
        self._await(observed, body["seeds"])

    def _await(self, observed: Observed, seeds: Iterable[int], *, fresh: bool = False) -> None:
        for seed in seeds:
            self.past.begin(observed, seed, fresh=fresh)
            self._waiting.append(Trial(trial_key(observed.id, seed), observed, seed))
            self.budget.trials += not fresh
        if not fresh:
            self.frozen = []

    def _turn_of(self, proposed: _Proposed) -> int | None:
        return proposed.point.branch if self._plan.balance == "branches" else None

    def _replicate(self, configuration_id: str) -> None:
        observed = self.past[configuration_id]
        seeds = [observed.num_replicates]
        self._journal.append("replicated", configuration_id=configuration_id, seeds=seeds)
        self._await(observed, seeds)

    def _fresh_is_due(self) -> bool:
        return self._plan.replicates.fresh > 0 and not self.frozen and self.past.has_values

    def _freeze(self) -> None:
        """Choose what is reported; its means will be those of fresh replicates alone."""
        number = self._plan.replicates.fresh
        chosen = self.beliefs.front()
        seeds = {i: [self.past[i].num_replicates + k for k in range(number)] for i in chosen}
        self._note_fit()
        self._journal.append("frozen", seeds=seeds)
        self._note_frozen(seeds)

    def _note_frozen(self, seeds: Mapping[str, list[int]]) -> None:
        for configuration_id, own in seeds.items():
            observed = self.past[configuration_id]
            observed.fresh.clear()
            self._await(observed, own, fresh=True)
        self.frozen = list(seeds)

    def _note_fit(self) -> None:
        """Journal the surrogate's hyperparameters where they are new: later fits begin there."""
        fitted, past = self.past.hyperparameters, self.past
        if fitted is not None and past.num_fitted != self._num_fitted:
            self._num_fitted = past.num_fitted
            self._journal.append(
                "fitted",
                num=past.num_fitted,
                lengthscales=fitted.lengthscales.tolist(),
                amplitude=fitted.amplitude,
                tau=fitted.tau,
                sigma=fitted.sigma,
                mean=fitted.mean,
            )

    def _has_converged(self) -> bool:
        """Ask, once before each proposal, what going on may gain; tell whether that is enough."""
        number = self.optuna.num_proposals
        is_due = self._plan.until_converged and self.beliefs.can_judge()
        if is_due and number != self._last_expected:
            gain = self.beliefs.gain_ahead(number, self._plan.replicates.max)
            self._note_fit()
            self._journal.append("expected", number=number, gain=gain)
            self._note_expected(number, gain)
        return bool(self.budget.exceeded())

    def _note_expected(self, number: int, gain: float) -> None:
        self._last_expected = number
        self.budget.note_gain(gain)

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
        event = self._journal.append("epoch", trial=key, epoch=epoch, metrics=dict(metrics))
        self._note_epoch(trial, event)
        return self._judge(trial, epoch)

    def _note_epoch(self, trial: Trial, event: Event) -> None:
        trial.epochs[event.body["epoch"]] = event.body["metrics"]
        trial.losses = 0
        given = self._resources.of(trial.observed.cost)
        gpus = max(given.gpus, 1.0) if trial.alone else given.gpus * given.workers
        self.budget.note_epoch(event, gpus)

    def _judge(self, trial: Trial, epoch: int) -> bool:
        """Return whether the trial goes on after an epoch; journal it where it does not."""
        observed = trial.observed
        if observed.stopped:  # by what another of its replicates showed
            self._stop(trial, epoch, "another replicate was stopped", None)
            return False
        if self._plan.stopping.kind == "none" or trial.seed > 0:
            return True
        if not self.rule.judges(observed.epochs, observed.warmup, epoch):
            return True
        trial.judged = epoch
        best = self.beliefs.affordable(self._cost_bounds(observed)[0])
        decision = self.rule.decide(self._report_of(trial, epoch, best))
        self._note_fit()
        if not math.isfinite(decision.probability or 0.0):
            decision = decision._replace(probability=None)
        if decision.stop:
            reason = f"unlikely to reach the front at its cost ({self._plan.stopping.kind})"
            self._stop(trial, epoch, reason, best, **decision._asdict())
        else:
            self._journal.append(
                "judged", trial=trial.key, epoch=epoch, best=best, **decision._asdict()
            )
        return not decision.stop

    def _report_of(self, trial: Trial, epoch: int, best: float | None) -> base.Report:
        observed, (cost_low, cost_high) = trial.observed, self._cost_bounds(trial.observed)
        return base.Report(
            key=trial.key,
            epoch=epoch,
            value=self.past.sign * trial.epochs[epoch][self.objectives[0]],
            cost_low=cost_low,
            cost_high=cost_high,
            group=observed.group,
            warmup=observed.warmup,
            epochs=observed.epochs,
            best_affordable=best,
        )

    def _cost_bounds(self, observed: Observed) -> tuple[float, float]:
        """Return the least and the most that a sample may cost; most systems cost one of both."""
        name = self.past.costs[0]
        most = observed.cost[name]
        return observed.cost.get(f"{name}_low", most), most

    def _stop(
        self, trial: Trial, epoch: int, reason: str, best: float | None, **decision: Any
    ) -> None:
        body = {
            "trial": trial.key,
            "epoch": epoch,
            "reason": reason,
            "values": {**trial.epochs[epoch], **trial.observed.cost},
            "best": best,
            "withdrawn": [
                t.key for t in self._waiting if t.observed is trial.observed and not t.begun
            ],
            **decision,
        }
        del self._running[trial.key]
        self._journal.append("stopped", **body)
        self._withdraw(body["withdrawn"])
        self._end(trial, "stopped", None)

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
        trial = self._running.get(key)
        if trial is None:
            return
        lacking = [n for n in self.objectives if not math.isfinite(values.get(n, math.nan))]
        if lacking:
            self.fail(key, f"the objective `{lacking[0]}` has no finite value")
            return
        body = {"values": dict(values), "groups": dict(groups), "facts": dict(facts or {})}
        del self._running[key]  # whatever goes wrong from here, it ends only once
        self._journal.append("finished", trial=key, **body)
        self._end(trial, "finished", values)

    def lose(self, key: str, reason: str) -> None:
        """Hear that the process of a trial died: another one goes on with it, or it fails."""
        trial = self._running.get(key)
        if trial is None:
            return
        if trial.losses + 1 < MAX_LOSSES:
            self._retry(trial, reason)
        else:
            self.fail(key, reason)

    def run_out_of_memory(self, key: str, reason: str) -> None:
        """Hear that a trial lacked memory: where it shares a GPU it is tried alone, once."""
        trial = self._running.get(key)
        if trial is None:
            return
        if self._shares_gpu(trial):
            self._retry(trial, reason, alone=True)
        else:
            self.fail(key, reason)

    def _shares_gpu(self, trial: Trial) -> bool:
        return not trial.alone and 0 < self._resources.of(trial.observed.cost).gpus < 1

    def _retry(self, trial: Trial, reason: str, *, alone: bool = False) -> None:
        """Let the trial begin again, before all that wait."""
        del self._running[trial.key]
        self._journal.append("retried", trial=trial.key, reason=reason, alone=alone)
        self._note_retried(trial, alone=alone)
        self._waiting.insert(0, trial)

    @staticmethod
    def _note_retried(trial: Trial, *, alone: bool) -> None:
        if alone:
            trial.alone = True
        else:
            trial.losses += 1

    def fail(self, key: str, reason: str) -> None:
        """Journal that a trial ended without values; the study goes on."""
        trial = self._running.pop(key, None)
        if trial is None:
            return
        self._journal.append("failed", trial=key, reason=reason)
        self._end(trial, "failed", None)

    def _end(self, trial: Trial, kind: str, values: Mapping[str, float] | None) -> None:
        self._note_end(trial, kind, values)
        number = trial.observed.number
        proposed = self._proposals.get(number)
        if proposed is not None and proposed.pending == 0 and not self._plan.ordered:
            self._untold.remove(number)
            self._tell(number)
        if self._plan.ordered and self._at_end():
            self._tell_decided()

    def _note_end(self, trial: Trial, kind: str, values: Mapping[str, float] | None) -> None:
        """Take note of an end, of whichever kind, live or replayed."""
        observed, outcome = trial.observed, None
        if values is not None and kind == "finished":
            outcome = [values[name] for name in self.objectives]
            self.past.finish(observed, trial.seed, outcome, values.get("seconds", 0.0))
            if trial.seed == 0:
                self.rule.finished(trial.key, self.past.sign * outcome[0])
            self.num_finished += 1
        else:
            self.past.drop(observed, trial.seed, stopped=kind == "stopped")
            self.rule.stopped(trial.key)
            self.num_failed += kind == "failed"
            self.num_stopped += kind == "stopped"
        proposed = self._proposals.get(observed.number)
        if proposed is not None and not proposed.told and trial.seed < self._plan.replicates.min:
            proposed.pending -= 1
            proposed.outcomes.append(outcome)
            proposed.stopped |= kind == "stopped"

    def _withdraw(self, keys: list[str]) -> None:
        """Take back the replicates of a stopped configuration that have not begun."""
        for trial in [t for t in self._waiting if t.key in keys]:
            self._waiting.remove(trial)
            self.past.withdraw(trial.observed, trial.seed)
            self.budget.trials -= 1
            proposed = self._proposals.get(trial.observed.number)
            if proposed is not None and trial.seed < self._plan.replicates.min:
                proposed.pending -= 1

    def _tell_decided(self) -> None:
        while self._untold and not self._proposals[self._untold[0]].pending:
            self._tell(self._untold.pop(0))

    def _tell(self, number: int) -> None:
        """Tell the sampler, once, the mean over first replicates; else that there is none."""
        state, values = _outcome(self._proposals[number])
        self._journal.append("told", number=number, state=state, values=values)
        if values is not None:
            self.optuna.tell(number, values)
        elif state == "stopped":
            self.optuna.prune(number)
        else:
            self.optuna.fail(number)
        del self._proposals[number]

    # ------------------------------------------------------------ concluding

    def conclude(self) -> None:
        """Journal what is believed of every configuration, and how often stopping was wrong."""
        if not self.past.has_values:
            return
        measured, posterior = self.past.measured(), self.beliefs.posterior()
        draws = self.beliefs.draws(NUM_DRAWS)
        on_front = front_probabilities(draws, measured.costs)
        reported = [i for i in self.frozen if self.past[i].is_complete] or self.beliefs.front()
        chosen = np.isin(measured.ids, reported)
        low = float(measured.costs[chosen].min())
        beliefs = {
            identity: {
                "mean": float(self.past.sign * posterior.means[i]),
                "sd": float(posterior.deviations[i]),
                "on_front": float(on_front[i]),
            }
            for i, identity in enumerate(measured.ids)
        }
        false_stops = base.false_stop_rate(self.rule.audits)
        self._note_fit()
        self._journal.append(
            "concluded",
            reported=list(reported),
            beliefs=beliefs,
            within_delta=within_delta_everywhere(draws, measured.costs, chosen, low=low),
            audits=false_stops._asdict() if false_stops.num else None,
            num_stopped=self.num_stopped,
        )

    # ------------------------------------------------------------ replaying

    def _replay(self) -> None:
        """Rebuild everything from the journal."""
        trials: dict[str, Trial] = {}
        for event in self._journal.events(through=self._journal.last_id):
            self.budget.note_time(event)
            self._replay_event(event, trials)
        for number, proposed in sorted(self._proposals.items()):
            self._replay_to_optuna(proposed)
            if proposed.told or proposed.refused is not None:
                del self._proposals[number]
        self._finish_what_was_begun()

    def _finish_what_was_begun(self) -> None:
        """Decide, judge and tell what is due, where a kill came in between."""
        for trial in [t for t in self._waiting if t.epochs]:
            self._judge_again(trial)
        for number, proposed in list(self._proposals.items()):
            if not proposed.candidate_id:
                self._admit_or_refuse(number)
        for number in list(self._untold) if not self._plan.ordered else []:
            if not self._proposals[number].pending:
                self._untold.remove(number)
                self._tell(number)
        if self._plan.ordered and self._at_end():
            self._tell_decided()

    def _judge_again(self, trial: Trial) -> None:
        """Judge a trial by its last epoch where the journal has that and not what became of it."""
        epoch, place = max(trial.epochs), self._waiting.index(trial)
        if epoch > trial.judged:
            self._running[trial.key] = self._waiting.pop(place)
            if self._judge(trial, epoch):
                self._waiting.insert(place, self._running.pop(trial.key))

    def _replay_event(self, event: Event, trials: dict[str, Trial]) -> None:
        replay = _REPLAY.get(event.kind)
        if replay is not None:
            waiting = len(self._waiting)
            replay(self, event, trials)
            trials.update((trial.key, trial) for trial in self._waiting[waiting:])

    def _replay_imported(self, event: Event, trials: dict[str, Trial]) -> None:
        body = event.body
        self._starts = [Point(start["branch"], start["values"]) for start in body["starts"]]
        for one in body["configurations"]:
            known = {int(number): values for number, values in one["replicates"].items()}
            self.past.import_(
                Imported(
                    id=one["configuration_id"],
                    point=Point(one["branch"], one["values"]),
                    values={number: values["objectives"][0] for number, values in known.items()},
                    seconds={number: values["seconds"] for number, values in known.items()},
                )
            )

    def _replay_proposed(self, event: Event, trials: dict[str, Trial]) -> None:
        body = event.body
        point = Point(body["branch"], body["values"])
        self._proposals[body["number"]] = _Proposed(point, body.get("carried", {}))
        if point in self._starts:
            self._starts.remove(point)

    def _replay_refused(self, event: Event, trials: dict[str, Trial]) -> None:
        proposed = self._proposals[event.body["number"]]
        proposed.refused = event.body["excess"]
        self._refused[self._turn_of(proposed)] += 1

    def _replay_admitted(self, event: Event, trials: dict[str, Trial]) -> None:
        self._note_admitted(event.body)

    def _replay_replicated(self, event: Event, trials: dict[str, Trial]) -> None:
        self._await(self.past[event.body["configuration_id"]], event.body["seeds"])

    def _replay_frozen(self, event: Event, trials: dict[str, Trial]) -> None:
        self._note_frozen(event.body["seeds"])

    def _replay_fitted(self, event: Event, trials: dict[str, Trial]) -> None:
        body = dict(event.body)
        self.past.num_fitted = self._num_fitted = body.pop("num")
        lengthscales = np.array(body.pop("lengthscales"), dtype=float)
        self.past.hyperparameters = Hyperparameters(lengthscales=lengthscales, **body)
        self.past.fitted_on = self.past.measured()

    def _replay_expected(self, event: Event, trials: dict[str, Trial]) -> None:
        self._note_expected(event.body["number"], event.body["gain"])

    def _replay_started(self, event: Event, trials: dict[str, Trial]) -> None:
        trials[event.body["trial"]].begun = True

    def _replay_epoch(self, event: Event, trials: dict[str, Trial]) -> None:
        self._note_epoch(trials[event.body["trial"]], event)

    def _replay_retried(self, event: Event, trials: dict[str, Trial]) -> None:
        self._note_retried(trials[event.body["trial"]], alone=event.body["alone"])

    def _replay_judged(self, event: Event, trials: dict[str, Trial]) -> None:
        trial, epoch = trials[event.body["trial"]], event.body["epoch"]
        trial.judged = epoch
        self.rule.decide(self._report_of(trial, epoch, event.body["best"]))

    def _replay_end(self, event: Event, trials: dict[str, Trial]) -> None:
        if event.kind == "stopped" and "stop" in event.body:
            self._replay_judged(event, trials)
        trial = trials.pop(event.body["trial"])
        self._waiting.remove(trial)
        self._withdraw(event.body.get("withdrawn", []))
        self._note_end(trial, event.kind, event.body.get("values"))

    def _replay_told(self, event: Event, trials: dict[str, Trial]) -> None:
        self._proposals[event.body["number"]].told = True
        self._untold.remove(event.body["number"])

    def _replay_to_optuna(self, proposed: _Proposed) -> None:
        if proposed.refused is not None:
            state, values, excess = "refused", None, proposed.refused
        elif proposed.told:
            (state, values), excess = _outcome(proposed), 0.0
        else:
            state, values, excess = "running", None, 0.0
        self.optuna.replay(
            proposed.point, values=values, state=state, excess=excess, carried=proposed.carried
        )


_REPLAY = {
    "imported": Search._replay_imported,
    "proposed": Search._replay_proposed,
    "refused": Search._replay_refused,
    "admitted": Search._replay_admitted,
    "replicated": Search._replay_replicated,
    "frozen": Search._replay_frozen,
    "fitted": Search._replay_fitted,
    "expected": Search._replay_expected,
    "started": Search._replay_started,
    "epoch": Search._replay_epoch,
    "retried": Search._replay_retried,
    "judged": Search._replay_judged,
    "finished": Search._replay_end,
    "failed": Search._replay_end,
    "stopped": Search._replay_end,
    "told": Search._replay_told,
}


def trial_key(configuration_id: str, seed: int) -> str:
    """Return the key of a trial within its study."""
    return f"{configuration_id}-{seed}"


def _observations(study: StudyFile, admission: Admission) -> Observations:
    accuracy = study.objectives[0]
    exact = tuple(o.metric for o in study.objectives if o.metric in EXACT_COSTS)
    chance = 1 / admission.spec.num_classes if accuracy.metric == "top1" else None
    return Observations(
        exact or EXACT_COSTS[:1],
        sign=1.0 if accuracy.goal == "maximize" else -1.0,
        floor=chance,
        num_folds=study.dataset.folds,
        is_share=metric(study.objectives[0].metric).is_share,
    )


def _rule(plan: SearchPlan) -> base.Rule:
    options = plan.stopping.model_dump(exclude={"kind"})
    return base.RULES[plan.stopping.kind](**options)


def _admitted_body(number: int, candidate: Candidate, num_seeds: int) -> dict[str, Any]:
    cost, training = candidate.cost, candidate.configuration.train_config
    mixes = training.mixup != "none"
    return {
        "number": number,
        "configuration_id": candidate.id,
        "model": candidate.configuration.model,
        "parameters": candidate.configuration.parameters,
        "cost": cost.as_dict(),
        "seeds": list(range(num_seeds)),
        "epochs": training.epochs,
        "warmup": training.mixup_warmup if mixes else 0,
        "group": f"{candidate.point.branch} {training.mixup}",
    }


def _outcome(proposed: _Proposed) -> tuple[str, list[float] | None]:
    """Return what the sampler is told: the mean of each objective, exact for known costs."""
    if proposed.stopped:
        return "stopped", None
    seeds = [outcome for outcome in proposed.outcomes if outcome is not None]
    if len(seeds) < len(proposed.outcomes):
        return "failed", None
    return "complete", [math.fsum(column) / len(column) for column in zip(*seeds, strict=True)]
