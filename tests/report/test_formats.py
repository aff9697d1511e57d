"""Write reports in every format."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from sftsearch.datasets.errors import UserError
from sftsearch.orchestrator.analysis.analyse import Analysis
from sftsearch.orchestrator.metrics import metric
from sftsearch.orchestrator.report.charts import charts_as_json
from sftsearch.orchestrator.report.csv_report import to_csv
from sftsearch.orchestrator.report.formats import FORMATS, write_report
from sftsearch.orchestrator.report.html import to_html
from sftsearch.orchestrator.report.json_report import to_json
from sftsearch.orchestrator.report.markdown import to_markdown
from sftsearch.orchestrator.report.table import confirmed_table, front_table
from sftsearch.orchestrator.report.text import headline, notes

from report_studies import small_study, summarize, trial

if TYPE_CHECKING:
    from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary
    from sftsearch.orchestrator.storage.study_record import StudyRecord, TrialRecord

GOLDEN = Path(__file__).parent.parent / "golden"
HOSTILE = "</script><img src=x onerror=alert(1)><b>&amp;\u2028`|[red]$x$ %{x}"


def test_formats_report_a_study_without_a_finished_trial(tmp_path: Path) -> None:
    study = small_study(trial("a", 0, {"gflops": 1.0}, "running"))
    assert len(write_report(Analysis.of(summarize(study)), list(FORMATS), tmp_path)) == len(FORMATS)
    assert "no front" in headline(summarize(study))
    assert write_report(Analysis.of(summarize(small_study())), ["html", "png", "csv"], tmp_path)


def test_formats_report_a_single_configuration(tmp_path: Path) -> None:
    study = small_study(trial("a", 0, {"top1": 0.5, "gflops": 1.0}))
    front = summarize(study)
    assert front.hypervolume == 0.5  # with one cost its scale is 1
    assert headline(front).startswith("1 of 1 configuration is on the front")
    assert len(write_report(Analysis.of(summarize(study)), list(FORMATS), tmp_path)) == len(FORMATS)


def test_notes_leave_intervals_out_without_groups(tmp_path: Path) -> None:
    front = summarize(small_study(trial("a", 0, {"top1": 0.5, "gflops": 1.0}, groups={})))
    assert front.num_groups == 0
    assert front.points[0].interval is None
    assert not any("bootstrap" in note for note in notes(front))
    assert FORMATS["html"].render(Analysis.of(front))


def test_formats_rank_a_regression_by_its_error(
    tmp_path: Path,
) -> None:
    """Costs 1, 10, 100 with errors 0.9, 0.6, 0.7: two on the front, the last dominated."""
    errors = {"a": (0.9, 1.0), "b": (0.6, 10.0), "c": (0.7, 100.0)}
    study = small_study(
        *(
            trial(name, 0, {"mae": mae, "acc2": 1 - mae / 2, "gflops": cost})
            for name, (mae, cost) in errors.items()
        ),
        objectives=(("mae", "minimize"), ("gflops", "minimize")),
    )
    front = summarize(study, y="mae")
    assert [c.configuration_id for c in front.points] == ["a", "b"]
    # Costs are 1, 1/2, 0; errors are scaled from the worst, 0.9, to the best, 0.6.
    assert front.hypervolume == pytest.approx(0.5)
    assert all(c.interval is None for c in front.finished)
    assert "the worst mean absolute error and the highest cost" in " ".join(notes(front))
    assert headline(front) == (
        "2 of 3 configurations are on the front; the best reaches 0.600 mean absolute error at "
        "10 G multiply-adds (paper); 10 % of that cost loses 0.3 mean absolute error."
    )
    assert len(
        write_report(Analysis.of(summarize(study, y="mae")), list(FORMATS), tmp_path)
    ) == len(FORMATS)
    assert all(c.interval is not None for c in summarize(study, y="acc2").finished)


def test_html_counts_configurations_above_max_gflops(study: StudyRecord) -> None:
    front = summarize(study, max_gflops=0.005)
    assert all(c.values["gflops"] <= 0.005 for c in front.configurations)
    assert front.num_filtered == 20 - len(front.configurations)
    assert "left out" in to_html(Analysis.of(front))


def test_notes_state_subjects_seeds_and_split(study: StudyRecord) -> None:
    text = " ".join(notes(summarize(study)))
    assert "over 3 subjects and the seeds, by Student's t, paired by subject" in text
    assert "conditional on this split" in text
    assert "these people only" not in text
    hundredths = {f"{g:02d}": (50.0, 100.0) for g in range(100)}
    values = {"top1": 0.5, "gflops": 1.0}
    front = summarize(small_study(trial("a", 0, values, groups=hundredths)))
    assert "100 groups of samples" in " ".join(notes(front))
    assert front.num_people is None


def test_notes_say_that_one_or_two_people_stand_for_nobody_else() -> None:
    values, counts = {"top1": 0.5, "gflops": 1.0}, (50.0, 100.0)
    blocks = {f"{name} block {n:02d}": counts for name in ("s1", "s2") for n in range(10)}
    front = summarize(small_study(trial("a", 0, values, groups=blocks)))
    text = " ".join(notes(front))
    assert (front.num_people, front.num_groups) == (2, 20)
    assert "over 20 groups of samples and the seeds" in text
    assert "Validation has two people, so the intervals hold for these people only" in text
    assert "independent" not in text
    front = summarize(small_study(trial("a", 0, values, groups={"s1": counts})))
    text = " ".join(notes(front))
    assert "Validation has one person" in text
    assert "Samples are taken as independent." in text
    # In three folds of one person each, blocks are merged to three people.
    folds = [{f"s{k} block {n:02d}": counts for n in range(20)} for k in range(3)]
    trials = [trial("a", k, values, groups=groups) for k, groups in enumerate(folds)]
    front = summarize(small_study(*trials, folds=3))
    assert (front.num_people, front.num_groups, front.groups_are_subjects) == (3, 3, True)
    assert "these people only" not in " ".join(notes(front))


def test_formats_state_that_the_test_split_is_sealed(study: StudyRecord) -> None:
    front = summarize(study)
    for name in ("html", "markdown", "json"):
        text = str(FORMATS[name].render(Analysis.of(front)))
        assert "The test split is sealed" in text, name
        assert "sftsearch confirm stride" in text, name
    assert "test_top1" not in to_csv(Analysis.of(front))


def test_formats_show_test_values_of_a_confirmed_study(confirmed_study: StudyRecord) -> None:
    front = summarize(confirmed_study)
    best = front.points[-1]
    assert best.test_interval is not None
    assert best.test_interval[0] < best.test_values["top1"] < best.test_interval[1]
    page = to_html(Analysis.of(front))
    assert "test top-1 accuracy" in page
    assert "sealed" not in page
    assert "test_top1_interval_low" in to_csv(Analysis.of(front))


def test_write_makes_every_format(study: StudyRecord, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    paths = write_report(
        Analysis.of(summarize(study)), ["csv", "html", "json", "markdown", "png"], folder
    )
    assert [path.name for path in paths] == [
        "report.csv", "report.html", "report.json", "report.md", "report.png",
    ]  # fmt: skip
    assert sorted(folder.iterdir()) == sorted(paths)  # and no temporary file
    assert paths[-1].read_bytes().startswith(b"\x89PNG\r\n")


def test_write_refuses_an_unknown_format_before_anything_is_written(
    study: StudyRecord, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"No report format is called 'htm'\. Did you mean 'html'"):
        write_report(Analysis.of(summarize(study)), ["csv", "htm"], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_write_refuses_a_folder_that_is_a_file(study: StudyRecord, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Cannot write the report .*report\.csv"):
        write_report(Analysis.of(summarize(study)), ["csv"], tmp_path / "file")


def test_csv_has_a_row_per_configuration_at_full_precision(study: StudyRecord) -> None:
    front = summarize(study)
    rows = list(csv.DictReader(io.StringIO(to_csv(Analysis.of(front)))))
    assert len(rows) == 20
    for row, c in zip(rows, front.configurations, strict=True):
        assert row["configuration_id"] == c.configuration_id
        assert float(row["top1"]) == c.values["top1"]
        assert row["parameter.stride"] == str(c.parameters["stride"])
        assert json.loads(row["parameter.modalities"]) == c.parameters["modalities"]
    assert sum(int(row["on_front"]) for row in rows) == 9


def _keys(value: object, path: str = "") -> set[str]:
    """Return the paths of a document's keys; entries of lists share one path."""
    if isinstance(value, dict):
        inner = [_keys(item, f"{path}.{name}") for name, item in value.items()]
        return {path}.union(*inner)
    if isinstance(value, list):
        return {path}.union(*(_keys(item, f"{path}[]") for item in value))
    return {path}


