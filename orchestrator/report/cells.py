"""Format table cells: status, means, intervals and differences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sftsearch.orchestrator.metrics import MISSING, metric

if TYPE_CHECKING:
    from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary, Interval
    from sftsearch.orchestrator.analysis.front import Front


def status_label(c: ConfigurationSummary) -> str:
    """Return a configuration's status in one word; empty if it is dominated."""
    if c.on_front:
        return "knee" if c.is_knee else "front"
    if c.is_thinned:
        return "thinned"
    if c.status != "finished":
        return c.status
    return "near" if c.indistinguishable else ""


def verdict(c: ConfigurationSummary, front: Front) -> str:
    """Describe a configuration's status and its difference from the front."""
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
        return "thinned out, another front point is almost equal"
    if c.indistinguishable:
        return "not distinguishable from the front"
    if front.num_chosen is None:
        return "dominated"
    is_better = c.difference is None or front.objectives.sign * c.difference.mean > 0
    return "not among the chosen" if is_better else "dominated"


def format_gain(c: ConfigurationSummary, front: Front, *, brief: bool = False) -> str:
    """Return the difference from the front, and whether it is within noise.

    A baseline is compared with the best of the front. `brief` leaves out the interval.
    """
    if c.status not in ("finished", "baseline"):
        return "; ".join(c.reasons)
    if c.difference is None:
        return "cheapest" if c.on_front else MISSING
    noise = ", within noise" if c.difference.within_noise else ""
    interval = None if brief else c.difference.interval
    return format_change(c.difference.mean, interval, front.y) + noise


def gain_heading(front: Front) -> str:
    """Return the column header of `format_gain`, with its unit."""
    y = metric(front.y)
    return f"{'points' if y.is_share else y.label} gained"


def format_change(mean: float, interval: Interval | None, y: str) -> str:
    """Format a difference of a metric with its interval; for shares in points of 0.01."""
    share = metric(y).is_share

    def format_value(value: float) -> str:
        return f"{100 * value:+.1f}" if share else f"{value:+.3g}"

    text = format_value(mean)
    if interval is not None:
        text += f" [{format_value(interval[0])}, {format_value(interval[1])}]"
    return text


def format_mean(c: ConfigurationSummary, name: str) -> str:
    """Format the mean of the accuracy metric over replicates, with its spread if known."""
    if not c.seeds or name not in c.values:
        return MISSING
    text, spread = metric(name).format(c.values[name]), c.spread(name)
    return text if spread is None else f"{text} ± {metric(name).format(spread)}"


def format_interval(interval: Interval | None) -> str:
    """Format an interval of accuracies."""
    return MISSING if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def format_replicates(c: ConfigurationSummary) -> str:
    """Format the number of replicates of the means, for example `3` or `2 fresh of 4`."""
    return f"{len(c.seeds)} fresh of {c.num_finished}" if c.is_fresh else str(len(c.seeds))


def format_front_probability(c: ConfigurationSummary) -> str:
    """Format a front probability."""
    return MISSING if c.front_probability is None else f"{100 * c.front_probability:.0f} %"
