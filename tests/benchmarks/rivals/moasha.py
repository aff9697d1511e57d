"""Syne Tune's MO-ASHA as a rule that stops trials, behind JSON lines on stdin and stdout.

Run it in an environment of its own, with syne-tune 0.15.0 and nothing of ours. Who calls it
proposes the configurations; it says which running trials to stop. Every line gets one line back:

    {"init": {"num_epochs": 27, "reduction_factor": 3, "seed": 0, "corrected": false}}
        -> {"ready": "syne-tune 0.15.0"}; also "grace_period", 1 where left out
    {"report": {"trial": 7, "epoch": 1, "accuracy": 0.6, "cost": 0.2}} -> {"stop": false}
    {"complete": 7} -> {"done": 7}

Another `init` starts another search. A trial is known from its first report, and forgotten once it
is stopped or complete. The last epoch never stops a trial: it is over then. Both objectives enter
as they are given, 1 - accuracy first; the epsilon-net measures Euclidean distances between them, so
give a cost on a like scale, such as its logarithm in [0, 1].

What `corrected` mends: the scheduler compares *ranks*, 0 for the best trial of a rung, but 0.15.0
hands it the *sorted order*, the indices of the trials from best to worst; the last entry, read as
the rank of the trial that just reported, is the index of the worst one. And within a front it takes
the ranks of the epsilon-net for its order; with a single front the two mistakes cancel.

Source: Schmucker et al. 2021, "Multi-objective asynchronous successive halving" (the rule); Salinas
et al. 2021, "A multi-objective perspective on jointly tuning hardware and hyperparameters" (the
epsilon-net).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Hashable

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def epsilon_net_order(points: Floats) -> list[int]:
    """Return the indices of points, (N, D), each as far as can be from those before it.

    The first is the one that is lowest in the first objective.

    Source: Clarkson 2005, "Nearest-neighbor searching and metric space dimensions", p. 17.
    """
    order = [int(np.argmin(points[:, 0]))]
    nearest = np.linalg.norm(points - points[order[0]], axis=1)
    nearest[order[0]] = -1.0  # below every distance: taken
    while len(order) < len(points):
        farthest = int(np.argmax(nearest))
        order.append(farthest)
        nearest = np.minimum(nearest, np.linalg.norm(points - points[farthest], axis=1))
        nearest[order] = -1.0
    return order


def non_dominated_ranks(points: Floats) -> NDArray[np.int64]:
    """Return the rank of every point, (N,), 0 for the best, of objectives to minimise, (N, D).

    Fronts come one after another, and within a front the order of the epsilon-net.
    """
    ranks = np.empty(len(points), dtype=np.int64)
    left = np.arange(len(points))
    num_ranked = 0
    while len(left):
        no_worse = np.all(points[left, None] <= points[None, left], axis=2)
        better = np.any(points[left, None] < points[None, left], axis=2)
        beaten = np.any(no_worse & better, axis=0)
        front = left[~beaten]
        order = front[epsilon_net_order(points[front])]
        ranks[order] = np.arange(num_ranked, num_ranked + len(order))
        num_ranked += len(order)
        left = left[beaten]
    return ranks


class Rule:
    """The scheduler and the trials it watches."""

    def __init__(
        self,
        *,
        num_epochs: int,
        reduction_factor: float,
        seed: int,
        corrected: bool,
        grace_period: int = 1,
    ) -> None:
        from syne_tune.optimizer.schedulers.multiobjective import moasha
        from syne_tune.optimizer.schedulers.multiobjective.multiobjective_priority import MOPriority

        class RankPriority(MOPriority):
            """Ranks where the scheduler expects them."""

            def priority_unsafe(self, objectives: Floats) -> NDArray[np.int64]:
                return non_dominated_ranks(objectives)

        self._num_epochs = num_epochs
        self._running: dict[Hashable, Any] = {}
        self._last: dict[Hashable, dict[str, float]] = {}
        self._scheduler = moasha.MOASHA(
            config_space={},
            metrics=["error", "cost"],
            time_attr="epoch",
            max_t=num_epochs,
            grace_period=grace_period,
            reduction_factor=reduction_factor,
            multiobjective_priority=RankPriority() if corrected else None,
            random_seed=seed,
        )

    def report(self, trial: Hashable, epoch: int, accuracy: float, cost: float) -> bool:
        """Take one epoch of a trial; return whether to stop it."""
        result = {"epoch": epoch, "error": 1 - accuracy, "cost": cost}
        if trial not in self._running:
            self._running[trial] = self._start(trial)
        self._last[trial] = result
        if epoch >= self._num_epochs:
            return False
        decision = self._scheduler.on_trial_result(self._running[trial], result)
        if decision != "STOP":
            return False
        self._scheduler.on_trial_remove(self._running.pop(trial))
        del self._last[trial]
        return True

    def complete(self, trial: Hashable) -> None:
        """Take the end of a trial that was not stopped."""
        self._scheduler.on_trial_complete(self._running.pop(trial), self._last.pop(trial))

    def _start(self, trial: Hashable) -> Any:
        from syne_tune.backend.trial_status import Trial

        began = dt.datetime.now(tz=dt.UTC)
        started = Trial(trial_id=trial, config={}, creation_time=began)
        self._scheduler.on_trial_add(started)
        return started


def answer(rule: Rule, message: dict[str, Any]) -> dict[str, Any]:
    """Return the reply to a report or to the end of a trial."""
    if "report" in message:
        return {"stop": rule.report(**message["report"])}
    rule.complete(message["complete"])
    return {"done": message["complete"]}


def main() -> None:
    """Serve searches, one after another, until stdin ends."""
    with contextlib.redirect_stdout(sys.stderr):  # keep stdout for replies, whatever it prints
        import syne_tune

    rule = None
    for line in sys.stdin:
        message = json.loads(line)
        if "init" in message:
            rule, reply = Rule(**message["init"]), {"ready": f"syne-tune {syne_tune.__version__}"}
        else:
            assert rule is not None, "the first line must be an init"
            reply = answer(rule, message)
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
