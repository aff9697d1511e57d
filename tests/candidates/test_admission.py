"""Admit points: costs, limits, repeats, wrong values, uniform draws."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from scipy import stats
from small_space import LARGE, SPACE

from sftsearch.datasets.catalog import describe
from sftsearch.orchestrator.candidates import admission as admissions
from sftsearch.orchestrator.candidates.admission import Admission, Candidate, Refusal
from sftsearch.orchestrator.candidates.study_checks import check_names
from sftsearch.search_spaces.load import parse_study
from sftsearch.search_spaces.mistakes import StudyFileError
from sftsearch.search_spaces.point import Point
from sftsearch.trainables import memory
from sftsearch.trainables.catalog import build_model
from sftsearch.trainables.cost import count_gmacs
from sftsearch.trainables.memory import Memory, count_memory

if TYPE_CHECKING:
    from sftsearch.search_spaces.load import StudySource

WEARABLES = describe("wearables")


def source_of(space: str, constraints: str = "[]", training: str = "{}") -> StudySource:
    text = (
        "study: {name: small}\ndataset: {kind: wearables}\nsearch: {trials: 1}\n"
        f"constraints: {constraints}\ntraining: {training}\n{space}"
    )
    source = parse_study(text.encode(), name="s.yaml")
    check_names(source)
    return source


def admission_of(space: str = SPACE, constraints: str = "[]") -> Admission:
    return Admission(source_of(space, constraints), WEARABLES)


def table_of(admission: Admission) -> dict[str, Candidate]:
    assert admission.table is not None
    return admission.table


def mistakes_of(space: str, constraints: str = "[]") -> list[str]:
    with pytest.raises(StudyFileError) as caught:
        admission_of(space, constraints)
    return [line.removeprefix("s.yaml, ") for line in str(caught.value).splitlines()]


@pytest.mark.medium
def test_admission_prices_every_point_like_its_model() -> None:
    """Compare with the parameters and counted operations of the built model."""
    admission = admission_of()
    assert admission.num_points == len(table_of(admission)) == 2 * 3 * 2 + 4
    assert admission.num_refused == {}
    for candidate in table_of(admission).values():
        bound = candidate.configuration
        model = build_model(bound.model, WEARABLES, bound.model_config, seed=0)
        assert candidate.cost.parameters == sum(p.numel() for p in model.parameters())
        counted = count_gmacs(model, WEARABLES, bound.model_config)
        assert candidate.cost.gmacs == pytest.approx(counted, rel=1e-12)


@pytest.mark.parametrize("metric", ["gflops", "gmacs", "parameters"])
def test_admission_refuses_only_points_over_a_limit(metric: str) -> None:
    """Compare with the table without limits; a cost equal to the limit is admitted."""
    costs = {i: getattr(c.cost, metric) for i, c in table_of(admission_of()).items()}
    limit = sorted(costs.values())[len(costs) // 2]
    admission = admission_of(constraints=f"[{{metric: {metric}, max: {limit!r}}}]")
    assert table_of(admission).keys() == {i for i, cost in costs.items() if cost <= limit}
    assert admission.num_refused == {"over limit": sum(cost > limit for cost in costs.values())}
    for point in admission.space.points():
        decided = admission.decide(point)
        if isinstance(decided, Refusal):
            cost = getattr(admission.price(point).cost, metric)
            assert decided.reason == "over limit"
            assert decided.excess == pytest.approx(cost / limit - 1)
            assert decided.detail == f"{metric} {cost:.6g} is over the limit of {limit:.6g}"
        else:
            assert decided.id in table_of(admission)


def test_admission_reports_limits_that_refuse_all_points() -> None:
    constraints = "[{metric: gflops, max: 1e-9}, {metric: parameters, max: 2}]"
    costs = [candidate.cost for candidate in table_of(admission_of()).values()]
    gflops, parameters = min(c.gflops for c in costs), min(c.parameters for c in costs)
    assert mistakes_of(SPACE, constraints) == [
        "line 4: constraints: All 16 configurations are refused by the constraints (gflops <= "
        f"1e-09, parameters <= 2); the lowest costs are: gflops {gflops:.3g}, parameters "
        f"{float(parameters):.3g}. Raise a limit or add smaller values."
    ]


def test_admission_counts_repeats_and_refuses_taken_points() -> None:
    space = SPACE + "  - {kind: late_fusion, patch: 8, num_heads: 2, num_layers: 3, dim: 8}\n"
    admission = admission_of(space)
    assert admission.num_points == 17
    assert len(table_of(admission)) == 16
    assert admission.num_refused == {"repeat": 1}
    point = list(admission.space.points())[-1]
    decided = admission.decide(point)
    assert isinstance(decided, Candidate)
    admission.take(decided.id)
    assert (admission.num_taken, admission.left()) == (1, 15)
    again = admission.decide(point)
    assert isinstance(again, Refusal)
    assert (again.reason, again.excess) == ("repeat", 1.0)
    assert decided.id in again.detail


BY_MODALITY = """\
space:
  - kind: sft
    patch: 8
    num_heads: 4
    dim: 8
    fused_layers: 1
    modalities: {kind: choice, values: [[watch_acc], [phone_acc, watch_acc]]}
    tokens:
      phone_acc: {kind: choice, values: [1, 4]}
      watch_acc: {kind: choice, values: [1, 4, 16, 17]}
