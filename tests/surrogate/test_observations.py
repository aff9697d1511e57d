"""Compare observations with a simple record of the same events."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftsearch.orchestrator.surrogate.fold_effects import additive_means
from sftsearch.search_spaces.point import Point

from observed import Observations

if TYPE_CHECKING:
    from sftsearch.orchestrator.storage.trial_state import ConfigurationState


def admit(past: Observations, name: str, gflops: float = 1.0) -> ConfigurationState:
    return past.enter(
        len(past),
        name,
        Point(0, {}),
        model="sft",
        parameters={"dim": 8},
        cost={"gflops": gflops, "parameters": 10.0},
        epochs=4,
        warmup=0,
        group="0 none",
    )


def test_observations_average_values_over_replicates_and_cost_by_the_first_objective() -> None:
    past = Observations(("parameters", "gflops"))
    for n, values in enumerate(([0.5, 0.7], [0.9])):
        observed = admit(past, f"c{n}")
        for replicate, value in enumerate(values):
            past.await_(observed, replicate)
            past.finish(observed, replicate, [value, 1.0], 10.0 * (replicate + 1))
    measured = past.measured()
    assert measured.ids == ["c0", "c1"]
    assert measured.means == pytest.approx([0.6, 0.9])
    assert measured.counts.tolist() == [2, 1]
    assert measured.costs.tolist() == [10, 10]
    assert measured.seconds.tolist() == [15, 10]
    assert (measured.pooled_variance, measured.dof) == (pytest.approx(0.02), 1)
    assert past.measured() is measured  # nothing happened since


def test_observations_negate_values_to_minimize() -> None:
    past = Observations(("gflops",), sign=-1.0)
    observed = admit(past, "c")
    past.await_(observed, 0)
    past.finish(observed, 0, [2.5, 1.0], 1.0)
    assert past.measured().means.tolist() == [-2.5]
    assert observed.values == {0: {"value": 2.5, "seconds": 1.0}}


def test_observations_store_shares_as_log_odds() -> None:
    past = Observations(("gflops",), is_share=True, floor=0.1)
    observed = admit(past, "c")
    for replicate, value in enumerate((0.8, 0.6)):
        past.await_(observed, replicate)
        past.finish(observed, replicate, [value, 1.0], 1.0)
    odds = np.log([0.8 / 0.2, 0.6 / 0.4])
    measured = past.measured()
    assert measured.means == pytest.approx([odds.mean()])
    assert measured.pooled_variance == pytest.approx(odds.var(ddof=1))
    assert past.floor == 0.1


def test_observations_adjust_means_for_fold_effects() -> None:
    past = Observations(("gflops",), num_folds=3)
    effects = (0.0, 0.2, -0.1)
    table = np.full((6, 3), np.nan)
    for c in range(6):
        observed = admit(past, f"c{c}")
        for replicate in range(3 if c else 1):  # the first ran on one fold only
            value = 0.5 + 0.05 * c + effects[replicate] + 0.01 * ((c * 7 + replicate * 3) % 5)
            table[c, replicate] = value
            past.await_(observed, replicate)
            past.finish(observed, replicate, [value, 1.0], 1.0)
    means, counts, variance, dof, *_ = additive_means(table, np.arange(3))
    measured = past.measured()
    assert measured.means == pytest.approx(means)
    assert measured.counts == pytest.approx(counts)
    assert (measured.pooled_variance, measured.dof) == (pytest.approx(variance), dof)


def test_observations_use_chance_or_the_worst_value_as_floor() -> None:
    assert Observations(("gflops",), floor=0.25).floor == 0.25
    past = Observations(("gflops",))
    assert past.floor == 0
    for n, value in enumerate((0.7, 0.4, 0.9)):
        observed = admit(past, f"c{n}")
        past.await_(observed, 0)
        past.finish(observed, 0, [value, 1.0], 1.0)
    assert past.floor == 0.4


@pytest.mark.parametrize("stopped", [True, False])
def test_observations_drop_a_stopped_or_failed_configuration(stopped: bool) -> None:
    past = Observations(("gflops",))
    observed = admit(past, "c")
    for replicate in (0, 1):
        past.await_(observed, replicate)
    assert past.pending() == [observed]
    past.finish(observed, 0, [0.5, 1.0], 1.0)
    assert past.pending() == []  # it has a value already
    assert past.has_values
    past.drop(observed, 1, stopped=stopped)
    assert (observed.stopped, observed.failed) == (stopped, not stopped)
    assert not past.has_values
    assert not observed.is_complete
    assert observed.num_replicates == 2


def test_observations_forget_withdrawn_replicates() -> None:
    past = Observations(("gflops",))
    observed = admit(past, "c")
    past.await_(observed, 0)
    past.await_(observed, 1, fresh=True)
    past.withdraw(observed, 1)
    assert (observed.pending, observed.fresh, observed.num_replicates) == ({0}, set(), 1)


ACTS = st.lists(
    st.tuples(st.integers(0, 90), st.sampled_from(["begin", "finish", "stop", "fail", "withdraw"])),
    max_size=300,
)


@settings(max_examples=50)
@given(ACTS)
def test_observations_agree_with_the_events_of_each_configuration(
    acts: list[tuple[int, str]],
) -> None:
    """Random events, with more configurations than the initial capacity."""
    past = Observations(("gflops",))
    every = [admit(past, f"c{n}", float(n + 1)) for n in range(91)]
    for row, act in acts:
        observed = every[row]
        if act == "begin":
            past.await_(observed, observed.num_replicates)
        elif observed.pending:
            replicate = max(observed.pending)
            if act == "finish":
                past.finish(observed, replicate, [row + replicate / 8, 1.0], 2.0)
            elif act == "withdraw":
                past.withdraw(observed, replicate)
            else:
                past.drop(observed, replicate, stopped=act == "stop")
    complete = [o for o in every if o.values and not o.failed and not o.stopped]
    measured = past.measured()
    assert measured.ids == [o.id for o in complete]
    assert measured.rows.tolist() == [o.row for o in complete]
    assert measured.costs.tolist() == [o.row + 1 for o in complete]
    assert measured.counts.tolist() == [len(o.values) for o in complete]
    assert measured.means == pytest.approx(
        [np.mean([value["value"] for value in o.values.values()]) for o in complete]
    )
    running, replicates = past.replicates()
    assert running.tolist() == [len(o.pending) for o in complete]
    assert replicates.tolist() == [o.num_replicates for o in complete]
    waiting = {o.id for o in every if o.pending and not (o.values or o.failed or o.stopped)}
    assert {o.id for o in past.pending()} == waiting
    assert past.all == every
