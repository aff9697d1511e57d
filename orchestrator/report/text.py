"""What a front means, in words: the sentences, verdicts and notes that every report prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sftsearch.orchestrator.analysis.front import difference
from sftsearch.orchestrator.analysis.importance import importance_by_band
from sftsearch.orchestrator.metrics import METRICS, MISSING, metric

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sftsearch.orchestrator.analysis.front import Configuration, Difference, Front
    from sftsearch.orchestrator.analysis.importance import Band
    from sftsearch.orchestrator.storage.study_record import StudyRecord

FEWEST_FOR_IMPORTANCE = 40
"""Finished configurations below which nothing is said of what matters."""


def headline(front: Front) -> str:
    """Return the sentence a report opens with."""
    finished, points = front.finished, front.points
    if not finished:
        return "No configuration has finished all its seeds yet, so there is no front."
    x = metric(front.x)
    y = metric(front.y)
    verb = "is" if len(points) == 1 else "are"
    noun = "configuration" if len(finished) == 1 else "configurations"
    sign = 1 if front.directions[0] == "maximize" else -1
    best = max(reversed(points), key=lambda c: sign * c.values[front.y])
    text = (
        f"{len(points)} of {len(finished)} {noun} {verb} on the front; the best reaches "
        f"{y.show(best.values[front.y])} {y.label} at {x.show(best.values[front.x])} {x.label}"
    )
    half = [p for p in points if 0 < 2 * p.values[front.x] <= best.values[front.x]]
    if half and front.directions[1] == "minimize":
        cheaper = max(reversed(half), key=lambda c: sign * c.values[front.y])
        text += f"; {_half_cost(cheaper, best, front)}"
    return text + "."


def notes(front: Front) -> list[str]:
    """Return how the numbers are to be read, a sentence or two each."""
    y = metric(front.y)
    lines = [_means_note(front)]
    if front.num_groups:
        lines += _interval_notes(front)
    lines += [*_membership_notes(front), *_split_notes(front)]
    lines += [*filter(None, [stops(front.study)]), *_certainty_notes(front)]
    worst = "0" if y.is_share else "the worst seen"
    several = len(front.objectives) > 2
    others = ", ".join(metric(name).label for name in front.objectives[2:])
    lines.append(
        f"Hypervolume is the share enclosed between the front, {y.label} of {worst} and the "
        f"highest cost{'s' if several else ''} seen, with {'each' if several else 'the'} cost on a "
        "log scale from the lowest (1) to the highest (0)."
    )
    if several:
        lines.append(
            f"The front is of all objectives of the study, {others} too: a configuration is on it "
            "when no other is at least as good in all of them and better in one. The picture shows "
            "two."
        )
    lines.append(seal(front))
    return lines


def replicates(study: StudyRecord) -> str:
    """Return how many trials a configuration has: `2 seeds`, `2 to 5 replicates`."""
    least, most = study.num_seeds, study.max_replicates or study.num_seeds
    number = f"{least}" if most == least else f"{least} to {most}"
    unit = "seed" if study.folds is None else "replicate"
    return f"{number} {unit}{'' if most == 1 else 's'}"


def stops(study: StudyRecord) -> str:
    """Return how many trials were stopped, and how often that would have been wrong."""
    number = sum(trial.status == "stopped" for trial in study.trials)
    conclusion = study.conclusion
    if not number and (conclusion is None or conclusion.false_stops is None):
        return ""
    what = "trial was" if number == 1 else "trials were"
    text = f"{number} {what} stopped before the last epoch and can be on no front."
    if conclusion is None:
        return f"{text} How often that was wrong is told when the study ends."
    audited = conclusion.false_stops
    if audited is None:
        return f"{text} No stop was audited."
    wrong = round(audited.rate * audited.num)
    return (
        f"{text} {wrong} of {audited.num} audited stops would have been wrong: "
        f"{100 * audited.rate:.0f} % [{100 * audited.low:.0f}, {100 * audited.high:.0f}]."
    )


def certainty(study: StudyRecord) -> str:
    """Return how likely what the study reports is good enough at every budget, if it concluded."""
    if study.conclusion is None:
        return ""
    number = len(study.conclusion.reported)
    them = "the configuration" if number == 1 else f"the {number} configurations"
    return (
        f"With probability {study.conclusion.within_delta:.2f} {them} that the search reports "
        f"{'is' if number == 1 else 'are'} within half a point of the best at every budget."
    )


def _certainty_notes(front: Front) -> list[str]:
    conclusion = front.study.conclusion
    if conclusion is None or front.membership_is != "posterior":
        return []
    shown = {c.configuration_id for c in front.points} & set(conclusion.reported)
    verb = "is" if len(shown) == 1 else "are"
    return [
        f"{certainty(front.study)} {len(shown)} of them {verb} on the front shown, which goes by "
        "the measured means; the search reports by what its model makes of them."
    ]


def _means_note(front: Front) -> str:
    label = metric(front.y).label
    text = f"{label[:1].upper()}{label[1:]} is of the validation split, the mean over "
    study = front.study
    if study.folds is None:
        return f"{text}{replicates(study)}; ± is the standard deviation over seeds."
    return (
        f"{text}{replicates(study)}; ± is the standard deviation over them. A replicate is a seed "
        f"and one of {study.folds} folds: it is validated on the subjects of that fold and trains "
        "on those of the others. What is estimated of how hard each fold is is taken out of means "
        "and deviations, so that those of different folds compare."
    )


def _split_notes(front: Front) -> list[str]:
    """Return what the figures are conditional on, and whether they favour the chosen."""
    study = front.study
    if study.folds is None:
        split = "The study uses one split of its data: what it says is conditional on this split."
    else:
        split = (
            f"The study deals the subjects of training and validation into {study.folds} folds, "
            f"which the {replicates(study)} of a configuration take in turn."
        )
    fresh = [c for c in front.finished if c.is_fresh]
    if front.num_chosen is None or not fresh:
        luck = (
            "The front is picked by the very values shown, so its best are likely a little too "
            "good."
        )
        return [f"{split} {luck}"]
    number = max(len(seeds) for seeds in study.fresh.values())
    each = "a fresh replicate" if number == 1 else f"{number} fresh replicates"
    whose = "Their figures" if len(fresh) == front.num_chosen else f"The figures of {len(fresh)}"
    return [
        split,
        f"The {front.num_chosen} configurations that the search chose to report got {each} each "
        f"afterwards. {whose}, marked fresh, are of these alone and so not the luck of the chosen; "
        "only the chosen can be on the front, because the values of all others may be luck.",
    ]


def _membership_notes(front: Front) -> list[str]:
    near = (
        "`near` marks those that are off the front but not distinguishable from it: their "
        "difference from the front point at or below their cost is within noise. Front points are "
        "compared with the next cheaper one."
    )
    if front.membership_is == "posterior":
        half = "half a point" if metric(front.y).is_share else "0.005"
        return [
            "Under `front in` stands the probability of being on the (2 %, half a point)-front: "
            f"that the true mean is at most {half} worse than the best true mean at a cost up to "
            "2 % higher. It is by the model of the search, a Gaussian process over all "
            f"configurations and their replicates, in 1,000 draws. {near}"
        ]
    if not front.num_groups:
        return []
    return [
        "The share of the resamples that keep a configuration on the front stands under `front "
        f"in`; {near}"
    ]


def seal(front: Front) -> str:
    """Return whether the test split has been looked at, and how to."""
    if front.study.recorded:
        return "The study is a recorded table: its trials looked at the test split at every epoch."
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
        return "cheapest on the front" if c.on_front else _why_off(c, front)
    unit = " points" if metric(front.y).is_share else ""
    change = f"{show_difference(c.difference, front)}{unit}"
    if c.on_front:
        noise = ", within noise" if c.difference.within_noise else ""
        return f"{change} over the next cheaper{noise}"
    return f"{_why_off(c, front)} ({change})"


def _why_off(c: Configuration, front: Front) -> str:
    if c.is_thinned:
        return "thinned out, a front point hardly differs"
    if c.indistinguishable:
        return "not distinguishable from the front"
    if front.num_chosen is None:
        return "dominated"
    sign = 1 if front.directions[0] == "maximize" else -1
    is_better = c.difference is None or sign * c.difference.mean > 0
    return "not among the chosen" if is_better else "dominated"


def show_difference(change: Difference, front: Front) -> str:
    """Return a difference with its interval, of shares in points of 0.01."""
    return show_change(change.mean, change.interval, front.y)


def show_change(mean: float, interval: tuple[float, float] | None, y: str) -> str:
    """Return a difference of a metric with its interval, of shares in points of 0.01."""
    share = metric(y).is_share

    def show(value: float) -> str:
        return f"{100 * value:+.1f}" if share else f"{value:+.3g}"

    text = show(mean)
    if interval is not None:
        text += f" [{show(interval[0])}, {show(interval[1])}]"
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
    seeds = "seeds" if front.study.folds is None else "replicates"
    lines = [
        "Intervals hold the middle 95 % of a bootstrap over "
        f"{front.num_groups} {unit} and the {seeds}, paired by "
        f"{'subject' if front.groups_are_subjects else 'group'} between configurations; a "
        "difference whose interval contains 0 is called within noise. Costs are not resampled.",
    ]
    single = [len(c.seeds) == 1 for c in front.finished]
    if any(single):
        of_what = "With one seed" if all(single) else "Of a configuration with one replicate"
        lines.append(f"{of_what} the intervals know nothing of how much another seed changes.")
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
    found += [_value_column(name) for name in front.objectives[1:] if name in measured]
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
    if front.num_groups or front.membership_is == "posterior":
        found.append(Column("front in", show_membership, lambda c: c.membership))
    others = (name for name in METRICS if name not in front.objectives)
    found += [_value_column(name) for name in others if name in measured]
    heading = "seeds" if front.study.folds is None else "replicates"
    return [*found, Column(heading, show_replicates, lambda c: float(len(c.seeds)))]


def standing(c: Configuration) -> str:
    """Return where a configuration stands, in one word or two."""
    if c.on_front:
        return "knee" if c.is_knee else "front"
    if c.is_thinned:
        return "thinned"
    if c.status != "finished":
        return c.status
    return "near" if c.indistinguishable else ""


def show_replicates(c: Configuration) -> str:
    """Return how many replicates the values are of; where these are fresh, of how many in all."""
    return f"{len(c.seeds)} fresh of {c.num_finished}" if c.is_fresh else str(len(c.seeds))


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
        return "+".join(map(_show_entry, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def brief_parameter(c: Configuration, name: str, front: Front) -> str:
    """Return `show_parameter`, or `all 4` for a list of all four entries that the study has."""
    value = c.parameters.get(name)
    if isinstance(value, (list, tuple)) and len(value) > 1:
        lists = (other.parameters.get(name) for other in front.configurations)
        found = [other for other in lists if isinstance(other, (list, tuple))]
        if set(map(_show_entry, value)) == {_show_entry(one) for other in found for one in other}:
            return f"all {len(value)}"
    return show_parameter(c, name)


def _show_entry(entry: Any) -> str:
    """Return an entry of a list as text; an expert as `unimodal(modalities=[watch_acc])`."""
    if not isinstance(entry, dict):
        return str(entry)
    settings = ", ".join(
        f"{name}=[{', '.join(map(str, one))}]" if isinstance(one, list) else f"{name}={one}"
        for name, one in entry.items()
        if name != "kind"
    )
    return f"{entry.get('kind', '')}({settings})"


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


def show_membership(c: Configuration) -> str:
    """Return how likely a configuration is on the front, as text."""
    return MISSING if c.membership is None else f"{100 * c.membership:.0f} %"


# ------------------------------------------------------------------ what matters, by budget


def importance(front: Front) -> tuple[Band, ...]:
    """Return which parameters set the best apart at three or four budgets; empty of too few.

    The budgets are the costs that equal shares of the finished configurations keep.
    """
    finished = front.finished
    if len(finished) < FEWEST_FOR_IMPORTANCE or front.directions[1] != "minimize":
        return ()
    shares = [25, 50, 75, 100] if len(finished) >= 2 * FEWEST_FOR_IMPORTANCE else [50, 75, 100]
    costs = [c.values[front.x] for c in finished]
    sign = 1 if front.directions[0] == "maximize" else -1
    # A cost that was seen, or the configuration at the edge would fall out by rounding.
    limits = np.unique(np.percentile(costs, shares, method="inverted_cdf"))
    return importance_by_band(
        [{"model": c.model, **c.parameters} for c in finished],
        [sign * c.values[front.y] for c in finished],
        costs,
        limits.tolist(),
    )


def importance_headers(bands: tuple[Band, ...], front: Front) -> list[str]:
    """Return the heads of the table's columns: a budget each."""
    x = metric(front.x)
    at_most = "\N{LESS-THAN OR EQUAL TO}"
    return ["parameter", *(f"{at_most} {x.show(band.limit)} {x.label}" for band in bands)]


def importance_rows(bands: tuple[Band, ...]) -> list[list[str]]:
    """Return a row a parameter, the one that matters most at some budget first."""

    def share(band: Band, name: str) -> float:
        return band.importances.get(name, 0.0)

    def show(band: Band, name: str) -> str:
        return f"{100 * share(band, name):.0f} %" if band.importances else MISSING

    names = {name for band in bands for name in band.importances}
    most = {name: max(share(band, name) for band in bands) for name in names}
    told = sorted((name for name in names if most[name] >= 0.01), key=lambda n: (-most[n], n))
    return [[name, *(show(band, name) for band in bands)] for name in told]


def importance_note(bands: tuple[Band, ...]) -> str:
    """Return how the table is to be read, with its source."""
    numbers = ", ".join(str(band.num_configurations) for band in bands)
    return (
        f"Among the configurations that a budget affords ({numbers}): how far a parameter's values "
        "in their best tenth differ from those in all, as a share of the sum over parameters. "
        "Those under 1 % everywhere are left out. PED-ANOVA (Watanabe, Bansal and Hutter 2023, "
        "arXiv:2304.10255)."
    )
