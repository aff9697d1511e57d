"""Price a search space before training: exact costs and an estimate of the training time.

The estimate fits seconds per training step = a + b x GMACs of its batch to measured steps of a few
configurations, which run on this machine with the threads of a trial.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sftsearch.orchestrator.machine import usable_cpus
from sftsearch.orchestrator.metrics import metric
from sftsearch.orchestrator.pricing import paper_memory, paper_tables, paper_times
from sftsearch.orchestrator.seeds import derive_seed

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Group
    from rich.table import Table

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.orchestrator.candidates.admission import Admission, Candidate
    from sftsearch.orchestrator.pricing.paper_memory import Remembered
    from sftsearch.orchestrator.pricing.paper_times import Timed
    from sftsearch.search_spaces.load import StudySource
    from sftsearch.search_spaces.schema import DatasetChoice, Resources

NUM_MEASURED = 5
NUM_DRAWN = 5_000
"""Points drawn from a space that is too large to enumerate."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Estimated duration of the trials of a study on this machine."""

    seconds_per_trial: dict[str, float]
    """Seconds by configuration id, for the listed configurations."""
    max_concurrent_trials: int
    study_seconds: float
    """All trials of the study, run concurrently, each with the mean of the listed seconds."""


def list_prices(admission: Admission) -> list[Candidate]:
    """Return the admissible configurations by rising cost; of a large space, a sample."""
    if admission.table is not None:
        found = list(admission.table.values())
    else:
        random_ = random.Random(derive_seed(0, 0))
        drawn = (admission.within_limits(admission.space.draw(random_)) for _ in range(NUM_DRAWN))
        found = list({c.id: c for c in drawn if c is not None}.values())
    return sorted(found, key=lambda candidate: (candidate.cost.gflops, candidate.id))


def estimate_time(source: StudySource, spec: DatasetSpec, admission: Admission) -> Estimate:
    """Measure training steps of a few configurations and extrapolate to the study."""
    listing = list_prices(admission)
    max_concurrent_trials = _max_concurrent_trials(source.study.resources)
    if not listing:
        return Estimate({}, max_concurrent_trials, math.nan)
    order = sorted(listing, key=_batch_gmacs)
    picks = np.linspace(0, len(order) - 1, min(NUM_MEASURED, len(order))).round().astype(int)
    chosen = [order[i] for i in sorted(set(picks.tolist()))]
    steps = _measure_steps(chosen, source.study.dataset, spec, source.study.resources)
    a, b = fit_line([_batch_gmacs(candidate) for candidate in chosen], steps)
    seconds = {}
    for candidate in listing:
        config = candidate.configuration.train_config
        num_steps = math.ceil(spec.num_samples["train"] / config.batch_size) * config.epochs
        seconds[candidate.id] = num_steps * (a + b * _batch_gmacs(candidate))
    mean = math.fsum(seconds.values()) / len(seconds)
    return Estimate(
        seconds, max_concurrent_trials, source.study.search.trials * mean / max_concurrent_trials
    )


def _batch_gmacs(candidate: Candidate) -> float:
    return candidate.cost.gmacs * candidate.configuration.train_config.batch_size


def _measure_steps(
    chosen: list[Candidate], dataset: DatasetChoice, spec: DatasetSpec, resources: Resources
) -> list[float]:
    """Measure the seconds per training step of each configuration with a trial's resources."""
    import torch

    from sftsearch.datasets.catalog import open_dataset
    from sftsearch.trainables.catalog import build_model
    from sftsearch.trainables.fit import Fit

    device = "cuda" if resources.gpus and torch.cuda.is_available() else "cpu"
    store, threads = open_dataset(dataset.kind, root=dataset.root), torch.get_num_threads()
    torch.set_num_threads(max(1, math.floor(resources.cpus)))
    seconds = []
    for candidate in chosen:
        bound = candidate.configuration
        model = build_model(bound.model, spec, bound.model_config, seed=0)
        fit = Fit(model, store, bound.train_config, seed=0, device=device)
        seconds.append(fit.seconds_a_step())
    torch.set_num_threads(threads)
    return seconds


