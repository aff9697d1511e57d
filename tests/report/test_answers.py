"""Sentences of reports: models at equal compute, values of parameters, trials and values."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from sftsearch.orchestrator.analysis.analyse import Analysis
from sftsearch.orchestrator.analysis.effects import Effects, ParameterEffect, ValueEffect
from sftsearch.orchestrator.report.answers import (
    describe_effects,
    describe_standings,
    effects_notes,
    format_limit,
    standing_notes,
)
from sftsearch.orchestrator.report.html import to_html
from sftsearch.orchestrator.report.json_report import to_json
from sftsearch.orchestrator.report.markdown import to_markdown
from sftsearch.orchestrator.report.sections import sections, standings_section
from sftsearch.orchestrator.report.table import MOST_EFFECTS, front_table
from sftsearch.orchestrator.report.text import describe_trials, describe_values, notes

from report_studies import small_study, summarize, trial, trial_of

if TYPE_CHECKING:
    from sftsearch.orchestrator.storage.study_record import StudyRecord

CURVES = {
    "mbt": {1.0: 0.60, 2.0: 0.62, 4.0: 0.64},
    "mult": {2.0: 0.70, 3.0: 0.72, 4.0: 0.69, 64.0: 0.60},
    "sft": {5.0: 0.80, 6.0: 0.82, 7.0: 0.81, 8.0: 0.84},
    "late": {9.0: 0.5},
}


def models_study() -> StudyRecord:
    return small_study(
        *(
            trial_of(model, int(cost), top1, cost)
            for model, curve in CURVES.items()
            for cost, top1 in curve.items()
        )
    )


def on_terminal(analysis: Analysis, width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(front_table(analysis))
    return console.export_text().replace("\N{NO-BREAK SPACE}", " ")


# ---------------------------------------------------------------------- models


def test_describe_standings_has_a_sentence_per_model() -> None:
    """At 16 G: the best of three of sft's four has mean (3 x 0.84 + 0.82) / 4 = 0.835."""
    analysis = Analysis.of(summarize(models_study()))
    assert describe_standings(analysis) == [
        "late: fewer than 3 configurations cost at most 64 G multiply-adds (paper).",
        "mbt: 8.0 points below mult at 4 G multiply-adds (paper) [-8.0, -8.0]; 19.5 below sft at "
        "16 G [-19.5, -19.5]; 19.5 below sft at 64 G [-19.5, -19.5].",
        "mult: 8.0 points above mbt at 4 G multiply-adds (paper) [+8.0, +8.0]; 11.5 below sft at "
        "16 G [-11.5, -11.5]; 12.0 below sft at 64 G [-12.0, -12.0].",
        "sft: 11.5 points above mult at 16 G multiply-adds (paper) [+11.5, +11.5]; 12.0 above mult "
        "at 64 G [+12.0, +12.0]; fewer than 3 configurations cost at most 4 G.",
    ]
    section = standings_section(analysis, intervals=False)
    assert section is not None
    assert section.table.headers[1] == "\N{LESS-THAN OR EQUAL TO} 4 G multiply-adds (paper)"
    dash = "\N{EN DASH}"
    assert section.table.rows == [
        ["late", dash, dash, dash],
        ["mbt", "0.640", "0.640", "0.640"],
        ["mult", "0.720*", "0.720", "0.715"],
        ["sft", dash, "0.835*", "0.835*"],
        ["best of", "3", "3", "3"],
    ]


def test_describe_standings_marks_what_is_within_noise() -> None:
    """Accuracies by group vary around the same mean in mult, so differences are uncertain."""
    study = models_study()
    uneven = {f"s{g}": (rate, 100.0) for g, rate in enumerate((90.0, 50.0, 76.0))}
    trials = [replace(t, groups=uneven) if t.model == "mult" else t for t in study.trials]
    analysis = Analysis.of(summarize(replace(study, trials=tuple(trials))))
    _, mbt, mult, sft = describe_standings(analysis)
    assert mbt.count("within noise") == 1
    assert mult.endswith(": within noise.")
    assert sft.endswith(": within noise; fewer than 3 configurations cost at most 4 G.")
    section = standings_section(analysis, intervals=False)
    assert section is not None
    assert [row[1] for row in section.table.rows[1:3]] == ["0.640~", "0.720*"]


