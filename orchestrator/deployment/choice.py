"""Choose a configuration of a study to export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftsearch.orchestrator.metrics import metric
from sftsearch.orchestrator.studies import StudyError

if TYPE_CHECKING:
    from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary
    from sftsearch.orchestrator.analysis.front import Front


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A configuration by its id, or the most accurate of the front within limits."""

    configuration: str | None = None
    """Its id, or the first characters of it; it need not be on the front."""
    max_gflops: float | None = None
    max_gmacs: float | None = None

    def limits(self) -> dict[str, float]:
        """Return the limits by metric."""
        named = {"gflops": self.max_gflops, "gmacs": self.max_gmacs}
        return {name: limit for name, limit in named.items() if limit is not None}


def choose_configuration(front: Front, choice: Choice) -> ConfigurationSummary:
    """Return the chosen configuration of a study.

    Raises:
        StudyError: no configuration has this id, or none of the front is within the limits.
    """
    if choice.configuration is not None:
        return _by_id(front, choice.configuration)
    limits = choice.limits()
    within = [c for c in front.points if all(c.values[n] <= most for n, most in limits.items())]
    if within:
        return max(within, key=front.quality)
    if not front.points:
        raise StudyError(
            f"The study '{front.study.name}' has no front: no configuration has finished."
        )
    asked = " and ".join(f"at most {most:g} {name}" for name, most in limits.items())
    names = (*limits, front.y)
    shown = "; ".join(
        f"{c.configuration_id} ({', '.join(_named(name, c) for name in names)})"
        for c in front.points
    )
    raise StudyError(f"No configuration of the front has {asked}. It has {shown}.")


def _by_id(front: Front, text: str) -> ConfigurationSummary:
    if front.baselines and text in {c.configuration_id for c in front.baselines.summaries}:
        raise StudyError(
            f"'{text}' is a baseline, which has no weights: it is fitted in seconds. Name a "
            "configuration."
        )
    found = [c for c in front.finished if c.configuration_id.startswith(text)]
    if len(found) == 1:
        return found[0]
    if len(found) > 1:
        some = ", ".join(c.configuration_id for c in found[:8])
        raise StudyError(f"{len(found)} configurations begin with '{text}': {some}.")
    points = ", ".join(c.configuration_id for c in front.points) or "empty"
    raise StudyError(
        f"No finished configuration of '{front.study.name}' begins with '{text}'. The front: "
        f"{points}."
    )


def _named(name: str, c: ConfigurationSummary) -> str:
    return f"{metric(name).format(c.values[name])} {name}"
