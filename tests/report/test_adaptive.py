"""Reports of studies with stops, folds, replicates and conclusions, against closed forms."""

from __future__ import annotations

import io
import itertools
import json
import math
import statistics
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from sftsearch.datasets.errors import UserError
from sftsearch.orchestrator.analysis.analyse import Analysis
from sftsearch.orchestrator.analysis.importance import importance_of
from sftsearch.orchestrator.report.cells import (
    format_front_probability,
    format_replicates,
    status_label,
    verdict,
)
from sftsearch.orchestrator.report.columns import columns
from sftsearch.orchestrator.report.formats import FORMATS, write_report
from sftsearch.orchestrator.report.html import to_html
from sftsearch.orchestrator.report.json_report import to_json
from sftsearch.orchestrator.report.markdown import to_markdown
from sftsearch.orchestrator.report.sections import importance_section
from sftsearch.orchestrator.report.table import front_table
from sftsearch.orchestrator.report.text import describe_stops, describe_test_split, headline, notes
from sftsearch.orchestrator.storage.study_record import (
    Conclusion,
    FalseStops,
    Posterior,
    StudyRecord,
    TrialRecord,
)

from report_studies import summarize

if TYPE_CHECKING:
    from pathlib import Path

    from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary
    from sftsearch.orchestrator.analysis.front import Front


def trial(name: str, seed: int, top1: float, cost: float, **changes: Any) -> TrialRecord:
    record = TrialRecord(
        key=f"{name}-{seed}",
        configuration_id=name,
        model="sft",
        configuration={"stride": 1},
        seed=seed,
        status="finished",
        values={"top1": top1, "gflops": cost},
        groups={f"s{g}": (top1 * 100, 100.0) for g in range(3)},
        started=1000.0,
        ended=2000.0 + seed,
    )
    return replace(record, **changes)


def study_of(*trials: TrialRecord, **changes: Any) -> StudyRecord:
    record = StudyRecord(
        name="small",
        description="",
        dataset="synthetic",
        num_seeds=1,
        objectives=(("top1", "maximize"), ("gflops", "minimize")),
        facts={},
        refused={},
        trials=trials,
        max_replicates=5,
    )
    return replace(record, **changes)


def conclusion(**changes: Any) -> Conclusion:
    found = Conclusion(reported=("a",), within_delta=0.87, false_stops=None, posteriors={})
    return replace(found, **changes)


def by_id(front: Front) -> dict[str, ConfigurationSummary]:
    return {c.configuration_id: c for c in front.configurations}


def on_terminal(front: Front) -> str:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(front_table(Analysis.of(front)))
    return " ".join(console.export_text().split())


# Stopped trials -------------------------------------------------------------------------------


def stopped(name: str, seed: int, top1: float, cost: float) -> TrialRecord:
    more = {"status": "stopped", "reason": "unlikely to reach the front", "epoch": 4, "groups": {}}
    return trial(name, seed, top1, cost, **more)


def test_front_leaves_stopped_configurations_out() -> None:
    front = summarize(
        study_of(
            trial("a", 0, 0.5, 1.0), stopped("b", 0, 0.9, 0.5), stopped("c", 0, 0.9, 0.6),
            trial("c", 1, 0.95, 0.6),
        )
    )  # fmt: skip
    assert [c.configuration_id for c in front.points] == ["a"]
    assert [c.configuration_id for c in front.finished] == ["a"]
    assert list(front.draws) == ["a"]
    found = by_id(front)
    assert (found["b"].status, found["c"].status) == ("stopped", "stopped")
    assert found["b"].values == {"gflops": 0.5}  # an intermediate value does not count
    expected = "stopped: seed 0 after epoch 4: unlikely to reach the front"
    assert verdict(found["b"], front) == expected
    assert "Stopped trials" in to_html(Analysis.of(front))
    assert "<dt>trials stopped</dt><dd>2</dd>" in to_html(Analysis.of(front))


