"""Ends of a study: trials, epochs, hours on a simulated clock, GPU hours, convergence."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest

from sftsearch.orchestrator.search.budget import CONVERGED_GAIN, Budget
from sftsearch.orchestrator.search.state import StudyState
from sftsearch.orchestrator.storage.events import Expected, Opened, Told
from sftsearch.orchestrator.storage.journal import Entry

from toy_study import Memory, Training, noise, source_of, uneven, width

if TYPE_CHECKING:
    from sftsearch.orchestrator.search.engine import Search
    from sftsearch.orchestrator.storage.event import Event

    from journals import RawEvent

TRAINING = Training(epochs=4, truth=uneven, seconds=60.0)
"""Four minutes per trial."""


def run(
    plan: str, events: list[RawEvent] | None = None, *, slots: int = 1, **more: Any
) -> tuple[list[RawEvent], Search]:
    memory = Memory(source_of(plan, epochs=4, **more), slots=slots)
    journal, search = memory.open(events or [])
    memory.drive(search, TRAINING)
    return list(journal.events()), search


def count(events: list[RawEvent], kind: str) -> int:
    return sum(event.kind == kind for event in events)


LIMITS = {
    "max_epochs: 18": ("the limit of 18 epochs was reached", 5),
    "max_hours: 0.31": ("the limit of 0.31 hours was reached", 5),  # 18.6 minutes
    "max_gpu_hours: 0.155": ("the limit of 0.155 GPU hours was reached", 5),  # half a GPU per trial
    "trials: 5": ("all trials ran", 5),
}


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("limit", LIMITS)
def test_limit_ends_the_study_after_the_running_trials(limit: str, slots: int) -> None:
    plan = f"sampler: random, trials: 20, {limit}".replace("trials: 20, trials", "trials")
    events, search = run(plan, slots=slots, more="resources: {gpus: 0.5}")
    reason, least = LIMITS[limit]
    assert search.why_ended() == reason
    assert search.exhausted
    assert count(events, "started") == count(events, "finished")
    # At most one trial per slot was running when the limit was reached.
    assert least <= count(events, "finished") <= least + (0 if "trials" in limit else slots - 1)


@pytest.mark.medium
@pytest.mark.parametrize("limit", LIMITS)
def test_raised_limit_extends_a_finished_study(limit: str) -> None:
    """The result equals that of a study with the raised limit from the start."""
    plan = f"sampler: ehvi, trials: 20, {limit}".replace("trials: 20, trials", "trials")
    number = limit.rpartition(" ")[2]
    raised = plan.replace(number, f"{2 * float(number):g}")
    resources = "resources: {gpus: 0.5}"
    first, _ = run(plan, more=resources)
    extended, search = run(raised, first, more=resources)
    whole, undisturbed = run(raised, more=resources)
    assert extended[: len(first)] == first
    assert count(extended, "finished") == count(whole, "finished") > count(first, "finished")
    assert search.known.budget.epochs == undisturbed.known.budget.epochs
    assert search.known.budget.seconds == pytest.approx(undisturbed.known.budget.seconds)
    assert [o.id for o in search.known.past.all] == [o.id for o in undisturbed.known.past.all]


def test_waiting_replicates_run_after_the_limit() -> None:
    events, search = run("sampler: random, trials: 20, replicates: 4, max_epochs: 5")
    assert count(events, "finished") == 4
    assert search.why_ended() == "the limit of 5 epochs was reached"


ONE_ON_FRONT = Training(epochs=4, seconds=60.0, truth=lambda _: 0.5, sigma=0.0)
"""All accuracies are equal, so the cheapest configuration is the front."""


@pytest.mark.medium
@pytest.mark.parametrize("limit", ["max_epochs: 40", "max_hours: 0.665", "max_gpu_hours: 0.3325"])
def test_fresh_replicates_count_in_the_limit(limit: str) -> None:
    """Of 40 epochs of a minute each, 8 trials take 32 and two fresh replicates 8."""
    plan = f"sampler: random, trials: 20, replicates: {{min: 1, max: 1, fresh: 2}}, {limit}"
    memory = Memory(source_of(plan, epochs=4, more="resources: {gpus: 0.5}"))
    journal, search = memory.open()
    memory.drive(search, ONE_ON_FRONT)
    events = list(journal.events())
    assert count(events, "frozen") == 1
    assert search.state.num_trials == 8
    assert count(events, "finished") == 8 + 2
    assert search.known.budget.epochs == 40
    assert search.why_ended().startswith(f"the limit of {limit.rpartition(' ')[2]} ")


@pytest.mark.medium
def test_search_gets_at_least_half_of_a_limit_with_fresh_replicates() -> None:
    plan = "sampler: random, trials: 20, replicates: {min: 1, max: 1, fresh: 9}, max_epochs: 40"
    events, search = run(plan)
    assert search.state.num_trials == 5
    assert count(events, "finished") == 5 + 9 * len(events[-1].body["reported"])


SPACE = width(*range(8, 88, 8))


@pytest.mark.medium
def test_study_ends_when_little_gain_is_expected() -> None:
    """More expensive configurations are no better and values hardly vary: it converges early."""
    flat = Training(truth=lambda a: 0.6 + 1e-5 * noise(a.key), sigma=1e-4)
    memory = Memory(source_of("sampler: ehvi, trials: 40, until_converged: true", space=SPACE))
    journal, search = memory.open()
    memory.drive(search, flat)
    gains = [event.body["gain"] for event in journal.events() if event.kind == "expected"]
    assert search.why_ended() == "nothing more is expected of going on"
    assert max(gains[-2:]) < CONVERGED_GAIN
    assert all(max(a, b) >= CONVERGED_GAIN for a, b in itertools.pairwise(gains[:-1]))
    assert len(search.known.past) < 10
    again = Memory(source_of("sampler: ehvi, trials: 40", space=SPACE))
    _, extended = again.open(list(journal.events()))
    again.drive(extended, flat)
    assert extended.why_ended() == "the space is used up"
    assert len(extended.known.past) == 10


@pytest.mark.medium
def test_study_continues_while_much_gain_is_expected() -> None:
    """Random values: any configuration may be the best at its cost."""
    wild = Training(truth=lambda a: 0.5 + 0.1 * noise(a.key.configuration_id), sigma=1e-4)
    memory = Memory(source_of("sampler: ehvi, trials: 40, until_converged: true", space=SPACE))
    _, search = memory.open()
    memory.drive(search, wild)
    assert len(search.known.past) >= 9


# ------------------------------------------------------------------- the clock


OPENED, TOLD = Opened(5, 1), Told(0, "complete", [])


def budget_of(limit: str) -> Budget:
    study = source_of(f"trials: 5, {limit}").study
    return Budget(study.search, study.resources)


def apply(budget: Budget, event: Event, time: float = 0.0) -> None:
    budget.apply(Entry(1, time, event), StudyState())


def test_budget_ignores_time_between_drivers_and_a_clock_set_back() -> None:
    budget = budget_of("max_hours: 1")
    for time, event in ((100, TOLD), (100, OPENED), (160, TOLD), (9000, OPENED)):
        apply(budget, event, time)
    assert budget.seconds == 60
    for time in (9030, 9000, 9010):
        apply(budget, TOLD, time)
    assert budget.seconds == 100
    assert budget.exceeded() == ""
    apply(budget, TOLD, 9010 + 3500)
    assert budget.exceeded() == "the limit of 1 hours was reached"


def test_budget_ends_after_two_small_gains_in_a_row() -> None:
    budget = budget_of("until_converged: true")
    for gain in (0.0005, 0.2, 0.0009, 0.001, 0.0):
        apply(budget, Expected(0, gain))
        assert budget.exceeded() == ""
    apply(budget, Expected(0, 0.0))
    assert budget.exceeded() == "nothing more is expected of going on"
