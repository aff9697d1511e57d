"""The Python API: studies, fronts and datasets. Predictions are in `test_api_prediction.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from sftsearch import api
from sftsearch.api import (
    Front,
    Progress,
    Study,
    UserError,
    list_studies,
    load_study,
    open_dataset,
    prepare_dataset,
    run_study,
)
from sftsearch.orchestrator.api import front as implementation
from sftsearch.orchestrator.api.records import configurations_of
from sftsearch.orchestrator.api.running import _Followed
from sftsearch.orchestrator.storage.event import TrialKey
from sftsearch.orchestrator.storage.trial_events import Failed, Finished, Stopped

from api_studies import write_study
from baseline_records import baseline, groups_of
from report_studies import small_study, summarize, three_points, trial

if TYPE_CHECKING:
    from sftsearch.orchestrator.storage.study_record import StudyRecord

HOSTILE = "</table><img src=x onerror=alert(1)>&amp;\u2028"
READ = """
import json, sys
from sftsearch.api import load_study
study = load_study("toy", runs=sys.argv[1])
len(study.trials), study.best(max_gflops=1.0), study.front.to_pandas(), study._repr_html_()
before = sorted(name.partition(".")[0] for name in sys.modules)
study.best().load().predict({"left": [[[0.0, 0.0, 0.0]] * 6]})
after = sorted(name.partition(".")[0] for name in sys.modules)
print(json.dumps([before, after]))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("api")).parent


@pytest.fixture
def study(runs: Path) -> Study:
    return load_study("toy", runs=runs)


def front_of(record: StudyRecord, **options: Any) -> Front:
    analyzed = summarize(record, **options)
    return Front(analyzed, configurations_of(analyzed, Path("none")))


# ------------------------------------------------------------------ modules


def test_api_has_one_copy_of_each_class() -> None:
    """The short name re-exports the modules of `orchestrator`; it does not load them again."""
    assert api.Front is implementation.Front
    loaded = [n for n in sys.modules if n.startswith("sftsearch.") and n.endswith("api.front")]
    assert loaded == ["sftsearch.orchestrator.api.front"]
    assert sorted(api.__all__) == list(api.__all__)
    assert set(api.__all__) <= set(vars(api))