"""


def test_admission_treats_equivalent_configurations_as_repeats() -> None:
    """Tokens of an unused modality have no effect and 17 of 16 tokens are 16: 3 + 2 x 3 remain."""
    admission = admission_of(BY_MODALITY)
    assert admission.num_points == 2 * 2 * 4
    assert len(table_of(admission)) == 9
    assert admission.num_refused == {"repeat": 7}
    tokens = [c.configuration.parameters["tokens"] for c in table_of(admission).values()]
    assert all(one.keys() == {"phone_acc", "watch_acc"} for one in tokens)
    for point in admission.space.points():
        assert admission.price(point).id in table_of(admission)


def test_admission_refuses_impossible_combinations_of_possible_values() -> None:
    """dim=10 works with 5 heads only and dim=8 with 4 only, so no single value is wrong."""
    space = """\
space:
  - kind: unimodal
    modalities: [watch_acc]
    patch: 8
    fused_layers: 1
    dim: {kind: choice, values: [8, 10]}
    num_heads: {kind: choice, values: [4, 5]}
"""
    admission = admission_of(space)
    assert len(table_of(admission)) == 2
    assert admission.num_refused == {"impossible": 2}
    refused = admission.decide(Point(0, {**next(admission.space.points()).values, "num_heads": 5}))
    assert isinstance(refused, Refusal)
    assert (refused.reason, refused.excess) == ("impossible", 1.0)
    assert refused.detail == "`num_heads` must divide `dim`, but got (num_heads=5, dim=8)."


def test_admission_accepts_continuous_spaces_with_impossible_points() -> None:
    """Each learning rate is drawn once; one drawn with an impossible width is not reported."""
    space = """\
space:
  - kind: sft
    patch: 8
    fused_layers: 1
    dim: {kind: choice, values: [8, 10]}
    num_heads: {kind: choice, values: [4, 5]}
    stride: {kind: int, low: 1, high: 16}
"""
    admission = admission_of(space + LARGE)
    assert (admission.table, admission.left()) == (None, None)
    random_ = random.Random(0)
    decided = [admission.decide(admission.space.draw(random_)) for _ in range(400)]
    impossible = sum(isinstance(one, Refusal) and one.reason == "impossible" for one in decided)
    assert stats.binomtest(impossible, 400, 0.5).pvalue > 0.001
    assert admission.draw(random_) is not None


def test_admission_prices_a_large_space_point_by_point() -> None:
    admission = admission_of(SPACE + LARGE, "[{metric: parameters, max: 8000}]")
    assert admission.num_points > admissions.MAX_TABLE
    assert admission.table is None
    random_ = random.Random(0)
    for _ in range(50):
        drawn = admission.draw(random_)
        assert drawn is not None
        assert drawn.cost.parameters <= 8000
        admission.take(drawn.id)
    assert admission.num_taken == 50


def test_draw_returns_none_for_a_large_space_without_admissible_points(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admissions, "MAX_DRAWS", 50)
    admission = admission_of(SPACE + LARGE, "[{metric: parameters, max: 2}]")
    assert admission.draw(random.Random(0)) is None


def test_draw_is_uniform_over_free_points_and_never_repeats() -> None:
    """Chi-square test: all configurations, not branches, are equally likely."""
    admission = admission_of(constraints="[{metric: parameters, max: 8000}]")
    table = table_of(admission)
    taken = list(table)[::4]
    for identity in taken:
        admission.take(identity)
    random_ = random.Random(5)
    counts = Counter(c.id for _ in range(4000) if (c := admission.draw(random_)) is not None)
    assert counts.keys() == table.keys() - set(taken)
    assert stats.chisquare(list(counts.values())).pvalue > 0.001
    seen = []
    while (candidate := admission.draw(random_)) is not None:
        seen.append(candidate.id)
        admission.take(candidate.id)
    assert sorted(seen) == sorted(counts)
    assert admission.left() == 0


def test_cheapest_returns_configurations_by_rising_cost() -> None:
    admission = admission_of()
    order = []
    while (candidate := admission.cheapest()) is not None:
        order.append((candidate.cost.gflops, candidate.id))
        admission.take(candidate.id)
    assert order == sorted((c.cost.gflops, i) for i, c in table_of(admission).items())


def test_admission_ids_depend_on_the_dataset() -> None:
    spec: Any = dataclasses.replace(WEARABLES, fingerprint="0" * 64)
    other = Admission(source_of(SPACE), spec)
    assert not table_of(other).keys() & table_of(admission_of()).keys()


@pytest.mark.parametrize(
    "axis",
    [
        "learning_rate: {kind: float, low: 0.001, high: 0.01}",
        "epochs: {kind: int, low: 1, high: 60000}",
    ],
)
def test_admission_reports_an_exhaustive_search_of_a_large_space(axis: str) -> None:
    text = f"""
