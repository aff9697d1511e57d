"""Test the baselines: what is fitted, that tests repeat it, and their quality on shipped data."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from sftsearch.datasets.catalog import describe, open_dataset
from sftsearch.datasets.folds import open_fold
from sftsearch.datasets.samples import Split
from sftsearch.datasets.spec import SPLITS, ModalitySpec
from sftsearch.datasets.store import open_store
from sftsearch.datasets.writer import write_store
from sftsearch.trainables import baseline_features, baseline_results, baselines
from sftsearch.trainables.baseline_results import Baseline, Baselines, rank_of
from sftsearch.trainables.baselines import confirm_baseline, fit_baselines
from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.config import TrainConfig
from sftsearch.trainables.fit import Fit

if TYPE_CHECKING:
    from pathlib import Path

    from sftsearch.datasets.store import Store

CHANCE = {"synthetic": ("majority", "top1"), "synthetic_tags": ("majority", "map"),
          "synthetic_rating": ("mean", "mae")}  # fmt: skip


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    cache = tmp_path_factory.mktemp("stores")
    return {name: open_dataset(name, cache=cache) for name in (*CHANCE, "digits", "wearables")}


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sftsearch.trainables.baseline_models.MLP_STEPS", 40)
    monkeypatch.setattr(baselines, "NUM_SETTINGS", 1)


@pytest.mark.medium
@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("dataset", list(CHANCE))
def test_baselines_of_every_task(stores: dict[str, Store], dataset: str) -> None:
    found = fit_baselines(stores[dataset], max_seconds=600)
    name, metric = CHANCE[dataset]
    assert found.skipped == ()
    assert found.metric == metric
    constant, linear = found.results[0], found.best("linear")
    assert (constant.name, constant.modalities, dict(constant.parameters)) == (name, (), {})
    assert set(constant.cost.values()) == {0.0}
    assert linear is not None
    assert rank_of(metric, linear.metrics) < rank_of(metric, constant.metrics)
    assert {one.modalities for one in found.results if one.name == "linear"} == {
        ("left", "right"), ("left",), ("right",),
    }  # fmt: skip
    assert sum(one.name == "mlp" for one in found.results) == 3
    best = found.best()
    assert best is not None
    assert all(
        rank_of(metric, best.metrics) <= rank_of(metric, one.metrics) for one in found.results
    )
    again = Baselines.from_json(json.loads(json.dumps(found.to_json())))
    assert again.to_json() == found.to_json()
    assert again.results[1].modalities == found.results[1].modalities


@pytest.mark.medium
@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("dataset", list(CHANCE))
def test_fits_are_repeated_exactly(
    stores: dict[str, Store], dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluated on the validation split in place of the test split, the metrics are equal."""
    store = stores[dataset]
    torch.manual_seed(5)
    found = fit_baselines(store, max_seconds=600, seed=3)
    after = torch.rand(1).item()
    torch.manual_seed(5)
    assert after == torch.rand(1).item()  # the caller's random state did not change
    monkeypatch.setattr(type(store), "split", _without_test(type(store).split))
    chosen = [found.results[0], found.best("linear"), found.best("mlp")]
    for one in chosen:
        assert one is not None
        repeated = confirm_baseline(store, one)
        assert repeated.metrics == one.metrics
        assert repeated.groups == one.groups


def _without_test(split):  # type: ignore[no-untyped-def]
    def of_validation(store, name, *, unseal_test=False):  # type: ignore[no-untyped-def]
        assert (name == "test") == unseal_test
        return split(store, "validation" if name == "test" else name)

    return of_validation


@pytest.mark.medium
@pytest.mark.usefixtures("_quick")
def test_linear_baseline_is_the_model_of_the_catalog(stores: dict[str, Store]) -> None:
    """Up to the tolerance of the solver: 1e-3 of the loss."""
    store = stores["synthetic_tags"]
    one = fit_baselines(store, max_seconds=600).best("linear")
    assert one is not None
    config = MODELS["linear"].config(modalities=one.modalities, **one.parameters)
    model = build_model("linear", store.spec, config, 0)
    fit = Fit(model, store, TrainConfig(), seed=0)
    assert fit.run_epoch()["loss"] == pytest.approx(one.metrics["loss"], rel=1e-3)
    cost = MODELS["linear"].cost(store.spec, config)
    assert one.cost["gmacs"] == cost.gmacs
    assert one.cost["parameters"] == sum(p.numel() for p in model.parameters())


