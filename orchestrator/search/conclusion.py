"""Compute a study's conclusions at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sftsearch.orchestrator.early_stopping.audits import false_stop_rate
from sftsearch.orchestrator.storage.events import Concluded
from sftsearch.orchestrator.surrogate.front_probability import (
    front_probabilities,
    within_delta_everywhere,
)

if TYPE_CHECKING:
    from sftsearch.orchestrator.search.knowledge import Knowledge

NUM_DRAWS = 1_000
"""Draws of the posterior from which probabilities are estimated."""


def conclude(known: Knowledge) -> Concluded:
    """Return every configuration's posterior, the reported front and the rate of wrong stops.

    At least one configuration must have a value.
    """
    state, measured, posterior = known.state, known.past.measured(), known.surrogate.posterior()
    draws = known.surrogate.draws(NUM_DRAWS)
    on_front = front_probabilities(draws, measured.costs)
    frozen = [one for one in state.frozen if state.configurations[one].is_complete]
    reported = frozen or known.surrogate.front()
    chosen = np.isin(measured.ids, reported)
    low = float(measured.costs[chosen].min())
    posteriors = {
        identity: {
            "mean": float(known.past.sign * posterior.means[i]),
            "sd": float(posterior.deviations[i]),
            "on_front": float(on_front[i]),
        }
        for i, identity in enumerate(measured.ids)
    }
    false_stops = false_stop_rate(known.rule.audits)
    return Concluded(
        reported=list(reported),
        beliefs=posteriors,
        within_delta=within_delta_everywhere(draws, measured.costs, chosen, low=low),
        audits=false_stops._asdict() if false_stops.num else None,
        num_stopped=state.num_ended["stopped"],
    )
