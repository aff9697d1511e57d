"""Describe fitted baselines and choose the best of them by the validation split."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sftsearch.trainables.baseline_features import Setting
from sftsearch.trainables.training_record import LOWER_IS_BETTER

if TYPE_CHECKING:
    from collections.abc import Mapping

Name = Literal["majority", "mean", "linear", "mlp"]
Subset = tuple[str, ...]

NUM_SHORTLISTED = 6
"""Candidates of the first fold that are fitted on the others."""


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


class Candidate(NamedTuple):
    """A baseline to fit: a linear model or an MLP on some statistics of some modalities."""

    name: Name
    modalities: Subset
    setting: Setting


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

    def shortlist(self) -> tuple[Candidate, ...]:
        """Return the best linear models and MLPs, alternately, to be fitted on other folds."""
        ranked = sorted(self.results, key=lambda one: rank_of(self.metric, one.metrics))
        by_name = [[one for one in ranked if one.name == name] for name in ("mlp", "linear")]
        pairs = itertools.zip_longest(*by_name)
        best = [one for pair in pairs for one in pair if one is not None][:NUM_SHORTLISTED]
        return tuple(
            Candidate(
                one.name,
                one.modalities,
                Setting(one.parameters["segments"], one.parameters["statistics"]),
            )
            for one in best
        )

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
