"""Sentences about modalities and the length of training."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np

from sftsearch.orchestrator.analysis.analyse import Analysis
from sftsearch.orchestrator.analysis.curves import Rising
from sftsearch.orchestrator.analysis.modalities import ModalityVerdict
from sftsearch.orchestrator.report.advice import describe_modalities, describe_rising
from sftsearch.orchestrator.report.csv_report import to_csv
from sftsearch.orchestrator.report.json_report import to_json
from sftsearch.orchestrator.report.sections import sections

from report_studies import small_study, summarize, trial

VERDICT = ModalityVerdict(
    modality="depth",
    advice="leave out",
    mean=0.061,
    interval=(0.02, 0.098),
    cost="gflops",
    cost_ratio=0.4,
    models=("concat",),
    num_with=20,
    num_without=12,
    num_pairs=7,
    num_predicted=9,
)
RISING = Rising(num_rising=41, num_trials=70, epochs=10, last_gain=0.018, suggested=25)


def analysis(**changes: Any) -> Analysis:
    """Return the analysis of two trials, one of them rising, with changes."""
    rows = {"a": 0.4 + 0.05 * np.arange(8), "b": np.full(8, 0.7)}
    study = small_study(
        *(
            trial(name, 0, {"top1": 0.7, "gflops": 1.0}, curve=tuple(curve.tolist()))
            for name, curve in rows.items()
        )
    )
    return replace(Analysis.of(summarize(study)), **changes)


def test_modalities_are_described_with_an_advice() -> None:
    keep = replace(VERDICT, modality="wrist", advice="keep", mean=-0.12, interval=(-0.15, -0.09),
                   cost_ratio=None, num_pairs=0, num_predicted=0)  # fmt: skip
    open_ = replace(VERDICT, modality="emg", advice="not decided", cost="gmacs", interval=(-1, 1))
    found = describe_modalities(analysis(modalities=(VERDICT, keep, open_)))
    assert found[0] == (
        "Leave `depth` out: without it +6.1 points [+2.0, +9.8] and 0.4 of the cost (20 "
        "configurations with it, 12 without, 7 as pairs equal in all else, 9 of them stopped "
        "early)."
    )
    assert found[1] == (
        "Keep `wrist`: without it -12.0 points [-15.0, -9.0] (20 configurations with it, 12 "
        "without)."
    )
    assert found[2].startswith("`emg` is not decided: without it +6.1 points [-100.0, +100.0] and")
    assert "0.4 of the multiply-adds" in found[2]


def test_rising_trials_are_described_with_a_number_of_epochs() -> None:
    (text,) = describe_rising(analysis(rising=RISING))
    assert text == (
        "41 of 70 finished trials were still rising at the last epoch: set `epochs` to about 25 "
        "(in the second half of 10 epochs they gained 1.8 points)."
    )
    (text,) = describe_rising(analysis(rising=replace(RISING, suggested=40, is_limit=True)))
    assert "set `epochs` to 40 or more" in text
    (text,) = describe_rising(analysis(rising=replace(RISING, num_rising=1, suggested=None)))
    assert text == (
        "1 of 70 finished trials was still rising at the last epoch: more epochs are not needed."
    )
    (text,) = describe_rising(analysis(rising=replace(RISING, num_rising=0, suggested=None)))
    assert text == "0 of 70 finished trials were still rising at the last epoch."
    assert describe_rising(analysis(rising=None)) == []


def test_every_format_has_modalities_and_rising_trials() -> None:
    found = analysis(modalities=(VERDICT,))
    keys = [section.key for section in sections(found)]
    assert keys[:2] == ["modalities", "rising"]
    document = json.loads(to_json(found))
    assert document["modalities"][0]["interval"] == [0.02, 0.098]
    assert document["rising"]["num_rising"] == 1
    assert document["answers"]["modalities"] == describe_modalities(found)
    assert document["answers"]["rising"] == describe_rising(found)
    assert {c["configuration_id"]: c["still_rising"] for c in document["configurations"]} == {
        "a": True,
        "b": False,
    }
    header, *rows = to_csv(found).splitlines()
    column = header.split(",").index("still_rising")
    assert sorted(row.split(",")[column] for row in rows) == ["0", "1"]