def fit_line(x: list[float], y: list[float]) -> tuple[float, float]:
    """Fit y = a + b x with a, b >= 0 by least squares of relative errors."""
    weights = 1 / np.asarray(y)
    if len(x) < 2:
        return y[0], 0.0
    columns = np.stack([np.ones(len(x)), np.asarray(x)], axis=1)
    (a, b), *_ = np.linalg.lstsq(columns * weights[:, None], np.ones(len(x)), rcond=None)
    if a >= 0 and b >= 0:
        return float(a), float(b)
    scale = columns[:, 1 if a < 0 else 0] * weights  # fit one of the two terms alone
    alone = float(scale.sum() / (scale**2).sum())
    return (0.0, alone) if a < 0 else (alone, 0.0)


def _max_concurrent_trials(resources: Resources) -> int:
    fits = max(1, int(usable_cpus() / resources.cpus))
    limit = resources.concurrent_trials
    return fits if limit == "auto" else min(limit, fits)


def as_json(
    listing: list[Candidate],
    admission: Admission,
    estimate: Estimate | None,
    source: StudySource,
    memory: list[Remembered] | None = None,
    times: list[Timed] | None = None,
) -> dict[str, object]:
    """Return the output of `price --json`, with the paper's table if the study names one."""
    paper = source.study.study.paper
    return {
        "paper": paper_tables.as_json(paper) if paper else None,
        "paper_memory": paper_memory.as_json(memory) if memory else None,
        "paper_times": paper_times.as_json(times) if times else None,
        "points": admission.num_points if math.isfinite(admission.num_points) else None,
        "refused": admission.num_refused,
        "max_concurrent_trials": estimate.max_concurrent_trials if estimate else None,
        "study_seconds": estimate.study_seconds if estimate and listing else None,
        "configurations": [
            {
                "configuration_id": candidate.id,
                "model": candidate.configuration.model,
                "configuration": candidate.configuration.parameters,
                **candidate.cost.as_dict(),
                "seconds": estimate.seconds_per_trial[candidate.id] if estimate else None,
            }
            for candidate in listing
        ],
    }


def rich_table(
    listing: list[Candidate], admission: Admission, estimate: Estimate | None, top: int
) -> Table:
    """Return `top` configurations as a table, evenly from cheapest to most expensive.

    `describe` lists the parameters that all configurations share; ids are in the JSON.
    """
    from rich.table import Table

    varying, _ = _split_by_variation(listing)
    table = Table(box=None)
    for name in ("gflops", "parameters"):
        table.add_column(metric(name).label, justify="right", no_wrap=True)
    if estimate is not None:
        table.add_column("s per trial", justify="right", no_wrap=True)
    table.add_column("model", no_wrap=True)
    table.add_column("varying parameters", overflow="fold")
    picks = np.linspace(0, len(listing) - 1, min(top, len(listing))).round().astype(int)
    for candidate in [listing[i] for i in picks]:
        bound, cost = candidate.configuration, candidate.cost
        counts = [metric(name).format(getattr(cost, name)) for name in ("gflops", "parameters")]
        seconds = [f"{estimate.seconds_per_trial[candidate.id]:,.1f}"] if estimate else []
        shown = {n: _of_used(bound.parameters, n) for n in varying if n in bound.parameters}
        brief = _format_parameters(shown, admission.spec)
        table.add_row(*counts, *seconds, bound.model, brief)
    return table


def _split_by_variation(listing: list[Candidate]) -> tuple[list[str], dict[str, object]]:
    """Return the names of the parameters that vary, and those that all configurations share.

    A parameter also varies if only some configurations of a model have it.
    """
    bounds = [candidate.configuration for candidate in listing]
    varying: list[str] = []
    shared: dict[str, object] = {}
    for name in dict.fromkeys(name for bound in bounds for name in bound.parameters):
        models = {bound.model for bound in bounds if name in bound.parameters}
        values = {repr(b.parameters.get(name)): b for b in bounds if b.model in models}
        if len(values) > 1:
            varying.append(name)
        elif len(models) == len({bound.model for bound in bounds}):
            shared[name] = bounds[0].parameters[name]
    return varying, shared