def test_describe_stops_has_the_rate_of_wrong_stops_with_interval() -> None:
    """Two wrong of 31, with the Clopper-Pearson interval from quantiles of the F distribution."""
    low = 2 / (2 + 30 * stats.f.ppf(0.975, 60, 4))
    high = 3 * stats.f.ppf(0.975, 6, 58) / (29 + 3 * stats.f.ppf(0.975, 6, 58))
    audited = FalseStops(rate=2 / 31, low=low, high=high, num=31)
    study = study_of(
        trial("a", 0, 0.5, 1.0), stopped("b", 0, 0.9, 0.5),
        conclusion=conclusion(false_stops=audited, posteriors={"a": Posterior(mean=0.5, sd=0.01,
                                                                        on_front=1.0)}),
    )  # fmt: skip
    sentence = "2 of 31 audited stops would have been wrong: 6 % [1, 21]."
    front = summarize(study)
    assert sentence in describe_stops(study)
    assert sentence in on_terminal(front)
    for name in ("html", "markdown", "json"):
        text = str(FORMATS[name].render(Analysis.of(front))).replace("\\", "")
        assert sentence in text, name
    unaudited = replace(study, conclusion=conclusion())
    assert describe_stops(unaudited).endswith("No stop was audited.")
    assert describe_stops(replace(study, conclusion=None)).endswith("when the study ends.")
    assert describe_stops(study_of(trial("a", 0, 0.5, 1.0))) == ""


# Replicates -----------------------------------------------------------------------------------


def test_front_has_configurations_with_different_numbers_of_replicates() -> None:
    front = summarize(
        study_of(*(trial("a", s, 0.5 + s / 10, 1.0) for s in range(4)), trial("b", 0, 0.9, 2.0))
    )
    found = by_id(front)
    assert found["a"].values["top1"] == pytest.approx(0.65)
    assert found["a"].deviations["top1"] == pytest.approx(statistics.stdev([0.5, 0.6, 0.7, 0.8]))
    assert [format_replicates(c) for c in front.points] == ["4", "1"]
    assert "mean over 1 to 5 seeds" in notes(front)[0]
    assert "estimated from the configurations with several replicates" in " ".join(notes(front))
    assert "replicates" in on_terminal(front)
    assert found["a"].ended == 2000.0  # one replicate is required


def chosen_study() -> StudyRecord:
    """Return a study that reports `a` and `b`; `lucky` has a better value, but only one."""
    return study_of(
        trial("a", 0, 0.80, 1.0),
        *(trial("a", s, 0.6 + s / 100, 1.0) for s in (1, 2, 3)),
        trial("b", 0, 0.85, 4.0),
        *(trial("b", s, 0.7, 4.0) for s in (1, 2, 3)),
        trial("lucky", 0, 0.95, 2.0),
        fresh={"a": (1, 2, 3), "b": (1, 2, 3)},
    )


def test_front_uses_only_fresh_replicates_of_reported_configurations() -> None:
    front = summarize(chosen_study())
    a = by_id(front)["a"]
    assert (a.seeds, a.is_fresh, a.num_finished) == ((1, 2, 3), True, 4)
    assert a.values["top1"] == pytest.approx(0.62)
    assert a.deviations["top1"] == pytest.approx(0.01)
    assert a.interval is not None
    assert 0.6 <= a.interval[0] < 0.62 < a.interval[1] <= 0.64
    assert format_replicates(a) == "3 fresh of 4"
    text = " ".join(notes(front))
    assert "2 configurations that the search chose to report got 3 fresh replicates each" in text
    assert "slightly optimistic" not in text


def test_front_has_only_reported_configurations() -> None:
    front = summarize(chosen_study())
    assert [c.configuration_id for c in front.points] == ["a", "b"]
    lucky = by_id(front)["lucky"]
    assert verdict(lucky, front).startswith("not among the chosen (+33.0 ")
    assert front.progress[-1].hypervolume == pytest.approx(front.hypervolume)
    # For other axes the study chose nothing, so every configuration counts.
    study = chosen_study()
    trials = tuple(
        replace(t, values=t.values | {"latency_ms": t.values["gflops"]}) for t in study.trials
    )
    front = summarize(replace(study, trials=trials), x="latency_ms")
    assert front.num_chosen is None
    assert [c.configuration_id for c in front.points] == ["a", "lucky"]


def test_front_uses_all_replicates_until_a_fresh_one_has_finished() -> None:
    study = chosen_study()
    study = replace(study, trials=tuple(t for t in study.trials if t.seed == 0))
    front = summarize(study)
    assert by_id(front)["a"].values["top1"] == pytest.approx(0.8)
    assert "slightly optimistic" in " ".join(notes(front))
    assert [c.configuration_id for c in front.points] == ["a", "b"]


# Folds ----------------------------------------------------------------------------------------


