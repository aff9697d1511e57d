"""Write what to change in sentences: modalities to leave out, epochs to set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sftsearch.orchestrator.metrics import metric
from sftsearch.orchestrator.report.cells import format_change

if TYPE_CHECKING:
    from sftsearch.orchestrator.analysis.analyse import Analysis
    from sftsearch.orchestrator.analysis.front import Front
    from sftsearch.orchestrator.analysis.modalities import ModalityVerdict

# ------------------------------------------------------------------ modalities


def describe_modalities(analysis: Analysis) -> list[str]:
    """Return a sentence per modality: what to do with it, and the difference without it."""
    return [_describe_modality(one, analysis.front) for one in analysis.modalities]


def _describe_modality(one: ModalityVerdict, front: Front) -> str:
    advice = {
        "leave out": f"Leave `{one.modality}` out",
        "keep": f"Keep `{one.modality}`",
        "not decided": f"`{one.modality}` is not decided",
    }[one.advice]
    change, _, interval = format_change(one.mean, one.interval, front.y).partition(" ")
    unit = " points" if metric(front.y).is_share else f" {metric(front.y).label}"
    cost = ""
    if one.cost_ratio is not None:
        what = "cost" if one.cost == front.x else metric(one.cost).label
        cost = f" and {one.cost_ratio:.2g} of the {what}"
    stopped = f", {one.num_predicted} of them stopped early" if one.num_predicted else ""
    pairs = f", {one.num_pairs} as pairs equal in all else" if one.num_pairs else ""
    return (
        f"{advice}: without it {change}{unit} {interval}{cost} ({one.num_with} configurations with "
        f"it, {one.num_without} without{pairs}{stopped})."
    )


def modalities_note(front: Front) -> str:
    """Return what the sentences of `describe_modalities` compare and rest on."""
    label = metric(front.y).label
    lost = "at most half a point is lost" if metric(front.y).is_share else "nothing is lost"
    return (
        f"Differences in {label} on validation if only the modality is left out, averaged over the "
        "configurations that use another one too, in models tried with and without it. They are "
        "estimated by a Gaussian process over all parameters. A trial that was stopped early "
        "counts with the final value that finished trials predict from that epoch. Leave out: with "
        f"90 % probability {lost}. Keep: with 90 % probability something is lost. 95 % "
        "intervals in brackets; the validation samples are not resampled, so they hold for these "
        "people and recordings."
    )


# ------------------------------------------------------------------ length of training


def describe_rising(analysis: Analysis) -> list[str]:
    """Return how many trials were still rising and the epochs to set; empty without curves."""
    found = analysis.rising
    if found is None:
        return []
    verb = "was" if found.num_rising == 1 else "were"
    text = (
        f"{found.num_rising} of {found.num_trials} finished trials {verb} still rising at the last "
        "epoch"
    )
    if found.suggested is None or found.last_gain is None:
        return [f"{text}: more epochs are not needed." if found.num_rising else f"{text}."]
    y = metric(analysis.front.study.objectives[0][0])
    gain = f"{100 * found.last_gain:.1f} points" if y.is_share else f"{found.last_gain:.3g}"
    number = f"{found.suggested} or more" if found.is_limit else f"about {found.suggested}"
    return [
        f"{text}: set `epochs` to {number} (in the second half of {found.epochs} epochs they "
        f"gained {gain})."
    ]


def rising_note(analysis: Analysis) -> str:
    """Return the rule of `describe_rising`."""
    is_share = metric(analysis.front.study.objectives[0][0]).is_share
    more = "more than half a point and " if is_share else ""
    return (
        "Still rising: the mean of the last quarter of the epochs is better than that of the "
        f"quarter before by {more}more than noise. The number of epochs is that after which twice "
        "as many would gain little, by a power law fitted to the mean of the rising trials."
    )
