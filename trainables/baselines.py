"""Fit simple baselines that a search must beat: majority, linear models and MLPs on statistics.

They are the catalog's `linear` and `mlp` on segment statistics (`statistics.py`), chosen by the
validation split alone, in seconds. The features of a modality are computed once and used by all
subsets of modalities (`baseline_features.py`).

Shapes: N samples of a split, P statistics, C outputs.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from sftsearch.trainables.baseline_features import SETTINGS, Features, Setting
from sftsearch.trainables.baseline_models import (
    HIDDEN,
    constant_outputs,
    fit_linear,
    fit_mlp,
    linear_path,
    linear_seconds,
)
from sftsearch.trainables.catalog import MODELS
from sftsearch.trainables.config import TrainConfig
from sftsearch.trainables.evaluation import Evaluation, Groups, is_right, losses_of, metrics_of
from sftsearch.trainables.metrics import METRICS, num_absent_classes
from sftsearch.trainables.training_record import LOWER_IS_BETTER

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from sftsearch.datasets.samples import Split
    from sftsearch.datasets.spec import Task
    from sftsearch.datasets.store import Store

Name = Literal["majority", "mean", "linear", "mlp"]
Subset = tuple[str, ...]

LINEAR_SHARE = 0.5
"""Part of the time after which no linear model begins, so that MLPs have the rest."""
NUM_SUBSETS, NUM_SETTINGS = 3, 2
"""MLPs are fitted on so many of the best subsets, each with so many of its best settings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """A fitted baseline and its results on the validation split."""

    name: Name
    """majority: the most frequent class (or the frequency of each label); mean: of the training
    labels (regression); linear and mlp: the models of the catalog with these names."""
    description: str
    """In words: statistics, segments, modalities, penalty."""
    modalities: tuple[str, ...]
    """In the dataset's order; empty for majority and mean."""
    parameters: Mapping[str, Any]
    """Fields of the model's configuration besides `modalities`; empty for majority and mean. With
    `seed` they determine the weights: see `confirm_baseline`."""
    seed: int
    metrics: Mapping[str, float]
    """`loss` and the task's metrics on the validation split, named as those of trials."""
    groups: Mapping[str, list[float]]
    """Subject -> [correct decisions, samples] on the validation split; see `Fit.groups`."""
    cost: Mapping[str, float]
    """gflops, gmacs and parameters by closed form; 0 for majority and mean."""
    seconds: float
    """CPU time to fit and evaluate it, without the statistics that it shares with others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Baselines:
    """All baselines of one split or fold."""

    results: tuple[Baseline, ...]
    """In the order in which they were fitted; the first is majority or mean."""
    metric: str
    """The metric that chooses among them: the first of the task."""
    skipped: tuple[str, ...]
    """What the time limit left out, in words; empty if nothing."""
    seconds: float
    """CPU time of everything."""

    def best(self, name: Name | None = None) -> Baseline | None:
        """Return the best baseline on the validation split, of one name or of all.

        Of equal ones that with the lower loss, then the first. None: there is none of this name.
        """
        found = [one for one in self.results if name in (None, one.name)]
        return min(found, key=lambda one: rank_of(self.metric, one.metrics), default=None)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `json.dumps`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Baselines:
        """Return the baselines of `to_json`, after any number of trips through JSON."""
        results = tuple(
            Baseline(**{**one, "modalities": tuple(one["modalities"])}) for one in record["results"]
        )
        return cls(**{**record, "results": results, "skipped": tuple(record["skipped"])})


def rank_of(metric: str, metrics: Mapping[str, float]) -> tuple[float, float]:
    """Return a key that sorts results from best to worst by a metric, then by the loss."""
    sign = 1 if metric in LOWER_IS_BETTER else -1
    return sign * metrics[metric], metrics["loss"]


def fit_baselines(
    store: Store,
    *,
    config: TrainConfig | None = None,
    max_seconds: float = 20.0,
    seed: int = 0,
) -> Baselines:
    """Fit baselines on the training split and score them on the validation split.

    First majority or mean; then `linear`, with each kind of statistics, on all modalities, on each
    one, without each one, and greedily forward from the best single one; then `mlp` on the three
    best subsets of modalities, each with its two best kinds of statistics. Of a large training
    split an evenly spaced part is used.

    The time limit counts CPU time and is checked between two fits, and while samples are read.
    Everything else depends on the store and the seed alone.

    Args:
        store: a dataset or a fold of it; the test split is not read.
        config: defines the `loss` of a regression as in trials.
        max_seconds: no fit begins after this time.
        seed: of the weights and batches of `mlp`.
    """
    search = _Search(store, config or TrainConfig(), max_seconds, seed)
    with torch.random.fork_rng(devices=[]):
        search.run()
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

    def run(self) -> None:
        """Fit everything that the time limit allows."""
        self._fit_constant()
        names = self._read()
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

    def _read(self) -> Subset:
        """Compute the statistics, and return the modalities that could be read in time."""

        def is_late() -> bool:
            return self.elapsed() > LINEAR_SHARE * self._limit

        names = []
        for name in self._store.spec.modalities:
            if self._features.read(name, is_late=is_late):
                names.append(name)
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

    def _fit_linear(self, subset: Subset, setting: Setting) -> Baseline | None:
        """Fit the linear model with each penalty, and keep the best; None: it is too large."""
        if (subset, setting) in self._linear:
            return self._linear[subset, setting]
        what = _describe(subset, setting)
        self._check_time(what, LINEAR_SHARE)
        start, spec = self.elapsed(), self._store.spec
        found = self._features.of(subset, setting)
        if not found or linear_seconds(found[0], spec.num_outputs) > self._limit:
            self.skipped.append(f"{what}: there are too many statistics")
            return None
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

    def _fit_mlp(self, subset: Subset, setting: Setting) -> None:
        what = _describe(subset, setting)
        self._check_time(what, 1.0)
        start, spec = self.elapsed(), self._store.spec
        found = self._features.of(subset, setting)
        assert found is not None, "a linear model was fitted to it"
        x_NP, other_MP = found
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
        evaluation = _evaluate(self._store, self._validation, outputs, self._config)
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

    def _check_time(self, what: str, share: float) -> None:
        if self.elapsed() > share * self._limit:
            raise _OutOfTimeError(what)


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
    return _evaluate(store, test, outputs.expand(len(test), -1), config or TrainConfig())


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


def _evaluate(store: Store, split: Split, outputs: Tensor, config: TrainConfig) -> Evaluation:
    """Score the outputs (N, C) of a split."""
    task, groups = store.spec.task, Groups(store, split)
    return Evaluation(
        metrics_of(task, config, outputs, split, store.spec.classes),
        groups.by_name(groups.count(is_right(task, outputs, split))),
        num_absent_classes(task, split.labels, outputs.shape[1]),
    )


def _subsets(names: Subset) -> Iterator[Subset]:
    """Yield all modalities, each alone, and all without each."""
    found = [names, *((name,) for name in names)]
    if len(names) > 2:
        found += [tuple(one for one in names if one != name) for name in names]
    yield from dict.fromkeys(found)


def _describe(subset: Subset, setting: Setting) -> str:
    return f"{setting} of {' + '.join(subset)}"
