"""Format parameters: those by modality only for the modalities used."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

from rich.console import Console

from sftsearch.datasets.catalog import describe
from sftsearch.orchestrator.analysis.analyse import Analysis
from sftsearch.orchestrator.analysis.parameters import (
    abbreviate_parameter,
    format_parameter,
    format_value,
    used_parameters,
    varying_parameters,
)
from sftsearch.orchestrator.candidates.admission import Admission
from sftsearch.orchestrator.pricing import costs
from sftsearch.orchestrator.report.csv_report import to_csv
from sftsearch.orchestrator.report.html import to_html
from sftsearch.orchestrator.report.markdown import to_markdown
from sftsearch.orchestrator.report.table import front_table

from report_studies import small_study, summarize, trial
from toy_study import source_of

SENSORS = ["phone_acc", "phone_gyro", "watch_acc", "watch_gyro"]


def test_used_parameters_leave_out_unused_modalities() -> None:
    stride = dict(zip(SENSORS, (8, 16, 32, 64), strict=True))
    row = {"modalities": ["watch_acc", "watch_gyro"], "stride": stride, "dim": 4}
    assert used_parameters(row) == row | {"stride": {"watch_acc": 32, "watch_gyro": 64}}
    assert used_parameters({"stride": stride}) == {"stride": stride}  # modalities unknown
    other = {"modalities": ["watch_acc"], "tokens": {"fused": 4}}
    assert used_parameters(other) == other  # not by modality


def test_format_value_of_every_kind() -> None:
    found = [format_value(v) for v in (None, 3e-3, 8, True, "max", ["a", "b"], {"a": 8, "b": 0.5})]
    assert found == ["\N{EN DASH}", "0.003", "8", "True", "max", "a+b", "{a: 8, b: 0.5}"]


def test_reports_show_only_the_strides_of_the_modalities_used() -> None:
    row = {"modalities": ["watch_acc"], "stride": dict.fromkeys(SENSORS, 8), "dim": 4}
    unused = row | {"stride": dict.fromkeys(SENSORS, 64) | {"watch_acc": 8}}
    study = small_study(
        trial("a", 0, {"top1": 0.5, "gflops": 1.0}, configuration=row),
        trial("b", 0, {"top1": 0.6, "gflops": 2.0}, configuration=unused),
    )
    front = summarize(study)
    assert varying_parameters(front.finished) == []  # the two differ only in what is not used
    third = trial("c", 0, {"top1": 0.7, "gflops": 3.0}, configuration=row | {"modalities": SENSORS})
    front = summarize(replace(study, trials=(*study.trials, third)))
    a, c = front.points[0], front.points[2]
    assert format_parameter(a, "stride") == "{watch_acc: 8}"
    assert abbreviate_parameter(c, "modalities", front.configurations) == "all 4"
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(front_table(Analysis.of(front)))
    for text in (
        console.export_text().replace("\N{NO-BREAK SPACE}", " "),
        to_html(Analysis.of(front)).split("<script", 1)[0],
        to_markdown(Analysis.of(front)).replace("\\", ""),
    ):
        assert "{watch_acc: 8}" in text
        assert "64" not in text
    rows = list(csv.DictReader(io.StringIO(to_csv(Analysis.of(front)))))
    assert json.loads(rows[1]["parameter.stride"])["phone_acc"] == 64  # files for programs have all


def test_price_shows_only_the_strides_of_the_modalities_used() -> None:
    space = """
  - kind: sft_po
    dim: 8
    num_heads: 2
    modalities: {kind: choice, values: [[watch_acc], [watch_acc, phone_acc]]}
    stride: {watch_acc: {kind: choice, values: [4, 8]}, phone_acc: 16}
"""
    admission = Admission(source_of("trials: 2", space=space), describe("wearables"))
    listing = costs.list_prices(admission)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(costs.rich_table(listing, admission, None, 10))
    lines = [line for line in console.export_text().splitlines() if "stride" in line]
    assert len(lines) == len(listing)
    for line in lines:
        both = "modalities=[phone_acc, watch_acc]" in line
        assert ("stride={watch_acc:" in line) != both
        assert ("stride={phone_acc: 16, watch_acc:" in line) == both