@pytest.mark.medium
@pytest.mark.usefixtures("_quick")
def test_groups_count_correct_decisions_by_subject(stores: dict[str, Store]) -> None:
    store = open_fold(stores["digits"], 1, 4)
    found = fit_baselines(store, max_seconds=600)
    for one in (found.results[0], found.best("linear")):
        assert one is not None
        (person,) = store.spec.subjects["validation"]
        assert all(name.startswith(person) for name in one.groups)  # in blocks of recordings
        right, samples = (sum(pair[i] for pair in one.groups.values()) for i in (0, 1))
        assert samples == store.spec.num_samples["validation"]
        assert right / samples == pytest.approx(one.metrics["top1"])


def test_majority_is_the_most_frequent_class_of_the_training_split(
    stores: dict[str, Store],
) -> None:
    store = stores["wearables"]
    found = fit_baselines(store, max_seconds=0.0)
    (majority,) = found.results
    counts = np.array(store.class_counts["train"])
    validation = store.split("validation").labels
    assert majority.metrics["top1"] == pytest.approx((validation == counts.argmax()).mean())
    shares = (counts + 1) / (counts + 1).sum()
    assert majority.metrics["loss"] == pytest.approx(-np.log(shares[validation]).mean(), rel=1e-5)
    assert found.best("linear") is None
    assert len(found.skipped) == 4  # the modalities
    evaluated = confirm_baseline(store, majority)
    test = store.split("test", unseal_test=True).labels
    assert evaluated.metrics["top1"] == pytest.approx((test == counts.argmax()).mean())


