"""Compare the printed costs of papers with the costs of our models at the same sizes."""

from __future__ import annotations

import io
import json
import runpy
from pathlib import Path

import pytest
from rich.console import Console

from sftsearch.orchestrator.pricing import paper_memory, paper_times
from sftsearch.orchestrator.pricing import paper_tables as priced_tables
from sftsearch.search_spaces.papers import paper_tables
from sftsearch.trainables.cost import GIGA

ROOT = Path(__file__).parents[2]
SIZES = {"VGGS": (38, 1200, 38), "MOSEI": (500, 500, 50)}
POOLED = {"VGGS": 45, "MOSEI": 46}
"""Fused tokens of SFT, CLS included: 1 + 12 + 20 + 12 and 1 + 10 + 10 + 25."""


def block(n: int, d: int = 40) -> int:
    """Return a block's operations (SFT paper, A.2): attention, MLP and element-wise operations."""
    return 4 * n * d * d + 2 * n * n * d + 2 * n * d * d + 4 * n * d


def attention(n: int, d: int = 40) -> int:
    return 4 * n * d * d + 2 * n * n * d


def by_hand(model: str, shape: str) -> float:
    """Return the printed formulas' operations for 12 layers of width 40."""
    sizes = SIZES[shape]
    layer = sum(map(block, sizes))
    flops = {
        "Concat": 12 * block(sum(sizes)),
        "LF": 12 * layer,
        "MulT": (9 * 2 + 3) * layer,
        "MBT": layer + 11 * sum(block(n + 4) for n in sizes),
        "SFT": layer + sum(map(attention, sizes)) + 11 * block(POOLED[shape]),
    }
    return flops[model] / GIGA


@pytest.mark.parametrize("shape", SIZES)
def test_price_table_2_agrees_with_the_printed_formulas_and_within_5_percent(shape: str) -> None:
    rows = priced_tables.price_table("SFT table 2")
    assert [priced.row.name for priced in rows] == ["Concat", "LF", "MulT", "MBT", "SFT"]
    for priced in rows:
        assert priced.gflops[shape] == pytest.approx(by_hand(priced.row.name, shape), rel=1e-12)
        difference = priced.difference(shape)
        assert difference is not None
        assert 0 < difference < 0.05  # all printed formulas exceed the printed table


def test_paper_tables_merge_the_model_and_the_changes_of_a_row() -> None:
    rows = {row.name: row for row in paper_tables()["SFT table 3"].rows}
    assert rows["SFT, 64x"].parameters["VGGS"] == {
        "sparse_attention": "dense", "stride": 64, "pooling": "max",
    }  # fmt: skip
    assert rows["Concat, no reduction"].parameters["VGGS"] == {}
    assert rows["SFT, 64x"].printed["VGGS100 Top1"] == {"mean": 55.98, "std": 0.28}


@pytest.mark.parametrize("name", sorted(paper_tables()))
def test_price_table_has_equal_columns_and_a_cost_in_each_row(name: str) -> None:
    rows = priced_tables.price_table(name)
    assert len({tuple(priced.row.printed) for priced in rows}) == 1
    assert len({priced.row.name for priced in rows}) == len(rows)
    for priced in rows:
        assert all(gflops > 0 for gflops in priced.gflops.values())
        assert priced.gflops.keys() == paper_tables()[name].shapes.keys()


@pytest.mark.parametrize("name", sorted(paper_tables()))
def test_rich_table_fits_into_80_columns(name: str) -> None:
    stream = io.StringIO()
    Console(file=stream, width=80).print(priced_tables.rich_table(name))
    text = stream.getvalue()
    assert name in text
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    for priced in priced_tables.price_table(name):
        line = [line for line in text.splitlines() if line.startswith(f"{priced.row.name} ")][-1]
        for gflops in priced.gflops.values():
            assert f"{gflops:.4f}" in line
        for printed in priced.row.printed.values():
            assert f"{priced_tables.mean_of(printed):.2f}" in line


def test_as_json_includes_deviations() -> None:
    result = json.loads(json.dumps(priced_tables.as_json("SFT table 1")))
    assert result["source"].startswith("Ding et al. 2021")
    row = next(row for row in result["rows"] if row["name"] == "SFT")
    assert row["printed"]["VGGS100 mAP"] == {"mean": 57.18, "std": 0.39}
    assert row["gflops"]["VGGS"] == pytest.approx(by_hand("SFT", "VGGS"))
    assert row["difference"] == {"VGGS": None, "MOSEI": None}


