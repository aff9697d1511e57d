"""Test the training of models on statistics: solved in one epoch, or by gradients.

Shapes: N samples, T samples of a modality, F features.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from sftsearch.datasets.catalog import describe, open_dataset
from sftsearch.datasets.samples import Split
from sftsearch.datasets.spec import SPLITS, ModalitySpec
from sftsearch.datasets.store import open_store
from sftsearch.datasets.writer import write_store
from sftsearch.orchestrator.candidates.binding import bind
from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.config import ConfigError, TrainConfig
from sftsearch.trainables.evaluation import evaluate
from sftsearch.trainables.fit import Fit

if TYPE_CHECKING:
    from pathlib import Path

    from sftsearch.datasets.store import Store

SOLVED = ("linear", "minirocket")
SMALL: dict[str, dict[str, Any]] = {
    "linear": {"segments": 2, "statistics": "rich"},
    "mlp": {"segments": 2, "hidden_dim": 16, "num_layers": 2, "dropout": 0.2},
    "minirocket": {"num_features": 252},
}
DATASETS = ("synthetic", "synthetic_tags", "synthetic_rating")
"""One of each task; `synthetic_tags` has a modality that is short or missing in some samples."""


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    cache = tmp_path_factory.mktemp("stores")
    return {name: open_dataset(name, cache=cache) for name in DATASETS}


def start(name: str, store: Store, *, seed: int = 0, **training: Any) -> Fit:
    model = build_model(name, store.spec, MODELS[name].config(**SMALL[name]), seed)
    options = {"epochs": 4, "batch_size": 64, "learning_rate": 3e-3} | training
    return Fit(model, store, TrainConfig(**options), seed=seed)


def timeless(fit: Fit) -> list[dict[str, float]]:
    return [{k: v for k, v in one.items() if k != "seconds"} for one in fit.history]


@pytest.mark.medium
@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("name", SOLVED)
def test_solved_models_are_done_after_one_epoch(
    stores: dict[str, Store], name: str, dataset: str
) -> None:
    """The validation loss is far below that of a model without inputs, on every task."""
    fit = start(name, stores[dataset], mixup="manifold", mixup_warmup=0, average_weights=0.9)
    assert MODELS[name].is_solved
    entry = fit.run_epoch()
    assert fit.done
    assert len(fit.history) == fit.config.epochs == 1
    labels = stores[dataset].split("validation").labels
    without_inputs = {
        "synthetic": np.log(4),
        "synthetic_tags": np.log(2),
        "synthetic_rating": np.abs(labels - np.median(labels)).mean(),
    }[dataset]
    assert entry["loss"] < 0.8 * without_inputs
    assert entry["train_loss"] < 0.8 * without_inputs


@pytest.mark.medium
@pytest.mark.parametrize("dataset", DATASETS)
def test_mlp_learns_every_task(stores: dict[str, Store], dataset: str) -> None:
    fit = start("mlp", stores[dataset])
    while not fit.done:
        fit.run_epoch()
    assert len(fit.history) == 4
    assert fit.history[-1]["train_loss"] < fit.history[0]["train_loss"]
    linear = start("linear", stores[dataset])
    assert fit.history[-1]["loss"] < 1.3 * linear.run_epoch()["loss"]


@pytest.mark.medium
@pytest.mark.parametrize("name", sorted(SMALL))
def test_training_is_deterministic_and_resumes_bit_for_bit(
    stores: dict[str, Store], name: str, tmp_path: Path
) -> None:
    whole, first = (start(name, stores["synthetic_tags"], epochs=2) for _ in range(2))
    while not whole.done:
        whole.run_epoch()
    first.run_epoch()
    first.save(tmp_path / "checkpoint")
    resumed = start(name, stores["synthetic_tags"], epochs=2)
    resumed.load(tmp_path / "checkpoint")
    while not resumed.done:
        resumed.run_epoch()
    assert timeless(resumed) == timeless(whole)
    for key, tensor in whole.weights().items():
        assert torch.equal(resumed.weights()[key], tensor), key


@pytest.mark.medium
@pytest.mark.parametrize("name", sorted(SMALL))
def test_saved_weights_include_the_normalization(stores: dict[str, Store], name: str) -> None:
    store = stores["synthetic_tags"]
    fit = start(name, store, epochs=1)
    entry = fit.run_epoch()
    other = build_model(name, store.spec, MODELS[name].config(**SMALL[name]), 1)
    other.load_state_dict(fit.weights())
    assert evaluate(other, store, store.split("validation")).metrics["loss"] == entry["loss"]


def test_normalization_is_that_of_the_training_split(stores: dict[str, Store]) -> None:
    fit = start("mlp", stores["synthetic_tags"], epochs=1)
    fit.run_epoch()
    model, store = fit.model, stores["synthetic_tags"]
    split = store.split("train")
    lengths = torch.tensor(split.lengths["right"])
    inputs, known, _ = fit._train_batches(np.arange(len(split)))
    tokens = model.tokenizer(inputs, known)["fused"].z[:, 0]
    right = tokens[:, -2 * 2 * 3 :]
    assert not right[lengths == 0].any()
    for features in (tokens[:, : 2 * 2 * 3], right[lengths > 0]):
        zeros, ones = torch.zeros(12), torch.ones(12)
        torch.testing.assert_close(features.mean(dim=0), zeros, rtol=0, atol=1e-4)
        torch.testing.assert_close(features.std(dim=0, correction=0), ones, rtol=0, atol=1e-4)


def test_training_options_do_not_change_the_id_of_a_solved_model(
    stores: dict[str, Store],
) -> None:
    spec = stores["synthetic"].spec
    recipe = {"epochs": 9, "mixup": "manifold", "label_smoothing": 0.1, "learning_rate": 0.1}
    ours, plain = (bind("linear", {"l2": 0.1}, training, spec) for training in (recipe, {}))
    assert ours.id == plain.id
    assert ours.train_config.epochs == 1
    assert bind("linear", {"l2": 0.2}, {}, spec).id != ours.id
    assert bind("mlp", {}, recipe, spec).id != bind("mlp", {}, {}, spec).id
    rating = stores["synthetic_rating"].spec
    losses = [bind("linear", {}, {"regression_loss": one}, rating).id for one in ("l1", "l2")]
    assert losses[0] != losses[1]  # the reported loss differs


def linear_truth(path: Path) -> Store:
    """Write a dataset of two classes whose log-odds are 4 times the mean of the first feature."""
    random, splits = np.random.default_rng(0), {}
    counts = {"train": 3000, "validation": 1000, "test": 1000}
    for name in SPLITS:
        size = counts[name]
        mean = random.normal(size=(size, 1, 1))
        noise = random.normal(size=(size, 8, 2))
        x_NTF = noise - noise.mean(axis=1, keepdims=True)  # so that the mean is known exactly
        x_NTF[:, :, :1] += mean
        labels = (random.random(size) < 1 / (1 + np.exp(-4 * mean[:, 0, 0]))).astype(np.int64)
        nobody = np.full(size, -1)
        modalities = {"x": x_NTF.astype(np.float32)}
        splits[name] = Split(name=name, modalities=modalities, labels=labels, subjects=nobody)
    spec = replace(
        describe("synthetic"),
        modalities={"x": ModalitySpec(num_tokens=8, num_features=2)},
        classes=("no", "yes"),
        num_samples=counts,
        subjects=dict.fromkeys(SPLITS, ()),
        best_accuracy=None,
    )
    write_store(path, spec, splits)
    return open_store(path)


@pytest.mark.medium
def test_linear_model_reaches_the_bayes_accuracy_of_a_linear_rule(tmp_path: Path) -> None:
    """E[max(p, 1 - p)] with p = sigmoid(4 z), z normal, is 0.871 (integrated numerically)."""
    z = np.linspace(-9, 9, 200_001)
    density = np.exp(-(z**2) / 2)
    p = 1 / (1 + np.exp(-4 * z))
    bayes = float((density * np.maximum(p, 1 - p)).sum() / density.sum())
    assert bayes == pytest.approx(0.871, abs=1e-3)
    store = linear_truth(tmp_path / "store")
    model = build_model("linear", store.spec, MODELS["linear"].config(segments=1, l2=1e-3), 0)
    Fit(model, store, TrainConfig(), seed=0).run_epoch()
    found = evaluate(model, store, store.split("test", unseal_test=True)).metrics["top1"]
    error = np.sqrt(bayes * (1 - bayes) / 1000)
    assert abs(found - bayes) < 3 * error
    # The log-odds rise by 4 for each unit of the mean.
    features = model.tokenizer.modalities[0]
    per_unit = (model.head.linear.weight[1, 0] - model.head.linear.weight[0, 0]) / features.std[0]
    raw = per_unit.item() / float(store.statistics["x"][1][0])
    assert raw == pytest.approx(4.0, rel=0.1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("linear", {"segments": 0}, "`segments` must be a whole number from 1"),
        ("linear", {"statistics": "all"}, "`statistics` must be one of plain, rich"),
        ("linear", {"l2": 0.0}, r"`l2` must lie in \(0"),
        ("mlp", {"hidden_dim": 0}, "`hidden_dim` must be"),
        ("mlp", {"num_layers": 0}, "`num_layers` must be"),
        ("mlp", {"dropout": 1.0}, "`dropout` must lie in"),
        ("minirocket", {"num_features": 83}, "`num_features` must be a whole number from 84"),
    ],
)
def test_invalid_parameters_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MODELS[name].config(**options)


def test_simple_models_are_no_experts() -> None:
    experts = ({"kind": "linear"}, {"kind": "late_fusion"})
    with pytest.raises(ConfigError, match=r"number 1 \(linear\): it has no tokens"):
        MODELS["dynmm"].config(experts=experts)


def test_costs_are_those_of_statistics_and_layers(stores: dict[str, Store]) -> None:
    """`synthetic` has 6 x 3 and 4 x 2 numbers, five features in all, and four classes."""
    spec = stores["synthetic"].spec
    linear = MODELS["linear"].config(segments=2, statistics="rich")
    cost = MODELS["linear"].cost(spec, linear)
    statistics = 2 * 5 * 5
    assert cost.gmacs * 1e9 == pytest.approx(statistics * 4)
    assert cost.gflops * 1e9 == pytest.approx(6 * 26 + statistics * 4)
    assert cost.parameters == statistics * 4 + 4
    mlp = MODELS["mlp"].config(segments=1, hidden_dim=8, num_layers=3)
    cost = MODELS["mlp"].cost(spec, mlp)
    assert cost.gmacs * 1e9 == pytest.approx(10 * 8 + 2 * 64 + 8 * 4)
    assert cost.gflops * 1e9 == pytest.approx(3 * 26 + 10 * 8 + 2 * 64 + 8 * 4)
    assert cost.parameters == 11 * 8 + 2 * 9 * 8 + 9 * 4
