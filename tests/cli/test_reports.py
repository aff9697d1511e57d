"""Commands that report results: compare."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from scipy.stats import norm

from sftsearch.orchestrator.cli.main import main

from journals import Journal

if TYPE_CHECKING:
    from pathlib import Path


A = {1: 0.50, 2: 0.70, 4: 0.60}
B = {2: 0.60, 3: 0.75, 8: 0.90, 16: 0.86}


@pytest.fixture
def two_studies(tmp_path: Path) -> Path:
    for name, points in {"one": A, "two": B}.items():
        with Journal(tmp_path / name) as journal:
            journal.append(
                "created", name=name, description="", dataset="synthetic", num_seeds=1,
                objectives=[["top1", "maximize"], ["gflops", "minimize"]],
                facts={"fingerprint": "f"}, definition={}, definition_hash="",
            )  # fmt: skip
            for cost, top1 in points.items():
                model = "sft" if cost < 3 else "late"
                body = {"configuration_id": f"c{cost}", "parameters": {}, "model": model}
                body["cost"] = {"gflops": cost}
                journal.append("proposed", number=cost, branch=0, values={})
                journal.append("admitted", number=cost, seeds=[0], **body)
                journal.append("started", trial=f"c{cost}-0", epoch=0, seed=0, **body)
                ended: dict[str, Any] = {"values": {"top1": top1, "gflops": cost, "seconds": 5.0}}
                ended["groups"] = {"s1": [100 * top1, 100]}
                journal.append("finished", trial=f"c{cost}-0", facts={}, **ended)
    return tmp_path


def call(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["compare", *map(str, arguments)], env={"COLUMNS": "160"})


def test_compare_command_takes_studies_and_families(two_studies: Path) -> None:
    result = call("one", "two", "--runs", two_studies)
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "P(first is better)" in text
    assert "0.700 (c2) 0.600 (c2) +10.0 [" in text
    output = json.loads(call("one", "two", "--runs", two_studies, "--json").output)
    assert output["names"] == ["one", "two"]
    # One subject with 100 recordings: sqrt((0.7 * 0.3 + 0.6 * 0.4) / 100) is 6.7 points.
    assert output["at_cost"][1]["probability"] == pytest.approx(norm.cdf(0.1 / 0.0671), abs=0.02)
    output = json.loads(
        call("two", "--families", "sft", "late", "--runs", two_studies, "--json").output
    )
    assert (output["names"], output["num_configurations"]) == (["sft", "late"], [1, 3])


def test_compare_command_needs_two_sides(two_studies: Path) -> None:
    for arguments in (["one"], ["one", "two", "--families", "sft", "late"]):
        result = call(*arguments, "--runs", two_studies)
        assert result.exit_code == 2
        assert "Name a second study, or two families" in result.output
    result = call("one", "three", "--runs", two_studies)
    assert result.exit_code == 1
    assert "There is no study 'three'" in result.output
