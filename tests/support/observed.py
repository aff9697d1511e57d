"""Observations of trials, without a study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sftsearch.orchestrator.storage.events import ImportedConfiguration
from sftsearch.orchestrator.storage.trial_state import ConfigurationState
from sftsearch.orchestrator.surrogate import observations as product

if TYPE_CHECKING:
    from sftsearch.search_spaces.point import Point

VALUE = "value"


class Observations(product.Observations):
    """Observations that tests update trial by trial."""

    def __init__(self, costs: tuple[str, ...], **options: Any) -> None:
        super().__init__(VALUE, costs, **options)

    def enter(self, number: int, name: str, point: Point, **body: Any) -> Any:
        configuration = ConfigurationState(
            number=number, id=name, point=point, row=len(self), **body
        )
        self.admit(configuration)
        return configuration

    def await_(self, observed: ConfigurationState, replicate: int, *, fresh: bool = False) -> None:
        observed.pending.add(replicate)
        if fresh:
            observed.fresh.add(replicate)
        self.begin(observed)

    def finish(
        self, observed: ConfigurationState, replicate: int, values: list[float], seconds: float
    ) -> None:
        observed.pending.discard(replicate)
        observed.values[replicate] = {VALUE: values[0], "seconds": seconds}
        self.end(observed)

    def drop(self, observed: ConfigurationState, replicate: int, *, stopped: bool) -> None:
        observed.pending.discard(replicate)
        observed.stopped |= stopped
        observed.failed |= not stopped
        self.end(observed)

    def withdraw(self, observed: ConfigurationState, replicate: int) -> None:
        observed.pending.discard(replicate)
        observed.fresh.discard(replicate)
        self.begin(observed)


def imported(
    name: str, point: Point, values: dict[int, float], seconds: dict[int, float]
) -> ImportedConfiguration:
    """Return a configuration of another study with one objective."""
    return ImportedConfiguration(name, point, {n: [v] for n, v in values.items()}, seconds)
