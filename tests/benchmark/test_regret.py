"""Compute budget regret directly and with `sftsearch simulate`."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner

from sftsearch.orchestrator.benchmark.regret import budget_regret
from sftsearch.orchestrator.benchmark.simulator import check_table
from sftsearch.orchestrator.benchmark.table import Table, TableError, read_table, write_table
from sftsearch.orchestrator.cli.main import main
from sftsearch.orchestrator.study_file import check_study

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

STUDY = """
study: {name: simulated}
dataset: {kind: synthetic}
search: {sampler: ehvi, trials: 8, replicates: {min: 1, max: 3}}
training: {epochs: 3}
space:
  - kind: sft
    num_heads: 1
    fused_layers: 1
    stride: {kind: choice, values: [1, 2]}
    dim: {kind: choice, values: [2, 4, 8, 16]}
"""
NUM_REPLICATES = 4


def synthetic_table(costs: list[float], values: list[float], metric: str = "top1") -> Table:
    """Return a table of one replicate and one epoch."""
    values_N11 = np.array(values)[:, None, None]
    return Table(
        ids=[f"c{i}" for i in range(len(costs))],
        models=["sft"] * len(costs),
        parameters=[{}] * len(costs),
        costs={"gflops": np.array(costs)},
        metrics={metric: values_N11},
        seconds=np.ones_like(values_N11),
        facts={"folds": None},
    )


def by_riemann_sum(table: Table, ids: list[str], chance: float) -> float:
    """Return the regret as a Riemann sum over many budgets."""
    logs = np.log(table.costs["gflops"])
    u = (logs - logs.min()) / np.ptp(logs)
    truth, rows = table.true_means("top1"), [table.ids.index(identity) for identity in ids]
    total = 0.0
    budgets = (np.arange(20_000) + 0.5) / 20_000
    for budget in budgets:
        best = [chance, *truth[u <= budget]]
        reported = [chance, *(truth[row] for row in rows if u[row] <= budget)]
        total += max(best) - max(reported)
    return total / len(budgets)


def test_budget_regret_of_a_missing_point_is_its_step_height_times_length() -> None:
    """Costs 1, 10, 100 have u = 0, 1/2, 1; without the middle one, 0.2 is lost from u = 1/2."""
    table = synthetic_table([1, 10, 100], [0.5, 0.7, 0.9])
    assert budget_regret(table, ["c0", "c2"], chance=0.25) == pytest.approx(0.5 * 0.2, abs=1e-12)
    assert budget_regret(table, ["c0", "c1", "c2"], chance=0.25) == 0.0
    assert budget_regret(table, ["c0", "c1"], chance=0.25) == pytest.approx(0.0, abs=1e-12)


def test_budget_regret_of_an_empty_front_is_measured_from_chance() -> None:
    table = synthetic_table([1, 10, 100], [0.5, 0.7, 0.9])
    full = 0.5 * (0.5 - 0.25) + 0.5 * (0.7 - 0.25)
    assert budget_regret(table, [], chance=0.25) == pytest.approx(full, abs=1e-12)
    most_expensive = budget_regret(table, ["c2"], chance=0.25)
    assert most_expensive == pytest.approx(full, abs=1e-12)  # affordable only at u = 1


def test_budget_regret_of_a_minimized_metric_starts_at_the_worst_value() -> None:
    table = synthetic_table([1, 10, 100], [0.9, 0.6, 0.4], metric="mae")
    assert budget_regret(table, ["c0", "c2"], accuracy="mae") == pytest.approx(0.15, abs=1e-12)
    assert budget_regret(table, [], accuracy="mae") == pytest.approx(0.15, abs=1e-12)


def test_budget_regret_of_equal_costs_covers_the_whole_range() -> None:
    table = synthetic_table([5, 5], [0.5, 0.75])
    assert budget_regret(table, ["c0"], chance=0.25) == pytest.approx(0.25, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_budget_regret_is_the_integral_for_any_order(seed: int) -> None:
    random_ = np.random.default_rng(seed)
    costs = np.exp(random_.uniform(0, 5, 12))
    table = synthetic_table(costs.tolist(), random_.uniform(0.2, 1, 12).tolist())
    ids = random_.permutation(table.ids)[:4].tolist()
    exact = budget_regret(table, ids, chance=0.25)
    assert exact == pytest.approx(by_riemann_sum(table, ids, 0.25), abs=12 / 20_000)
    assert budget_regret(table, [*ids[::-1], ids[0]], chance=0.25) == exact
    assert exact >= 0


# ------------------------------------------------------------------ the command


@pytest.fixture
def recorded(tmp_path: Path) -> tuple[Path, Path]:
    """Return a study file and a table of its space, whose accuracy is known in closed form."""
    file, out = tmp_path / "simulated.yaml", tmp_path / "t.parquet"
    file.write_text(STUDY)
    write(file, out)
    return file, out


def write(file: Path, out: Path, **facts: Any) -> None:
    _, spec, admission = check_study(file)
    assert admission.table is not None
    rows: list[dict[str, Any]] = []
    random_ = np.random.default_rng(0)
    for identity, candidate in admission.table.items():
        mean = 0.9 - 0.5 / (1 + math.log1p(1e6 * candidate.cost.gflops))
        for replicate in range(NUM_REPLICATES):
            rows += [
                {
                    "configuration_id": identity,
                    "model": "sft",
                    "parameters": json.dumps(candidate.configuration.parameters),
                    "cost_gflops": candidate.cost.gflops,
                    "cost_gmacs": candidate.cost.gmacs,
                    "cost_parameters": float(candidate.cost.parameters),
                    "replicate": replicate,
                    "epoch": epoch,
                    "seconds": 60.0,
                    "top1": mean + 0.002 * random_.standard_normal(),
                }
                for epoch in (1, 2, 3)
            ]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    known = {
        "dataset": "synthetic",
        "fingerprint": spec.fingerprint,
        "folds": None,
        "metrics": ["top1"],
        "costs": ["gflops", "gmacs", "parameters"],
    }
    write_table(out, columns, known | facts)


def call(*arguments: str | Path) -> Any:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.medium
def test_simulate_command_prints_the_front_and_its_regret(recorded: tuple[Path, Path]) -> None:
    file, out = recorded
    done = call("simulate", file, "--table", out, "--json", "--workers", 1)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["finished"] == 8
    assert result["seconds"] == 8 * 3 * 60  # one after another
    assert result["ended"] == "all trials ran"
    table = read_table(out)
    ids = [row["configuration"] for row in result["front"]]
    assert result["regret"] == pytest.approx(budget_regret(table, ids, chance=0.25), abs=1e-12)
    costs = [row["gflops"] for row in result["front"]]
    assert costs == sorted(costs)
    truth: NDArray[np.float64] = table.true_means("top1")
    for row in result["front"]:
        assert row["true"] == truth[table.ids.index(row["configuration"])]
        assert row["estimated"] == pytest.approx(row["true"], abs=0.02)
    text = call("simulate", file, "--table", out, "--workers", 1).output
    assert "Ended: all trials ran.\n" in text
    assert "8 finished, 0 stopped, 0 failed" in text
    assert "simulated time: 24.0 minutes" in text
    assert f"budget regret:  {100 * result['regret']:.2f} points of top-1 accuracy" in text
    assert ids[0] in text


def test_simulate_command_takes_a_quarter_of_the_time_with_four_workers(
    recorded: tuple[Path, Path],
) -> None:
    file, out = recorded
    result = json.loads(call("simulate", file, "--table", out, "--json", "--workers", 4).stdout)
    assert result["seconds"] == 8 * 3 * 60 / 4


@pytest.mark.medium
def test_simulate_command_prints_mean_and_standard_error_of_repetitions(
    recorded: tuple[Path, Path],
) -> None:
    file, out = recorded
    file.write_text(STUDY.replace("trials: 8", "trials: 4").replace("ehvi", "random"))
    arguments = ("simulate", file, "--table", out, "--repetitions", 6)
    result = json.loads(call(*arguments, "--json").stdout)
    regrets = result["regrets"]
    assert len(regrets) == 6
    assert len(set(regrets)) > 1
    assert result["mean"]["regret"] == pytest.approx(sum(regrets) / 6, rel=1e-12)
    spread = sum((r - sum(regrets) / 6) ** 2 for r in regrets) / 5
    assert result["standard_error"]["regret"] == pytest.approx(math.sqrt(spread / 6), rel=1e-9)
    assert result["mean"]["finished"] == 4
    text = call(*arguments).output
    assert text.startswith("Means over 6 repetitions:\n")
    assert f"{100 * result['mean']['regret']:.2f} \N{PLUS-MINUS SIGN} " in text
    alone = json.loads(call(*arguments[:-1], 1, "--json").stdout)
    assert alone["standard_error"]["regret"] is None
    assert alone["regrets"] == regrets[:1]


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"dataset": "wearables"}, "the dataset was wearables when the table was recorded"),
        ({"fingerprint": "0"}, "the version of the dataset was 0"),
        ({"folds": 3}, "`dataset.folds` was 3"),
    ],
)
def test_check_table_refuses_a_table_of_another_study_in_one_line(
    tmp_path: Path, facts: dict[str, Any], message: str
) -> None:
    file, out = tmp_path / "simulated.yaml", tmp_path / "t.parquet"
    file.write_text(STUDY)
    write(file, out, **facts)
    done = call("simulate", file, "--table", out)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("Error: The table does not match the study: ")
    assert message in done.stderr


def test_check_table_counts_missing_configurations(recorded: tuple[Path, Path]) -> None:
    file, out = recorded
    file.write_text(STUDY.replace("[2, 4, 8, 16]", "[2, 4, 8, 32]"))
    done = call("simulate", file, "--table", out)
    assert done.exit_code == 1
    assert "2 of the study's 8 configurations are not in the table" in done.stderr
    lacking = STUDY.replace(
        "search:",
        "objectives:\n  - {metric: top1, direction: maximize}\n"
        "  - {metric: gflops, direction: minimize}\n"
        "  - {metric: latency_ms, direction: minimize}\nsearch:",
    )
    file.write_text(lacking)
    source, _, admission = check_study(file)
    with pytest.raises(TableError, match="lacks the objective `latency_ms`; it has gflops, gmacs"):
        check_table(source, admission, read_table(out))