def test_json_keeps_its_keys(confirmed_study: StudyRecord) -> None:
    """A changed key breaks readers: increase SCHEMA_VERSION, then update the golden file."""
    document = json.loads(to_json(Analysis.of(summarize(confirmed_study))))
    keys = sorted(key.lstrip(".") for key in _keys(document) if key)
    assert keys == (GOLDEN / "report_keys.txt").read_text().split("\n")[:-1]
    assert document["schema_version"] == 2
    assert len(document["trials"]) == 40


def test_json_has_null_for_nonfinite_values() -> None:
    front = summarize(
        small_study(
            trial("ok", 0, {"top1": 0.5, "gflops": 1.0, "loss": math.inf}),
            trial("nan", 0, {"top1": math.nan, "gflops": 1.0}),
        )
    )
    document = json.loads(to_json(Analysis.of(front)))
    assert document["configurations"][0]["values"]["loss"] is None
    for style in FORMATS.values():
        assert style.render(Analysis.of(front))


def test_markdown_has_a_table_of_equal_rows(study: StudyRecord) -> None:
    tables = _tables(to_markdown(Analysis.of(summarize(study))))
    front_table, standing_table, family_table, importance_table = tables
    assert len(front_table) == 22
    assert len(standing_table) == 8  # five models, and how many configurations are drawn
    assert len(family_table) == 7
    assert importance_table[0].startswith("| parameter |")


