"""Warm starts without Ray, on a toy training with a closed form."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sftsearch.orchestrator.callback import StudyCallback
from sftsearch.orchestrator.search.engine import Search
from sftsearch.orchestrator.search.warm_start import WarmStartError
from sftsearch.orchestrator.studies import read_record
from sftsearch.orchestrator.study import StudySession
from sftsearch.orchestrator.study_file import check_study
from sftsearch.search_spaces.mistakes import StudyFileError
from sftsearch.search_spaces.point import Point

from journals import Journal, read_events
from observed import Observations, imported

if TYPE_CHECKING:
    from pathlib import Path

    from sftsearch.orchestrator.search.engine import TrialSuggestion

    from journals import RawEvent

STUDY = """
study: {name: NAME}
dataset: {kind: synthetic}
search: {sampler: ehvi, trials: 12, replicates: {min: 1, max: 2}}
training: {epochs: 2}
space:
  - kind: sft
    num_heads: 1
    stride: {kind: choice, values: [1, 2]}
    dim: {kind: int, low: 2, high: 20, step: 2}
    fused_layers: {kind: int, low: 1, high: 2}
"""


class Driver(StudyCallback):
    """Runs or resumes a study in a folder, training in the test's own process."""

    def __init__(self, runs: Path, name: str, *changes: tuple[str, str], other: str = "") -> None:
        self.runs, self.folder = runs, runs / name
        text = STUDY.replace("NAME", name)
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        if other:
            text += f"warm_start: {{study: {other}}}\n"
        runs.mkdir(exist_ok=True)
        self.file = runs / f"{name}.yaml"
        self.file.write_text(text)
        self.message = ""

    def on_notice(self, text: str) -> None:
        self.message = text

    def run(self, *, ends: int | None = None, first: int = 0) -> Search:
        """Resume the study and run until `ends` trials have ended; None: to the study's end."""
        session = StudySession(self.file, self.runs, self, {"resume": True})
        with Journal(self.folder) as journal:
            session.create_or_open(journal)
            journal.append("opened", trials=session.study.search.trials, slots=1)
            search = Search(session.study, journal, session.admission)
            search.finish_what_was_begun()
            while not search.exhausted and ends != 0:
                assignment = search.propose()
                assert assignment is not None
                train(search, assignment)
                ends = None if ends is None else ends - 1
            if search.exhausted:
                search.conclude()
        return search

    def events(self, kind: str) -> list[RawEvent]:
        return [event for event in read_events(self.folder) if event.kind == kind]

    def proposed(self) -> list[Any]:
        return [event.body["values"] for event in self.events("proposed")]


def accuracy(parameters: dict[str, Any], seed: int) -> float:
    """Rise with stride and, less and less, with width: a front of a few points."""
    wide = parameters["dim"] / 20
    noise = math.sin(12.9898 * (1 + seed) * (parameters["dim"] + 100 * parameters["stride"]))
    return 0.4 + 0.4 * wide - 0.1 * wide**2 + 0.05 * parameters["stride"] + 0.002 * noise


def train(search: Search, assignment: TrialSuggestion) -> None:
    value = accuracy(assignment.parameters, assignment.seed)
    for epoch in range(assignment.num_journalled + 1, 3):
        metrics = {"epoch": epoch, "top1": value, "seconds": 1.0}
        assert search.report(assignment.key, metrics)
    search.finish(assignment.key, {"top1": value, "seconds": 2.0, **assignment.cost}, {})


@pytest.fixture
def other(tmp_path: Path) -> Driver:
    driver = Driver(tmp_path, "other")
    driver.run()
    return driver


def area_of(driver: Driver) -> float:
    """Return the area under the best mean by cost, over the logarithm of the cost."""
    outcomes: dict[str, list[tuple[float, float]]] = {}
    for trial in read_record(driver.folder).trials:
        pair = (math.log(trial.values["gflops"]), trial.values["top1"])
        outcomes.setdefault(trial.configuration_id, []).append(pair)
    _, _, admission = check_study(driver.file)
    assert admission.table is not None
    logs = sorted(math.log(candidate.cost.gflops) for candidate in admission.table.values())
    means = [tuple(np.mean(values, axis=0)) for values in outcomes.values()]
    edges = [*logs, logs[-1]]
    return sum(
        (after - before) * max([0.25, *(value for cost, value in means if cost <= before)])
        for before, after in itertools.pairwise(edges)
    )


# ------------------------------------------------------------ equal conditions


