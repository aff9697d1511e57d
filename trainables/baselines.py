"""Fit simple baselines that a search must beat: majority, linear models and MLPs on statistics.

They are the catalog's `linear` and `mlp` on segment statistics (`statistics.py`), chosen by the
validation split alone, in seconds. The features of a modality are computed once and used by all
subsets of modalities (`baseline_features.py`).

Shapes: N samples of a split, P statistics, C outputs.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import torch

from sftsearch.trainables.baseline_features import SETTINGS, Features, Setting
from sftsearch.trainables.baseline_models import (
    HIDDEN,
    constant_outputs,
    fit_linear,
    fit_mlp,
    linear_path,
    linear_seconds,
    mlp_seconds,
    read_seconds,
)
from sftsearch.trainables.baseline_results import Baseline, Baselines, rank_of
from sftsearch.trainables.catalog import MODELS
from sftsearch.trainables.config import TrainConfig
from sftsearch.trainables.evaluation import Evaluation, losses_of, score_outputs
from sftsearch.trainables.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from sftsearch.datasets.spec import Task
    from sftsearch.datasets.store import Store
    from sftsearch.trainables.baseline_results import Candidate, Name, Subset

LINEAR_SHARE = 0.5
"""Part of the time after which no linear model begins, so that MLPs have the rest."""
NUM_SUBSETS, NUM_SETTINGS = 3, 2
"""MLPs are fitted on so many of the best subsets, each with so many of its best settings."""
SLOWEST = 4.0
"""Fitting also ends after so many times the limit in CPU time, on a very slow machine."""


def fit_baselines(
    store: Store,
    *,
    config: TrainConfig | None = None,
    max_seconds: float = 20.0,
    candidates: Sequence[Candidate] | None = None,
    seed: int = 0,
) -> Baselines:
    """Fit baselines on the training split and score them on the validation split.

    First majority or mean; then `linear`, with each kind of statistics, on all modalities, on each
    one, without each one, and greedily forward from the best single one; then `mlp` on the three
    best subsets of modalities, each with its two best kinds of statistics. Of a large training
    split an evenly spaced part is used.

    The time limit counts what reading and each fit are estimated to take on one core, so that the
    results depend on the store and the seed alone, not on how busy the machine is.

    Args:
        store: a dataset or a fold of it; the test split is not read.
        config: defines the `loss` of a regression as in trials.
        max_seconds: estimated CPU time; no fit begins after it.
        candidates: fit only these, in this order, after majority or mean; for other folds.
        seed: of the weights and batches of `mlp`.
    """
    search = _Search(store, config or TrainConfig(), max_seconds, seed)
    with torch.random.fork_rng(devices=[]):
        search.run(candidates)
    return Baselines(
        results=tuple(search.results),
        metric=METRICS[store.spec.task][0],
        skipped=tuple(search.skipped),
        seconds=search.elapsed(),
    )


class _Search:
    """The baselines fitted so far, and what chooses the next ones."""

    def __init__(self, store: Store, config: TrainConfig, max_seconds: float, seed: int) -> None:
        self._start, self._limit = time.process_time(), max_seconds
        self._planned = 0.0  # estimated seconds of what was begun
        self._store, self._config, self._seed = store, config, seed
        self._metric = METRICS[store.spec.task][0]
        self._validation = store.split("validation")
        self._features = Features(store, [store.split("train")], self._validation)
        self._linear: dict[tuple[Subset, Setting], Baseline] = {}
        self.results: list[Baseline] = []
        self.skipped: list[str] = []

    def elapsed(self) -> float:
        """Return the CPU time so far, in seconds."""
        return time.process_time() - self._start

    def run(self, candidates: Sequence[Candidate] | None) -> None:
        """Fit everything, or the candidates, as far as the time limit allows."""
        self._fit_constant()
        if candidates is None:
            self._fit_all(self._read(tuple(self._store.spec.modalities)))
            return
        wanted = {name for one in candidates for name in one.modalities}
        found = self._read(tuple(name for name in self._store.spec.modalities if name in wanted))
        try:
            for one in candidates:
                if set(one.modalities) <= set(found):
                    fit = self._fit_mlp if one.name == "mlp" else self._fit_linear
                    fit(one.modalities, one.setting, share=1.0)
        except _OutOfTimeError as error:
            self.skipped.append(f"candidates from {error} on")

    def _fit_all(self, names: Subset) -> None:
        if not names:
            return
        try:
            for subset in _subsets(names):
                for setting in SETTINGS:
                    self._fit_linear(subset, setting)
            for setting in SETTINGS:
                self._forward(names, setting)
        except _OutOfTimeError as error:
            self.skipped.append(f"linear models from {error} on")
        try:
            for subset, setting in self._best_linear():
                self._fit_mlp(subset, setting)
        except _OutOfTimeError as error:
            self.skipped.append(f"MLPs from {error} on")

    def _read(self, wanted: Subset) -> Subset:
        """Compute the statistics, and return the modalities that could be read in time."""

        def is_late() -> bool:
            return self.elapsed() > SLOWEST * LINEAR_SHARE * self._limit

        names = []
        for name in wanted:
            seconds = read_seconds(self._features.num_values(name))
            in_time = self._planned + seconds <= LINEAR_SHARE * self._limit
            if in_time and self._features.read(name, is_late=is_late):
                names.append(name)
                self._planned += seconds
            else:
                self.skipped.append(f"everything on {name}: it takes too long to read")
        return tuple(names)

    def _fit_constant(self) -> None:
        spec, start = self._store.spec, self.elapsed()
        outputs = constant_outputs(spec.task, self._features.labels, spec.num_outputs)
        name: Name = "mean" if spec.task == "regression" else "majority"
        what = {
            "classification": "the most frequent class",
            "multilabel": "the frequency of each label",
            "regression": "the mean of the training labels",
        }[spec.task]
        repeated = outputs.expand(len(self._validation), -1)
        self._add(name, what, (), {}, repeated, start)

    def _fit_linear(
        self, subset: Subset, setting: Setting, share: float = LINEAR_SHARE
    ) -> Baseline | None:
        """Fit the linear model with each penalty, and keep the best; None: it is too large."""
        if (subset, setting) in self._linear:
            return self._linear[subset, setting]
        what = _describe(subset, setting)
        start, spec = self.elapsed(), self._store.spec
        found = self._features.of(subset, setting)
        seconds = linear_seconds(found[0], spec.num_outputs) if found else math.inf
        if not found or seconds > self._limit:
            self.skipped.append(f"{what}: there are too many statistics")
            return None
        self._begin(what, share, seconds)
        x_NP, other_MP = found
        best: tuple[tuple[float, float], float, Tensor] | None = None
        for l2, solution in linear_path(x_NP, self._features.labels, spec.num_outputs, spec.task):
            rank = self._quick_rank(outputs := solution.outputs(other_MP))
            if best is not None and rank > best[0]:
                break  # weaker penalties overfit, and take most of the time
            best = (rank, l2, outputs)
        assert best is not None, "no penalty"
        _, l2, outputs = best
        parameters = {**setting.parameters, "l2": l2}
        one = self._add("linear", f"{what}, l2 {l2:g}", subset, parameters, outputs, start)
        self._linear[subset, setting] = one
        return one

    def _quick_rank(self, outputs: Tensor) -> tuple[float, float]:
        """Return a key as `rank_of`; of tasks whose metrics take long, only by the loss."""
        task = self._store.spec.task
        labels = torch.tensor(self._validation.labels)
        loss = losses_of(task, self._config, outputs, labels).mean().item()
        wrong = 0.0
        if task == "classification":
            wrong = (outputs.argmax(dim=1) != labels).double().mean().item()
        return wrong, loss

    def _forward(self, names: Subset, setting: Setting) -> None:
        """Add the modality that helps most, until none helps."""

        def best(subsets: list[Subset]) -> Baseline | None:
            fitted = [self._fit_linear(subset, setting) for subset in subsets]
            return min(filter(None, fitted), key=self._rank, default=None)

        chosen = best([(name,) for name in names])
        while chosen is not None and len(chosen.modalities) < len(names):
            own = chosen.modalities
            larger = [
                tuple(one for one in names if one in (*own, name))
                for name in names
                if name not in own
            ]
            found = best(larger)
            if found is None or self._rank(found) >= self._rank(chosen):
                break
            chosen = found

    def _best_linear(self) -> list[tuple[Subset, Setting]]:
        """Return what MLPs are fitted on, the best first."""
        ranked = sorted(self._linear, key=lambda key: self._rank(self._linear[key]))
        subsets = list(dict.fromkeys(subset for subset, _ in ranked))[:NUM_SUBSETS]
        settings = {
            subset: [setting for own, setting in ranked if own == subset] for subset in subsets
        }
        return [
            (subset, settings[subset][i])
            for i in range(NUM_SETTINGS)
            for subset in subsets
            if i < len(settings[subset])
        ]

    def _fit_mlp(self, subset: Subset, setting: Setting, share: float = 1.0) -> None:
        what = _describe(subset, setting)
        start, spec = self.elapsed(), self._store.spec
        found = self._features.of(subset, setting)
        assert found is not None, "a linear model was fitted to it"
        x_NP, other_MP = found
        self._begin(what, share, mlp_seconds(x_NP, spec.num_outputs))
        labels = self._features.labels
        network = fit_mlp(x_NP, labels, spec.num_outputs, spec.task, seed=self._seed)
        outputs = network(other_MP)
        self._add("mlp", what, subset, {**setting.parameters, **HIDDEN}, outputs, start)

    def _add(
        self,
        name: Name,
        description: str,
        modalities: Subset,
        parameters: dict[str, Any],
        outputs: Tensor,
        start: float,
    ) -> Baseline:
        """Score the outputs (N, C) and keep the result."""
        evaluation = score_outputs(outputs, self._store, self._validation, self._config)
        cost = dict.fromkeys(("gflops", "gmacs", "parameters"), 0.0)
        if name in MODELS:
            entry = MODELS[name]
            model_config = entry.config(modalities=modalities, **parameters)
            priced = entry.cost(self._store.spec, model_config).as_dict()
            cost = {key: float(priced[key]) for key in cost}
        one = Baseline(
            name=name,
            description=description,
            modalities=modalities,
            parameters=parameters,
            seed=self._seed,
            metrics=evaluation.metrics,
            groups=evaluation.groups,
            cost=cost,
            seconds=self.elapsed() - start,
        )
        self.results.append(one)
        return one

    def _rank(self, one: Baseline) -> tuple[float, float]:
        return rank_of(self._metric, one.metrics)

    def _begin(self, what: str, share: float, seconds: float) -> None:
        """Count the estimated seconds of a fit, unless that part of the limit is used up."""
        limit = share * self._limit
        if self._planned > limit or self.elapsed() > SLOWEST * limit:
            raise _OutOfTimeError(what)
        self._planned += seconds


class _OutOfTimeError(Exception):
    """No further fit begins; the message names the one that would have."""


def confirm_baseline(
    store: Store,
    baseline: Baseline,
    *,
    config: TrainConfig | None = None,
    with_validation: bool = False,
) -> Evaluation:
    """Fit a baseline again, which gives the same weights, and evaluate it on the test split.

    Args:
        store: that it was fitted on.
        baseline: of `fit_baselines`.
        config: as in `fit_baselines`.
        with_validation: fit it on the training and the validation split.
    """
    spec, test = store.spec, store.split("test", unseal_test=True)
    names = ("train", "validation") if with_validation else ("train",)
    features = Features(store, [store.split(name) for name in names], test)
    outputs = _refit(features, baseline, spec.num_outputs, spec.task)
    return score_outputs(outputs.expand(len(test), -1), store, test, config or TrainConfig())


def _refit(features: Features, baseline: Baseline, num_outputs: int, task: Task) -> Tensor:
    """Fit a baseline and return its outputs on the other split, (M, C), or (1, C)."""
    labels, given = features.labels, baseline.parameters
    if baseline.name in ("majority", "mean"):
        return constant_outputs(task, labels, num_outputs)
    setting = Setting(given["segments"], given["statistics"])
    for name in baseline.modalities:
        features.read(name, [setting])
    found = features.of(baseline.modalities, setting)
    assert found is not None, "it was fitted to these statistics before"
    x_NP, other_MP = found
    if baseline.name == "linear":
        return fit_linear(x_NP, labels, num_outputs, task, l2=given["l2"]).outputs(other_MP)
    with torch.random.fork_rng(devices=[]):
        return fit_mlp(x_NP, labels, num_outputs, task, seed=baseline.seed)(other_MP)


def _subsets(names: Subset) -> Iterator[Subset]:
    """Yield all modalities, each alone, and all without each."""
    found = [names, *((name,) for name in names)]
    if len(names) > 2:
        found += [tuple(one for one in names if one != name) for name in names]
    yield from dict.fromkeys(found)


def _describe(subset: Subset, setting: Setting) -> str:
    return f"{setting} of {' + '.join(subset)}"