def folded(cells: dict[str, list[int]], *, noise: float = 0.0) -> StudyRecord:
    """Return a study of three folds, the second 20 points harder; true means 0.60, 0.61, ...

    Replicate r is validated on the one subject of fold r modulo 3.
    """
    generator = np.random.default_rng(3)
    effects = (0.0, -0.2, 0.05)
    trials = []
    for n, (name, seeds) in enumerate(cells.items()):
        for seed in seeds:
            top1 = 0.60 + n / 100 + effects[seed % 3] + generator.normal(0, noise)
            groups = {f"s{seed % 3}": (100 * top1, 100.0)}
            trials.append(trial(name, seed, top1, float(n + 1), groups=groups))
    return study_of(*trials, folds=3)


def test_means_over_different_folds_are_comparable() -> None:
    """Without noise fold effects are estimated exactly and subtracted."""
    cells = {"a": [0], "b": [1], "c": [0, 1, 2], "d": [0, 1, 2, 3, 4], "e": [2]}
    front = summarize(folded(cells))
    assert [c.configuration_id for c in front.points] == list("abcde")
    means = [c.values["top1"] for c in front.points]
    assert np.diff(means) == pytest.approx([0.01] * 4)
    for c in front.points:
        assert c.deviations.get("top1", 0.0) == pytest.approx(0.0, abs=1e-9)
        assert (c.interval is None) == (c.configuration_id in "abe")  # one subject: no interval
        if c.interval is not None:
            assert c.interval[0] - 1e-9 <= c.values["top1"] <= c.interval[1] + 1e-9
        if c.difference is not None:
            assert c.difference.mean == pytest.approx(0.01)
    assert front.num_groups == 3  # in all folds


def test_means_over_equal_folds_are_plain_means() -> None:
    study = folded({name: [0, 1, 2] for name in "abcd"}, noise=0.02)
    for c in summarize(study).finished:
        values = [
            t.values["top1"] for t in study.trials if t.configuration_id == c.configuration_id
        ]
        assert c.values["top1"] == pytest.approx(statistics.fmean(values))


def test_draws_leave_out_a_configuration_with_a_replicate_without_groups() -> None:
    study = folded({"a": [0, 1], "b": [2, 3]})
    first, *others = study.trials
    study = replace(study, trials=(replace(first, groups={"s9": (0.0, 0.0)}), *others))
    front = summarize(study)
    assert list(front.draws) == ["b"]
    assert front.num_groups == 2


def test_notes_describe_the_data_split() -> None:
    text = " ".join(notes(summarize(folded({"a": [0, 1], "b": [2]}))))
    assert "mean over 1 to 5 replicates" in text
    assert "one of 3 folds" in text
    assert "divides the subjects of training and validation into 3 folds" in text
    assert "conditional on this split" not in text
    text = " ".join(notes(summarize(study_of(trial("a", 0, 0.5, 1.0)))))
    assert "conditional on this split" in text


# Conclusions ----------------------------------------------------------------------------------


def test_front_probability_is_that_of_the_conclusion() -> None:
    posteriors = {
        name: Posterior(mean=0.5, sd=0.01, on_front=p) for name, p in {"a": 0.97, "b": 0.25}.items()
    }
    study = study_of(
        trial("a", 0, 0.5, 1.0), trial("b", 0, 0.6, 2.0), trial("c", 0, 0.55, 3.0),
        conclusion=conclusion(posteriors=posteriors, reported=("a", "b")),
    )  # fmt: skip
    front = summarize(study)
    assert {n: c.front_probability for n, c in by_id(front).items()} == {
        "a": 0.97,
        "b": 0.25,
        "c": None,
    }
    assert format_front_probability(by_id(front)["a"]) == "97 %"
    text = " ".join(notes(front))
    assert "probability of being on the (2 %, half a point)-front" in text
    sentence = (
        "With probability 0.87 the 2 configurations that the search reports are within half a "
        "point of the best at every budget."
    )
    assert sentence in text
    assert sentence in on_terminal(front)
    assert "2 of them are on the front shown" in text
    assert "P(within half a point of the best)</dt><dd>87 %" in to_html(Analysis.of(front))
    plain = summarize(replace(study, conclusion=None))
    assert plain.front_probability_source == "bootstrap"
    assert by_id(plain)["a"].front_probability == 1.0
    assert "share of bootstrap draws" in " ".join(notes(plain))


def test_front_probability_of_other_axes_is_not_the_conclusion() -> None:
    values = {"top1": 0.5, "gflops": 1.0, "latency_ms": 2.0}
    posterior = {"a": Posterior(mean=0.5, sd=0.01, on_front=0.5)}
    study = study_of(
        trial("a", 0, 0.5, 1.0, values=values), conclusion=conclusion(posteriors=posterior)
    )
    front = summarize(study, x="latency_ms")
    assert (front.front_probability_source, front.points[0].front_probability) == ("bootstrap", 1.0)
    assert "With probability" not in " ".join(notes(front))