def test_standing_notes_count_stopped_configurations() -> None:
    study = models_study()
    stopped = replace(study.trials[0], configuration_id="x", key="x", status="stopped", epoch=1)
    analysis = Analysis.of(summarize(replace(study, trials=(*study.trials, stopped))))
    assert analysis.standings is not None
    text = " ".join(standing_notes(analysis.standings, analysis.front))
    assert "which favors models with many: mbt 1." in text
    assert "(3, 3, 3)" in text
    assert "optimistic" not in text
    fresh = summarize(replace(study, fresh={"mbt1": (0,)}))
    assert "slightly optimistic" in " ".join(standing_notes(analysis.standings, fresh))


@pytest.mark.parametrize(
    ("limit", "cost", "text"),
    [(1.5e-5, "seconds", "1.5e-05"), (0.00013, "seconds", "0.00013"), (0.0011, "seconds", "0.0011"),
     (4.0, "seconds", "4"), (25.0, "seconds", "25"), (1300.0, "seconds", "1,300"),
     (120.0, "seconds", "120"), (1.5e-5, "gmacs", "15 k"), (25.0, "gflops", "25 G"),
     (1300.0, "parameters", "1.3 k")],
)  # fmt: skip
def test_format_limit_is_short(limit: float, cost: str, text: str) -> None:
    assert format_limit(limit, cost) == text


# ---------------------------------------------------------------------- values of parameters


def effect(parameter: str, *values: ValueEffect, num_without: int = 0) -> ParameterEffect:
    return ParameterEffect(
        parameter=parameter,
        models=("sft", "sft_po"),
        reference="average",
        num_configurations=28,
        num_without=num_without,
        values=values,
    )


def value(name: str, mean: float, low: float, high: float) -> ValueEffect:
    return ValueEffect(value=name, mean=mean, interval=(low, high), num_configurations=9)


def with_effects(*parameters: ParameterEffect, num_stopped: int = 0) -> Analysis:
    found = Effects(parameters=parameters, num_configurations=41, num_stopped=num_stopped)
    return replace(Analysis.of(summarize(models_study())), effects=found)


def test_describe_effects_has_a_sentence_per_parameter() -> None:
    most = value("max", 0.004, -0.009, 0.017)
    analysis = with_effects(
        effect("pooling", most, value("attention", -0.002, -0.014, 0.01)),
        effect("mixup_alpha", value("1.0", 0.03, 0.01, 0.05), most, num_without=5),
    )
    assert describe_effects(analysis) == [
        "pooling, against average (28 configurations of sft and sft_po): max gives +0.4 points "
        "[-0.9, +1.7], attention gives -0.2 [-1.4, +1.0]: within noise.",
        "mixup_alpha, against average (28 configurations of sft and sft_po, where it has an "
        "effect): 1.0 gives +3.0 points [+1.0, +5.0], max gives +0.4 [-0.9, +1.7] (within noise).",
    ]


def test_effects_notes_state_what_they_rest_on() -> None:
    analysis = with_effects(effect("pooling", value("max", 0.1, 0.0, 0.2)), num_stopped=3)
    assert analysis.effects is not None
    text = " ".join(effects_notes(analysis.effects, analysis.front))
    assert "top-1 accuracy on validation" in text
    assert "fitted to 41 configurations. 3 stopped early, without a final value" in text
    assert "one in 20 excludes 0 by chance alone (1 here)" in text
    predicted = replace(analysis.effects, num_predicted=5)
    assert "5 of them were stopped early and count with the final values" in " ".join(
        effects_notes(predicted, analysis.front)
    )


