"""Write what the test split says in sentences."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sftsearch.orchestrator.metrics import metric
from sftsearch.orchestrator.report.baselines import describe_baseline
from sftsearch.orchestrator.report.cells import format_change

if TYPE_CHECKING:
    from sftsearch.orchestrator.analysis.analyse import Analysis
    from sftsearch.orchestrator.analysis.configurations import (
        ConfigurationSummary,
        Difference,
        Interval,
    )
    from sftsearch.orchestrator.analysis.confirmation import Confirmation
    from sftsearch.orchestrator.analysis.front import Front

COLUMNS = ("configuration", "model")


def describe_confirmation(analysis: Analysis) -> list[str]:
    """Return sentences about the test split; empty until the study is confirmed."""
    found, front = analysis.confirmation, analysis.front
    if found is None:
        return []
    refit = (
        "Test values are of models that were trained again on training and validation, baselines "
        "too; validation values are of the models before."
    )
    return [
        *([refit] if front.study.refit else []),
        *_describe_verdicts(found, front),
        _describe_order(found, front),
        _describe_choice(found, front),
        *_describe_ensemble(found, front),
        *_describe_baseline(found, front),
    ]


def _describe_verdicts(found: Confirmation, front: Front) -> list[str]:
    verdicts = [one for one in found.verdicts.values() if one is not None]
    if not verdicts:
        return []
    fell = [_both(_named(n, front), front) for n, v in found.verdicts.items() if v == "fell"]
    rose = [_both(_named(n, front), front) for n, v in found.verdicts.items() if v == "rose"]
    stand = verdicts.count("stands")
    text = (
        f"{stand} of {len(verdicts)} configurations of the front {_stands(stand)} on test: the "
        "intervals of test and validation overlap."
    )
    return [
        text,
        *([f"Worse on test than their interval on validation: {'; '.join(fell)}."] if fell else []),
        *(
            [f"Better on test than their interval on validation: {'; '.join(rose)}."]
            if rose
            else []
        ),
    ]


def _stands(number: int) -> str:
    return "stands" if number == 1 else "stand"


def _both(c: ConfigurationSummary, front: Front) -> str:
    y = metric(front.y)
    test, before = c.test_values[front.y], c.values[front.y]
    return f"{c.configuration_id} ({y.format(test)}, {y.format(before)} on validation)"


def _describe_order(found: Confirmation, front: Front) -> str:
    if not found.turned:
        return "The order of the front is the same on test."
    pairs = "; ".join(
        f"{cheaper} against {change.other} {_change(change, front)}"
        for cheaper, change in found.turned
    )
    return f"The order turned where a cheaper configuration is better on test: {pairs}."


def _describe_choice(found: Confirmation, front: Front) -> str:
    x, text = metric(front.x), f"Of the front, take {_placed(_named(found.take, front), front)}"
    other = found.alternative
    if other is not None:
        cheaper = _named(other.other, front)
        text += (
            f"; {other.other}, at {x.format(cheaper.values[front.x])} {x.label}, is within noise "
            f"of it ({_change(other, front, verdict=False)})"
        )
    return f"{text}."


def _describe_ensemble(found: Confirmation, front: Front) -> list[str]:
    """Return what the mean of the replicates of the configuration to take has on test."""
    y, ensemble = metric(front.y), front.study.ensembles.get(found.take)
    if ensemble is None or front.y not in ensemble.test_values:
        return []
    return [
        f"The mean of its {ensemble.num_members} replicates (`export --ensemble`) has "
        f"{y.format(ensemble.test_values[front.y])} on test, at {ensemble.num_members} times its "
        "cost."
    ]


def _placed(c: ConfigurationSummary, front: Front) -> str:
    x, y = metric(front.x), metric(front.y)
    cost = f" at {x.format(c.values[front.x])} {x.label}" if front.x in c.values else ""
    return f"{c.configuration_id}: {y.format(c.test_values[front.y])} {y.label} on test{cost}"


def _describe_baseline(found: Confirmation, front: Front) -> list[str]:
    if found.baseline is None or front.baselines is None:
        return []
    best = front.baselines.best
    verb = {
        "ahead": "It beats the best baseline by validation",
        "tied": "It does not clearly beat the best baseline by validation",
        "behind": "The best baseline by validation beats it",
    }[str(found.baseline_verdict)]
    change = _change(found.baseline, front, verdict=False)
    text = (
        f"{verb}: {describe_baseline(best)} has {_placed(best, front).partition(': ')[2]} "
        f"(difference {change})."
    )
    cost = _named(found.take, front).values.get(front.x, math.inf)
    costs_more = best.values.get(front.x, 0.0) > cost
    if found.baseline_verdict == "ahead" or (found.baseline_verdict == "tied" and costs_more):
        return [text]
    return [f"{text} Take the baseline."]


def _named(identity: str, front: Front) -> ConfigurationSummary:
    return next(c for c in front.points if c.configuration_id == identity)


def _change(change: Difference, front: Front, *, verdict: bool = True) -> str:
    unit = " points" if metric(front.y).is_share else ""
    noise = ", within noise" if verdict and change.within_noise else ""
    text, _, interval = format_change(change.mean, change.interval, front.y).partition(" ")
    return f"{text}{unit} {interval}".rstrip() + noise


def confirmation_headers(front: Front) -> list[str]:
    """Return the headers of the table of validation and test values."""
    return [*COLUMNS, metric(front.x).label, "validation", "test"]


def confirmation_rows(front: Front) -> list[list[str]]:
    """Return a row per configuration of the front, then per baseline, with intervals."""
    found = () if front.baselines is None else front.baselines.summaries
    tested = [c for c in (*front.points, *reversed(found)) if front.y in c.test_values]
    x, y = metric(front.x), metric(front.y)
    return [
        [
            c.configuration_id,
            c.model,
            x.format(c.values.get(front.x)),
            _with_interval(y.format(c.values.get(front.y)), c.interval),
            _with_interval(y.format(c.test_values.get(front.y)), c.test_interval),
        ]
        for c in tested
    ]


def _with_interval(text: str, interval: Interval | None) -> str:
    return text if interval is None else f"{text} [{interval[0]:.3f}, {interval[1]:.3f}]"