@pytest.mark.usefixtures("_quick")
def test_time_limit_leaves_the_most_useful_and_names_the_rest(
    stores: dict[str, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each fit is estimated to take a second, of ten; reading takes none."""
    monkeypatch.setattr(baselines, "read_seconds", lambda num_values: 0.0)
    for name in ("linear_seconds", "mlp_seconds"):
        monkeypatch.setattr(baselines, name, lambda x, num_outputs: 1.0)
    found = fit_baselines(stores["synthetic"], max_seconds=9.5)
    linear = [one for one in found.results if one.name == "linear"]
    assert [one.modalities for one in linear] == [("left", "right")] * 4 + [("left",)]
    assert len([one for one in found.results if one.name == "mlp"]) == 2
    assert found.skipped == ("linear models from mean and deviation of 4 segments of left on",)
    short = fit_baselines(stores["synthetic"], max_seconds=4.0)
    assert len(short.skipped) == 1
    assert len(short.results) == 1 + 3 + 1  # one subset, so one MLP


def test_very_slow_machine_ends_the_fits_too(
    stores: dict[str, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that jumps past four times the limit."""
    clock = iter([0.0, *[50.0] * 100])
    monkeypatch.setattr(baselines.time, "process_time", lambda: next(clock))
    found = fit_baselines(stores["synthetic"], max_seconds=10.0)
    assert [one.name for one in found.results] == ["majority"]
    assert len(found.skipped) == 2


@pytest.mark.usefixtures("_quick")
def test_shortlist_is_all_that_is_fitted_on_another_fold(stores: dict[str, Store]) -> None:
    first = fit_baselines(stores["synthetic"], max_seconds=600)
    candidates = first.shortlist()
    assert len(candidates) == baseline_results.NUM_SHORTLISTED
    assert [one.name for one in candidates] == ["mlp", "linear"] * 3
    for name in ("mlp", "linear"):
        best = first.best(name)  # type: ignore[arg-type]
        mine = next(one for one in candidates if one.name == name)
        assert best is not None
        assert (best.modalities, best.parameters["segments"]) == (
            mine.modalities, mine.setting.segments,
        )  # fmt: skip
    again = fit_baselines(stores["synthetic"], max_seconds=600, candidates=candidates)
    found = {(one.name, one.description): one.metrics for one in first.results}
    assert [one.name for one in again.results] == ["majority", *["mlp", "linear"] * 3]
    for one in again.results:
        assert one.metrics == found[one.name, one.description]


def store_of(path: Path, modalities: dict[str, np.ndarray], labels: np.ndarray) -> Store:
    """Write a classification of two classes; half of the samples are for training."""
    cuts = {"train": slice(0, None, 2), "validation": slice(1, None, 4), "test": slice(3, None, 4)}
    splits = {
        name: Split(
            name=name,
            modalities={key: x[cut].astype(np.float32) for key, x in modalities.items()},
            labels=labels[cut],
            subjects=np.full(len(labels[cut]), -1),
        )
        for name, cut in cuts.items()
    }
    spec = replace(
        describe("synthetic"),
        modalities={
            key: ModalitySpec(num_tokens=x.shape[1], num_features=x.shape[2])
            for key, x in modalities.items()
        },
        classes=("no", "yes"),
        num_samples={name: len(split) for name, split in splits.items()},
        subjects=dict.fromkeys(SPLITS, ()),
        best_accuracy=None,
    )
    write_store(path, spec, splits)
    return open_store(path)


@pytest.mark.medium
@pytest.mark.usefixtures("_quick")
def test_forward_selection_finds_the_pair_that_matters(tmp_path: Path) -> None:
    """Two of five modalities have half of the signal each, the others none."""
    random = np.random.default_rng(0)
    modalities = {name: random.normal(size=(1200, 4, 3)) for name in "abcde"}
    signal = modalities["b"].mean(axis=(1, 2)) + modalities["d"].mean(axis=(1, 2))
    labels = (signal > 0).astype(np.int64)
    found = fit_baselines(store_of(tmp_path / "store", modalities, labels), max_seconds=600)
    best = found.best("linear")
    assert best is not None
    assert {"b", "d"} <= set(best.modalities)
    assert best.metrics["top1"] > 0.93  # a linear rule is the truth
    tried = {one.modalities for one in found.results}
    assert ("b", "d") in tried  # all, each, each left out, and forward
    assert ("a", "c") not in tried
    assert ("a", "b", "c", "d") in tried


@pytest.mark.medium
@pytest.mark.usefixtures("_quick")
def test_large_data_is_thinned_and_wide_data_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baseline_features, "MAX_SAMPLES", 300)
    monkeypatch.setattr(baseline_features, "MAX_STATISTICS", 40)
    random = np.random.default_rng(1)
    x, wide = random.normal(size=(2000, 4, 3)), random.normal(size=(2000, 2, 30))
    labels = (x[:, :, 0].mean(axis=1) > 0).astype(np.int64)
    store = store_of(tmp_path / "store", {"x": x, "wide": wide}, labels)
    found = fit_baselines(store, max_seconds=600)
    assert {one.modalities for one in found.results} == {(), ("x",)}
    assert "mean and deviation of wide: there are too many statistics" in found.skipped
    best = found.best("linear")
    assert best is not None
    assert best.metrics["top1"] > 0.9
    train = store.split("train")
    features = baseline_features.Features(store, [train], store.split("validation"))
    rows = np.linspace(0, 999, 300).round().astype(int)
    assert features.labels.tolist() == train.labels[rows].tolist()


def test_refit_can_use_the_validation_split_too(stores: dict[str, Store]) -> None:
    store = stores["synthetic"]
    one = Baseline(
        name="linear", description="", modalities=("left", "right"),
        parameters={"segments": 1, "statistics": "plain", "l2": 0.01}, seed=0, metrics={},
        groups={}, cost={}, seconds=0.0,
    )  # fmt: skip
    train, both = (
        confirm_baseline(store, one, with_validation=flag).metrics for flag in (False, True)
    )
    assert both["loss"] != train["loss"]
    assert both["loss"] == pytest.approx(train["loss"], rel=0.1)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("dataset", "linear", "mlp"), [("wearables", 0.87, 0.945), ("digits", 0.8, 0.85)]
)
def test_quality_on_shipped_data(
    stores: dict[str, Store], dataset: str, linear: float, mlp: float
) -> None:
    """Test accuracy of the ones chosen by validation, at least."""
    found = fit_baselines(stores[dataset], max_seconds=120)
    for name, least in (("linear", linear), ("mlp", mlp)):
        best = found.best(name)  # type: ignore[arg-type]
        assert best is not None
        accuracy = confirm_baseline(stores[dataset], best).metrics["top1"]
        assert accuracy >= least
