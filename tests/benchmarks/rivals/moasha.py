"""Serve Syne Tune's MO-ASHA as a stopping rule, with JSON lines on stdin and stdout.

Run it in a separate environment with syne-tune 0.15.0 (sftsearch is not needed). The caller
proposes configurations; the script decides which running trials to stop. Every line gets one reply:

    {"init": {"num_epochs": 27, "reduction_factor": 3, "seed": 0, "corrected": false}}
        -> {"ready": "syne-tune 0.15.0"}; optional "grace_period", default 1
    {"report": {"trial": 7, "epoch": 1, "accuracy": 0.6, "cost": 0.2}} -> {"stop": false}
    {"complete": 7} -> {"done": 7}

Another `init` starts a new search. A trial is registered by its first report and removed when it is
stopped or complete. The last epoch never stops a trial. The objectives are 1 - accuracy and the
cost, unscaled; the epsilon-net uses Euclidean distances, so the cost should have a similar scale,
such as its logarithm in [0, 1].

`corrected` fixes two bugs of 0.15.0. The scheduler compares *ranks*, 0 for the best trial of a
rung, but gets the *sorted order*, the indices of the trials from best to worst; so the last entry,
which it reads as the rank of the reporting trial, is the index of the worst one. And within a front
it uses ranks of the epsilon-net as an order; with a single front the two bugs cancel.

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
    """Order points, (N, D), each as far as possible from the earlier ones; return indices.

    The first point is the lowest in the first objective.

    Source: Clarkson 2005, "Nearest-neighbor searching and metric space dimensions", p. 17.
    """
    order = [int(np.argmin(points[:, 0]))]
    nearest = np.linalg.norm(points - points[order[0]], axis=1)
    nearest[order[0]] = -1.0  # below every distance, so never chosen again
    while len(order) < len(points):
        farthest = int(np.argmax(nearest))
        order.append(farthest)
        nearest = np.minimum(nearest, np.linalg.norm(points - points[farthest], axis=1))
        nearest[order] = -1.0
    return order


def non_dominated_ranks(points: Floats) -> NDArray[np.int64]:
    """Return the rank of every point, (N,), 0 for the best; objectives (N, D) are minimized.

    Points are ranked by front, and within a front by the order of the epsilon-net.
    """
    ranks = np.empty(len(points), dtype=np.int64)
    left = np.arange(len(points))
    num_ranked = 0
    while len(left):
        no_worse = np.all(points[left, None] <= points[None, left], axis=2)
        better = np.any(points[left, None] < points[None, left], axis=2)
        dominated = np.any(no_worse & better, axis=0)
        front = left[~dominated]
        order = front[epsilon_net_order(points[front])]
        ranks[order] = np.arange(num_ranked, num_ranked + len(order))
        num_ranked += len(order)
        left = left[dominated]
    return ranks


class Rule:
    """The scheduler and its running trials."""

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
            """Return ranks, as the scheduler expects."""

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
        """Report one epoch of a trial; return whether to stop it."""
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
        """Report the end of a trial that was not stopped."""
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
    with contextlib.redirect_stdout(sys.stderr):  # keep stdout for replies
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