@pytest.mark.medium
def test_warm_start_imports_results_as_observations_only(tmp_path: Path, other: Driver) -> None:
    warm = Driver(tmp_path, "warm", other="other")
    search = warm.run(ends=0)
    (event,) = warm.events("imported")
    theirs = read_record(other.folder)
    assert event.body["study"] == "other"
    assert event.body["alike"]
    assert event.body["starts"] == []
    keys = {
        f"{one['configuration_id']}-{replicate}": values["objectives"]
        for one in event.body["configurations"]
        for replicate, values in one["replicates"].items()
    }
    assert keys == {t.key: [t.values["top1"], t.values["gflops"]] for t in theirs.trials}
    number = len({trial.configuration_id for trial in theirs.trials})
    assert warm.message == (
        f"Warm start from 'other': {number} of its {number} configurations are in this space, "
        "and their results (12 trials) are used as prior observations."
    )
    assert (
        search.state.num_trials,
        search.state.num_ended["finished"],
        len(search.known.past),
    ) == (0, 0, 0)
    assert len(search.known.past.imported) == number
    search = warm.run()
    assert search.state.num_trials == search.state.num_ended["finished"] == 12
    own = read_record(warm.folder)
    assert len(own.trials) == 12
    (concluded,) = warm.events("concluded")
    admitted = {trial.configuration_id for trial in own.trials}
    assert concluded.body["beliefs"].keys() == admitted
    assert set(concluded.body["reported"]) <= admitted


@pytest.mark.medium
def test_warm_start_needs_fewer_trials_than_a_cold_start(tmp_path: Path, other: Driver) -> None:
    """Four trials give nearly the front for which the other study needed twelve."""
    few = ("trials: 12", "trials: 4")
    warm = Driver(tmp_path, "warm", few, other="other")
    cold = Driver(tmp_path, "cold", few)
    warm.run()
    cold.run()
    assert area_of(warm) > area_of(cold)
    assert area_of(warm) > area_of(cold) + 0.5 * (area_of(other) - area_of(cold))


@pytest.mark.medium
def test_warm_start_can_be_resumed_without_the_other_study(tmp_path: Path, other: Driver) -> None:
    undisturbed = Driver(tmp_path, "warm", other="other")
    undisturbed.run()
    whole = undisturbed.proposed()
    shutil.rmtree(undisturbed.folder)
    resumed = Driver(tmp_path, "warm", other="other")
    resumed.run(ends=0)
    shutil.rmtree(other.folder)
    for ends in (1, 1, 3, None):
        resumed.run(ends=ends)
    assert resumed.proposed() == whole
    assert len(resumed.events("imported")) == 1


@pytest.mark.medium
def test_warm_start_imports_only_configurations_of_this_space(
    tmp_path: Path, other: Driver
) -> None:
    smaller = ("high: 20, step: 2", "high: 10, step: 2")
    warm = Driver(tmp_path, "warm", smaller, other="other")
    search = warm.run(ends=0)
    points = [event.body["values"]["dim"] for event in other.events("proposed")]
    assert len(search.known.past.imported) == sum(dim <= 10 for dim in points)
    assert all(one.point.values["dim"] <= 10 for one in search.known.past.imported)


@pytest.mark.medium
def test_warm_start_without_a_surrogate_tries_the_front_first(
    tmp_path: Path, other: Driver
) -> None:
    for sampler in ("sampler: random", "sampler: {kind: nsga2, population: 4}"):
        warm = Driver(
            tmp_path,
            f"warm{len(sampler)}",
            ("sampler: ehvi", sampler),
            other="other",
        )
        warm.run()
        (event,) = warm.events("imported")
        starts = [start["values"] for start in event.body["starts"]]
        assert len(starts) >= 2
        assert warm.proposed()[: len(starts)] == starts
        assert f"{len(starts)} configurations of its front are tried first" in warm.message


# ------------------------------------------------------------ different conditions


@pytest.mark.medium
@pytest.mark.parametrize(
    ("change", "conditions"),
    [
        (("epochs: 2", "epochs: 3"), "the training"),
        (("kind: synthetic", "kind: wearables"), "the dataset, the version of the dataset"),
    ],
)
def test_warm_start_with_different_conditions_only_tries_the_front_first(
    tmp_path: Path, other: Driver, change: tuple[str, str], conditions: str
) -> None:
    warm = Driver(tmp_path, "warm", change, other="other")
    search = warm.run(ends=0)
    assert search.known.past.imported == []
    assert f"({conditions} differ), so only its front is used" in warm.message
    (event,) = warm.events("imported")
    starts = [start["values"] for start in event.body["starts"]]
    theirs = read_record(other.folder)
    outcomes: dict[str, list[tuple[float, float]]] = {}
    for trial in theirs.trials:
        pair = (trial.values["top1"], trial.values["gflops"])
        outcomes.setdefault(json.dumps(trial.configuration), []).append(pair)
    means = {c: tuple(np.mean(v, axis=0)) for c, v in outcomes.items()}
    best = [
        json.loads(c)["dim"]
        for c, (value, cost) in sorted(means.items(), key=lambda item: item[1][1])
        if not any(
            (v > value and g <= cost) or (v >= value and g < cost) for v, g in means.values()
        )
    ]
    assert [start["dim"] for start in starts] == best
    warm.run(ends=len(starts) + 1)
    assert warm.proposed()[: len(starts)] == starts


