"""Compute how many trials fit on the nodes of a Ray cluster, and what each requests from Ray.

Ray itself decides on which node a trial runs.
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
"""How long to wait for a node if Ray runs on this machine only: no other node will join."""
NO_NODES_SECONDS = 900.0
"""How long to wait for a node of a cluster: starting a machine takes minutes."""


class ResourceError(UserError):
    """The resources that a trial requests are not available."""


def count_concurrent_trials(resources: Resources) -> int:
    """Return how many trials run at a time on the connected cluster.

    Raises:
        ResourceError: a trial does not fit on the nodes; Ray would wait forever.
    """
    for given in resources.variants():
        if _count_fitting(given) < 1:
            raise ResourceError(
                f"A trial requests {_describe(bundle_of(given), given.workers)}, but the largest "
                f"Ray node has {_describe(_largest(_nodes()))} (number of nodes: "
                f"{len(_nodes())}). Lower `resources`, or connect to a cluster with --address."
            )
    requested, fits = resources.concurrent_trials, _count_fitting(resources)
    return fits if requested == "auto" else min(requested, fits)


def bundle_of(resources: Resources) -> dict[str, float]:
    """Return what one worker of a trial requests from Ray."""
    request = {"CPU": resources.cpus, "GPU": resources.gpus}
    request["memory"] = 1e9 * (resources.memory_gb or 0)
    return {kind: amount for kind, amount in (request | resources.custom).items() if amount}


def _count_fitting(resources: Resources) -> int:
    """Count the trials that fit on the current nodes; a worker does not span nodes."""
    request = bundle_of(resources)
    fits = sum(_times(node, request) for node in _nodes())
    return fits // resources.workers


def _times(node: dict[str, float], request: dict[str, float]) -> int:
    return int(min(node.get(kind, 0.0) / amount for kind, amount in request.items()) + 1e-9)


def _nodes() -> list[dict[str, float]]:
    """Return the resources of each live node."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in nodes if node["Alive"]]


def _largest(nodes: list[dict[str, float]]) -> dict[str, float]:
    largest: dict[str, float] = {}
    for node in nodes:
        own = {k: v for k, v in node.items() if not k.startswith(("node:", "object_store"))}
        largest |= {kind: max(amount, largest.get(kind, 0.0)) for kind, amount in own.items()}
    return {"CPU": 0.0, "GPU": 0.0} | largest


def _describe(bundle: dict[str, float], workers: int = 1) -> str:
    """Format a request, as in `2 workers with 1 CPUs and 0.5 GPUs each`."""
    amounts = {"CPU": 0.0, "GPU": 0.0} | bundle
    memory = amounts.pop("memory", 0.0)
    parts = [f"{amount:g} {kind}{'s' * kind.isupper()}" for kind, amount in amounts.items()]
    parts += [f"{memory / 1e9:.3g} GB of memory"] if memory else []
    text = f"{', '.join(parts[:-1])} and {parts[-1]}"
    return text if workers == 1 else f"{workers} workers with {text} each"


class ClusterCapacity:
    """Tracks how many trials fit on the cluster as nodes join and leave."""

    def __init__(self, resources: Resources, max_concurrent_trials: int, patience: float) -> None:
        """Start from the initial limit; raise after `patience` seconds without a fitting node."""
        self._resources, self._patience = resources, patience
        self._max_concurrent_trials = max_concurrent_trials
        self._asked_at, self._seen_at = -math.inf, time.monotonic()

    def max_concurrent_trials(self) -> int:
        """Return how many trials may run or wait in Ray now.

        Raises:
            ResourceError: no node could fit a trial for too long.
        """
        now = time.monotonic()
        if now - self._asked_at > 2:
            self._asked_at = now
            fits, requested = _count_fitting(self._resources), self._resources.concurrent_trials
            # If Ray's resources are the limit, one more trial waits in Tune: Tune stops a warm
            # process for which no trial is waiting.
            limit = fits + 1 if requested == "auto" or requested >= fits else requested
            self._max_concurrent_trials = limit
            self._seen_at = now if fits else self._seen_at
        if now - self._seen_at > self._patience:
            raise ResourceError(
                f"No Ray node could fit a trial for {self._patience:g} seconds. Finished work is "
                "kept: add nodes or lower `resources`, then continue with --resume."
            )
        return self._max_concurrent_trials


def placement_of(spec: TrialSpec) -> tune.PlacementGroupFactory:
    """Return what a trial requests from Ray.

    With several workers the first bundle is empty: the trial's own actor trains nothing.
    """
    workers = [spec.resources] * spec.workers
    return tune.PlacementGroupFactory(workers if spec.workers == 1 else [{}, *workers])
