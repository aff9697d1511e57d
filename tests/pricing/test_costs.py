"""Price spaces: the listing, the line through measured steps, the printed table."""

from __future__ import annotations

import io
import json
import math
import random
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import optimize

from sftsearch.datasets.catalog import describe
from sftsearch.orchestrator.candidates.admission import Admission
from sftsearch.orchestrator.pricing import costs as prices
from sftsearch.search_spaces.load import parse_study

if TYPE_CHECKING:
    from sftsearch.search_spaces.load import StudySource

WEARABLES = describe("wearables")
SPACE = """\
space:
  - kind: sft
    patch: 8
    num_heads: 4
    dim: {kind: choice, values: [8, 16]}
    stride: {kind: choice, values: [1, 16]}
    fused_layers: 1
    batch_size: {kind: choice, values: [8, 24]}
    modalities:
      kind: choice
      values: [[watch_acc, phone_acc], [phone_acc, phone_gyro, watch_acc, watch_gyro]]
"""
CONTINUOUS = SPACE + "    learning_rate: {kind: float, low: 1e-4, high: 1e-2, log: true}\n"


def study_of(space: str = SPACE, constraints: str = "[]") -> tuple[StudySource, Admission]:
    text = (
        "study: {name: small}\ndataset: {kind: wearables}\n"
        "search: {trials: 12, sampler: {kind: random}}\nresources: {concurrent_trials: 1}\n"
        f"training: {{epochs: 2}}\nconstraints: {constraints}\n{space}"
    )
    source = parse_study(text.encode())
    return source, Admission(source, WEARABLES)


def shown(table: Any, width: int = 80) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width).print(table)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def test_list_prices_has_every_admissible_configuration_by_rising_cost() -> None:
    _, admission = study_of()
    listing = prices.list_prices(admission)
    assert len(listing) == 16
    costs = [candidate.cost.gflops for candidate in listing]
    assert costs == sorted(costs)


def test_list_prices_samples_a_large_space_within_its_limits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prices, "NUM_DRAWN", 200)
    unlimited = prices.list_prices(study_of(CONTINUOUS)[1])
    assert len(unlimited) == 200
    assert unlimited == prices.list_prices(study_of(CONTINUOUS)[1])
    limit = unlimited[100].cost.gflops
    _, admission = study_of(CONTINUOUS, f"[{{metric: gflops, max: {limit!r}}}]")
    limited = prices.list_prices(admission)
    assert [c.id for c in limited] == [c.id for c in unlimited if c.cost.gflops <= limit]


@pytest.mark.medium
def test_list_prices_of_a_large_space_without_admissible_points_is_empty() -> None:
    source, admission = study_of(CONTINUOUS, "[{metric: parameters, max: 1}]")
    assert prices.list_prices(admission) == []
    estimate = prices.estimate_time(source, WEARABLES, admission)
    assert shown(prices.describe([], source, admission, estimate)) == [
        "No configuration is admissible."
    ]
    assert prices.as_json([], admission, estimate, source)["study_seconds"] is None


def test_fit_line_is_nonnegative_least_squares() -> None:
    """Compare with scipy's NNLS on the same relative errors, for random lines with noise."""
    generator = np.random.default_rng(0)
    for _ in range(200):
        x = np.sort(generator.uniform(0.01, 10, size=5))
        y = np.abs(generator.normal(0.1, 0.1) + generator.normal(0.05, 0.1) * x) + 0.01
        y *= generator.uniform(0.8, 1.25, size=5)
        columns = np.stack([np.ones(5), x], axis=1) / y[:, None]
        expected, _ = optimize.nnls(columns, np.ones(5))
        assert prices.fit_line(x.tolist(), y.tolist()) == pytest.approx(tuple(expected), abs=1e-9)
    assert prices.fit_line([1.0, 2.0, 5.0], [0.3, 0.5, 1.1]) == pytest.approx((0.1, 0.2))
    assert prices.fit_line([2.0], [0.5]) == (0.5, 0.0)


def test_estimate_time_is_linear_in_the_operations_of_a_batch() -> None:
    source, admission = study_of()
    threads = torch.get_num_threads()
    estimate = prices.estimate_time(source, WEARABLES, admission)
    assert torch.get_num_threads() == threads
    assert estimate.max_concurrent_trials == 1
    rows = []
    for candidate in prices.list_prices(admission):
        batch = candidate.configuration.train_config.batch_size
        num_steps = 2 * math.ceil(WEARABLES.num_samples["train"] / batch)
        seconds = estimate.seconds_per_trial[candidate.id] / num_steps
        rows.append((candidate.cost.gmacs * batch, seconds))
        assert 0.01 < estimate.seconds_per_trial[candidate.id] < 600
    x, y = np.array(sorted(rows)).T
    slope, intercept = np.polyfit(x, y, 1)
    assert y == pytest.approx(intercept + slope * x, rel=1e-6)
    assert min(slope, intercept) > -1e-12
    mean = sum(estimate.seconds_per_trial.values()) / 16
    assert estimate.study_seconds == pytest.approx(12 * mean)


