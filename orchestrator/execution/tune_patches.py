"""Work around two Ray 2.60 bugs in trial scheduling.

1. Removing a placement group between the preparation and the commitment of its bundles leaks its
   CPUs and GPUs until Ray ends (ray#64693). Tune removes such groups whenever a trial takes a warm
   process instead of the requested one. If the nodes fit one trial only, the study then hangs.
2. Tune ends a process that is still starting if its trial can have a warm one. If trials end every
   few seconds, no further process ever starts, and CPUs and whole nodes stay idle.

The Ray names used here are private: `test_tune_patches.py` lists them.
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
"""How long to wait, at the end, for groups that Ray may be placing."""


class PatchedResourceManager(PlacementGroupResourceManager):
    """Never removes a placement group while Ray may be placing it.

    The group of a canceled request goes to the next request for the same resources; without such
    a request, the group is removed as soon as it is placed.
    """

    def __init__(self, update_interval_s: float = 0.1) -> None:
        super().__init__(update_interval_s)
        self._spare: dict[ResourceRequest, list[tuple[PlacementGroup, Placed]]] = defaultdict(list)
        """Groups of canceled requests, by request, with the futures of their placement."""

    def get_resource_futures(self) -> list[Placed]:
        """Return the futures to wait for, those of spare groups included."""
        spare = [future for pairs in self._spare.values() for _, future in pairs]
        return [*super().get_resource_futures(), *spare]

    def update_state(self) -> None:
        """Update which groups are placed, and remove placed spare groups."""
        super().update_state()  # type: ignore[no-untyped-call]
        for pairs in self._spare.values():
            for pair in list(pairs):
                if ray.wait([pair[1]], timeout=0)[0]:
                    pairs.remove(pair)
                    remove_placement_group(pair[0])

    def request_resources(self, resource_request: ResourceRequest) -> None:
        """Reuse a spare group, or request a new one."""
        if not self._spare[resource_request]:
            super().request_resources(resource_request)
            return
        group, future = self._spare[resource_request].pop()
        self._pg_to_request[group] = resource_request
        self._request_to_staged_pgs[resource_request].add(group)
        self._staging_future_to_pg[future] = group
        self._pg_to_staging_future[group] = future

    def cancel_resource_request(self, resource_request: ResourceRequest) -> None:
        """Cancel a request; if its group is not placed yet, keep it as a spare."""
        if not self._request_to_staged_pgs[resource_request]:
            super().cancel_resource_request(resource_request)
            return
        group = self._request_to_staged_pgs[resource_request].pop()
        future = self._pg_to_staging_future.pop(group)
        del self._staging_future_to_pg[future], self._pg_to_request[group]
        self._spare[resource_request].append((group, future))

    def clear(self) -> None:
        """Remove all groups, after waiting for those that are being placed."""
        if ray.is_initialized():
            waiting = self.get_resource_futures()
            if waiting:
                ray.wait(waiting, num_returns=len(waiting), timeout=CLEAR_SECONDS)
            for group, _ in (pair for pairs in self._spare.values() for pair in pairs):
                remove_placement_group(group)
        super().clear()  # type: ignore[no-untyped-call]


class PatchedTuneController(TuneController):
    """Lets a trial wait for its starting process and gives warm processes to other trials."""

    def __init__(self, **options: Any) -> None:
        super().__init__(resource_manager_factory=PatchedResourceManager, **options)

    def _maybe_reuse_cached_actor(self, trial: Trial) -> bool:
        """Give a trial a warm process, unless its own process is starting."""
        if not self._is_starting(trial):
            return super()._maybe_reuse_cached_actor(trial)
        request = trial.placement_group_factory
        for other in self._resources_to_pending_trials[request]:  # type: ignore[index]
            # A trial without a requested process can take the warm one.
            is_waiting = other in self._staged_trials and other not in self._resetting_trials
            if is_waiting and not self._is_starting(other):
                super()._maybe_reuse_cached_actor(other)
                break
        return False

    def _is_starting(self, trial: Trial) -> bool:
        actor: TrackedActor | None = self._trial_to_actor.get(trial)
        is_created = actor is not None and self._actor_manager.is_actor_started(actor)
        return is_created and actor not in self._started_actors


@contextlib.contextmanager
def patched_tune_controller() -> Iterator[None]:
    """Patch Tune's controller for the duration of the block; `Tuner` has no option for it."""
    module = importlib.import_module("ray.tune.tune")
    original = module.TuneController
    module.TuneController = PatchedTuneController  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.TuneController = original  # type: ignore[attr-defined]
