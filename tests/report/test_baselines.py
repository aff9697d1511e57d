"""Show baselines in every format, and say first if the front does not beat them."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from sftsearch.orchestrator.analysis.analyse import Analysis
from sftsearch.orchestrator.report.charts import charts_as_json
from sftsearch.orchestrator.report.csv_report import to_csv
from sftsearch.orchestrator.report.figure import to_png
from sftsearch.orchestrator.report.html import to_html
from sftsearch.orchestrator.report.json_report import to_json
from sftsearch.orchestrator.report.markdown import to_markdown
from sftsearch.orchestrator.report.note import describe_study
from sftsearch.orchestrator.report.table import front_table
from sftsearch.orchestrator.report.text import headline, notes

from baseline_records import COST, baseline, groups_of, trained
from report_studies import small_study, summarize

if TYPE_CHECKING:
    from sftsearch.orchestrator.analysis.front import Front

FREE = {**COST, "gflops": 0.0, "gmacs": 0.0}


def front_of(*linear: float) -> Front:
    """Return a front of one configuration with 70, 80, 90, and two baselines."""
    majority = baseline("majority", groups_of(20, 20, 20), values={"top1": 0.2, **FREE})
    return summarize(
        small_study(
            trained("a", 0, groups_of(70, 80, 90)),
            trained("b", 0, groups_of(60, 60, 60), cost=0.5),
            baselines=(majority, baseline("linear", groups_of(*linear))),
            description="About it.",
        )
    )


BEHIND = (
    "The best baseline beats the front: `linear` (what linear is) has 0.900 top-1 accuracy on "
    "validation at 1 M multiply-adds (paper); the best model of the front, a, has 0.800 "
    "(difference -10.0 points [-10.0, -10.0] over 3 subjects, not corrected for the choice of the "
    "best, which favors the front). Use the baseline, or search longer."
)


def test_headline_says_first_that_the_baseline_wins() -> None:
    front = front_of(80, 90, 100)
    text = headline(front)
    assert text.startswith(f"{BEHIND} 2 of 2 configurations are on the front;")
    assert describe_study(Analysis.of(front)) == f"{text}\n\nAbout it."


def test_headline_says_first_that_the_front_does_not_clearly_win() -> None:
    """Differences of +10, 0 and -5 points have a mean of 1.67 and an interval around 0."""
    text = headline(front_of(60, 80, 95))
    assert text.startswith("The front does not clearly beat the best baseline: `linear` (")
    assert "difference +1.7 points [-17.3, +20.6] over 3 subjects, within noise, not" in text
    assert "Use the baseline" not in text


def test_headline_of_a_front_that_wins_is_about_the_front() -> None:
    front = front_of(50, 60, 70)
    assert headline(front).startswith("2 of 2 configurations are on the front")
    described = " ".join(notes(front))
    assert "Baselines are no trials: they are fitted on the same data in seconds" in described
    assert (
        "The best model of the front, a, against the best baseline, `linear`: difference +20.0 "
        "points [+20.0, +20.0] over 3 subjects"
    ) in described


def test_two_subjects_are_too_few_for_an_interval() -> None:
    front = summarize(
        small_study(
            trained("a", 0, groups_of(70, 80)), baselines=(baseline("mlp", groups_of(80, 80)),)
        )
    )
    assert "difference -5.0 points over 2 subjects, too few for an interval" in headline(front)


def test_tables_have_rows_of_baselines() -> None:
    analysis = Analysis.of(front_of(80, 90, 100))
    console = Console(width=100, record=True)
    console.print(front_table(analysis))
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    (row,) = [line for line in lines if line.startswith("baseline linear 0.900")]
    assert row.endswith("1 M +10.0 [+10.0, +10.0]")
    assert "baseline majority what majority is" in lines
    rows = {row["configuration_id"]: row for row in csv.DictReader(io.StringIO(to_csv(analysis)))}
    assert rows["baseline-linear"]["status"] == "baseline"
    assert float(rows["baseline-linear"]["difference"]) == pytest.approx(0.1)
    assert "| baseline | baseline-linear | linear | 0.900" in to_markdown(analysis)
    assert '<tr class="baseline" data-id="baseline-majority">' in to_html(analysis)


def test_json_has_the_baselines_apart_from_configurations() -> None:
    document = json.loads(to_json(Analysis.of(front_of(80, 90, 100))))
    assert [c["configuration_id"] for c in document["configurations"]] == ["b", "a"]
    found = document["baselines"]
    assert [c["model"] for c in found["results"]] == ["majority", "linear"]
    assert found["contest"]["verdict"] == "behind"
    assert found["contest"]["interval"] == pytest.approx([-0.1, -0.1])


def test_chart_has_crosses_and_a_line_if_it_is_in_range() -> None:
    near = baseline("majority", groups_of(57, 57, 57), values={"top1": 0.57, **FREE})
    front = front_of(80, 90, 100)
    chart = json.loads(charts_as_json(Analysis.of(front)))["front"]
    (crosses,) = [trace for trace in chart["traces"] if trace.get("meta") == "baseline"]
    assert (crosses["x"], crosses["text"]) == ([COST["gflops"] * 1e9], ["linear"])
    assert crosses["y"] == pytest.approx([0.9])
    assert chart["layout"]["shapes"] == []
    labels = [one["text"] for one in chart["layout"]["annotations"]]
    assert "not in range: majority 0.200" in labels
    study = small_study(trained("a", 0, groups_of(60, 80, 90)),
                        trained("b", 0, groups_of(60, 60, 60), cost=0.5),
                        baselines=(near,))  # fmt: skip
    chart = json.loads(charts_as_json(Analysis.of(summarize(study))))["front"]
    (line,) = chart["layout"]["shapes"]
    assert (line["y0"], line["y1"], line["label"]["text"]) == (0.57, 0.57, "majority 0.570")
    assert to_png(Analysis.of(front)) != to_png(Analysis.of(summarize(study)))


def test_names_of_baselines_are_escaped() -> None:
    hostile = "</script><b>$x$"
    front = summarize(
        small_study(
            trained("a", 0, groups_of(70, 80, 90)),
            baselines=(baseline(hostile, groups_of(80, 90, 99)),),
        )
    )
    page = to_html(Analysis.of(front))
    assert hostile not in page
    assert page.count("</script>") == 3
    assert to_png(Analysis.of(front)).startswith(b"\x89PNG")