def _tables(markdown: str) -> list[list[str]]:
    """Return the rows of each table; check that they have equally many cells."""
    lines = itertools.groupby(markdown.split("\n"), key=lambda line: line.startswith("|"))
    tables = [list(rows) for is_table, rows in lines if is_table]
    for rows in tables:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    return tables


def _hostile(study: StudyRecord) -> StudyRecord:
    """Put hostile text into every text of a study."""

    def spoil(record: TrialRecord) -> TrialRecord:
        configuration = record.configuration | {"modalities": [HOSTILE], HOSTILE: HOSTILE}
        return replace(
            record,
            model=f"{record.model}{HOSTILE}",
            configuration=configuration,
            configuration_id=f"{record.configuration_id}{HOSTILE}",
            reason=HOSTILE if record.status == "failed" else "",
            values=record.values | {HOSTILE: 1.0} if record.values else {},
        )

    return replace(
        study,
        name=HOSTILE,
        description=HOSTILE,
        dataset=HOSTILE,
        facts={HOSTILE: HOSTILE},
        refused={HOSTILE: 1},
        trials=tuple(spoil(record) for record in study.trials),
    )


@pytest.mark.parametrize("x", ["gflops", HOSTILE])
def test_html_escapes_text_of_a_study(study: StudyRecord, x: str) -> None:
    front = summarize(_hostile(study), x=x)
    page = to_html(Analysis.of(front))
    assert page.count("<script") == page.count("</script>") == 3 + _scripts_in_plotly()
    assert "<img" not in page.replace(_plotly(), "")
    data = charts_as_json(Analysis.of(front))
    assert not set("<>&\u2028") & set(data)
    hover = json.loads(data)["front"]["traces"][-1]["hovertext"][0]
    assert set(re.findall(r"<[^>]*>", hover)) == {"<b>", "</b>", "<br>"}
    assert "&lt;/script&gt;" in hover


def test_formats_escape_text_of_a_study(study: StudyRecord, tmp_path: Path) -> None:
    hostile = _hostile(study)
    write_report(Analysis.of(summarize(hostile)), ["csv", "json", "markdown", "png"], tmp_path)
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["study"]["name"] == HOSTILE
    markdown = (tmp_path / "report.md").read_text()
    assert "<img" not in markdown
    assert len(_tables(markdown)) == 4


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def _scripts_in_plotly() -> int:
    assert "</script" not in _plotly()  # it is inserted into a script element unescaped
    return _plotly().count("<script")


def test_html_may_load_nothing(study: StudyRecord) -> None:
    page = to_html(Analysis.of(summarize(study)))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; script-src 'sha256-")
    own = page.replace(_plotly(), "")
    assert not re.findall(r"(?:src|href)=\"(?!data:)", own)
    assert "http://" not in own
    assert "https://" not in own


def test_front_table_shows_the_front(study: StudyRecord) -> None:
    front = summarize(study)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(front_table(Analysis.of(front)))
    text = " ".join(console.export_text().split())
    for c in front.configurations:
        assert (c.configuration_id in text) == c.on_front
    assert "9 of 18 configurations are on the front" in text
    assert "sftsearch confirm stride" in text
    assert "within noise" in text


def test_confirmed_table_shows_test_and_validation(
    confirmed_study: StudyRecord,
) -> None:
    front = summarize(confirmed_study)
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(confirmed_table(Analysis.of(front)))
    text = console.export_text()

    def named(c: ConfigurationSummary) -> list[str]:
        return [c.configuration_id, c.model]

    for c in front.points:
        assert c.test_interval is not None
        line = next(line for line in text.splitlines() if line.split()[:2] == named(c))
        assert f"{c.test_values['top1']:.3f}" in line
        assert f"[{c.test_interval[0]:.3f}, {c.test_interval[1]:.3f}]" in line


def test_front_table_prints_brackets_as_they_are(study: StudyRecord) -> None:
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(front_table(Analysis.of(summarize(_hostile(study), top=2))))
    assert "[red]" in console.export_text()


def test_metric_formats_numbers_with_three_digits() -> None:
    shown = [metric("latency_ms").format(v) for v in (0.0021, 0.034, 12.3, 0, 41285, 1e-9, None)]
    assert shown == ["0.00210", "0.0340", "12.3", "0", "41,285", "1.00e-09", "–"]  # noqa: RUF001


def test_counts_have_si_prefixes() -> None:
    values = (0, 1e-9, 8.1e-6, 0.000_999_4, 0.000_999_6, 0.0012, 3.4, 41_285, 5e7)
    shown = [metric("gmacs").format(value) for value in values]
    assert shown == ["0", "1", "8.1 k", "999 k", "1 M", "1.2 M", "3.4 G", "41.3 T", "50000 T"]
    assert metric("parameters").format(12_345) == "12.3 k"


def test_front_does_not_change_the_record(study: StudyRecord) -> None:
    before = json.dumps(asdict(study))
    summarize(study)
    assert json.dumps(asdict(study)) == before
