"""Choose among a study's baselines; `tests/test_baselines.py` fits them on Ray."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from sftsearch.datasets.errors import UserError
from sftsearch.orchestrator.execution.baselines import BaselineSpec, choose, fit_on_every_fold
from sftsearch.orchestrator.storage.events import parse_event
from sftsearch.trainables.baseline_results import Baseline, Baselines

import shown_classes

if TYPE_CHECKING:
    from pathlib import Path

SPEC = BaselineSpec(dataset="linear", root=None, num_folds=3, metric="top1", direction="maximize")


def fitted(name: Any, top1: float, modality: str = "a", **parameters: Any) -> Baseline:
    return Baseline(
        name=name,
        description=f"{name} on {modality}",
        modalities=(modality,),
        parameters=parameters,
        seed=0,
        metrics={"top1": top1, "loss": 1 - top1},
        groups={"p": [100 * top1, 100.0]},
        cost={"gflops": 0.5},
        seconds=0.1,
    )


def every(*results: Baseline) -> Baselines:
    return Baselines(results=results, metric="top1", skipped=(), seconds=1.0)


def chosen(folds: dict[int | None, Baselines], spec: BaselineSpec = SPEC) -> dict[Any, str]:
    return {(one.name, one.fold): one.modalities[0] for one in choose(folds, spec)}


def test_each_fold_gets_what_is_best_on_the_others() -> None:
    """Modality a has 0.9, 0.5, 0.5 on folds 0, 1, 2, and b has 0.6 on all.

    On the other folds a has a mean of 0.7 for folds 1 and 2, but of 0.5 for fold 0.
    """
    folds = {
        k: every(fitted("linear", top1), fitted("linear", 0.6, "b"))
        for k, top1 in enumerate((0.9, 0.5, 0.5))
    }
    expected = {("linear", 0): "b", ("linear", 1): "a", ("linear", 2): "a"}
    assert chosen(folds) == expected
    # The best error is the lowest.
    spec = replace(SPEC, direction="minimize")
    assert chosen(folds, spec) == {key: {"a": "b", "b": "a"}[one] for key, one in expected.items()}


def test_only_split_gets_what_is_best_on_it() -> None:
    folds: dict[int | None, Baselines] = {
        None: every(
            fitted("majority", 0.2),
            fitted("linear", 0.5),
            fitted("linear", 0.7, "b"),
            fitted("mlp", 0.6),
        )
    }
    assert chosen(folds) == {("majority", None): "a", ("linear", None): "b", ("mlp", None): "a"}


def test_penalty_is_chosen_on_each_fold() -> None:
    """The same model with another penalty is the same baseline."""
    folds = {
        k: every(fitted("linear", 0.7, l2=10.0**k), fitted("linear", 0.6, "b", l2=1.0))
        for k in range(3)
    }
    assert set(chosen(folds).values()) == {"a"}
    assert [one.parameters["l2"] for one in choose(folds, SPEC)] == [1.0, 10.0, 100.0]


def test_baseline_that_other_folds_lack_is_chosen_only_without_another() -> None:
    folds = {
        0: every(fitted("mlp", 0.9, "b"), fitted("mlp", 0.5)),
        1: every(fitted("mlp", 0.5)),
        2: every(fitted("mlp", 0.5, "c")),
    }
    assert chosen(folds) == {("mlp", 0): "a", ("mlp", 1): "a", ("mlp", 2): "c"}


def test_objective_that_baselines_lack_is_replaced_by_the_task_s_metric() -> None:
    folds = {None: every(fitted("linear", 0.5), fitted("linear", 0.7, "b"))}
    assert chosen(folds, replace(SPEC, metric="route_1")) == {("linear", None): "b"}


@pytest.mark.medium
def test_folds_share_the_time(tmp_path: Path) -> None:
    shown_classes.write(tmp_path, "linear")
    spec = replace(SPEC, root=str(tmp_path))
    event = fit_on_every_fold(replace(spec, max_seconds=0.0))
    assert [(one.name, one.fold) for one in event.results] == [("majority", k) for k in range(3)]
    assert event.skipped
    assert all(what.endswith(" on fold 0") for what in event.skipped)
    event = fit_on_every_fold(spec)
    # The first fold has 8 s, of which linear models take less than half; then each MLP over 1 s.
    # The others have 6 s each, for the six candidates.
    assert [(one.name, one.fold) for one in event.results] == [
        (name, k) for name in ("majority", "linear", "mlp") for k in range(3)
    ]
    linear = [one for one in event.results if one.name == "linear"]
    assert all(one.modalities == ("a", "b") for one in linear)
    assert all(one.values["top1"] > 0.8 for one in event.results if one.name != "majority")
    assert event.num_fitted > len(event.results)
    assert parse_event("baselines", event.to_json()) == event


def test_dataset_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No dataset is called"):
        fit_on_every_fold(replace(SPEC, root=str(tmp_path)))
