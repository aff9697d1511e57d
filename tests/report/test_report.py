"""The front of a study, and each format it is written in, against values counted by hand."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from rich.console import Console

from sftsearch.datasets.errors import UserError
from sftsearch.orchestrator import pareto
from sftsearch.orchestrator.report import formats as report
from sftsearch.orchestrator.report import html
from sftsearch.orchestrator.report import text as wording
from sftsearch.orchestrator.storage.study_record import StudyRecord, TrialRecord

if TYPE_CHECKING:
    from collections.abc import Mapping

GOLDEN = Path(__file__).parent.parent / "golden"
HOSTILE = "</script><img src=x onerror=alert(1)><b>&amp;\u2028`|[red]$x$ %{x}"


def trial(
    name: str, seed: int, values: Mapping[str, float], status: str = "finished", **changes: Any
) -> TrialRecord:
    accuracy = values.get("top1", 0.0)
    record = TrialRecord(
        key=f"{name}-{seed}",
        configuration_id=name,
        model="sft",
        configuration={"stride": 1},
        seed=seed,
        status=status,
        values=dict(values),
        groups={f"s{g}": (accuracy * 100, 100.0) for g in range(3)},
        started=1000.0,
        ended=2000.0,
    )
    return replace(record, **changes)


def small_study(*trials: TrialRecord, num_seeds: int = 1, **changes: Any) -> StudyRecord:
    record = StudyRecord(
        name="small",
        description="",
        dataset="synthetic",
        num_seeds=num_seeds,
        objectives=(("top1", "maximize"), ("gflops", "minimize")),
        facts={},
        refused={},
        trials=trials,
    )
    return replace(record, **changes)


def three_points() -> StudyRecord:
    """Return costs 1, 10 and 100 with accuracies 0.5, 0.8 and 0.9, and one dominated at 100."""
    values = {"a": (0.5, 1.0), "b": (0.8, 10.0), "c": (0.9, 100.0), "d": (0.7, 100.0)}
    return small_study(
        *(
            trial(name, 0, {"top1": top1, "gflops": cost}, ended=2000.0 + number)
            for number, (name, (top1, cost)) in enumerate(values.items())
        )
    )


# The front ------------------------------------------------------------------------------------


def test_the_front_the_knee_and_the_hypervolume_of_three_points() -> None:
    """On a log scale costs 1, 10, 100 lie at 1, 1/2 and 0: an area of 0.5 and 0.3 / 2 more."""
    front = report.summarise(three_points())
    assert [c.configuration_id for c in front.points] == ["a", "b", "c"]
    assert [c.configuration_id for c in front.points if c.is_knee] == ["b"]
    assert front.hypervolume == pytest.approx(0.5 + 0.5 * 0.3)
    assert [step.hypervolume for step in front.progress] == pytest.approx([0.5, 0.65, 0.65, 0.65])
    assert [step.seconds for step in front.progress] == [1000, 1001, 1002, 1003]
    assert report.headline(front) == (
        "3 of 4 configurations are on the front; the best reaches 0.900 top-1 accuracy at 100 "
        "GFLOPs; 10 % of that cost loses 10.0 points."
    )


def test_means_deviations_and_intervals_of_the_study(study: StudyRecord) -> None:
    front = report.summarise(study)
    assert (len(front.points), len(front.finished), len(front.configurations)) == (9, 18, 20)
    for c in front.finished:
        found = [t.values["top1"] for t in study.trials if t.configuration_id == c.configuration_id]
        assert c.values["top1"] == pytest.approx(statistics.fmean(found))
        assert c.deviations["top1"] == pytest.approx(statistics.stdev(found))
        assert c.interval is not None
        assert c.interval[0] < c.values["top1"] < c.interval[1]
    values = [(c.values["top1"], c.values["gflops"]) for c in front.finished]
    mask = pareto.non_dominated(values, ("maximize", "minimize"))
    assert [c.on_front for c in front.finished] == mask.tolist()


def test_differences_are_to_the_next_cheaper_front_point(study: StudyRecord) -> None:
    front = report.summarise(study)
    assert front.points[0].difference is None
    for cheaper, c in zip(front.points, front.points[1:], strict=False):
        assert c.difference is not None
        assert c.difference.other == cheaper.configuration_id
        assert c.difference.mean == pytest.approx(c.values["top1"] - cheaper.values["top1"])
    last = front.points[-1]
    assert last.difference is not None
    assert last.difference.within_noise
    assert wording.verdict(last, front).endswith("points over the next cheaper, within noise")


def test_the_dominated_are_compared_with_the_front_at_or_below_their_cost() -> None:
    front = report.summarise(three_points())
    d = next(c for c in front.configurations if c.configuration_id == "d")
    assert d.difference is not None
    assert d.difference.other == "c"  # at the very same cost
    assert not d.indistinguishable
    assert wording.verdict(d, front) == "dominated (-20.0 [-20.0, -20.0] points)"


def test_the_dominated_within_noise_are_called_not_distinguishable(study: StudyRecord) -> None:
    front = report.summarise(study)
    near = [c for c in front.finished if c.indistinguishable]
    assert near
    for c in near:
        assert c.difference is not None
        assert c.difference.interval is not None
        assert c.difference.interval[0] <= 0 <= c.difference.interval[1]
        assert wording.verdict(c, front).startswith("not distinguishable from the front")
        assert wording.standing(c) == "near"


def test_a_difference_is_paired_by_subject() -> None:
    """One point better on every subject is certain, however much the subjects differ."""
    hard = {"s1": (50.0, 100.0), "s2": (90.0, 100.0), "s3": (70.0, 100.0)}
    better = {name: (correct + 1, count) for name, (correct, count) in hard.items()}
    front = report.summarise(
        small_study(
            trial("a", 0, {"top1": 0.70, "gflops": 1.0}, groups=hard),
            trial("b", 0, {"top1": 0.71, "gflops": 2.0}, groups=better),
        )
    )
    difference = front.points[1].difference
    assert difference is not None
    assert difference.interval == pytest.approx((0.01, 0.01))
    assert front.points[1].interval == pytest.approx((0.51, 0.91))
    assert [c.membership for c in front.points] == [1.0, 1.0]


def test_only_configurations_with_all_seeds_are_on_the_front() -> None:
    good, better = {"top1": 0.6, "gflops": 2.0}, {"top1": 0.99, "gflops": 1.0}
    front = report.summarise(
        small_study(
            trial("done", 0, good),
            trial("done", 1, good),
            trial("running", 0, better),
            trial("running", 1, {"gflops": 1.0}, "running"),
            trial("failed", 0, better),
            trial("failed", 1, {}, "failed", reason="the loss is nan"),
            num_seeds=2,
        )
    )
    assert [c.configuration_id for c in front.points] == ["done"]
    told = {c.configuration_id: wording.verdict(c, front) for c in front.configurations}
    assert told["running"] == "incomplete: 1 of 2 seeds finished"
    assert told["failed"] == "failed: seed 1: the loss is nan"


def test_values_that_are_missing_or_not_finite_stay_off_the_front() -> None:
    front = report.summarise(
        small_study(
            trial("ok", 0, {"top1": 0.5, "gflops": 1.0}),
            trial("nan", 0, {"top1": math.nan, "gflops": 1.0}),
            trial("none", 0, {"top1": 0.9}),
        )
    )
    reasons = {c.configuration_id: (c.status, c.reasons) for c in front.configurations}
    assert reasons["nan"] == ("failed", ("top1 is not finite",))
    assert reasons["none"] == ("incomplete", ("no gflops recorded",))


@pytest.mark.medium
def test_a_study_without_a_finished_trial_has_every_report(tmp_path: Path) -> None:
    study = small_study(trial("a", 0, {"gflops": 1.0}, "running"))
    assert len(report.write(study, list(report.FORMATS), tmp_path)) == len(report.FORMATS)
    assert "no front" in report.headline(report.summarise(study))
    assert report.write(small_study(), ["html", "png", "csv"], tmp_path)


@pytest.mark.medium
def test_a_single_configuration_has_a_report(tmp_path: Path) -> None:
    study = small_study(trial("a", 0, {"top1": 0.5, "gflops": 1.0}))
    front = report.summarise(study)
    assert front.hypervolume == 0.5  # with one cost its scale is 1
    assert report.headline(front).startswith("1 of 1 configuration is on the front")
    assert len(report.write(study, list(report.FORMATS), tmp_path)) == len(report.FORMATS)


def test_groups_that_cannot_be_paired_leave_intervals_out(tmp_path: Path) -> None:
    front = report.summarise(small_study(trial("a", 0, {"top1": 0.5, "gflops": 1.0}, groups={})))
    assert front.num_groups == 0
    assert front.points[0].interval is None
    assert not any("bootstrap" in note for note in wording.notes(front))
    assert report.FORMATS["html"].to_text(front)


def test_other_metrics_have_their_own_direction_and_no_interval(study: StudyRecord) -> None:
    front = report.summarise(study, x="latency_ms", y="loss")
    assert front.directions == ("minimize", "minimize")
    assert all(c.interval is None for c in front.configurations)
    losses = [c.values["loss"] for c in front.points]
    assert losses == sorted(losses, reverse=True)
    assert min(c.values["loss"] for c in front.finished) == losses[-1]
    assert 0 < front.hypervolume <= 1


@pytest.mark.medium
def test_a_regression_is_ranked_by_its_error_and_has_intervals_of_its_sign(
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
    front = report.summarise(study, y="mae")
    assert [c.configuration_id for c in front.points] == ["a", "b"]
    # Costs lie at 1, 1/2, 0; errors run from the worst seen, 0.9, to the best, 0.6.
    assert front.hypervolume == pytest.approx(0.5)
    assert all(c.interval is None for c in front.finished)
    assert "mean absolute error of the worst seen" in " ".join(wording.notes(front))
    assert report.headline(front) == (
        "2 of 3 configurations are on the front; the best reaches 0.600 mean absolute error at "
        "10.0 GFLOPs; 10 % of that cost loses 0.3 mean absolute error."
    )
    assert len(report.write(study, list(report.FORMATS), tmp_path, y="mae")) == len(report.FORMATS)
    assert all(c.interval is not None for c in report.summarise(study, y="acc2").finished)


def test_only_what_is_counted_has_a_test_interval(confirmed_study: StudyRecord) -> None:
    """Subjects' right guesses say nothing of how sure a mean over classes is."""
    opened = report.summarise(confirmed_study, y="top1").points
    assert all(c.test_interval is not None for c in opened)
    opened = report.summarise(confirmed_study, y="balanced_accuracy").finished
    assert any(c.test_values for c in opened)
    assert all(c.test_interval is None for c in opened)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": "gflop"}, r"No metric of this study is called 'gflop'\. Did you mean 'gflops'\?"),
        ({"y": "top_1"}, r"Did you mean 'top1'\?"),
        ({"x": "top1"}, "two metrics"),
        ({"max_gflops": 0.0}, "must be positive, but got 0.0"),
        ({"max_gflops": math.nan}, "must be positive, but got nan"),
        ({"top": 0}, "at least 1, but got 0"),
    ],
)
def test_mistakes_are_told_in_one_line(
    study: StudyRecord, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        report.summarise(study, **arguments)


def test_max_gflops_leaves_configurations_out(study: StudyRecord) -> None:
    front = report.summarise(study, max_gflops=0.005)
    assert all(c.values["gflops"] <= 0.005 for c in front.configurations)
    assert front.num_filtered == 20 - len(front.configurations)
    assert "left out" in html.to_html(front)


def test_top_keeps_the_best_rows_but_the_whole_front(study: StudyRecord) -> None:
    front = report.summarise(study, top=3)
    best = sorted((c.values["top1"] for c in front.finished), reverse=True)[:3]
    assert sorted((c.values["top1"] for c in front.table), reverse=True) == best
    assert len(front.points) == 9


def test_a_parameter_that_some_of_a_model_lack_is_shown() -> None:
    values = {"top1": 0.5, "gflops": 1.0}
    settings = {"a": {"tokens": 1, "patch": 8}, "b": {"patch": 8}, "c": {"layers": 4, "patch": 8}}
    study = small_study(
        *(
            trial(name, 0, values, configuration=own, model="concat" if name == "c" else "sft")
            for name, own in settings.items()
        )
    )
    assert wording.varying(report.summarise(study).configurations) == ["tokens"]


def test_the_record_order_does_not_matter(study: StudyRecord) -> None:
    turned = replace(study, trials=study.trials[::-1])
    assert report.summarise(turned).configurations == report.summarise(study).configurations


@pytest.mark.medium
def test_a_front_of_500_configurations_takes_seconds() -> None:
    generator = np.random.default_rng(0)
    trials = [
        trial(f"c{n:03d}", seed, {"top1": generator.random(), "gflops": generator.random()})
        for n in range(500)
        for seed in range(2)
    ]
    started = time.process_time()
    report.summarise(small_study(*trials, num_seeds=2))
    assert time.process_time() - started < 5


def test_notes_name_subjects_and_seeds_and_the_one_split(study: StudyRecord) -> None:
    text = " ".join(wording.notes(report.summarise(study)))
    assert "bootstrap over 3 subjects and the seeds" in text
    assert "conditional on this split" in text
    assert "too narrow" in text
    hundredths = {f"{g:02d}": (50.0, 100.0) for g in range(100)}
    values = {"top1": 0.5, "gflops": 1.0}
    front = report.summarise(small_study(trial("a", 0, values, groups=hundredths)))
    assert "100 groups of samples" in " ".join(wording.notes(front))


def test_an_unconfirmed_study_says_that_the_test_split_is_sealed(study: StudyRecord) -> None:
    front = report.summarise(study)
    for name in ("html", "markdown", "json"):
        text = str(report.FORMATS[name].to_text(front))
        assert "The test split is sealed" in text, name
        assert "sftsearch confirm stride" in text, name
    assert "test_top1" not in report.to_csv(front)


def test_a_confirmed_study_shows_test_values(confirmed_study: StudyRecord) -> None:
    front = report.summarise(confirmed_study)
    best = front.points[-1]
    assert best.test_interval is not None
    assert best.test_interval[0] < best.test_values["top1"] < best.test_interval[1]
    page = html.to_html(front)
    assert "test top-1 accuracy" in page
    assert "sealed" not in page
    assert "test_top1_interval_low" in report.to_csv(front)


# The formats ----------------------------------------------------------------------------------


@pytest.mark.medium
def test_write_makes_every_format(study: StudyRecord, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    paths = report.write(study, ["csv", "html", "json", "markdown", "png"], folder)
    assert [path.name for path in paths] == [
        "report.csv", "report.html", "report.json", "report.md", "report.png",
    ]  # fmt: skip
    assert sorted(folder.iterdir()) == sorted(paths)  # and no temporary file
    assert paths[-1].read_bytes().startswith(b"\x89PNG\r\n")


def test_an_unknown_format_is_refused_before_anything_is_written(
    study: StudyRecord, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"No report format is called 'htm'\. Did you mean 'html'"):
        report.write(study, ["csv", "htm"], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_told(study: StudyRecord, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Cannot write the report .*report\.csv"):
        report.write(study, ["csv"], tmp_path / "file")


def test_csv_has_a_row_a_configuration_at_full_precision(study: StudyRecord) -> None:
    front = report.summarise(study)
    rows = list(csv.DictReader(io.StringIO(report.to_csv(front))))
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
    """A key that changes breaks readers: raise SCHEMA_VERSION, then rewrite the golden file."""
    document = json.loads(report.to_json(report.summarise(confirmed_study)))
    keys = sorted(key.lstrip(".") for key in _keys(document) if key)
    assert keys == (GOLDEN / "report_keys.txt").read_text().split("\n")[:-1]
    assert document["schema_version"] == 1
    assert len(document["trials"]) == 40


@pytest.mark.medium
def test_json_has_null_for_what_is_not_a_number() -> None:
    front = report.summarise(
        small_study(
            trial("ok", 0, {"top1": 0.5, "gflops": 1.0, "loss": math.inf}),
            trial("nan", 0, {"top1": math.nan, "gflops": 1.0}),
        )
    )
    document = json.loads(report.to_json(front))
    assert document["configurations"][0]["values"]["loss"] is None
    for style in report.FORMATS.values():
        assert style.to_text(front)


def test_markdown_has_a_table_of_equal_rows(study: StudyRecord) -> None:
    front_table, family_table = _tables(report.to_markdown(report.summarise(study)))
    assert len(front_table) == 22
    assert len(family_table) == 7  # five models


def _tables(markdown: str) -> list[list[str]]:
    """Return the rows of each table, which must have equally many cells."""
    lines = itertools.groupby(markdown.split("\n"), key=lambda line: line.startswith("|"))
    tables = [list(rows) for is_table, rows in lines if is_table]
    for rows in tables:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    return tables


def _hostile(study: StudyRecord) -> StudyRecord:
    """Put hostile text wherever a study may have text."""

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
def test_text_of_a_study_stays_text_in_the_page(study: StudyRecord, x: str) -> None:
    front = report.summarise(_hostile(study), x=x)
    page = html.to_html(front)
    assert page.count("<script") == page.count("</script>") == 3 + _scripts_in_plotly()
    assert "<img" not in page.replace(_plotly(), "")
    data = html.to_data(front)
    assert not set("<>&\u2028") & set(data)
    hover = json.loads(data)["front"]["traces"][-1]["hovertext"][0]
    assert set(re.findall(r"<[^>]*>", hover)) == {"<b>", "</b>", "<br>"}
    assert "&lt;/script&gt;" in hover


@pytest.mark.medium
def test_text_of_a_study_stays_text_in_the_other_formats(
    study: StudyRecord, tmp_path: Path
) -> None:
    hostile = _hostile(study)
    report.write(hostile, ["csv", "json", "markdown", "png"], tmp_path)
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["study"]["name"] == HOSTILE
    markdown = (tmp_path / "report.md").read_text()
    assert "<img" not in markdown
    assert len(_tables(markdown)) == 2


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def _scripts_in_plotly() -> int:
    assert "</script" not in _plotly()  # it stands inside a script element as it is
    return _plotly().count("<script")


def test_the_page_may_load_nothing(study: StudyRecord) -> None:
    page = html.to_html(report.summarise(study))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; script-src 'sha256-")
    own = page.replace(_plotly(), "")
    assert not re.findall(r"(?:src|href)=\"(?!data:)", own)
    assert "http://" not in own
    assert "https://" not in own


def test_the_terminal_table_shows_the_front(study: StudyRecord) -> None:
    front = report.summarise(study)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(report.rich_table(front))
    text = console.export_text()
    for c in front.configurations:
        assert (c.configuration_id in text) == c.on_front
    assert "9 of 18 configurations are on the front" in text
    assert "sftsearch confirm stride" in text
    assert "within noise" in text


def test_the_terminal_table_of_a_confirmed_study_shows_test_beside_validation(
    confirmed_study: StudyRecord,
) -> None:
    front = report.summarise(confirmed_study)
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(report.test_table(front))
    text = console.export_text()
    for c in front.points:
        assert c.test_interval is not None
        line = next(line for line in text.splitlines() if c.configuration_id in line)
        assert f"{c.test_values['top1']:.3f}" in line
        assert f"[{c.test_interval[0]:.3f}, {c.test_interval[1]:.3f}]" in line


def test_the_terminal_table_prints_brackets_as_they_are(study: StudyRecord) -> None:
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(report.rich_table(report.summarise(_hostile(study), top=2)))
    assert "[red]" in console.export_text()


def test_numbers_are_told_with_three_digits() -> None:
    shown = [wording.metric("gflops").show(v) for v in (0.0021, 0.034, 12.3, 0, 41285, 1e-9, None)]
    assert shown == ["0.00210", "0.0340", "12.3", "0", "41,285", "1.00e-09", "–"]  # noqa: RUF001


def test_a_record_survives_the_summary(study: StudyRecord) -> None:
    before = json.dumps(asdict(study))
    report.summarise(study)
    assert json.dumps(asdict(study)) == before
