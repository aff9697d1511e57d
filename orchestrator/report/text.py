"""Write the sentences that every report prints: the headline, and how to read its numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sftsearch.orchestrator.analysis.significance import difference
from sftsearch.orchestrator.metrics import metric

if TYPE_CHECKING:
    from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary
    from sftsearch.orchestrator.analysis.front import Front
    from sftsearch.orchestrator.storage.study_record import StudyRecord


def headline(front: Front) -> str:
    """Return the sentence a report opens with."""
    finished, points = front.finished, front.points
    if not finished:
        return "No configuration has finished all its seeds yet, so there is no front."
    x = metric(front.x)
    y = metric(front.y)
    verb = "is" if len(points) == 1 else "are"
    noun = "configuration" if len(finished) == 1 else "configurations"
    best = max(reversed(points), key=front.quality)
    text = (
        f"{len(points)} of {len(finished)} {noun} {verb} on the front; the best reaches "
        f"{y.format(best.values[front.y])} {y.label} at {x.format(best.values[front.x])} {x.label}"
    )
    half = [p for p in points if 0 < 2 * p.values[front.x] <= best.values[front.x]]
    if half and front.objectives.is_cost_minimized:
        cheaper = max(reversed(half), key=front.quality)
        text += f"; {_half_cost(cheaper, best, front)}"
    return text + "."


def _half_cost(cheaper: ConfigurationSummary, best: ConfigurationSummary, front: Front) -> str:
    y = metric(front.y)
    share = cheaper.values[front.x] / best.values[front.x]
    lost = abs(best.values[front.y] - cheaper.values[front.y])
    amount = f"{100 * lost:.1f} points" if y.is_share else f"{lost:.3g} {y.label}"
    price = "half the cost" if share > 0.45 else f"{100 * share:.0f} % of that cost"
    change = difference(best, cheaper, front.y, front.draws)
    return f"{price} loses {amount}{' (within noise)' if change.within_noise else ''}"


def notes(front: Front) -> list[str]:
    """Return how the numbers are to be read, a sentence or two each."""
    y = metric(front.y)
    lines = [_means_note(front)]
    if front.num_groups:
        lines += _interval_notes(front)
    lines += [*_front_probability_notes(front), *_split_notes(front)]
    lines += [*filter(None, [describe_stops(front.study)]), *_certainty_notes(front)]
    worst = "0" if y.is_share else "the worst seen"
    several = len(front.objectives.names) > 2
    others = ", ".join(metric(name).label for name in front.objectives.names[2:])
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
    lines.append(describe_test_split(front))
    return lines


def describe_replicates(study: StudyRecord) -> str:
    """Return how many trials a configuration has: `2 seeds`, `2 to 5 replicates`."""
    least, most = study.num_seeds, study.max_replicates or study.num_seeds
    number = f"{least}" if most == least else f"{least} to {most}"
    unit = "seed" if study.folds is None else "replicate"
    return f"{number} {unit}{'' if most == 1 else 's'}"


def describe_stops(study: StudyRecord) -> str:
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


def describe_certainty(study: StudyRecord) -> str:
    """Return how likely what the study reports is good enough at every budget, if it concluded."""
    if study.conclusion is None:
        return ""
    number = len(study.conclusion.reported)
    them = "the configuration" if number == 1 else f"the {number} configurations"
    return (
        f"With probability {study.conclusion.within_delta:.2f} {them} that the search reports "
        f"{'is' if number == 1 else 'are'} within half a point of the best at every budget."
    )


def describe_test_split(front: Front) -> str:
    """Return whether the test split has been looked at, and how to."""
    if front.study.recorded:
        return "The study is a recorded table: its trials looked at the test split at every epoch."
    if front.study.confirmed:
        return "Test values were measured once, by `sftsearch confirm`, for the front."
    return (
        "The test split is sealed: nothing here has seen it. "
        f"`sftsearch confirm {front.study.name}` opens it, once, for the front."
    )


def _means_note(front: Front) -> str:
    label = metric(front.y).label
    text = f"{label[:1].upper()}{label[1:]} is of the validation split, the mean over "
    study = front.study
    if study.folds is None:
        return f"{text}{describe_replicates(study)}; ± is the standard deviation over seeds."
    return (
        f"{text}{describe_replicates(study)}; ± is the standard deviation over them. A replicate "
        f"is a seed and one of {study.folds} folds: it is validated on the subjects of that fold "
        "and trains on those of the others. What is estimated of how hard each fold is is taken "
        "out of means and deviations, so that those of different folds compare."
    )


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


def _front_probability_notes(front: Front) -> list[str]:
    near = (
        "`near` marks those that are off the front but not distinguishable from it: their "
        "difference from the front point at or below their cost is within noise. Front points are "
        "compared with the next cheaper one."
    )
    if front.front_probability_is == "posterior":
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


def _split_notes(front: Front) -> list[str]:
    """Return what the figures are conditional on, and whether they favour the chosen."""
    study = front.study
    if study.folds is None:
        split = "The study uses one split of its data: what it says is conditional on this split."
    else:
        split = (
            f"The study deals the subjects of training and validation into {study.folds} folds, "
            f"which the {describe_replicates(study)} of a configuration take in turn."
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


def _certainty_notes(front: Front) -> list[str]:
    conclusion = front.study.conclusion
    if conclusion is None or front.front_probability_is != "posterior":
        return []
    shown = {c.configuration_id for c in front.points} & set(conclusion.reported)
    verb = "is" if len(shown) == 1 else "are"
    return [
        f"{describe_certainty(front.study)} {len(shown)} of them {verb} on the front shown, which "
        "goes by the measured means; the search reports by what its model makes of them."
    ]
