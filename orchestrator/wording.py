"""What a front means, in words: the sentences, verdicts and notes that every report prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftsearch.orchestrator.front import difference
from sftsearch.orchestrator.measures import METRICS, MISSING, metric

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sftsearch.orchestrator.front import Configuration, Difference, Front


def headline(front: Front) -> str:
    """Return the sentence a report opens with."""
    finished, points = front.finished, front.points
    if not finished:
        return "No configuration has finished all its seeds yet, so there is no front."
    x = metric(front.x)
    y = metric(front.y)
    verb = "is" if len(points) == 1 else "are"
    noun = "configuration" if len(finished) == 1 else "configurations"
    best = points[-1]
    text = (
        f"{len(points)} of {len(finished)} {noun} {verb} on the front; the best reaches "
        f"{y.show(best.values[front.y])} {y.label} at {x.show(best.values[front.x])} {x.label}"
    )
    half = [p for p in points[:-1] if 2 * p.values[front.x] <= best.values[front.x]]
    if half and front.directions[1] == "minimize":
        text += f"; {_half_cost(half[-1], best, front)}"
    return text + "."


def notes(front: Front) -> list[str]:
    """Return how the numbers are to be read, a sentence or two each."""
    y = metric(front.y)
    seeds = "1 seed" if front.study.num_seeds == 1 else f"{front.study.num_seeds} seeds"
    lines = [
        f"{y.label[:1].upper()}{y.label[1:]} is of the validation split, the mean over "
        f"{seeds}; ± is the standard deviation over seeds."
    ]
    if front.num_groups:
        lines += _interval_notes(front)
    lines.append(
        "The study uses one split of its data: what it says is conditional on that split. The "
        "front is picked by the very values shown, so its best are likely a little too good."
    )
    worst = "0" if y.is_share else "the worst seen"
    lines.append(
        f"Hypervolume is the share enclosed between the front, {y.label} of {worst} and the "
        "highest cost seen, with the cost on a log scale from the lowest (1) to the highest (0)."
    )
    lines.append(seal(front))
    return lines


def seal(front: Front) -> str:
    """Return whether the test split has been looked at, and how to."""
    if front.study.confirmed:
        return "Test values were measured once, by `sftsearch confirm`, for the front."
    return (
        "The test split is sealed: nothing here has seen it. "
        f"`sftsearch confirm {front.study.name}` opens it, once, for the front."
    )


def gain(c: Configuration, front: Front) -> str:
    """Return `verdict` without what a heading can say: the difference, and whether it is noise."""
    if c.status != "finished":
        return "; ".join(c.reasons)
    if c.difference is None:
        return "cheapest" if c.on_front else MISSING
    noise = ", within noise" if c.difference.within_noise else ""
    return show_difference(c.difference, front) + noise


def gain_heading(front: Front) -> str:
    """Return what `gain` is in, to stand above it."""
    y = metric(front.y)
    return f"{'points' if y.is_share else y.label} against the front"


def verdict(configuration: Configuration, front: Front) -> str:
    """Return in a few words where a configuration stands and how sure that is."""
    c = configuration
    if c.status != "finished":
        return f"{c.status}: {'; '.join(c.reasons)}"
    if c.difference is None:
        return "cheapest on the front" if c.on_front else "dominated"
    unit = " points" if metric(front.y).is_share else ""
    change = f"{show_difference(c.difference, front)}{unit}"
    if c.on_front:
        noise = ", within noise" if c.difference.within_noise else ""
        return f"{change} over the next cheaper{noise}"
    if c.indistinguishable:
        return f"not distinguishable from the front ({change})"
    return f"dominated ({change})"


def show_difference(change: Difference, front: Front) -> str:
    """Return a difference with its interval, of shares in points of 0.01."""
    share = metric(front.y).is_share

    def show(value: float) -> str:
        return f"{100 * value:+.1f}" if share else f"{value:+.3g}"

    text = show(change.mean)
    if change.interval is not None:
        text += f" [{show(change.interval[0])}, {show(change.interval[1])}]"
    return text


def _half_cost(cheaper: Configuration, best: Configuration, front: Front) -> str:
    y = metric(front.y)
    share = cheaper.values[front.x] / best.values[front.x]
    lost = abs(best.values[front.y] - cheaper.values[front.y])
    amount = f"{100 * lost:.1f} points" if y.is_share else f"{lost:.3g} {y.label}"
    price = "half the cost" if share > 0.45 else f"{100 * share:.0f} % of that cost"
    change = difference(best, cheaper, front.y, front.draws)
    return f"{price} loses {amount}{' (within noise)' if change.within_noise else ''}"


def _interval_notes(front: Front) -> list[str]:
    unit = "subjects" if front.groups_are_subjects else "groups of samples"
    single = front.study.num_seeds == 1
    lines = [
        "Intervals hold the middle 95 % of a bootstrap over "
        f"{front.num_groups} {unit} and the seeds, paired by "
        f"{'subject' if front.groups_are_subjects else 'group'} between configurations; a "
        "difference whose interval contains 0 is called within noise. Costs are not resampled.",
        "The share of the resamples that keep a configuration on the front stands under `front "
        "in`; `near` marks those that are dominated but not distinguishable from the front: their "
        "difference from the front point at or below their cost is within noise. Front points are "
        "compared with the next cheaper one.",
    ]
    if single:
        lines.append("With one seed the intervals know nothing of how much another seed changes.")
    if front.groups_are_subjects and front.num_groups < 10:
        lines.append(
            f"With {front.num_groups} subjects the intervals are too narrow: on simulated data "
            "they held the truth in about 77 % of cases at 3 subjects and 87 % at 5, not in 95 %."
        )
    return lines


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table, as text and as what it sorts by."""

    header: str
    show: Callable[[Configuration], str]
    key: Callable[[Configuration], float | str | None]
    """None sorts last, whichever way."""
    is_number: bool = True
    """Whether it is set to the right; keys that are numbers sort as numbers anyway."""
    tell: Callable[[Configuration], str] | None = None
    """The whole of what `show` abbreviates."""