def test_rich_table_is_readable_at_80_columns() -> None:
    source, admission = study_of()
    listing = prices.list_prices(admission)
    lines = shown(prices.rich_table(listing, admission, None, 4))
    assert " ".join(lines[0].split()) == "multiply-adds (paper) parameters model varying parameters"
    assert not any("…" in line for line in lines)
    text = " ".join(" ".join(lines).split())
    batch = r"batch_size=(8|24)"  # equal costs are sorted by id
    assert re.search(rf"dim=8 stride=16 {batch} modalities=\[phone_acc, watch_acc\]", text)
    assert re.search(rf"dim=16 stride=1 {batch} modalities=all", text)
    assert "patch" not in text
    words = shown(prices.describe(listing, source, admission, None), width=200)
    assert words[0] == "Shared by all: patch=8 num_heads=4 fused_layers=1."
    low, high = listing[0].cost.gflops, listing[-1].cost.gflops
    assert words[1] == (
        f"16 admissible configurations of 16 points; {low * 1e6:.3g} k to {high * 1e6:.3g} k "
        f"multiply-adds (paper), {high / low:.3g} times."
    )


def test_rich_table_shows_parameters_that_only_some_configurations_have() -> None:
    space = """\
space:
  - {kind: sft, patch: 8, dim: 10}
  - {kind: sft, patch: 8, dim: 10, tokens: 1}
  - {kind: concat, patch: 8, dim: 10}
"""
    source, admission = study_of(space)
    listing = prices.list_prices(admission)
    lines = shown(prices.rich_table(listing, admission, None, 3))
    assert [line.split()[4:] for line in lines[1:]] == [["sft", "tokens=1"], ["concat"], ["sft"]]
    words = shown(prices.describe(listing, source, admission, None))
    assert words[0] == "Shared by all: patch=8 dim=10 modalities=all."


def test_rich_table_goes_from_the_cheapest_to_the_most_expensive() -> None:
    source, admission = study_of()
    listing = prices.list_prices(admission)
    for top in (1, 2, 5, 16, 1000):
        lines = shown(prices.rich_table(listing, admission, None, top), width=200)[1:]
        assert len(lines) == min(top, 16)
        assert lines[0].split()[0] == f"{listing[0].cost.gflops * 1e6:.3g}"
        if top > 1:
            assert lines[-1].split()[0] == f"{listing[-1].cost.gflops * 1e6:.3g}"
    estimate = prices.Estimate(dict.fromkeys([c.id for c in listing], 1234.56), 3, 3600.0)
    lines = shown(prices.rich_table(listing, admission, estimate, 2), width=200)
    assert "s per trial" in lines[0]
    assert lines[1].split()[4] == "1,234.6"
    words = shown(prices.describe(listing, source, admission, estimate), width=200)
    assert words[-1].startswith("12 trials take about 60.0 minutes on this machine, 3 at a time")


def test_describe_shows_the_paper_table_of_the_study() -> None:
    file = SPACE.replace("space:", "study: {name: small, paper: SFT table 2}\nspace:")
    text = f"dataset: {{kind: wearables}}\nsearch: {{trials: 12}}\n{file}"
    source = parse_study(text.encode())
    admission = Admission(source, WEARABLES)
    listing = prices.list_prices(admission)
    lines = shown(prices.describe(listing, source, admission, None))
    assert lines[-1].split()[:4] == ["SFT", "0.25", "0.2581", "+3.2%"]
    result = prices.as_json(listing, admission, None, source)
    assert result["paper"]["rows"][-1]["gflops"]["VGGS"] == pytest.approx(0.2581, abs=5e-5)
    plain, _ = study_of()
    assert prices.as_json(listing, admission, None, plain)["paper"] is None


def test_parse_study_reports_an_unknown_paper_table_with_its_line() -> None:
    text = "study:\n  name: small\n  paper: SFT tablet 2\n"
    (mistake,) = [m for m in parse_study(text.encode()).mistakes if m.key == "study.paper"]
    assert mistake.line == 3
    assert "No paper's table is called 'SFT tablet 2'. Did you mean 'SFT table 2'?" in str(mistake)


def test_as_json_has_costs_and_estimates() -> None:
    source, admission = study_of(constraints="[{metric: gflops, max: 3e-4}]")
    listing = prices.list_prices(admission)
    estimate = prices.Estimate(dict.fromkeys([c.id for c in listing], 2.0), 2, 9.0)
    result = json.loads(json.dumps(prices.as_json(listing, admission, estimate, source)))
    assert result["points"] == 16
    assert result["refused"] == {"over limit": 16 - len(listing)}
    assert (result["max_concurrent_trials"], result["study_seconds"]) == (2, 9.0)
    chosen = random.Random(0).choice(range(len(listing)))
    cost, bound = listing[chosen].cost, listing[chosen].configuration
    assert result["configurations"][chosen] == {
        "configuration_id": bound.id,
        "model": "sft",
        "configuration": bound.parameters,
        "gflops": cost.gflops,
        "gmacs": cost.gmacs,
        "parameters": cost.parameters,
        "gflops_dense": cost.gflops_dense,
        "seconds": 2.0,
    }
    source, admission = study_of(CONTINUOUS)
    assert prices.as_json(listing, admission, None, source)["points"] is None