@pytest.mark.medium
@pytest.mark.timeout(180)
def test_reading_a_study_imports_neither_ray_nor_mlflow_nor_torch(runs: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", READ, str(runs)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    before, after = json.loads(found.stdout)
    unwanted = {"ray", "mlflow", "optuna", "click", "flask"}
    assert not unwanted & {*before, *after}
    assert "torch" not in before
    assert "torch" in after


# ------------------------------------------------------------------ studies


@pytest.mark.medium
def test_study_is_found_by_name_path_and_variable(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFTSEARCH_RUNS", str(runs))
    assert list_studies() == list_studies(runs=runs) == ["toy"]
    for found in (load_study("toy"), load_study(runs / "toy"), load_study(f"{runs}/toy/")):
        assert (found.name, found.folder) == ("toy", runs / "toy")
    monkeypatch.chdir(runs)
    assert load_study("./toy").folder == runs / "toy"
    assert repr(found) == "Study('toy', 6 trials, complete)"
    assert (found.dataset, found.is_complete, found.is_confirmed) == ("synthetic_tags", True, False)


def test_missing_study_is_a_line_that_lists_the_others(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no study 'toys' in .*Known: toy\.$"):
        load_study("toys", runs=runs)
    with pytest.raises(UserError, match=r"no study 'toy' in .*Known: none"):
        load_study(tmp_path / "toy")
    with pytest.raises(UserError, match="'No Name' is not the name of a study"):
        load_study(tmp_path / "No Name")


@pytest.mark.medium
def test_records_have_the_values_of_the_journal(study: Study) -> None:
    """The accuracy is 1 - 1 / (1 + 2000 GFLOPs), plus 0.01 for the second replicate."""
    assert len(study.trials) == 6
    for one in study.trials:
        expected = 1 - 1 / (1 + 2000 * one.values["gflops"]) + 0.01 * one.replicate
        assert one.values["map"] == pytest.approx(expected, rel=1e-12)
        assert one.key == f"{one.configuration_id}-{one.replicate}"
        assert one.started is not None
        assert one.ended is not None
        assert one.started <= one.ended
    assert [c.parameters["dim"] for c in study.configurations] == [4, 8, 16]
    for c in study.configurations:
        own = [t.values["map"] for t in study.trials if t.configuration_id == c.id]
        assert c.values["map"] == pytest.approx(np.mean(own), rel=1e-12)
        assert c.deviations["map"] == pytest.approx(np.std(own, ddof=1), rel=1e-9)
        assert (c.status, c.replicates, c.intervals) == ("finished", (0, 1), {})
    assert list(study.baselines) == []
    assert study.configurations[1:][0] == study.configurations[1]


@pytest.mark.medium
def test_data_frames_have_one_row_per_record(study: Study) -> None:
    trials, table = study.trials.to_pandas(), study.configurations.to_pandas()
    assert list(trials["key"]) == [one.key for one in study.trials]
    assert list(trials["map"]) == [one.values["map"] for one in study.trials]
    assert sorted(trials["parameter.dim"]) == [4, 4, 8, 8, 16, 16]
    assert list(table["configuration_id"]) == [c.id for c in study.configurations]
    assert len(table[table["on_front"]]) == len(study.front.to_pandas()) == 3
    assert study.baselines.to_pandas().empty


@pytest.mark.medium
def test_configuration_is_found_by_the_start_of_its_id(study: Study) -> None:
    first = study.configurations[0]
    assert study.configuration(first.id[:6]) == first
    with pytest.raises(UserError, match="3 configurations of 'toy' have an id that begins with ''"):
        study.configuration("")
    with pytest.raises(UserError, match="No configuration of 'toy' has an id that begins with 'x'"):
        study.configuration("x")


# ------------------------------------------------------------------ fronts


def test_front_is_a_sequence_by_rising_cost() -> None:
    """Costs 1, 10 and 100 with accuracies 0.5, 0.8 and 0.9; a fourth one is dominated."""
    front = front_of(three_points())
    assert [c.id for c in front] == ["a", "b", "c"]
    assert front[-1].values == {"top1": 0.9, "gflops": 100.0}
    assert [c.id for c in front[1:]] == ["b", "c"]
    assert front.objectives == (("top1", "maximize"), ("gflops", "minimize"))
    assert repr(front) == "Front('small', top1 against gflops, 3 configurations)"
    assert front.headline.startswith("3 of 4 configurations are on the front")
    assert list(front.to_pandas()["top1"]) == [0.5, 0.8, 0.9]
    low, high = front[0].intervals["top1"]
    assert low <= 0.5 <= high


def test_best_respects_limits_and_the_direction_of_the_metric() -> None:
    front = front_of(three_points())
    assert front.best().id == "c"
    assert front.best(max_gflops=10).id == "b"
    assert front.best(max_gflops=9.99).id == "a"
    assert front.best("gflops").id == "a"
    assert front.best("top1", max_gflops=99, max_top1=0.7).id == "a"


def test_best_prefers_the_cheaper_of_equals() -> None:
    """With a third objective two configurations of the front may have the same accuracy."""
    record = small_study(
        trial("a", 0, {"top1": 0.8, "gflops": 1.0, "latency_ms": 2.0}),
        trial("b", 0, {"top1": 0.8, "gflops": 2.0, "latency_ms": 1.0}),
    )
    third = (*record.objectives, ("latency_ms", "minimize"))
    front = front_of(replace(record, objectives=third))
    assert len(front) == 2
    assert front.best().id == "a"
    assert front.best(max_latency_ms=1.5).id == "b"


def test_best_ranks_errors_by_the_lowest() -> None:
    record = small_study(
        trial("a", 0, {"mae": 0.9, "gflops": 1.0}),
        trial("b", 0, {"mae": 0.4, "gflops": 2.0}),
        objectives=(("mae", "minimize"), ("gflops", "minimize")),
    )
    assert front_of(record, y="mae").best().id == "b"


@pytest.mark.parametrize(
    ("metric", "limits", "message"),
    [
        (None, {"max_gflops": 0.5}, r"has gflops up to 0\.5\. The front has a \(gflops 1, top1"),
        (None, {"gflops": 1}, "No limit of this front is called 'gflops'. Known: max_gflops."),
        (None, {"max_gmacs": 1}, "No limit of this front is called 'max_gmacs'"),
        ("top2", {}, r"No metric of this front is called 'top2'\. Did you mean 'top1'\?"),
    ],
)
def test_best_says_what_there_is(
    metric: str | None, limits: dict[str, float], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        front_of(three_points()).best(metric, **limits)
    assert "\n" not in str(error.value)


def test_front_without_a_finished_trial_is_empty() -> None:
    front = front_of(small_study(trial("a", 0, {"gflops": 1.0}, "running")))
    assert list(front) == []
    assert "no front" in front.headline
    with pytest.raises(UserError, match=r"The front of 'small' is empty\. No configuration has"):
        front.best()
    assert "<table>" in front._repr_html_()


@pytest.mark.medium
def test_plot_draws_points_intervals_and_baselines() -> None:
    record = replace(three_points(), baselines=(baseline("linear", groups_of(60, 60, 60)),))
    front = front_of(record)
    axes = Figure().add_subplot()
    assert front.plot(axes) is axes
    _, on_front = axes.containers  # first those off the front
    points, _, (bars,) = on_front.lines
    xs, ys = points.get_xydata().T
    np.testing.assert_allclose(xs / xs[0], [1, 10, 100])  # in any unit
    np.testing.assert_allclose(ys, [0.5, 0.8, 0.9])
    ends = [sorted(segment[:, 1]) for segment in bars.get_segments()]
    np.testing.assert_allclose(ends, [c.intervals["top1"] for c in front])
    assert "linear" in [text.get_text() for text in axes.texts]
    drawn = front.plot()
    number = drawn.figure.number
    assert number in plt.get_fignums()
    plt.close(number)


class Cells(HTMLParser):
    """Collects tags, and texts of cells."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.mark.medium
def test_notebook_shows_a_chart_and_a_table_with_escaped_names() -> None:
    record = small_study(
        trial("a", 0, {"top1": 0.5, "gflops": 1.0}, model=HOSTILE),
        name=HOSTILE,
        baselines=(baseline("linear", groups_of(40, 40, 40)),),
    )
    shown = Cells()
    shown.feed(front_of(record)._repr_html_())
    assert shown.tags.count("img") == 1
    assert shown.tags.count("tr") == 3  # headings, the front, the baseline
    assert HOSTILE in shown.texts
    assert "0.500" in " ".join(shown.texts)
    assert not set(shown.tags) - {"p", "img", "table", "tr", "th", "td"}
    assert plt.get_fignums() == []  # it leaves pyplot as it was


@pytest.mark.medium
def test_notebook_shows_the_front_of_a_study(study: Study) -> None:
    assert study._repr_html_().startswith("<h4>toy</h4><p>3 of 3 configurations are on the front")


# ------------------------------------------------------------------ datasets


@pytest.mark.medium
@pytest.mark.parametrize("name", ["synthetic", "synthetic_tags", "synthetic_rating"])
def test_samples_have_labels_in_the_form_of_predictions(name: str) -> None:
    dataset = open_dataset(name)
    samples = dataset.samples("validation")
    assert len(samples) == dataset.num_samples["validation"] == len(samples.subjects) == 500
    left, right = samples.inputs["left"], samples.inputs["right"]
    assert isinstance(left, np.ndarray)
    assert left.shape == (500, 6, 3)
    assert isinstance(right, list) == dataset.modalities["right"].variable_length
    if dataset.task == "classification":
        assert set(samples.labels) == set(dataset.classes)
    elif dataset.task == "multilabel":
        assert samples.labels.shape == (500, len(dataset.classes))
        assert samples.labels.dtype == bool
        assert any(len(x_TF) == 0 for x_TF in right)  # a tenth misses this modality
    else:
        assert samples.labels.dtype == np.float32
    assert (dataset.license, dataset.name) == ("Apache-2.0", name)
    assert dataset.attribution
    assert repr(dataset) == f"Dataset('{name}', 3500 samples of left, right)"


def test_test_split_stays_sealed() -> None:
    with pytest.raises(UserError, match="The test split of 'synthetic' is sealed"):
        open_dataset("synthetic").samples("test")
    with pytest.raises(UserError, match="No dataset is called 'synthetik'"):
        open_dataset("synthetik")


@pytest.mark.medium
def test_prepare_dataset_takes_options_as_python_values(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"kind": ("no", "yes")[n % 2], "a": [float(n)] * 6, "b": [1.0] * 4} for n in range(20)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "few.parquet")
    steps: list[tuple[int, int]] = []
    options = {"label": "kind", "dims": {"a": 3, "b": 2}, "modalities": ["b", "a"]}
    dataset = prepare_dataset(
        "few",
        tmp_path / "few.parquet",
        options=options,
        progress=lambda done, total: steps.append((done, total)),
    )
    shapes = {name: (m.num_tokens, m.num_features) for name, m in dataset.modalities.items()}
    assert shapes == {"b": (2, 2), "a": (2, 3)}
    assert steps[-1] == (20, 20)
    assert dataset.classes == ("no", "yes")
    assert open_dataset("few").num_samples == dataset.num_samples
    with pytest.raises(UserError, match="A dataset 'few' already exists"):
        prepare_dataset("few", tmp_path / "few.parquet")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "none.parquet"}, "There is no file or folder 'none.parquet'"),
        ({"reader": "parket", "source": "."}, r"No reader is called 'parket'\. Did you mean"),
        ({"nan": "keep"}, "`nan` must be fail, zero or drop, but got 'keep'"),
        ({"reader": "synthetic_tunable", "options": {"telling": "x"}}, "Option `telling` must be"),
        ({"reader": "synthetic_tunable", "options": {"tell": 1}}, "No option of the reader"),
    ],
)
def test_prepare_dataset_explains_a_mistake_in_one_line(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        prepare_dataset("other", **options)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------ running


def test_study_as_a_dictionary_is_checked_as_a_file() -> None:
    with pytest.raises(UserError) as error:
        run_study({"study": {"name": "X"}, "dataset": {"kind": "digits"}, "space": []})
    for part in ("study, line ", "study.name: ", "search: This key is missing", "space: The list"):
        assert part in str(error.value)
    with pytest.raises(UserError, match="A study must consist of dictionaries, lists, text"):
        run_study({"study": {"name": np.float32(1)}})
    with pytest.raises(UserError, match="There is no study file 'strid'"):
        run_study("strid")


def test_progress_counts_trials_that_end(runs: Path) -> None:
    steps: list[Progress] = []
    followed, key = _Followed(steps.append), TrialKey("0" * 12, 0)
    followed.on_stage("starting")
    for event in (
        Finished(key, {}, {}),
        Stopped(trial=key, epoch=1, reason="why", values={}),
        Failed(key, "no memory"),
    ):
        followed.on_event(type("Entry", (), {"event": event})())  # type: ignore[arg-type]
    assert [step.message for step in steps] == [
        "starting",
        f"trial {key} finished",
        f"trial {key} stopped early",
        f"trial {key} failed: no memory",
    ]
    assert str(Progress(message="x", done=1, total=4)) == "1 of 4 trials: x"
    assert str(Progress(message="x", done=0, total=0)) == "x"
