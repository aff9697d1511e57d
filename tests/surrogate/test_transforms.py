"""Compare transformed shares with closed forms and quadrature."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats

from sftsearch.orchestrator.surrogate.transforms import LEAST, OutcomeTransform

SHARES = np.array([0.05, 0.3, 0.5, 0.9, 0.97])


def test_outcome_transform_leaves_other_metrics_unchanged() -> None:
    transform = OutcomeTransform()
    values = np.array([-3.0, 0.0, 12.5])
    assert transform.to_latent(values).tolist() == values.tolist()
    assert transform.to_values(values, 0.7).tolist() == values.tolist()
    assert transform.slopes(values, 0.7).tolist() == [1, 1, 1]


def test_outcome_transform_inverts_log_odds() -> None:
    transform = OutcomeTransform(is_share=True)
    latent = transform.to_latent(SHARES)
    assert latent == pytest.approx(np.log(SHARES / (1 - SHARES)))
    assert transform.to_values(latent) == pytest.approx(SHARES)
    assert transform.slopes(latent) == pytest.approx(SHARES * (1 - SHARES))


def test_outcome_transform_keeps_the_order_of_minimized_shares() -> None:
    transform = OutcomeTransform(is_share=True, sign=-1.0)
    latent = transform.to_latent(-SHARES)
    assert (np.diff(latent) < 0).all()
    assert transform.to_values(latent) == pytest.approx(-SHARES)
    assert (transform.slopes(latent, 0.4) > 0).all()


def test_outcome_transform_of_0_and_1_is_finite_and_keeps_nan() -> None:
    transform = OutcomeTransform(is_share=True)
    bound = math.log((1 - LEAST) / LEAST)
    assert transform.to_latent([0.0, 1.0]) == pytest.approx([-bound, bound])
    assert np.isnan(transform.to_latent([math.nan])).all()


def test_outcome_transform_clips_below_half_of_chance() -> None:
    transform = OutcomeTransform(is_share=True, floor=0.2)
    assert transform.to_latent([0.0, 0.05, 0.1]).tolist() == [special.logit(0.1)] * 3
    assert transform.to_latent([0.11])[0] > special.logit(0.1)


@pytest.mark.parametrize("spread", [0.1, 0.4, 0.8])
def test_outcome_transform_gives_the_mean_of_shares_over_the_spread(spread: float) -> None:
    """Compare with quadrature under the normal density, within a third of a percentage point."""
    transform = OutcomeTransform(is_share=True)
    latent = special.logit(SHARES)
    z = np.linspace(-8, 8, 4001)
    weights = stats.norm.pdf(z) * (z[1] - z[0])
    exact = special.expit(latent[:, None] + spread * z) @ weights
    assert transform.to_values(latent, spread) == pytest.approx(exact, abs=0.0033)


def test_outcome_transform_slopes_agree_with_finite_differences() -> None:
    transform = OutcomeTransform(is_share=True)
    latent = np.linspace(-4, 4, 9)
    step = 1e-6
    rise = transform.to_values(latent + step, 0.5) - transform.to_values(latent - step, 0.5)
    assert transform.slopes(latent, 0.5) == pytest.approx(rise / (2 * step), rel=1e-6)
