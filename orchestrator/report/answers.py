"""Write what a study found in sentences: tokens, standings of families, effects of values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sftsearch.orchestrator.analysis.parameters import abbreviate_value
from sftsearch.orchestrator.analysis.standings import FEWEST_WITHIN
from sftsearch.orchestrator.analysis.tokens import JOINED
from sftsearch.orchestrator.metrics import MISSING, format_number, metric
from sftsearch.orchestrator.report.cells import format_change, format_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sftsearch.orchestrator.analysis.analyse import Analysis
    from sftsearch.orchestrator.analysis.configurations import Difference
    from sftsearch.orchestrator.analysis.effects import Effects, ParameterEffect, ValueEffect
    from sftsearch.orchestrator.analysis.front import Front
    from sftsearch.orchestrator.analysis.standings import Budget, Standing, Standings
    from sftsearch.orchestrator.analysis.tokens import SequenceTokens, TokensAmong, TokensKept

AT_MOST = "\N{LESS-THAN OR EQUAL TO}"
MOST_LISTED = 3
"""Different strides that are listed one by one; of more, the range is given."""
MOST_MODELS = 3
"""Models that are named; more are counted."""


# ------------------------------------------------------------------ tokens


def describe_tokens(analysis: Analysis) -> list[str]:
    """Return a sentence per modality: the strides on the front, and the tokens they leave."""
    return [_describe_sequence(one) for one in analysis.tokens]


def _describe_sequence(one: SequenceTokens) -> str:
    name = "joined sequence of all modalities" if one.name == JOINED else one.name
    if one.on_front.number:
        text = f"{name}: in {_share(one.on_front)} on the front, {_describe_kept(one.on_front)}"
    else:
        text = f"{name}: in no configuration on the front"
    if one.near.number:
        near = f"{one.near.number} of {one.near.num_configurations}"
        return f"{text}; in {near} near it, {_describe_kept(one.near)}."
    return f"{text}."


def _share(among: TokensAmong) -> str:
    """Return the number of configurations, of all: `2 of the 5`, `all 5`, `the configuration`."""
    if among.num_configurations == 1:
        return "the configuration"
    if among.number == among.num_configurations:
        return f"all {among.number} configurations"
    return f"{among.number} of the {among.num_configurations} configurations"


def _describe_kept(among: TokensAmong) -> str:
    parts = _describe_pooled([kept for kept in among.kept if kept.stride is not None])
    parts += _describe_unpooled([kept for kept in among.kept if kept.stride is None])
    if among.num_joined:
        parts.append(f"pooled with the other modalities in {among.num_joined}")
    if len(parts) == 1:  # then it holds in all of them
        return parts[0].removesuffix(f" in {among.number}")
    return ", ".join(parts)


def _describe_pooled(pooled: Sequence[TokensKept]) -> list[str]:
    """Describe strides one by one, or their range for each length of the sequence."""
    parts = []
    for length in sorted({one.num_tokens for one in pooled}):
        own = [one for one in pooled if one.num_tokens == length]
        if len(own) > MOST_LISTED:
            first, last = own[0], own[-1]
            parts.append(
                f"stride {first.stride} to {last.stride} ({first.num_kept} to {last.num_kept} of "
                f"{_tokens(length)}) in {sum(one.num_configurations for one in own)}"
            )
            continue
        for n, one in enumerate(own):
            kept = f"{one.num_kept}" if n else f"{one.num_kept} of {_tokens(length)}"
            stride = f"{one.stride}" if n else f"stride {one.stride}"
            parts.append(f"{stride} ({kept}) in {one.num_configurations}")
    return parts


def _describe_unpooled(whole: Sequence[TokensKept]) -> list[str]:
    if not whole:
        return []
    number = sum(one.num_configurations for one in whole)
    lengths = sorted({one.num_tokens for one in whole})
    tokens = " to ".join(dict.fromkeys([str(lengths[0]), str(lengths[-1])]))
    patches = sorted({one.patch for one in whole})
    patch = " to ".join(dict.fromkeys([str(patches[0]), str(patches[-1])]))
    unit = "token" if lengths == [1] else "tokens"
    of = "sample" if patches == [1] else "samples"
    return [f"not pooled ({tokens} {unit} of {patch} {of}) in {number}"]


def _tokens(number: int) -> str:
    return f"{number} token{'' if number == 1 else 's'}"


def tokens_note() -> str:
    """Return what the sentences of `describe_tokens` count."""
    return (
        "A stride and a token budget that pool alike are given as the same stride, in tokens. "
        "Near: the difference from the front is within noise."
    )


# ------------------------------------------------------------------ standings of families


def describe_standings(analysis: Analysis) -> list[str]:
    """Return a sentence per family: its difference from the best other one at each budget."""
    found, front = analysis.standings, analysis.front
    if found is None:
        return []
    names = [one.family for one in found.budgets[-1].standings]
    return [_describe_family(n, name, found, front) for n, name in enumerate(names)]


def _describe_family(n: int, name: str, found: Standings, front: Front) -> str:
    at = [(format_limit(budget.limit, front.x), budget.standings[n]) for budget in found.budgets]
    compared = [(limit, one.difference) for limit, one in at if one.difference is not None]
    missing = [limit for limit, one in at if one.difference is None]
    is_noise = [change.within_noise for _, change in compared]
    parts = [
        _describe_gap(change, limit, front, with_units=not i, with_noise=not all(is_noise))
        for i, (limit, change) in enumerate(compared)
    ]
    text = "; ".join(parts) + (": within noise" if all(is_noise) and parts else "")
    few = f"fewer than {FEWEST_WITHIN} configurations cost"
    if not parts:
        return f"{name}: {few} at most {missing[-1]} {metric(front.x).label}."
    return f"{name}: {text}{f'; {few} at most {missing[-1]}' if missing else ''}."


def _describe_gap(
    change: Difference, limit: str, front: Front, *, with_units: bool, with_noise: bool
) -> str:
    y = metric(front.y)
    unit = (" points" if y.is_share else f" {y.label}") if with_units else ""
    label = f" {metric(front.x).label}" if with_units else ""
    size = f"{100 * abs(change.mean):.1f}" if y.is_share else f"{abs(change.mean):.3g}"
    where = "above" if change.mean >= 0 else "below"
    interval = format_change(change.mean, change.interval, front.y).partition(" ")[2]
    noise = " (within noise)" if with_noise and change.within_noise else ""
    return f"{size}{unit} {where} {change.other} at {limit}{label} {interval}".rstrip() + noise


def standing_headers(found: Standings, front: Front) -> list[str]:
    """Return the headers of the table of standings."""
    label = metric(front.x).label
    return [
        "model",
        *(f"{AT_MOST} {format_limit(one.limit, front.x)} {label}" for one in found.budgets),
    ]


def standing_rows(found: Standings, front: Front, *, intervals: bool) -> list[list[str]]:
    """Return a row per family: the expected best at each budget; `*` and `~` as for families."""
    rows = [[one.family] for one in found.budgets[0].standings]
    for budget in found.budgets:
        for row, one in zip(rows, budget.standings, strict=True):
            row.append(_standing_cell(one, budget, front, intervals=intervals))
    rows.append(["best of", *(str(budget.num_drawn) for budget in found.budgets)])
    return rows


def _standing_cell(one: Standing, budget: Budget, front: Front, *, intervals: bool) -> str:
    if one.value is None:
        return MISSING
    best = _best(budget, front)
    mark = "*" if one is best else ""
    if one is not best and one.difference is not None and one.difference.other == best.family:
        mark = "~" if one.difference.within_noise else ""
    text = f"{metric(front.y).format(one.value)}{mark}"
    return f"{text} [{format_interval(one.interval)}]" if intervals and one.interval else text


def _best(budget: Budget, front: Front) -> Standing:
    known = [one for one in budget.standings if one.value is not None]
    return max(known, key=lambda one: front.objectives.sign * (one.value or 0.0))


def standing_notes(found: Standings, front: Front) -> list[str]:
    """Return what the standings compare."""
    numbers = ", ".join(str(budget.num_drawn) for budget in found.budgets)
    lines = [
        "Equal compute and equal tuning: the expected best of equally many configurations of each "
        f"model ({numbers}) that cost at most the budget. * marks the best model, ~ models whose "
        "difference from it is within noise. Sentences compare each model with the best other one.",
    ]
    if any(c.is_fresh for c in front.finished):
        lines.append(
            "Values of configurations without fresh replicates are slightly optimistic, which "
            "favors models without reported configurations."
        )
    if found.num_stopped:
        stopped = ", ".join(f"{name} {number}" for name, number in found.num_stopped.items())
        lines.append(
            "Configurations that were stopped early are left out, which favors models with many: "
            f"{stopped}."
        )
    return lines


def format_limit(limit: float, cost: str) -> str:
    """Format a budget, which has two significant digits, of a cost."""
    if metric(cost).unit is not None:
        return metric(cost).format(limit)
    if limit >= 100:
        return format_number(limit)
    return f"{limit:.2g}" if limit < 1e-4 else f"{limit:.10f}".rstrip("0").rstrip(".")


# ------------------------------------------------------------------ effects of values


def describe_effects(analysis: Analysis) -> list[str]:
    """Return a sentence per parameter: what each value is worth against a reference."""
    if analysis.effects is None:
        return []
    front = analysis.front
    return [_describe_parameter(one, front) for one in analysis.effects.parameters]


def _describe_parameter(one: ParameterEffect, front: Front) -> str:
    is_noise = [value.within_noise for value in one.values]
    parts = [
        _describe_value(one, value, front, with_unit=not n, with_noise=not all(is_noise))
        for n, value in enumerate(one.values)
    ]
    where = f"{one.num_configurations} configurations of {_models(one.models)}"
    if one.num_without:
        where += ", where it has an effect"
    reference = abbreviate_value(one.reference, one.parameter, front.configurations)
    verdict = ": within noise" if all(is_noise) else ""
    return f"{one.parameter}, against {reference} ({where}): {', '.join(parts)}{verdict}."


def _models(models: tuple[str, ...]) -> str:
    return " and ".join(models) if len(models) < MOST_MODELS else f"{len(models)} models"


def _describe_value(
    one: ParameterEffect, value: ValueEffect, front: Front, *, with_unit: bool, with_noise: bool
) -> str:
    unit = " points" if with_unit and metric(front.y).is_share else ""
    change, _, interval = format_change(value.mean, value.interval, front.y).partition(" ")
    noise = " (within noise)" if with_noise and value.within_noise else ""
    name = abbreviate_value(value.value, one.parameter, front.configurations)
    return f"{name} gives {change}{unit} {interval}{noise}"


def effects_notes(effects: Effects, front: Front) -> list[str]:
    """Return what the effects mean and what they rest on."""
    label = metric(front.y).label
    left_out = ""
    if effects.num_predicted:
        left_out = (
            f" {effects.num_predicted} of them were stopped early and count with the final values "
            "that finished trials predict."
        )
    if effects.num_stopped:
        left_out += f" {effects.num_stopped} stopped early, without a final value, are left out."
    number = sum(len(one.values) for one in effects.parameters)
    return [
        f"Differences in {label} on validation, averaged over the configurations tried, if only "
        "this parameter is switched. They are estimated by a Gaussian process, because the sampler "
        f"did not choose values at random. It is fitted to {effects.num_configurations} "
        f"configurations.{left_out}",
        f"95 % intervals in brackets; one in 20 excludes 0 by chance alone ({number} here). The "
        "validation samples are not resampled.",
    ]