def test_describe_test_split_of_a_recorded_table() -> None:
    front = summarize(study_of(trial("a", 0, 0.5, 1.0), recorded=True))
    assert "evaluate the test split" in describe_test_split(front)
    assert "sealed" not in to_markdown(Analysis.of(front))


# More than two objectives ---------------------------------------------------------------------


def cube_study(number: int = 30) -> StudyRecord:
    generator = np.random.default_rng(5)
    trials = []
    for n in range(number):
        top1, cost, size = (float(value) for value in generator.integers(1, 12, 3))
        values = {"top1": top1 / 20, "gflops": cost, "parameters": size}
        trials.append(trial(f"c{n:02d}", 0, top1 / 20, cost, values=values))
    objectives = (("top1", "maximize"), ("gflops", "minimize"), ("parameters", "minimize"))
    return study_of(*trials, objectives=objectives)


def test_front_of_three_objectives_is_not_dominated() -> None:
    study = cube_study()
    front = summarize(study)

    def dominates(a: dict[str, float], b: dict[str, float]) -> bool:
        gains = [
            a["top1"] - b["top1"],
            b["gflops"] - a["gflops"],
            b["parameters"] - a["parameters"],
        ]
        return min(gains) >= 0 and max(gains) > 0

    values = {t.configuration_id: t.values for t in study.trials}
    expected = {n for n, v in values.items() if not any(dominates(o, v) for o in values.values())}
    assert {c.configuration_id for c in front.points} == expected
    assert len(expected) > len(summarize(study_2d(study)).points)
    assert front.objectives.names == ("top1", "gflops", "parameters")
    for c in front.configurations:  # compared with the best at or below all its costs
        rivals = [
            values[f.configuration_id]["top1"]
            for f in front.points
            if all(f.values[n] <= c.values[n] for n in ("gflops", "parameters"))
            and not (c.on_front and costs(f) == costs(c))
        ]
        mean = None if c.difference is None else c.difference.mean
        assert mean == (pytest.approx(c.values["top1"] - max(rivals)) if rivals else None)


def costs(c: ConfigurationSummary) -> tuple[float, float]:
    return c.values["gflops"], c.values["parameters"]


def study_2d(study: StudyRecord) -> StudyRecord:
    return replace(study, objectives=study.objectives[:2])


def test_hypervolume_of_three_objectives_is_a_union_of_boxes() -> None:
    """Boxes of 0.5 x 1 x 1/2 and 0.9 x 1/2 x 1, which share 0.5 x 1/2 x 1/2."""
    cells = {"a": (0.5, 1.0, 10.0), "b": (0.9, 10.0, 1.0), "worst": (0.1, 100.0, 100.0)}
    study = study_of(
        *(
            trial(n, 0, y, x, values={"top1": y, "gflops": x, "parameters": z})
            for n, (y, x, z) in cells.items()
        ),
        objectives=(("top1", "maximize"), ("gflops", "minimize"), ("parameters", "minimize")),
    )
    front = summarize(study)
    assert [c.configuration_id for c in front.points] == ["a", "b"]
    assert front.hypervolume == pytest.approx(0.25 + 0.45 - 0.125)
    assert front.progress[-1].hypervolume == pytest.approx(front.hypervolume)


def test_front_probability_of_three_objectives_counts_draws() -> None:
    study = cube_study(8)
    generator = np.random.default_rng(1)
    noisy = [
        replace(t, groups={f"s{g}": (float(generator.integers(20, 80)), 100.0) for g in range(4)})
        for t in study.trials
    ]
    front = summarize(replace(study, trials=tuple(noisy)))
    points = {c.configuration_id: costs(c) for c in front.finished}
    for name, own in points.items():
        on_front = np.ones(10_000, dtype=bool)
        for other, theirs in points.items():
            if other != name and all(a <= b for a, b in zip(theirs, own, strict=True)):
                rival = front.draws[other]
                beaten = rival > front.draws[name]
                on_front &= ~(beaten | ((rival == front.draws[name]) & (theirs != own)))
        assert by_id(front)[name].front_probability == pytest.approx(on_front.mean())