def _of_used(parameters: dict[str, object], name: str) -> object:
    """Return a parameter; one by modality only for the modalities that are used."""
    value, used = parameters[name], parameters["modalities"]
    assert isinstance(used, list)
    if isinstance(value, dict) and any(key in used for key in value):
        return {key: one for key, one in value.items() if key in used}
    return value


def _format_parameters(parameters: dict[str, object], spec: DatasetSpec) -> str:
    from rich.markup import escape

    shown = []
    for name, value in parameters.items():
        text = str(value)
        if isinstance(value, list):
            text = "all" if value == list(spec.modalities) else f"[{', '.join(map(str, value))}]"
        elif isinstance(value, dict):
            text = f"{{{', '.join(f'{key}: {one}' for key, one in value.items())}}}"
        elif isinstance(value, float):
            text = f"{value:.4g}"
        shown.append(f"{name}={text}")
    return escape(" ".join(shown))


def describe(
    listing: list[Candidate],
    source: StudySource,
    admission: Admission,
    estimate: Estimate | None,
    memory: list[Remembered] | None = None,
    times: list[Timed] | None = None,
) -> Group:
    """Describe the space's size, its cost range, the time and the paper's table.

    `memory` is that of `count_paper_memory`, and `times` that of `time_paper`.
    """
    from rich.console import Group

    lines = [_describe_size(listing, admission)]
    if estimate is not None and listing:
        minutes = estimate.study_seconds / 60
        lines.append(
            f"{source.study.search.trials} trials take about {minutes:,.1f} minutes on this "
            f"machine, {estimate.max_concurrent_trials} at a time (extrapolated from measured "
            "training steps, without start-up and validation)."
        )
    paper = source.study.study.paper
    if not paper:
        return Group(*lines)
    tables: list[Group | str] = [paper_tables.rich_table(paper)]
    if memory:
        tables += ["", paper_memory.rich_table(paper, memory)]
    if times:
        tables += ["", paper_times.rich_table(paper, times)]
    return Group(*lines, "", *tables)


def count_paper_memory(
    source: StudySource, progress: Callable[[int, int], None]
) -> list[Remembered] | None:
    """Count the memory of the models of the study's paper; None if it prints no memory.

    `progress` is called with the number of models counted and of all.
    """
    name = source.study.study.paper
    if not name or not paper_memory.has_memory(name):
        return None
    return paper_memory.count_table(name, progress)


def time_paper(source: StudySource, progress: Callable[[int, int], None]) -> list[Timed] | None:
    """Time the models of the study's paper, for about a minute; None if it prints no times.

    `progress` is called with the number of models timed and of all.
    """
    name = source.study.study.paper
    if not name or not paper_memory.has_memory(name):
        return None
    return paper_times.time_table(name, progress)


def _describe_size(listing: list[Candidate], admission: Admission) -> str:
    if not listing:
        return "No configuration is admissible."
    low, high = listing[0].cost.gflops, listing[-1].cost.gflops
    of = f"of {admission.num_points:,.0f} points"
    if admission.table is None:
        of = f"among {NUM_DRAWN:,} points drawn from the space"
    refused = "".join(f", {n:,} {reason}" for reason, n in admission.num_refused.items())
    _, shared = _split_by_variation(listing)
    text = f"Shared by all: {_format_parameters(shared, admission.spec)}.\n" if shared else ""
    text += f"{len(listing):,} admissible configurations {of}{refused}; "
    times = f", {high / low:.3g} times" if low > 0 else ""
    shown = metric("gflops")
    return f"{text}{shown.format(low)} to {shown.format(high)} {shown.label}{times}."
