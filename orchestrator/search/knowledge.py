"""Keep the sampler, early-stopping rule, surrogate and budget up to date with a study's state.

Each event is applied to the state first, then to them, both in a running study and when a journal
is replayed.
"""

from __future__ import annotations

import copy
import functools
from collections import defaultdict
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from sftsearch.orchestrator.candidates.admission import OVER_LIMIT
from sftsearch.orchestrator.early_stopping.base import Decision, Report
from sftsearch.orchestrator.early_stopping.catalog import build_rule
from sftsearch.orchestrator.metrics import EXACT_COSTS, metric
from sftsearch.orchestrator.objectives import Objectives
from sftsearch.orchestrator.samplers.optuna_study import OptunaStudy
from sftsearch.orchestrator.search.budget import Budget
from sftsearch.orchestrator.search.state import StudyState
from sftsearch.orchestrator.storage.baseline_events import BaselinesFitted
from sftsearch.orchestrator.storage.events import (
    Admitted,
    Fitted,
    Frozen,
    Imported,
    Proposed,
    Refused,
    Replicated,
    Told,
)
from sftsearch.orchestrator.storage.trial_events import Failed, Finished, Judged, Stopped
from sftsearch.orchestrator.surrogate.fitted_model import Fit
from sftsearch.orchestrator.surrogate.gp import Hyperparameters
from sftsearch.orchestrator.surrogate.model import SurrogateModel
from sftsearch.orchestrator.surrogate.observations import Alternative, Observations

if TYPE_CHECKING:
    from collections.abc import Callable

    from sftsearch.orchestrator.candidates.admission import Admission
    from sftsearch.orchestrator.early_stopping.base import EarlyStoppingRule
    from sftsearch.orchestrator.storage.event import Event, Numbers
    from sftsearch.orchestrator.storage.journal import Entry
    from sftsearch.orchestrator.storage.trial_state import ConfigurationState, TrialState
    from sftsearch.search_spaces.schema import StudyFile


@dataclass(slots=True)
class View:
    """What a deterministic study knew when it admitted a configuration."""

    rule: EarlyStoppingRule
    best: float | None
    """The best posterior mean at its cost or below; None if there was none."""
    withheld: list[Callable[[], None]] = field(default_factory=list)
    """Updates by the configuration's trials, made when the sampler gets its result."""


