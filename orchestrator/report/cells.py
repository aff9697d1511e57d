"""Format the cells of reports: where a configuration stands, means, intervals and differences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sftsearch.orchestrator.metrics import MISSING, metric

if TYPE_CHECKING:
    from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary, Interval
    from sftsearch.orchestrator.analysis.front import Front


def standing(c: ConfigurationSummary) -> str:
    """Return where a configuration stands, in one word or two."""
    if c.on_front:
        return "knee" if c.is_knee else "front"
    if c.is_thinned:
        return "thinned"
    if c.status != "finished":
        return c.status
    return "near" if c.indistinguishable else ""


def verdict(c: ConfigurationSummary, front: Front) -> str:
    """Return in a few words where a configuration stands and how sure that is."""
    if c.status != "finished":
        return f"{c.status}: {'; '.join(c.reasons)}"
    if c.difference is None:
        return "cheapest on the front" if c.on_front else _why_off(c, front)
    unit = " points" if metric(front.y).is_share else ""
    change = f"{format_change(c.difference.mean, c.difference.interval, front.y)}{unit}"
    if c.on_front:
        noise = ", within noise" if c.difference.within_noise else ""
        return f"{change} over the next cheaper{noise}"
    return f"{_why_off(c, front)} ({change})"


def _why_off(c: ConfigurationSummary, front: Front) -> str:
    if c.is_thinned:
        return "thinned out, a front point hardly differs"
    if c.indistinguishable:
        return "not distinguishable from the front"
    if front.num_chosen is None:
        return "dominated"
    sign = 1 if front.objectives.directions[0] == "maximize" else -1
    is_better = c.difference is None or sign * c.difference.mean > 0
    return "not among the chosen" if is_better else "dominated"


def format_gain(c: ConfigurationSummary, front: Front) -> str:
    """Return `verdict` without what a heading can say: the difference, and whether it is noise."""
    if c.status != "finished":
        return "; ".join(c.reasons)
    if c.difference is None:
        return "cheapest" if c.on_front else MISSING
    noise = ", within noise" if c.difference.within_noise else ""
    return format_change(c.difference.mean, c.difference.interval, front.y) + noise


def gain_heading(front: Front) -> str:
    """Return what `format_gain` is in, to stand above it."""
    y = metric(front.y)
    return f"{'points' if y.is_share else y.label} against the front"


def format_change(mean: float, interval: Interval | None, y: str) -> str:
    """Return a difference of a metric with its interval, of shares in points of 0.01."""
    share = metric(y).is_share

    def format_value(value: float) -> str:
        return f"{100 * value:+.1f}" if share else f"{value:+.3g}"

    text = format_value(mean)
    if interval is not None:
        text += f" [{format_value(interval[0])}, {format_value(interval[1])}]"
    return text


def format_mean(c: ConfigurationSummary, name: str) -> str:
    """Return the mean of a metric over the finished seeds, with its deviation if there is one."""
    if not c.seeds or name not in c.values:
        return MISSING
    text = metric(name).format(c.values[name])
    if name not in c.deviations:
        return text
    return f"{text} ± {metric(name).format(c.deviations[name])}"


def format_interval(interval: Interval | None) -> str:
    """Return an interval of accuracies as text."""
    return MISSING if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def format_replicates(c: ConfigurationSummary) -> str:
    """Return how many replicates the values are of; where these are fresh, of how many in all."""
    return f"{len(c.seeds)} fresh of {c.num_finished}" if c.is_fresh else str(len(c.seeds))


def format_front_probability(c: ConfigurationSummary) -> str:
    """Return how likely a configuration is on the front, as text."""
    return MISSING if c.front_probability is None else f"{100 * c.front_probability:.0f} %"