@pytest.mark.medium
def test_formats_show_the_third_objective(tmp_path: Path) -> None:
    study = cube_study()
    assert len(write_report(Analysis.of(summarize(study)), list(FORMATS), tmp_path)) == len(FORMATS)
    front = summarize(study)
    assert [column.header for column in columns(front)][5:7] == [
        "multiply-adds (paper)",
        "parameters",
    ]
    assert json.loads(to_json(Analysis.of(front)))["front"]["directions"] == {
        "top1": "maximize", "gflops": "minimize", "parameters": "minimize",
    }  # fmt: skip
    assert "uses all objectives of the study, including parameters" in " ".join(notes(front))
    assert "parameters" in on_terminal(front)
    xs, ys = front.staircase()
    assert ys == sorted(ys)
    best = max(c.values["top1"] for c in front.points)
    assert f"the best reaches {best:.3f} top-1 accuracy" in headline(front)
    assert (len(xs), ys[-1]) == (len(front.points) + 1, best)


# Thinning -------------------------------------------------------------------------------------


def test_thinned_front_covers_the_whole_front() -> None:
    generator = np.random.default_rng(2)
    logs = np.sort(generator.random(200))
    study = study_of(
        *(
            trial(f"c{n:03d}", 0, 0.5 + 0.3 * u + float(generator.normal(0, 0.002)), math.exp(u))
            for n, u in enumerate(logs)
        )
    )
    whole, thin = summarize(study), summarize(study, thin=True)
    assert 3 < len(thin.points) < len(whole.points)
    kept = [(c.values["gflops"], c.values["top1"]) for c in thin.points]
    for c in whole.points:
        x, y = c.values["gflops"], c.values["top1"]
        assert any(cost <= 1.02 * x and value >= y - 0.005 for cost, value in kept)
    assert thin.hypervolume == whole.hypervolume
    left_out = [c for c in thin.configurations if c.is_thinned]
    assert len(left_out) == len(whole.points) - len(thin.points)
    assert all(status_label(c) == "thinned" for c in left_out)
    assert "thinned out, another front point is almost equal" in verdict(left_out[-1], thin)


def test_front_of_three_objectives_is_not_thinned() -> None:
    with pytest.raises(UserError, match="Only a front of two objectives, the second"):
        summarize(cube_study(), thin=True)


# Parameter importance by budget ---------------------------------------------------------------


def space_study(number: int) -> StudyRecord:
    """Return a full grid where only `depth` has an effect."""
    grid = itertools.islice(itertools.cycle(itertools.product(range(10), range(8))), number)
    return study_of(
        *(
            trial(
                f"c{n:03d}", 0, 0.5 + depth / 100, 1.0 + n / 1000,
                configuration={"depth": depth, "width": width},
            )
            for n, (depth, width) in enumerate(grid)
        )
    )  # fmt: skip


def test_importance_section_lists_the_relevant_parameter() -> None:
    front = summarize(space_study(80))
    bands = importance_of(front)
    assert [band.num_configurations for band in bands] == [20, 40, 60, 80]
    section = importance_section(Analysis.of(front))
    assert section is not None
    rows = section.table.rows
    assert rows[0][0] == "depth"
    assert float(rows[0][-1].rstrip(" %")) > 90
    for text in (to_markdown(Analysis.of(front)), to_html(Analysis.of(front)), on_terminal(front)):
        assert "PED-ANOVA" in text
        assert "depth" in text
    document = json.loads(to_json(Analysis.of(front)))
    assert document["importance"][-1]["importances"]["depth"] > 0.9
    bands = importance_of(summarize(space_study(41)))
    assert [band.num_configurations for band in bands] == [21, 31, 41]


def test_importance_section_always_lists_modalities_that_vary() -> None:
    study = space_study(40)
    lists = (["a"], ["b"])
    trials = [
        replace(t, configuration=t.configuration | {"modalities": lists[n % 2]})
        for n, t in enumerate(study.trials)
    ]
    front = summarize(replace(study, trials=tuple(trials)))
    assert importance_of(front)[-1].importances["modalities"] < 0.01
    section = importance_section(Analysis.of(front))
    assert section is not None
    assert "modalities" in [row[0] for row in section.table.rows]
    assert (
        "computed from the configurations within each budget (20, 30, 40)"
        in (section.table.notes[0])
    )
    same = [replace(t, configuration=t.configuration | {"modalities": ["a"]}) for t in study.trials]
    section = importance_section(Analysis.of(summarize(replace(study, trials=tuple(same)))))
    assert section is not None
    assert "modalities" not in [row[0] for row in section.table.rows]


def test_importance_section_is_left_out_of_few_configurations() -> None:
    assert [band.num_configurations for band in importance_of(summarize(space_study(39)))] == [39]
    front = summarize(space_study(14))
    assert importance_of(front) == ()
    assert "PED-ANOVA" not in to_markdown(Analysis.of(front))