def columns(front: Front) -> list[Column]:
    """Return the table's columns; parameters that are the same everywhere are left out."""
    measured = {name for c in front.configurations for name in c.values}
    found = [
        Column("", standing, lambda c: standing(c) or None, is_number=False),
        Column("configuration", lambda c: c.configuration_id, lambda c: c.configuration_id, False),
        Column("model", lambda c: c.model, lambda c: c.model, is_number=False),
        Column(
            metric(front.y).label,
            lambda c: show_mean(c, front.y),
            lambda c: c.values.get(front.y) if c.seeds else None,
        ),
    ]
    if front.num_groups:
        found.append(
            Column("95 % interval", lambda c: show_interval(c.interval), lambda c: _low(c.interval))
        )
    if front.x in measured:
        found.append(_value_column(front.x))
    found.append(
        Column(
            gain_heading(front),
            lambda c: gain(c, front),
            lambda c: None if c.difference is None else c.difference.mean,
            is_number=False,
            tell=lambda c: verdict(c, front),
        )
    )
    if front.study.confirmed:
        found += _test_columns(front)
    found += [_parameter_column(name, front) for name in varying(front.configurations)]
    if front.num_groups:
        found.append(Column("front in", _show_membership, lambda c: c.membership))
    others = (name for name in METRICS if name not in (front.x, front.y))
    found += [_value_column(name) for name in others if name in measured]
    return [*found, Column("seeds", lambda c: str(len(c.seeds)), lambda c: float(len(c.seeds)))]


def standing(c: Configuration) -> str:
    """Return where a configuration stands, in one word or two."""
    if c.on_front:
        return "knee" if c.is_knee else "front"
    if c.status != "finished":
        return c.status
    return "near" if c.indistinguishable else ""


def show_mean(c: Configuration, name: str) -> str:
    """Return the mean of a metric over the finished seeds, with its deviation if there is one."""
    if not c.seeds or name not in c.values:
        return MISSING
    text = metric(name).show(c.values[name])
    return f"{text} ± {metric(name).show(c.deviations[name])}" if name in c.deviations else text


def varying(configurations: Iterable[Configuration]) -> list[str]:
    """Return the parameters that are not the same in every configuration that could have them.

    Of a model that has a parameter in some configurations alone, the others could.
    """
    seen: dict[str, set[str]] = {}
    rows = list(configurations)
    for name in dict.fromkeys(name for c in rows for name in c.parameters):
        models = {c.model for c in rows if c.parameters.get(name) is not None}
        seen[name] = {show_parameter(c, name) for c in rows if c.model in models}
    return [name for name, values in seen.items() if len(values) > 1 and name != "model"]


def show_parameter(c: Configuration, name: str) -> str:
    """Return a parameter's value as text; lists as `a+b`."""
    value = c.parameters.get(name)
    if value is None:
        return MISSING
    if isinstance(value, (list, tuple)):
        return "+".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def brief_parameter(c: Configuration, name: str, front: Front) -> str:
    """Return `show_parameter`, or `all 4` for a list of all four entries that the study has."""
    value = c.parameters.get(name)
    if isinstance(value, (list, tuple)) and len(value) > 1:
        lists = (other.parameters.get(name) for other in front.configurations)
        known = {entry for other in lists if isinstance(other, (list, tuple)) for entry in other}
        if set(value) == known:
            return f"all {len(value)}"
    return show_parameter(c, name)


def _value_column(name: str) -> Column:
    def show(c: Configuration) -> str:
        return metric(name).show(c.values.get(name))

    return Column(metric(name).label, show, lambda c: c.values.get(name))


def _parameter_column(name: str, front: Front) -> Column:
    def key(c: Configuration) -> float | str | None:
        value = c.parameters.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        return None if value is None else show_parameter(c, name)

    keys = [key(c) for c in front.configurations]
    return Column(
        name,
        lambda c: brief_parameter(c, name, front),
        key,
        is_number=not any(isinstance(value, str) for value in keys),
        tell=lambda c: show_parameter(c, name),
    )


def _test_columns(front: Front) -> list[Column]:
    label = f"test {metric(front.y).label}"

    def show(c: Configuration) -> str:
        return metric(front.y).show(c.test_values.get(front.y))

    found = [Column(label, show, lambda c: c.test_values.get(front.y))]
    if metric(front.y).is_counted:
        found.append(
            Column(
                "test interval",
                lambda c: show_interval(c.test_interval),
                lambda c: _low(c.test_interval),
            )
        )
    return found


def show_interval(interval: tuple[float, float] | None) -> str:
    """Return an interval of accuracies as text."""
    return MISSING if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _low(interval: tuple[float, float] | None) -> float | None:
    return None if interval is None else interval[0]


def _show_membership(c: Configuration) -> str:
    return MISSING if c.membership is None else f"{100 * c.membership:.0f} %"
