"""What trials are given, how many fit at a time, and on which nodes: CPUs, GPUs, workers, memory.

Ray is asked what there is, and told what a trial needs; where it goes is Ray's decision.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import ray
from ray import tune

from sftsearch.datasets.errors import UserError

if TYPE_CHECKING:
    from sftsearch.orchestrator.execution.trial_spec import TrialSpec
    from sftsearch.search_spaces.schema import Resources

NO_NODE_SECONDS = 10.0
"""How long to wait where Ray runs on this machine alone: no other one will come."""
NO_NODES_SECONDS = 900.0
"""How long to wait for a node of a cluster: a machine takes minutes to start."""


class ResourceError(UserError):
    """What a trial asks for is not there."""


def count_concurrent_trials(resources: Resources) -> int:
    """Return how many trials run at a time on the connected cluster.

    Raises:
        ResourceError: a trial does not fit, for which Ray would wait without an end.
    """
    for given in resources.variants():
        if _count_fitting(given) < 1:
            raise ResourceError(
                f"A trial asks for {_describe(bundle_of(given), given.workers)}, but Ray has "
                f"{_describe(_most(_nodes()))} on its largest node, {len(_nodes())} in all. Lower "
                "`resources`, or name a cluster with --address."
            )
    wanted, fits = resources.concurrent_trials, _count_fitting(resources)
    return fits if wanted == "auto" else min(wanted, fits)


def bundle_of(resources: Resources) -> dict[str, float]:
    """Return what one worker of a trial asks of Ray."""
    asked = {"CPU": resources.cpus, "GPU": resources.gpus}
    asked["memory"] = 1e9 * (resources.memory_gb or 0)
    return {kind: amount for kind, amount in (asked | resources.custom).items() if amount}


def _count_fitting(resources: Resources) -> int:
    """Count the trials that fit on the nodes there are, each of whose workers is on one node."""
    asked = bundle_of(resources)
    fits = sum(_times(node, asked) for node in _nodes())
    return fits // resources.workers


def _times(node: dict[str, float], asked: dict[str, float]) -> int:
    return int(min(node.get(kind, 0.0) / amount for kind, amount in asked.items()) + 1e-9)


def _nodes() -> list[dict[str, float]]:
    """Return the resources of each node that is there."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in nodes if node["Alive"]]


def _most(nodes: list[dict[str, float]]) -> dict[str, float]:
    largest: dict[str, float] = {}
    for node in nodes:
        own = {k: v for k, v in node.items() if not k.startswith(("node:", "object_store"))}
        largest |= {kind: max(amount, largest.get(kind, 0.0)) for kind, amount in own.items()}
    return {"CPU": 0.0, "GPU": 0.0} | largest


def _describe(bundle: dict[str, float], workers: int = 1) -> str:
    """Say it as `2 workers with 1 CPUs and 0.5 GPUs each`."""
    amounts = {"CPU": 0.0, "GPU": 0.0} | bundle
    memory = amounts.pop("memory", 0.0)
    parts = [f"{amount:g} {kind}{'s' * kind.isupper()}" for kind, amount in amounts.items()]
    parts += [f"{memory / 1e9:.3g} GB of memory"] if memory else []
    text = f"{', '.join(parts[:-1])} and {parts[-1]}"
    return text if workers == 1 else f"{workers} workers with {text} each"


class ClusterCapacity:
    """How many trials the cluster holds, as nodes come and go."""

    def __init__(self, resources: Resources, max_concurrent_trials: int, patience: float) -> None:
        """Take what there was at the beginning; `patience` seconds without a node are too many."""
        self._resources, self._patience = resources, patience
        self._max_concurrent_trials = max_concurrent_trials
        self._asked_at, self._seen_at = -math.inf, time.monotonic()

    def max_concurrent_trials(self) -> int:
        """Return how many trials may be handed out now.

        Raises:
            ResourceError: there has been no node for a trial for too long.
        """
        now = time.monotonic()
        if now - self._asked_at > 2:
            self._asked_at = now
            fits, wanted = _count_fitting(self._resources), self._resources.concurrent_trials
            # Where Ray itself keeps the number, one trial more is handed out and waits: Tune stops
            # a warm process that has no next trial.
            limit = fits + 1 if wanted == "auto" or wanted >= fits else wanted
            self._max_concurrent_trials = limit
            self._seen_at = now if fits else self._seen_at
        if now - self._seen_at > self._patience:
            raise ResourceError(
                f"Ray has had no node for a trial for {self._patience:g} seconds. What ran is "
                "kept: mend it, and go on with --resume."
            )
        return self._max_concurrent_trials


def placement_of(spec: TrialSpec) -> tune.PlacementGroupFactory:
    """Return what a trial asks of Ray; several workers have the bundles behind the empty first."""
    workers = [spec.resources] * spec.workers
    return tune.PlacementGroupFactory(workers if spec.workers == 1 else [{}, *workers])