def test_table_2_prints_the_memory_ratios_and_times_of_the_paper() -> None:
    """Ding et al. 2021, Table 2."""
    table = paper_tables()["SFT table 2"]
    assert table.batch_size == 24
    printed = {
        shape: [row.measured[shape].memory_ratio for row in table.rows] for shape in table.shapes
    }
    assert printed == {
        "VGGS": [3.16, 2.80, 2.45, 2.82, 1],
        "MOSEI": [11.95, 5.66, 7.10, 5.72, 1],
    }
    for row in table.rows:  # a ratio has more digits than the quotient of two rounded numbers
        for shape, measured in row.measured.items():
            base = table.rows[-1].measured[shape]
            quotient = measured.training_ms / base.training_ms
            assert measured.training_ratio == pytest.approx(quotient, rel=0.01)
            assert measured.memory_ratio == pytest.approx(
                measured.memory_gb / base.memory_gb, rel=0.06
            )
    assert not paper_memory.has_memory("SFT table 1")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_memory_of_table_2_is_ordered_as_printed_and_fits_into_100_columns() -> None:
    """With attention weights held, as the paper's code must, SFT saves most where it prints so.

    Weights alone are a lower bound by hand: 12 layers of 5 heads for each sample, in float32.
    """
    counted = paper_memory.count_table("SFT table 2")
    found = {(one.shape, one.name): one for one in counted}
    for shape, sizes in SIZES.items():
        ours = {name: found[shape, name].gigabytes["math"] for name in ("Concat", "LF", "MBT")}
        base = found[shape, "SFT"].gigabytes["math"]
        weights = 12 * 5 * 4 / 2**30
        assert ours["Concat"] > weights * sum(sizes) ** 2
        assert ours["LF"] > weights * sum(n**2 for n in sizes)
        for name, gigabytes in ours.items():
            printed = found[shape, name].measured.memory_ratio
            assert 0.75 < gigabytes / base / printed < 1.35, (shape, name)
    for one in counted:
        assert one.gigabytes["fused"] < one.gigabytes["math"]
    stream = io.StringIO()
    Console(file=stream, width=100).print(paper_memory.rich_table("SFT table 2", counted))
    lines = stream.getvalue().splitlines()
    assert "\N{HORIZONTAL ELLIPSIS}" not in stream.getvalue()
    for one in counted:
        line = next(line for line in lines if line.startswith(f"{one.shape} {one.name} "))
        assert f"{one.gigabytes['math']:.4f}" in line
        assert f"{one.measured.memory_ratio:.2f}" in line
    rows = json.loads(json.dumps(paper_memory.as_json(counted)))
    assert len(rows) == 10
    assert rows[0]["printed"]["memory_gb"] == 1.52


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_times_of_table_2_are_those_of_ten_models() -> None:
    """Quadratic attention makes every other model at least as slow as SFT, as in the paper."""
    done: list[tuple[int, int]] = []
    timed = paper_times.time_table("SFT table 2", lambda *counts: done.append(counts))
    assert done == [(i, 10) for i in range(1, 11)]
    for one in timed:
        base = next(other for other in timed if (other.shape, other.name) == (one.shape, "SFT"))
        assert one.training_ms >= base.training_ms
        assert one.training_ms > one.evaluation_ms > 0
    stream = io.StringIO()
    Console(file=stream, width=100).print(paper_times.rich_table("SFT table 2", timed))
    lines = stream.getvalue().splitlines()
    for one in timed:
        line = next(line for line in lines if line.startswith(f"{one.shape} {one.name} "))
        assert f"{one.training_ms:.2f}" in line
        assert f"{one.measured.training_ms:.2f}" in line
    assert len(json.loads(json.dumps(paper_times.as_json(timed)))) == 10


def test_cost_page_shows_the_output_of_its_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    runpy.run_path(str(ROOT / "tests" / "benchmarks" / "paper_costs.py"), run_name="__main__")
    page = (ROOT / "docs" / "cost.md").read_text().splitlines()
    printed = [line for line in capsys.readouterr().out.splitlines() if line]
    assert len(printed) == 12 + 12 + 5
    assert [line for line in printed if line not in page] == []


@pytest.mark.parametrize("shape", SIZES)
def test_price_table_2_without_output_projections_is_within_2_percent(
    shape: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Attention then costs 3 n d^2 + 2 n^2 d, as docs/cost.md explains. Compare with a sum."""
    projected = dict.fromkeys(("Concat", "LF"), 12 * sum(SIZES[shape]))
    projected["MulT"] = 21 * sum(SIZES[shape])
    projected["MBT"] = 12 * sum(SIZES[shape]) + 11 * 3 * 4
    projected["SFT"] = 2 * sum(SIZES[shape]) + 11 * POOLED[shape]
    runpy.run_path(str(ROOT / "tests" / "benchmarks" / "paper_costs.py"), run_name="__main__")
    printed = capsys.readouterr().out
    for priced in priced_tables.price_table("SFT table 2"):
        less = by_hand(priced.row.name, shape) - projected[priced.row.name] * 1600 / GIGA
        paper = priced_tables.mean_of(priced.row.printed[f"{shape} GFLOPs"])
        assert less == pytest.approx(paper, rel=0.02)
        assert f"| {less:.4f} | {less / paper - 1:+.1%} |" in printed
