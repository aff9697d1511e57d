"""A limit on memory refuses proposals before they start, and a reopened study refuses the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sftsearch.trainables import memory
from sftsearch.trainables.memory import Memory

from toy_study import Toy, finish

if TYPE_CHECKING:
    from pathlib import Path

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.orchestrator.search.engine import Search
    from sftsearch.trainables.config import TransformerConfig

STUDY = """
study: {{name: toy}}
dataset: {{kind: wearables}}
objectives: [{{metric: top1, direction: maximize}}, {{metric: COST, direction: minimize}}]
search:
  {{sampler: {sampler}, trials: {trials}, replicates: {seeds}, deterministic: {deterministic},
    balance: {balance}, early_stopping: {stop}}}
LIMIT
training: {{epochs: 2}}
space:
  - kind: sft
    patch: 8
    num_heads: 4
    stride: {{kind: choice, values: [1, 4]}}
    dim: {{kind: choice, values: [8, 12, 16, 20, 24, 28, 32]}}
"""
LIMITED = STUDY.replace("LIMIT", "constraints: [{{metric: train_memory_mb, max: 18}}]")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count as many megabytes as a token has numbers, and list the counts."""
    widths: list[int] = []

    def count(
        name: str, spec: DatasetSpec, config: TransformerConfig, *_: object, **__: object
    ) -> Memory:
        widths.append(config.dim)
        return Memory(float(config.dim), 1.0, 0.5)

    monkeypatch.setattr(memory, "count_memory", count)
    return widths


def drive(search: Search, stop_after: int | None = None) -> None:
    ended = 0
    while not search.exhausted and ended != stop_after:
        assignment = search.propose()  # None if all that was left was refused
        if assignment is not None:
            finish(search, assignment)
            ended += 1


@pytest.mark.medium
@pytest.mark.parametrize("stop_after", [None, 3])
@pytest.mark.parametrize("sampler", ["random", "exhaustive", "ehvi", "tpe"])
def test_a_limit_on_memory_uses_up_the_rest_of_the_space(
    tmp_path: Path, counted: list[int], sampler: str, stop_after: int | None
) -> None:
    """Three of seven widths are within 18, at two strides; each other point is refused once."""
    text = LIMITED.replace("COST", "gflops")
    toy = Toy(tmp_path, sampler=f"{{kind: {sampler}}}", trials=40, seeds=1, text=text)
    journal, search = toy.open()
    drive(search, stop_after)
    if stop_after:
        journal.close()
        journal, search = toy.open()
        drive(search)
    assert search.why_ended() == "the space is used up"
    journal.close()
    kinds = [kind for kind, _ in toy.events()]
    assert kinds.count("finished") == kinds.count("admitted") == 2 * 3
    assert kinds.count("refused") == 2 * 4
    started = [body for kind, body in toy.events() if kind == "started"]
    assert {body["cost"]["train_memory_mb"] for body in started} == {8.0, 12.0, 16.0}
    assert len(counted) == 14


@pytest.mark.medium
@pytest.mark.parametrize("sampler", ["ehvi", "tpe", "nsga2"])
def test_memory_can_be_the_cost_of_a_study(
    tmp_path: Path, counted: list[int], sampler: str
) -> None:
    """Configurations are compared by memory, and searched by GFLOPs."""
    text = STUDY.replace("LIMIT", "").replace("COST", "train_memory_mb")
    kind = f"{{kind: {sampler}}}"
    toy = Toy(tmp_path, sampler=kind, trials=12, seeds=1, stop="{kind: dominated}", text=text)
    journal, search = toy.open()
    drive(search)
    measured = search.known.past.measured()
    widths = [search.state.configurations[i].cost["train_memory_mb"] for i in measured.ids]
    gflops = [search.state.configurations[i].cost["gflops"] for i in measured.ids]
    assert measured.costs.tolist() == widths
    assert measured.searched_costs.tolist() == gflops
    # Early stopping compares at equal memory: with no memory, nothing is affordable.
    assert search.known.affordable({"train_memory_mb": max(widths)}) is not None
    assert search.known.affordable({"train_memory_mb": 0.0}) is None
    journal.close()
    told = [body["values"] for kind_, body in toy.events() if kind_ == "told" and body["values"]]
    assert {cost for _, cost in told} <= set(map(float, counted))
