"""How Tune gives trials processes, without two faults of Ray 2.60.

Ray loses what a placement group was to get when that is removed between the preparation of its
bundles and their commitment (ray#64693): CPUs and GPUs that nobody has and nobody gets until Ray
ends. Tune removes such groups whenever a trial takes a warm process instead of the one it asked
for, and where the nodes hold one trial, the study would then wait for ever.

Tune also ends a process that is starting when its trial could have a warm one instead: where
trials end every few seconds no further process comes up, and CPUs and whole nodes stay idle.

Ray promises nothing of the names used here: `test_tune_patches.py` lists them.
"""

from __future__ import annotations

import contextlib
import importlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import ray
from ray.air.execution import PlacementGroupResourceManager
from ray.tune.execution.tune_controller import TuneController
from ray.util import remove_placement_group

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ray.air.execution import ResourceRequest
    from ray.air.execution._internal.tracked_actor import TrackedActor
    from ray.tune.experiment import Trial
    from ray.util.placement_group import PlacementGroup

    Placed = ray.ObjectRef[object]

CLEAR_SECONDS = 5.0
"""How long, at the end, a group is waited for that Ray may be placing."""


class PatchedResourceManager(PlacementGroupResourceManager):
    """Removes no placement group that Ray may be placing.

    A request that is taken back leaves its group to the next request of its kind; where none comes,
    the group is removed as soon as it is placed.
    """

    def __init__(self, update_interval_s: float = 0.1) -> None:
        super().__init__(update_interval_s)
        self._spare: dict[ResourceRequest, list[tuple[PlacementGroup, Placed]]] = defaultdict(list)
        """Groups whose requests were taken back, by request, with the futures of their placing."""

    def get_resource_futures(self) -> list[Placed]:
        """Return what to wait for, spare groups too: they are removed when they are placed."""
        spare = [future for pairs in self._spare.values() for _, future in pairs]
        return [*super().get_resource_futures(), *spare]

    def update_state(self) -> None:
        """Note which groups are placed."""
        super().update_state()  # type: ignore[no-untyped-call]
        for pairs in self._spare.values():
            for pair in list(pairs):
                if ray.wait([pair[1]], timeout=0)[0]:
                    pairs.remove(pair)
                    remove_placement_group(pair[0])

    def request_resources(self, resource_request: ResourceRequest) -> None:
        """Take over a spare group, or ask for one."""
        if not self._spare[resource_request]:
            super().request_resources(resource_request)
            return
        group, future = self._spare[resource_request].pop()
        self._pg_to_request[group] = resource_request
        self._request_to_staged_pgs[resource_request].add(group)
        self._staging_future_to_pg[future] = group
        self._pg_to_staging_future[group] = future

    def cancel_resource_request(self, resource_request: ResourceRequest) -> None:
        """Take a request back."""
        if not self._request_to_staged_pgs[resource_request]:
            super().cancel_resource_request(resource_request)
            return
        group = self._request_to_staged_pgs[resource_request].pop()
        future = self._pg_to_staging_future.pop(group)
        del self._staging_future_to_pg[future], self._pg_to_request[group]
        self._spare[resource_request].append((group, future))

    def clear(self) -> None:
        """Remove all groups, those that are being placed when they are."""
        if ray.is_initialized():
            waiting = self.get_resource_futures()
            if waiting:
                ray.wait(waiting, num_returns=len(waiting), timeout=CLEAR_SECONDS)
            for group, _ in (pair for pairs in self._spare.values() for pair in pairs):
                remove_placement_group(group)
        super().clear()  # type: ignore[no-untyped-call]


class PatchedTuneController(TuneController):
    """Has a trial whose process is starting wait for it; warm ones go to other trials."""

    def __init__(self, **options: Any) -> None:
        super().__init__(resource_manager_factory=PatchedResourceManager, **options)

    def _maybe_reuse_cached_actor(self, trial: Trial) -> bool:
        """Give a trial a warm process, if there is one and its own is not starting."""
        if not self._is_starting(trial):
            return super()._maybe_reuse_cached_actor(trial)
        request = trial.placement_group_factory
        for other in self._resources_to_pending_trials[request]:  # type: ignore[index]
            # One that Tune has not yet asked a process for is about to get the warm one.
            is_waiting = other in self._staged_trials and other not in self._resetting_trials
            if is_waiting and not self._is_starting(other):
                super()._maybe_reuse_cached_actor(other)
                break
        return False

    def _is_starting(self, trial: Trial) -> bool:
        actor: TrackedActor | None = self._trial_to_actor.get(trial)
        has_room = actor is not None and self._actor_manager.is_actor_started(actor)
        return has_room and actor not in self._started_actors


@contextlib.contextmanager
def patched_tune_controller() -> Iterator[None]:
    """Have Tune use these for the time of the block; `Tuner` has no option for it."""
    module = importlib.import_module("ray.tune.tune")
    theirs = module.TuneController
    module.TuneController = PatchedTuneController  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.TuneController = theirs  # type: ignore[attr-defined]