study: {{name: endless}}
dataset: {{kind: synthetic}}
search:
  sampler: {{kind: exhaustive}}
  trials: 4
space:
  - kind: sft
    num_heads: 1
    {axis}
"""
    with pytest.raises(
        StudyFileError, match="`exhaustive` supports at most 50,000 points"
    ) as caught:
        Admission(parse_study(text.encode()), describe("synthetic"))
    (mistake,) = caught.value.mistakes
    assert (mistake.line, mistake.key) == (5, "search.sampler.kind")


MEMORY = "train_memory_mb"


def memory_of(candidate: Candidate, workers: int = 1) -> float:
    bound = candidate.configuration
    counted = count_memory(
        bound.model, WEARABLES, bound.model_config, bound.train_config, workers=workers
    )
    return counted.train_memory_mb


@pytest.mark.medium
def test_memory_is_counted_for_proposals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for the enumerated space or draws, and not at all in a study that does not use it."""
    limit = "[{metric: train_memory_mb, max: 1000}]"
    asked: list[str] = []

    def count(name: str, *_: object, **__: object) -> Memory:
        asked.append(name)
        return Memory(2000.0 if len(asked) == 2 else 10.0, 1.0, 0.5)

    monkeypatch.setattr(memory, "count_memory", count)
    admission, plain = admission_of(constraints=limit), admission_of()
    drawn = admission.draw(random.Random(0))
    assert drawn is not None
    assert (drawn.memory, asked) == (None, [])
    points = list(admission.space.points())
    assert isinstance(plain.decide(points[0]), Candidate)
    assert asked == []
    first, second = (admission.decide(point) for point in points[:2])
    assert isinstance(first, Candidate)
    assert first.costs() == first.cost.as_dict() | {
        MEMORY: 10.0, "inference_memory_mb": 1.0, "weights_mb": 0.5,
    }  # fmt: skip
    assert second == Refusal(
        "over limit", "train_memory_mb 2000 is over the limit of 1000", pytest.approx(1.0)
    )
    assert len(asked) == 2


@pytest.mark.medium
def test_a_limit_on_memory_refuses_what_exceeds_it_and_draws_it_no_more() -> None:
    free = admission_of()
    found = {i: memory_of(c) for i, c in table_of(free).items()}
    limit = sorted(found.values())[len(found) // 2]
    admission = admission_of(constraints=f"[{{metric: {MEMORY}, max: {limit!r}}}]")
    assert table_of(admission).keys() == table_of(free).keys()
    for point in admission.space.points():
        decided = admission.decide(point)
        if isinstance(decided, Refusal):
            identity = admission.exclude(point)
            assert identity is not None
            assert found[identity] > limit
            assert decided.excess == pytest.approx(found[identity] / limit - 1)
        else:
            assert found[decided.id] == decided.costs()[MEMORY] <= limit
    within = {i for i, megabytes in found.items() if megabytes <= limit}
    assert admission.left() == len(within)
    assert admission.num_taken == 0
    for number in range(50):
        drawn = admission.draw(random.Random(number))
        assert drawn is not None
        assert drawn.id in within
    nearest = [admission.nearest(point) for point in admission.space.points()]
    assert {one.id for one in nearest if one is not None} == within
    admission.release()
    assert admission.left() == len(found)


@pytest.mark.medium
def test_cheap_limits_come_before_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "count_memory", None)  # a call would raise
    limits = sorted(c.cost.parameters for c in table_of(admission_of()).values())
    constraints = (
        f"[{{metric: parameters, max: {limits[4]}}}, {{metric: train_memory_mb, max: 1000}}]"
    )
    admission = admission_of(constraints=constraints)
    refused = [p for p in admission.space.points() if admission.within_limits(p) is None]
    assert refused
    assert all(isinstance(admission.decide(point), Refusal) for point in refused)


@pytest.mark.medium
def test_memory_is_that_of_one_of_the_workers() -> None:
    """Rules on other costs count; a rule on memory gives resources by the memory found."""
    text = SPACE + (
        "resources:\n  overrides:\n    - {metric: gflops, above: 0, workers: 2}\n"
        "    - {metric: train_memory_mb, above: 0, memory_gb: 4}\n"
    )
    source = source_of(text)
    admission = Admission(source, WEARABLES)
    decided = admission.decide(next(admission.space.points()))
    assert isinstance(decided, Candidate)
    assert decided.costs()[MEMORY] == memory_of(decided, workers=2) != memory_of(decided)
    given = source.study.resources.of(decided.costs())
    assert (given.workers, given.memory_gb) == (2, 4)
    assert source.study.resources.of(decided.cost.as_dict()).memory_gb is None
