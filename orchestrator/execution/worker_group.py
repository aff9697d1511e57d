"""A trial on several workers: actors of one placement group, which train together.

The trial's own actor trains nothing. It has the workers meet, waits for all of them at each step,
and ends all of them when one fails: they would wait for each other. They are its own, so Ray ends
them with it, however it ends.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from sftsearch.orchestrator.execution.worker import LOST, failure

if TYPE_CHECKING:
    import socket

    from sftsearch.orchestrator.execution.worker import Job, Worker


class Member:
    """One worker of a trial, in a process of its own."""

    def __init__(self, worker_type: type[Worker]) -> None:
        self._worker = worker_type()
        self._listener: socket.socket | None = None

    def node(self) -> str:
        """Return the address of this worker's node."""
        address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return address

    def listen(self, host: str) -> int:
        """Open a port at which the others meet this worker, and return it."""
        from sftsearch.trainables import distributed

        self._listener = distributed.listen(host)
        port: int = self._listener.getsockname()[1]
        return port

    def start(self, job: Job, host: str, port: int) -> None:
        """Meet the others, then take up the trial with them."""
        from sftsearch.trainables import distributed

        listener, self._listener = self._listener, None
        distributed.join(distributed.Workers(job.rank, job.workers), host, port, listener)
        self._worker.start(job)

    def step(self) -> dict[str, Any]:
        """Train one epoch with the others; see `Worker.step`."""
        return self._worker.step()


class Team:
    """Trains trials one after another, each on all its members."""

    def __init__(self, worker_type: type[Worker]) -> None:
        self._worker_type = worker_type
        self._members: list[Any] = []
        self._next: Job | None = None

    def start(self, job: Job) -> None:
        """Note the trial; the first `step` begins it."""
        self._next = job

    def step(self) -> dict[str, Any]:
        """Train one epoch on all members; return the report of the first, or what went wrong."""
        try:
            if self._next is not None:
                job, self._next = self._next, None
                self._begin(job)
            reports = self._all([member.step.remote() for member in self._members])
        except RayActorError:
            self.close()
            return failure("one of its worker processes died", LOST)
        except RayTaskError as error:
            self.close()
            raise error.cause from error
        failed = [report for report in reports if "failed" in report]
        if failed:
            self.close()  # the others may wait for the one that failed
        report: dict[str, Any] = failed[0] if failed else reports[0]
        return report

    def _begin(self, job: Job) -> None:
        """Have the members meet and take up the trial."""
        from sftsearch.trainables.distributed import LOOPBACK

        if len(self._members) != job.workers:
            self.close()
            self._members = [self._make(job, rank) for rank in range(job.workers)]
        nodes = ray.get([member.node.remote() for member in self._members])
        first, host = self._members[0], LOOPBACK if len(set(nodes)) == 1 else nodes[0]
        port = ray.get(first.listen.remote(host))
        ray.get(
            [
                member.start.remote(dataclasses.replace(job, rank=rank), host, port)
                for rank, member in enumerate(self._members)
            ]
        )

    def close(self) -> None:
        """End all members."""
        for member in self._members:
            ray.kill(member)
        self._members = []

    def _make(self, job: Job, rank: int) -> Any:
        group, given = ray.util.get_current_placement_group(), dict(job.resources)
        assert group is not None, "a trial runs in a placement group of Tune's"
        options: dict[str, Any] = {
            "num_cpus": given.pop("CPU"),
            "num_gpus": given.pop("GPU", 0),
            "memory": given.pop("memory", None),
            "resources": given,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=rank
            ),
        }
        return ray.remote(Member).options(**options).remote(self._worker_type)

    @staticmethod
    def _all(references: list[Any]) -> list[dict[str, Any]]:
        """Return all reports; as soon as one says `failed`, those that came until then.

        A worker that lost another one fails, too, and may say so before Ray knows of the other.

        Raises:
            RayActorError: a worker died.
        """
        reports, waiting = [], list(references)
        while waiting:
            (done, *_), waiting = ray.wait(waiting)
            reports.append((references.index(done), ray.get(done)))
            if "failed" in reports[-1][1]:
                ray.get(ray.wait(waiting, num_returns=len(waiting), timeout=5)[0])
                break
        return [report for _, report in sorted(reports, key=lambda pair: pair[0])]