class Knowledge:
    """The state of one study with everything derived from its events.

    In a deterministic study, the sampler, the surrogate and the early-stopping rule get results in
    the order of the proposals. A trial is judged by what was known when its configuration was
    admitted. So neither proposals nor stops depend on the order in which trials end.
    """

    def __init__(
        self, study: StudyFile, admission: Admission, *, on_fit: Callable[[Fit], None]
    ) -> None:
        """Start from the state before the first event.

        Args:
            study: the checked study file.
            admission: of its space; updated with the admitted configurations.
            on_fit: called when the surrogate was fitted, before the fit is used.
        """
        plan = study.search
        self.objectives = [objective.metric for objective in study.objectives]
        self.state = StudyState()
        self.optuna = OptunaStudy(
            admission.space, [objective.direction for objective in study.objectives]
        )
        self.past = _observations(study, admission)
        self.surrogate = SurrogateModel(
            admission, self.past, seed=getattr(plan.sampler, "seed", 0), on_fit=on_fit
        )
        self.rule = build_rule(plan.early_stopping)
        self.budget = Budget(plan, study.resources)
        self._admission = admission
        self._is_deterministic = plan.deterministic
        self._must_beat_baseline = plan.min_accuracy == "baseline"
        self._views: dict[int, View] = {}
        """Of a deterministic study, by proposal whose result the sampler does not have yet."""

    def apply(self, entry: Entry) -> None:
        """Update everything with an event."""
        if isinstance(entry.event, Refused):
            self._exclude(entry.event)
        self.state.apply(entry)
        self.budget.apply(entry, self.state)
        self._apply(entry.event)

    def judge(self, trial: TrialState, epoch: int) -> tuple[float | None, Decision]:
        """Decide whether a trial stops after an epoch.

        Returns:
            the best posterior mean at its cost or below, None if there is none, and the decision.
        """
        view = self._views.get(trial.configuration.number)
        if view is None:
            rule, best = self.rule, self.affordable(trial.configuration.cost)
        else:
            rule, best = view.rule, view.best
        return best, rule.decide(self._report_of(trial, epoch, trial.epochs[epoch], best))

    def affordable(self, cost: Numbers) -> float | None:
        """Return the best posterior mean at the lower bound of a cost or below; None if none is."""
        return self.surrogate.affordable(self._bounds(cost)[0])

    def release(self) -> None:
        """Make all withheld updates, to conclude a study; nothing may be decided afterwards."""
        while self._views:
            self._release(min(self._views))

    def _release(self, number: int) -> None:
        view = self._views.pop(number, None)
        for update in [] if view is None else view.withheld:
            update()

    def _update(self, configuration: ConfigurationState, update: Callable[[], None]) -> None:
        """Make an update now, or once the sampler gets the configuration's result."""
        view = self._views.get(configuration.number)
        if view is None:
            update()
        else:
            view.withheld.append(update)

    def _report_of(
        self, trial: TrialState, epoch: int, metrics: Numbers, best: float | None
    ) -> Report:
        """Return what the early-stopping rule needs to judge a trial after an epoch.

        Args:
            trial: the trial.
            epoch: after which it is judged.
            metrics: of that epoch.
            best: the best posterior mean at its cost or below; None if there is none.
        """
        configuration = trial.configuration
        cost_low, cost_high = self._bounds(configuration.cost)
        return Report(
            key=str(trial.key),
            epoch=epoch,
            value=self.past.sign * metrics[self.objectives[0]],
            cost_low=cost_low,
            cost_high=cost_high,
            group=configuration.group,
            warmup=configuration.warmup,
            epochs=configuration.epochs,
            best_affordable=best,
        )

    def _bounds(self, cost: Numbers) -> tuple[float, float]:
        """Return the lower and upper bound of the cost of a sample; equal if the cost is exact."""
        name = self.past.judged_cost
        return cost.get(f"{name}_low", cost[name]), cost[name]

    def _exclude(self, event: Refused) -> None:
        """Exclude a refused configuration from further draws; call before the state forgets it."""
        proposal = self.state.proposals.get(event.number)
        if event.reason == OVER_LIMIT and proposal is not None:
            identity = self._admission.exclude(proposal.point)
            if identity is not None:
                self.surrogate.pool.take(identity)

    # ------------------------------------------------------------ events

    @functools.singledispatchmethod
    def _apply(self, event: Event) -> None:
        """Do nothing: events of this kind change only the state."""

    @_apply.register
    def _imported(self, event: Imported) -> None:
        for one in event.configurations:
            self.past.import_(one)
            self.surrogate.import_(one.id, one.point)

    @_apply.register
    def _baselines(self, event: BaselinesFitted) -> None:
        objective, costs = self.objectives[0], self.past.costs
        found = [one for one in event.results if objective in one.values]
        by_name: dict[str, list[float]] = defaultdict(list)
        for one in found:
            by_name[one.name].append(self.past.sign * one.values[objective])
        if self._must_beat_baseline and by_name:
            self.surrogate.require(self.past.sign * max(map(fmean, by_name.values())))
        # First replicates are on the first fold. A cost of 0, as of the majority class, has no
        # place on a logarithmic scale.
        first = [one for one in found if not one.fold]
        paid = [tuple(one.values.get(cost, 0.0) for cost in costs) for one in first]
        self.surrogate.surpass(
            [
                Alternative(self.past.sign * one.values[objective], cost)
                for one, cost in zip(first, paid, strict=True)
                if min(cost) > 0
            ]
        )

    @_apply.register
    def _proposed(self, event: Proposed) -> None:
        self.optuna.enter(event.point, event.carried)

    @_apply.register
    def _refused(self, event: Refused) -> None:
        self.optuna.refuse(event.number, event.excess)

    @_apply.register
    def _admitted(self, event: Admitted) -> None:
        configuration = self.state.configurations[event.configuration_id]
        self.past.admit(configuration)
        if self._is_deterministic:
            self._views[event.number] = View(copy.deepcopy(self.rule), event.best)
        self.surrogate.take(configuration.id, configuration.point)
        self._admission.take(event.configuration_id)

    @_apply.register
    def _replicated(self, event: Replicated) -> None:
        self.past.begin(self.state.configurations[event.configuration_id])

    @_apply.register
    def _frozen(self, event: Frozen) -> None:
        for identity in event.seeds:
            self.past.begin(self.state.configurations[identity])

    @_apply.register
    def _fitted(self, event: Fitted) -> None:
        fitted = Hyperparameters(
            lengthscales=np.array(event.lengthscales, dtype=float),
            amplitude=event.amplitude,
            tau=event.tau,
            sigma=event.sigma,
            mean=event.mean,
        )
        self.surrogate.last_fit = Fit(fitted, event.num, self.past.measured())

    @_apply.register
    def _told(self, event: Told) -> None:
        self._release(event.number)
        if event.values is not None:
            self.optuna.tell(event.number, event.values)
        elif event.state == "stopped":
            self.optuna.prune(event.number)
        else:
            self.optuna.fail(event.number)

    @_apply.register
    def _judged(self, event: Judged) -> None:
        trial = self.state.trials[event.trial]
        self._record(trial, event, trial.epochs[event.epoch])

    @_apply.register
    def _stopped(self, event: Stopped) -> None:
        trial = self.state.trials[event.trial]
        if event.stop is not None and event.audit is not None:
            self._record(trial, event, event.values)
        self._ended(trial, lambda: self.rule.on_stopped(str(event.trial)))

    @_apply.register
    def _failed(self, event: Failed) -> None:
        self._ended(self.state.trials[event.trial], lambda: self.rule.on_stopped(str(event.trial)))

    @_apply.register
    def _finished(self, event: Finished) -> None:
        value = self.past.sign * event.values[self.objectives[0]]
        is_first = event.trial.replicate == 0
        self._ended(
            self.state.trials[event.trial],
            lambda: self.rule.on_finished(str(event.trial), value) if is_first else None,
        )

    def _record(self, trial: TrialState, event: Judged | Stopped, metrics: Numbers) -> None:
        """Record a decision in the rule; in a deterministic study, also in the trial's view."""
        report = self._report_of(trial, event.epoch, metrics, event.best)
        decision = Decision(bool(event.stop), bool(event.audit), event.probability, event.threshold)
        view = self._views.get(trial.configuration.number)
        if view is not None:
            view.rule.record(report, decision)
        self._update(trial.configuration, lambda: self.rule.record(report, decision))

    def _ended(self, trial: TrialState, update_rule: Callable[[], None]) -> None:
        """Update rule and surrogate with the end of a trial."""
        self._update(trial.configuration, update_rule)
        self._update(trial.configuration, lambda: self.past.end(trial.configuration))


def _observations(study: StudyFile, admission: Admission) -> Observations:
    accuracy = study.objectives[0]
    objectives = Objectives.of_study(study)
    costs = [o.metric for o in study.objectives if o.metric in EXACT_COSTS]
    least = study.search.min_accuracy
    chance = 1 / admission.spec.num_classes if accuracy.metric == "top1" else None
    return Observations(
        accuracy.metric,
        tuple(costs) or (objectives.searched_cost,),
        judged_cost=None if costs else objectives.judged_cost,
        sign=objectives.sign,
        floor=chance,
        least=None if isinstance(least, str) else least,
        num_folds=study.dataset.folds,
        is_share=metric(accuracy.metric).is_share,
    )
