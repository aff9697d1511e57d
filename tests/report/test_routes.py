"""Where gates send samples, in the report: by configuration, by class, and by lambda."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from sftsearch.orchestrator.analysis import routes
from sftsearch.orchestrator.report import formats as report
from sftsearch.orchestrator.storage.study_record import StudyRecord, TrialRecord

HOSTILE = "<b>|a`\n"


def gated(name: str, weight: float | None, share: float, **values: float) -> TrialRecord:
    """Return a trial whose second route takes a share of the samples."""
    return TrialRecord(
        key=f"{name}-0",
        configuration_id=name,
        model="dynmm",
        configuration={"stride": name} | ({} if weight is None else {"resource_weight": weight}),
        seed=0,
        status="finished",
        values={
            "top1": 0.8 + share / 10,
            "gflops": 2.0,
            "gflops_expected": 1 + share,
            "route_1": 1 - share,
            "route_2": share,
            **values,
        },
        groups={f"s{g}": (80.0, 100.0) for g in range(3)},
        started=1000.0,
        ended=2000.0,
    )


def front_of(*trials: TrialRecord) -> report.Front:
    study = StudyRecord(
        name="lambda",
        description="",
        dataset="wearables",
        num_seeds=1,
        objectives=(("top1", "maximize"), ("gflops_expected", "minimize")),
        facts={},
        refused={},
        trials=trials,
    )
    return report.summarise(study, x="gflops_expected")


def sweep() -> report.Front:
    return front_of(
        gated("a", 0.5, 0.1, **{"route_1/walk": 1.0, "route_2/walk": 0.0, "route_2/turn": 0.4}),
        gated("b", 0.1, 0.9),
        gated("c", 0.1, 0.7),
    )


def test_levels_are_means_of_the_configurations_of_a_weight() -> None:
    levels = routes.levels_of(routes.routes_of(sweep()))
    assert [level.weight for level in levels] == [0.1, 0.5]
    assert [level.num_configurations for level in levels] == [2, 1]
    assert levels[0].shares == pytest.approx((0.2, 0.8))
    assert levels[0].expected == pytest.approx(1.8)
    assert levels[1].shares == pytest.approx((0.9, 0.1))


def test_there_are_no_levels_of_one_weight_or_of_different_routes() -> None:
    assert routes.levels_of(routes.routes_of(front_of(gated("a", 0.1, 0.5)))) == []
    assert routes.levels_of(routes.routes_of(front_of(gated("a", None, 0.5)))) == []
    other = front_of(gated("a", 0.1, 0.5), gated("b", 0.2, 0.5, route_3=0.0))
    assert routes.levels_of(routes.routes_of(other)) == []


def test_rows_have_shares_and_the_last_route_by_class() -> None:
    front = sweep()
    routed = routes.routes_of(front)
    heads, rows = routes.headers(routed, front), routes.rows(routed, front)
    cells = [dict(zip(heads, row, strict=True)) for row in rows]
    assert [row["configuration"] for row in cells] == ["c", "b", "a"]
    assert cells[2]["route 1"] == "0.90"
    assert cells[2]["route 2"] == "0.10"
    assert cells[2]["by class"] == "walk 0.00, turn 0.40"
    assert cells[0]["by class"] == routes.MISSING


@pytest.mark.medium
def test_every_format_has_the_routes() -> None:
    front = sweep()
    markdown = report.to_markdown(front)
    assert "## Routes" in markdown
    assert "0.1: 1.80 GFLOPs, 0.20 / 0.80; 0.5: 1.10 GFLOPs, 0.90 / 0.10" in markdown
    page = report.to_html(front)
    assert 'id="routes-chart"' in page
    levels = json.loads(report.to_json(front))["routes"]
    assert [level["weight"] for level in levels] == [0.1, 0.5]
    assert "route_2/walk" in report.to_csv(front).splitlines()[0]
    picture = report.to_png(front)
    assert picture[16:24] == (2400).to_bytes(4) + (960).to_bytes(4)  # IHDR: width, height


def test_without_gates_nothing_is_said_of_routes(study: Any) -> None:
    front = report.summarise(study)
    assert "Routes" not in report.to_markdown(front)
    assert "routes-chart" not in report.to_html(front).split("<script", 1)[0]
    assert json.loads(report.to_json(front))["routes"] == []


def test_names_of_classes_are_text() -> None:
    front = front_of(gated("a", 0.1, 0.5, **{f"route_2/{HOSTILE}": 0.5}), gated("b", 0.2, 0.5))
    assert HOSTILE not in report.to_html(replace(front)).split("<script", 1)[0]
    assert "<b>" not in report.to_markdown(front)
