"""Train a trial on several workers (DDP): actors of one placement group.

The trial's own actor trains nothing. It connects the workers, waits for all of them at each step,
and ends all of them when one fails, as they would wait for each other. It owns the workers, so Ray
ends them when it ends.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from sftsearch.orchestrator.execution.reports import FailureCause, failure

if TYPE_CHECKING:
    import socket

    from sftsearch.orchestrator.execution.reports import WorkerReport
    from sftsearch.orchestrator.execution.trial_spec import TrialSpec
    from sftsearch.orchestrator.execution.worker import Worker

WorkerHandle = Any
"""Handle of a `WorkerActor`; Ray does not type the methods of a handle."""


class WorkerActor:
    """One worker of a trial, in its own process."""

    def __init__(self, worker_type: type[Worker]) -> None:
        self._worker = worker_type()
        self._listener: socket.socket | None = None

    def node(self) -> str:
        """Return the address of this worker's node."""
        address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return address

    def listen(self, host: str) -> int:
        """Open the port to which the other workers connect, and return it."""
        from sftsearch.trainables import distributed

        self._listener = distributed.listen(host)
        port: int = self._listener.getsockname()[1]
        return port

    def start(self, spec: TrialSpec, host: str, port: int) -> None:
        """Join the process group, then prepare the trial."""
        from sftsearch.trainables import distributed

        listener, self._listener = self._listener, None
        distributed.join(distributed.Workers(spec.rank, spec.workers), host, port, listener)
        self._worker.start(spec)

    def step(self) -> WorkerReport:
        """Train one epoch with the others; see `Worker.step`."""
        return self._worker.step()


class WorkerGroup:
    """Trains one trial after another, each on all its workers."""

    def __init__(self, worker_type: type[Worker]) -> None:
        self._worker_type = worker_type
        self._actors: list[WorkerHandle] = []
        self._next: TrialSpec | None = None

    def start(self, spec: TrialSpec) -> None:
        """Store the trial; the first `step` starts it."""
        self._next = spec

    def step(self) -> WorkerReport:
        """Train one epoch on all workers; return the report of rank 0, or of a failed worker."""
        try:
            if self._next is not None:
                spec, self._next = self._next, None
                self._begin(spec)
            reports = self._all([actor.step.remote() for actor in self._actors])
        except RayActorError:
            self.close()
            return failure("one of its worker processes died", FailureCause.WORKER_LOST)
        except RayTaskError as error:
            self.close()
            raise error.cause from error
        failed = [report for report in reports if "failed" in report]
        if failed:
            self.close()  # the others may be waiting for the failed one
        return failed[0] if failed else reports[0]

    def _begin(self, spec: TrialSpec) -> None:
        """Create the workers if needed, connect them and start the trial on each."""
        from sftsearch.trainables.distributed import LOOPBACK

        if len(self._actors) != spec.workers:
            self.close()
            self._actors = [self._create(spec, rank) for rank in range(spec.workers)]
        nodes = ray.get([actor.node.remote() for actor in self._actors])
        first, host = self._actors[0], LOOPBACK if len(set(nodes)) == 1 else nodes[0]
        port = ray.get(first.listen.remote(host))
        ray.get(
            [
                actor.start.remote(dataclasses.replace(spec, rank=rank), host, port)
                for rank, actor in enumerate(self._actors)
            ]
        )

    def close(self) -> None:
        """End all workers."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def _create(self, spec: TrialSpec, rank: int) -> WorkerHandle:
        group, given = ray.util.get_current_placement_group(), dict(spec.resources)
        assert group is not None, "Tune runs a trial in a placement group"
        actor_class = ray.remote(WorkerActor).options(
            num_cpus=given.pop("CPU"),
            num_gpus=given.pop("GPU", 0),
            memory=given.pop("memory", None),
            resources=given,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=rank
            ),
        )
        return actor_class.remote(self._worker_type)

    @staticmethod
    def _all(references: list[ray.ObjectRef[WorkerReport]]) -> list[WorkerReport]:
        """Wait for all reports and return them by rank; stop waiting at the first failed one.

        A worker that lost its peer also fails, and may report so before Ray detects the dead peer:
        the others get 5 seconds to report or to raise.

        Raises:
            RayActorError: a worker died.
        """
        reports: list[tuple[int, WorkerReport]] = []
        waiting = list(references)
        while waiting:
            (done, *_), waiting = ray.wait(waiting)
            report = ray.get(done)
            reports.append((references.index(done), report))
            if "failed" in report:
                ray.get(ray.wait(waiting, num_returns=len(waiting), timeout=5)[0])
                break
        return [report for _, report in sorted(reports, key=lambda pair: pair[0])]
