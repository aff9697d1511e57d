"""Write the sentences of reports: the headline, and the notes that explain the numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sftsearch.orchestrator.metrics import metric, what_is_counted
from sftsearch.orchestrator.report.baselines import baseline_notes, describe_contest

if TYPE_CHECKING:
    from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary
    from sftsearch.orchestrator.analysis.front import Front
    from sftsearch.orchestrator.storage.study_record import StudyRecord

FEWEST_PEOPLE = 3
"""As `bootstrap.FEWEST_PEOPLE`, without numpy."""
_FACTS = {"data set": "dataset", "licence": "license"}
"""Displayed names of facts that the journal stores under another name."""


def headline(front: Front) -> str:
    """Return the first sentences of a report; the first says if a baseline is as good."""
    return " ".join(filter(None, [describe_contest(front), _describe_front(front)]))


def _describe_front(front: Front) -> str:
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
    from sftsearch.orchestrator.analysis.significance import difference  # numpy; not for `status`

    y = metric(front.y)
    share = cheaper.values[front.x] / best.values[front.x]
    lost = abs(best.values[front.y] - cheaper.values[front.y])
    amount = f"{100 * lost:.1f} points" if y.is_share else f"{lost:.3g} {y.label}"
    price = "half the cost" if share > 0.45 else f"{100 * share:.0f} % of that cost"
    change = difference(best, cheaper, front.y, front.draws)
    return f"{price} loses {amount}{' (within noise)' if change.within_noise else ''}"


def notes(front: Front) -> list[str]:
    """Return notes that explain the numbers of a report."""
    y = metric(front.y)
    lines = [_means_note(front), describe_trials(front)]
    if front.num_groups:
        lines += _interval_notes(front)
    lines += [*_front_probability_notes(front), *_split_notes(front)]
    lines += _certainty_notes(front) + baseline_notes(front)
    worst = f"{y.label} 0" if y.is_share else f"the worst {y.label}"
    several = len(front.objectives.names) > 2
    others = ", ".join(metric(name).label for name in front.objectives.names[2:])
    lines.append(
        f"Hypervolume is the share of the unit {'cube' if several else 'square'} that the front "
        f"dominates. The reference point is {worst} and the highest cost{'s' if several else ''}; "
        "costs are on a log scale from the lowest (1) to the highest (0)."
    )
    if several:
        lines.append(
            f"The front uses all objectives of the study, including {others}: a configuration is "
            "on it if no other is at least as good in all and better in one. The chart shows two."
        )
    counted = what_is_counted(front.objectives.names)
    return [*lines, *([counted] if counted else []), describe_test_split(front)]


def describe_replicates(study: StudyRecord) -> str:
    """Return the number of trials per configuration: `2 seeds`, `2 to 5 replicates`."""
    least, most = study.num_seeds, study.max_replicates or study.num_seeds
    number = f"{least}" if most == least else f"{least} to {most}"
    unit = "seed" if study.folds is None else "replicate"
    return f"{number} {unit}{'' if most == 1 else 's'}"


def describe_values(front: Front) -> str:
    """Return what the values shown are means of: fresh replicates or those of the search."""
    rows = front.points if front.top is None else front.table
    points = [c for c in rows if c.status != "baseline"]
    fresh = [c for c in points if c.is_fresh]
    brackets = " 95 % confidence intervals in brackets." if front.num_groups else ""
    spread = ", ± standard deviation" if any(c.deviations for c in points) else ""
    if front.num_groups:
        spread = ", ± half of the 95 % confidence interval"
    if not fresh:
        replicates = describe_replicates(front.study)
        return f"Values are means over {replicates} on validation{spread}.{brackets}"
    number = sorted({len(c.seeds) for c in fresh})
    each = " to ".join(dict.fromkeys([str(number[0]), str(number[-1])]))
    what = "fresh replicate" if number == [1] else "fresh replicates"
    text = (
        f"Values are means over {each} {what} each on validation{spread}, trained "
        f"with new seeds after the search had chosen what to report.{brackets}"
    )
    if len(fresh) < len(points):
        text += " Configurations that are not marked fresh have none."
    return text


def describe_trials(front: Front) -> str:
    """Return how many trials of the study finished, were fresh, were stopped early or failed."""
    study = front.study
    finished = [trial for trial in study.trials if trial.status == "finished"]
    text = f"{len(finished)} of {len(study.trials)} trials finished"
    fresh = sum(trial.seed in study.fresh.get(trial.configuration_id, ()) for trial in finished)
    if fresh:
        text += f", {fresh} of them as fresh replicates"
    for status, what in (("failed", "failed"), ("running", "still running")):
        number = sum(trial.status == status for trial in study.trials)
        text += f"; {number} {what}" if number else ""
    return " ".join(filter(None, [f"{text}.", describe_stops(study)]))


def describe_stops(study: StudyRecord) -> str:
    """Return the number of stopped trials, and the audited share of wrong stops."""
    number = sum(trial.status == "stopped" for trial in study.trials)
    conclusion = study.conclusion
    if not number and (conclusion is None or conclusion.false_stops is None):
        return ""
    what = "trial was" if number == 1 else "trials were"
    text = f"{number} {what} stopped early, before the last epoch, and cannot be on the front."
    if conclusion is None:
        return f"{text} The share of wrong stops is reported when the study ends."
    audited = conclusion.false_stops
    if audited is None:
        return f"{text} No stop was audited."
    wrong = round(audited.rate * audited.num)
    return (
        f"{text} {wrong} of {audited.num} audited stops would have been wrong: "
        f"{100 * audited.rate:.0f} % [{100 * audited.low:.0f}, {100 * audited.high:.0f}]."
    )


def describe_certainty(study: StudyRecord) -> str:
    """Return the probability that the reported configurations are near-optimal, if concluded."""
    if study.conclusion is None:
        return ""
    number = len(study.conclusion.reported)
    them = "the configuration" if number == 1 else f"the {number} configurations"
    return (
        f"With probability {study.conclusion.within_delta:.2f} {them} that the search reports "
        f"{'is' if number == 1 else 'are'} within half a point of the best at every budget."
    )


def describe_test_split(front: Front) -> str:
    """Return whether the test split was evaluated, or how to evaluate it."""
    if front.study.recorded:
        return "The study is a recorded table: its trials evaluate the test split at every epoch."
    if front.study.confirmed:
        return "Test values were measured once, by `sftsearch confirm`, for the front."
    return (
        "The test split is sealed: no value shown depends on it. "
        f"`sftsearch confirm {front.study.name}` evaluates the front on it, once."
    )


def displayed_facts(study: StudyRecord) -> dict[str, str]:
    """Return the facts of a study by their displayed names."""
    return {_FACTS.get(name, name): value for name, value in study.facts.items()}


def _means_note(front: Front) -> str:
    label = metric(front.y).label
    study = front.study
    text = (
        f"{label[:1].upper()}{label[1:]} is measured on the validation split: mean over "
        f"{describe_replicates(study)}, ± "
        f"{'half of the 95 % interval' if front.num_groups else 'standard deviation'}."
    )
    if any(c.is_fresh for c in front.finished):
        text += " Reported configurations have the mean over their fresh replicates alone."
    if study.folds is None:
        return text
    return (
        f"{text} A replicate has its own seed and one of {study.folds} folds: it is validated on "
        "the subjects of that fold and trained on the others. Estimated fold effects are "
        "subtracted, so that means over different folds are comparable."
    )


def _interval_notes(front: Front) -> list[str]:
    unit = "subjects" if front.groups_are_subjects else "groups of samples"
    seeds = "seeds" if front.study.folds is None else "replicates"
    lines = [
        "Intervals are 95 % confidence intervals (CI) over "
        f"{front.num_groups} {unit} and the {seeds}, by Student's t, paired by "
        f"{'subject' if front.groups_are_subjects else 'group'} between configurations. A "
        "difference is within noise if its interval contains 0.",
    ]
    single = [len(c.seeds) == 1 for c in front.finished]
    if all(single):
        lines.append("With one seed the intervals do not include the variation between seeds.")
    elif any(single):
        lines.append(
            "The variation between seeds is estimated from the configurations with several "
            "replicates."
        )
    if front.num_people is not None and front.num_people < FEWEST_PEOPLE:
        who = "one person" if front.num_people == 1 else "two people"
        samples = "" if not front.groups_are_subjects else " Samples are taken as independent."
        lines.append(
            f"Validation has {who}, so the intervals hold for these people only: nothing is known "
            f"about new people.{samples}"
        )
    return lines


def _front_probability_notes(front: Front) -> list[str]:
    near = (
        "`near` marks configurations off the front whose difference from the best front point at "
        "or below their cost is within noise. Front points are compared with the next cheaper one."
    )
    if front.front_probability_source == "posterior":
        half = "half a point" if metric(front.y).is_share else "0.005"
        return [
            "The front probability is the probability of being on the (2 %, half a point)-front: "
            f"that the true mean is at most {half} worse than the best true mean at any cost up to "
            "2 % higher. It is estimated with 1,000 posterior draws of the surrogate, a Gaussian "
            f"process over all configurations and replicates. {near}"
        ]
    if not front.num_groups:
        return []
    return [
        "The front probability is the share of bootstrap draws in which a configuration is on the "
        f"front. {near}"
    ]


def _split_notes(front: Front) -> list[str]:
    """Return notes on the data split and on selection bias."""
    study = front.study
    if study.folds is None:
        split = "The study uses one split of the data; all results are conditional on this split."
    else:
        split = (
            f"The study divides the subjects of training and validation into {study.folds} folds, "
            f"which the {describe_replicates(study)} of a configuration use in turn."
        )
    fresh = [c for c in front.finished if c.is_fresh]
    if front.num_chosen is None or not fresh:
        bias = "The front is selected by the values shown, so these are slightly optimistic."
        return [f"{split} {bias}"]
    number = max(len(seeds) for seeds in study.fresh.values())
    each = "a fresh replicate" if number == 1 else f"{number} fresh replicates"
    whose = "Their values" if len(fresh) == front.num_chosen else f"The values of {len(fresh)}"
    return [
        split,
        f"The {front.num_chosen} configurations that the search chose to report got {each} each "
        f"afterwards. {whose}, marked fresh, are means over these alone, without selection bias. "
        "Only these configurations can be on the front, because the others have selection bias.",
    ]


def _certainty_notes(front: Front) -> list[str]:
    conclusion = front.study.conclusion
    if conclusion is None or front.front_probability_source != "posterior":
        return []
    shown = {c.configuration_id for c in front.points} & set(conclusion.reported)
    verb = "is" if len(shown) == 1 else "are"
    return [
        f"{describe_certainty(front.study)} {len(shown)} of them {verb} on the front shown: the "
        "front compares measured means, the search compares posterior means of its surrogate."
    ]
