"""Print the tables of docs/cost.md: the SFT paper's Table 2, its formulas, and executed operations.

Run with `python -P tests/benchmarks/paper_costs.py`; it prints Markdown within a second.
"""

from __future__ import annotations

import dataclasses

from sftsearch.orchestrator.pricing.paper_tables import Priced, mean_of, price_table, spec_of
from sftsearch.search_spaces.papers import paper_tables
from sftsearch.trainables.catalog import MODELS
from sftsearch.trainables.cost import GIGA, Cost

DIM, LAYERS = 40, 12
TABLE = paper_tables()["SFT table 2"]


def projected_tokens(priced: Priced, shape: str) -> int:
    """Return the tokens that pass an output projection of attention, over all priced layers."""
    config = MODELS[priced.row.model].config(**priced.row.parameters[shape])
    tokens = [n for n, _ in TABLE.shapes[shape].values()]
    late = LAYERS * sum(tokens)
    if priced.row.name == "SFT":
        fused = 1 + sum(windows.count for windows in config.windows(spec_of(TABLE, shape)).values())
        return 2 * sum(tokens) + config.fused_layers * fused
    return {
        "Concat": late,
        "LF": late,
        "MulT": late * 21 // 12,
        "MBT": late + 11 * 4 * len(tokens),
    }[priced.row.name]


def cost_of(priced: Priced, shape: str, **changes: str) -> Cost:
    """Return our cost of a row, with changes to its configuration."""
    model = MODELS[priced.row.model]
    config = model.config(**priced.row.parameters[shape])
    return model.cost(spec_of(TABLE, shape), dataclasses.replace(config, **changes))


def main() -> None:
    """Print the three tables."""
    rows = [(shape, priced) for shape in TABLE.shapes for priced in price_table(TABLE.name)]
    print("| cell | paper | printed formulas | | without output projection | |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for shape, priced in rows:
        paper = mean_of(priced.row.printed[f"{shape} GFLOPs"])
        whole = priced.gflops[shape]
        less = whole - projected_tokens(priced, shape) * DIM**2 / GIGA
        print(
            f"| {shape} {priced.row.name} | {paper:.2f} | {whole:.4f} | {whole / paper - 1:+.1%} "
            f"| {less:.4f} | {less / paper - 1:+.1%} |"
        )
    print("\n| cell | printed formulas, GFLOPs | what runs, GMACs | |")
    print("| --- | ---: | ---: | ---: |")
    for shape, priced in rows:
        cost = cost_of(priced, shape)
        print(
            f"| {shape} {priced.row.name} | {cost.gflops:.4f} | {cost.gmacs:.4f} "
            f"| {cost.gmacs / cost.gflops:.2f} x |"
        )
    print("\n| sparse layer of SFT | VGGS GFLOPs | GMACs | MOSEI GFLOPs | GMACs |")
    print("| --- | ---: | ---: | ---: | ---: |")
    sft = rows[4][1]
    for pattern in ("dense", "strided", "fixed"):
        costs = [cost_of(sft, shape, sparse_attention=pattern) for shape in TABLE.shapes]
        shown = " | ".join(f"{cost.gflops:.4f} | {cost.gmacs:.4f}" for cost in costs)
        print(f"| {pattern} | {shown} |")


if __name__ == "__main__":
    main()