@pytest.mark.medium
def test_warm_start_treats_another_version_as_different_conditions(
    tmp_path: Path, other: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"{name} of tomorrow")
    warm = Driver(tmp_path, "warm", other="other")
    warm.run(ends=0)
    assert "(the version of sftsearch differ)" in warm.message


# ------------------------------------------------------------------- errors


@pytest.mark.medium
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            [("    stride: {kind: choice, values: [1, 2]}\n", "")],
            "it searched `stride`, which this study does not have (sft)",
        ),
        (
            [("num_heads: 1", "num_heads: 1\n    dropout: {kind: choice, values: [0.0, 0.1]}")],
            "it does not have `dropout`, which this study searches (sft)",
        ),
        (
            [("kind: sft", "kind: concat"), ("stride:", "num_layers: 2\n    stride:"),
             ("    fused_layers: {kind: int, low: 1, high: 2}\n", "")],
            "it has none of this study's models, but searched sft",
        ),
        (
            [("low: 2, high: 20, step: 2", "low: 3, high: 21, step: 2")],
            "none of its 1",
        ),
        (
            [("search:", "objectives: [{metric: top1, direction: maximize}, "
              "{metric: gflops, direction: minimize}, "
              "{metric: latency_ms, direction: minimize}]\nsearch:")],
            "did not measure `latency_ms`",
        ),
    ],
)  # fmt: skip
def test_warm_start_reports_an_unusable_study_in_one_line(
    tmp_path: Path, other: Driver, changes: list[tuple[str, str]], message: str
) -> None:
    warm = Driver(tmp_path, "warm", *changes, other="other")
    with pytest.raises(WarmStartError) as caught:
        warm.run(ends=0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert warm.events("imported") == warm.events("proposed") == []


@pytest.mark.medium
def test_warm_start_cannot_be_added_or_changed_later(tmp_path: Path, other: Driver) -> None:
    cold = Driver(tmp_path, "cold")
    cold.run(ends=1)
    late = Driver(tmp_path, "cold", other="other")
    with pytest.raises(ValueError, match="has begun without a warm start"):
        late.run(ends=1)
    Driver(tmp_path, "warm", other="other").run(ends=1)
    changed = Driver(tmp_path, "warm", other="cold")
    with pytest.raises(ValueError, match="was warm-started from 'other'"):
        changed.run(ends=1)


def test_warm_start_refuses_the_study_itself(tmp_path: Path) -> None:
    own = Driver(tmp_path, "own", other="own")
    with pytest.raises(StudyFileError, match="A study cannot be warm-started"):
        own.run()


# ------------------------------------------------------------------- observations


def observations() -> Observations:
    return Observations(("gflops",))


BODY = {"model": "sft", "parameters": {}, "cost": {"gflops": 1.0}, "epochs": 2, "warmup": 0,
        "group": ""}  # fmt: skip


def test_observations_replace_imported_replicates_with_own_ones() -> None:
    past = observations()
    point = Point(0, {})
    past.import_(imported("a", point, {0: 0.5, 1: 0.7, 5: 0.9}, {0: 10.0, 1: 20.0, 5: 30.0}))
    past.import_(imported("b", point, {0: 0.2}, {0: 1.0}))
    measured = past.measured()
    assert measured.ids == []
    assert measured.imported.tolist() == [0, 1]
    assert measured.imported_means == pytest.approx([0.7, 0.2])
    assert measured.imported_counts.tolist() == [3, 1]
    assert not past.has_values
    own = past.enter(0, "a", point, **BODY)
    past.await_(own, 0)
    assert past.measured().ids == []
    past.finish(own, 0, [0.6, 1.0], 40.0)
    measured = past.measured()
    assert measured.ids == ["a"]
    assert measured.imported.tolist() == [1]
    assert measured.means == pytest.approx([(0.6 + 0.7 + 0.9) / 3])
    assert measured.counts.tolist() == [3]
    assert measured.seconds == pytest.approx([(40 + 20 + 30) / 3])
    assert own.num_replicates == 1


def test_observations_keep_imported_replicates_of_a_dropped_configuration() -> None:
    past = observations()
    past.import_(imported("a", Point(0, {}), {0: 0.5}, {0: 10.0}))
    own = past.enter(0, "a", Point(0, {}), **BODY)
    past.await_(own, 0)
    past.drop(own, 0, stopped=True)
    assert past.measured().ids == []
    assert past.measured().imported_means == pytest.approx([0.5])