def test_sentences_are_the_same_in_every_format() -> None:
    many = [effect(f"p{n:02d}", value("max", 0.001, -0.1, 0.1)) for n in range(MOST_EFFECTS + 2)]
    analysis = with_effects(*many)
    sentences = [*describe_standings(analysis), *describe_effects(analysis)]
    page, markdown = to_html(analysis), to_markdown(analysis).replace("\\", "")
    answers = json.loads(to_json(analysis))["answers"]
    terminal = " ".join(on_terminal(analysis).split())
    assert answers == {
        "confirmation": [],
        "modalities": [],
        "rising": [],
        "tokens": [],
        "standings": describe_standings(analysis),
        "effects": describe_effects(analysis),
    }
    for sentence in sentences:
        assert f"<li>{sentence}</li>" in page
        assert f"- {sentence}\n" in markdown
    for sentence in sentences[:-2]:
        assert sentence in terminal
    assert "p09" not in terminal
    assert "2 more parameters are in the report files." in terminal


def test_terminal_has_100_columns(study: StudyRecord) -> None:
    for record in (study, models_study()):
        lines = on_terminal(Analysis.of(summarize(record))).splitlines()
        assert max(map(len, lines)) <= 100


def test_sections_without_content_are_left_out() -> None:
    front = summarize(small_study(trial("a", 0, {"top1": 0.5, "gflops": 1.0})))
    assert sections(Analysis.of(front)) == []


# ---------------------------------------------------------------------- trials and values


def fresh_study() -> StudyRecord:
    """Two reported configurations; a trial stopped, one failed, one running."""
    values = {"top1": 0.6, "gflops": 1.0}
    return small_study(
        *(trial("a", seed, values) for seed in range(3)),
        *(trial("b", seed, {"top1": 0.7, "gflops": 2.0}) for seed in range(3)),
        trial("c", 0, values, "stopped", epoch=2),
        trial("d", 0, values, "failed", reason="nan"),
        trial("e", 0, values, "running"),
        fresh={"a": (1, 2), "b": (1, 2)},
    )


def test_describe_trials_counts_by_status() -> None:
    front = summarize(fresh_study())
    assert describe_trials(front) == (
        "6 of 9 trials finished, 4 of them as fresh replicates; 1 failed; 1 still running. 1 trial "
        "was stopped early, before the last epoch, and cannot be on the front. The share of wrong "
        "stops is reported when the study ends."
    )
    assert describe_trials(front) in notes(front)
    assert describe_trials(front) in " ".join(on_terminal(Analysis.of(front)).split())
    plain = summarize(small_study(trial("a", 0, {"top1": 0.6, "gflops": 1.0})))
    assert describe_trials(plain) == "1 of 1 trials finished."


def test_describe_values_says_whether_they_are_from_fresh_replicates() -> None:
    study = fresh_study()
    expected = (
        "Values are means over 2 fresh replicates each on validation, ± half of the 95 % "
        "confidence interval, trained with new seeds after the search had chosen what to report. "
        "95 % confidence intervals in brackets."
    )
    assert describe_values(summarize(study)) == expected
    assert expected in " ".join(on_terminal(Analysis.of(summarize(study))).split())
    assert "mean over their fresh replicates alone" in " ".join(notes(summarize(study)))
    begun = replace(study, trials=tuple(t for t in study.trials if t.key not in ("b-1", "b-2")))
    assert describe_values(summarize(begun)).endswith(
        "Configurations that are not marked fresh have none."
    )
    other = trial("f", 0, {"top1": 0.9, "gflops": 3.0})
    top = summarize(replace(study, trials=(*study.trials, other)), top=3)
    assert describe_values(top).endswith("not marked fresh have none.")
    without = summarize(replace(study, fresh={}, max_replicates=3))
    assert describe_values(without).startswith(
        "Values are means over 1 to 3 seeds on validation, ± half of the 95 % confidence interval."
    )
    single = summarize(small_study(trial("a", 0, {"top1": 0.6, "gflops": 1.0})))
    assert describe_values(single).startswith("Values are means over 1 seed on validation")
