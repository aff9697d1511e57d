"""The Python API: predictions of trained models, against plain torch.

Shapes: B samples, T tokens, F features, C labels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from sftsearch.api import Configuration, Predictor, Study, UserError, load_study, open_dataset
from sftsearch.datasets import catalog
from sftsearch.datasets.spec import ModalitySpec
from sftsearch.trainables.catalog import build_model
from sftsearch.trainables.deployed_model import DeployedModel, TrainedNetwork

from api_studies import DATASET, network_of, write_study
from small_models import SPEC, small

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from sftsearch.datasets.spec import DatasetSpec

VARIABLE: DatasetSpec = replace(
    SPEC,
    modalities={
        "type": ModalitySpec(num_tokens=13, num_features=5, variable_length=True),
        "audio": ModalitySpec(num_tokens=6, num_features=1),
        "text": ModalitySpec(num_tokens=9, num_features=3, variable_length=True),
    },
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("api"))


@pytest.fixture
def study(folder: Path) -> Study:
    return load_study(folder)


def few_samples() -> dict[str, Any]:
    """Return the first 40 validation samples; some lack a modality."""
    inputs = open_dataset(DATASET).samples().inputs
    found = {name: values[:40] for name, values in inputs.items()}
    assert any(len(x_TF) == 0 for x_TF in found["right"])
    assert len({len(x_TF) for x_TF in found["right"]}) > 2
    return found


def by_plain_torch(configuration: Configuration, replicate: int) -> npt.NDArray[np.float32]:
    """Return the probabilities of `few_samples`, (B, C), one sample at a time."""
    store, samples = catalog.open_dataset(DATASET), few_samples()
    network = network_of(configuration.model, dict(configuration.parameters), replicate)
    rows = []
    for left_TF, right_TF in zip(samples["left"], samples["right"], strict=True):
        padded_TF = np.zeros((8, 3), np.float32)
        padded_TF[: len(right_TF)] = right_TF
        inputs = {}
        for name, x_TF in (("left", left_TF), ("right", padded_TF)):
            mean_F, std_F = store.statistics[name]
            inputs[name] = torch.from_numpy((x_TF - mean_F) / std_F)[None].float()
        with torch.no_grad():
            logits_1C = network(inputs, {"right": torch.tensor([len(right_TF)])})
        rows.append(torch.sigmoid(logits_1C)[0].numpy())
    return np.stack(rows)


def predictor(kind: str, spec: DatasetSpec = VARIABLE, **options: Any) -> Predictor:
    """Return an untrained model of three modalities, whose statistics are 0 and 1."""
    statistics = {
        name: (np.zeros(shape.num_features, np.float32), np.ones(shape.num_features, np.float32))
        for name, shape in spec.modalities.items()
    }
    network = build_model(kind, spec, small(kind, **options), 0)
    return Predictor(DeployedModel(spec, [TrainedNetwork(spec, network, statistics)]), "id", (0,))


def random_samples(size: int, seed: int = 0) -> dict[str, npt.NDArray[np.float64]]:
    random = np.random.default_rng(seed)
    return {
        name: random.normal(size=(size, shape.num_tokens, shape.num_features))
        for name, shape in SPEC.modalities.items()
    }


# ------------------------------------------------------------------ trained models


@pytest.mark.medium
def test_predictions_are_those_of_plain_torch(study: Study) -> None:
    """Float32 sums in another order differ by 1e-6 at most."""
    configuration = study.best()
    model = configuration.load()
    assert (model.configuration_id, model.replicates) == (configuration.id, (0,))
    assert (model.task, model.classes) == ("multilabel", ("left", "right", "both"))
    assert model.modalities == open_dataset(DATASET).modalities
    assert repr(model) == f"Predictor({configuration.id}, replicate 0: left, right -> multilabel)"
    found, expected = model.predict(few_samples()), by_plain_torch(configuration, 0)
    assert found.probabilities is not None
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
    np.testing.assert_array_equal(found.labels, expected >= 0.5)
    np.testing.assert_array_equal(model.predict_proba(few_samples()), found.probabilities)
    assert (found.classes, found.routes, len(found)) == (model.classes, None, 40)


@pytest.mark.medium
def test_replicates_and_ensembles_are_chosen_by_the_caller(study: Study) -> None:
    configuration, samples = study.configurations[0], few_samples()
    first, second = (configuration.load(replicate=n).predict_proba(samples) for n in (0, 1))
    np.testing.assert_allclose(second, by_plain_torch(configuration, 1), atol=1e-6)
    assert np.abs(first - second).max() > 0.01
    ensemble = configuration.load(ensemble=True)
    assert ensemble.replicates == (0, 1)
    np.testing.assert_allclose(ensemble.predict_proba(samples), (first + second) / 2, atol=1e-6)


@pytest.mark.medium
def test_missing_weights_are_explained_in_one_line(study: Study, folder: Path) -> None:
    with pytest.raises(UserError, match=r"has no finished replicate 7\. Finished: 0, 1"):
        study.best().load(replicate=7)
    with pytest.raises(UserError, match="Give `replicate` or `ensemble=True`, not both"):
        study.best().load(replicate=0, ensemble=True)
    cheapest = study.front[0]
    weights = folder / "trials" / f"{cheapest.id}-0" / "weights.safetensors"
    hidden = weights.rename(weights.with_suffix(".hidden"))
    try:
        assert cheapest.load().replicates == (1,)
        with pytest.raises(UserError, match="There are no weights of replicate 0") as error:
            cheapest.load(replicate=0)
        assert "\n" not in str(error.value)
    finally:
        hidden.rename(weights)


# ------------------------------------------------------------------ forms of samples


def test_arrays_lists_and_batches_give_equal_predictions() -> None:
    model, samples = predictor("concat"), random_samples(9)
    whole = model.predict(samples)
    assert whole.probabilities is not None
    np.testing.assert_allclose(whole.probabilities.sum(axis=1), 1, atol=1e-6)
    expected = np.array(VARIABLE.classes)[whole.probabilities.argmax(axis=1)]
    np.testing.assert_array_equal(whole.labels, expected)
    nested = {name: x_BTF.tolist() for name, x_BTF in samples.items()}
    for given, size in ((nested, 256), (samples, 1), (samples, 4)):
        found = model.predict_proba(given, batch_size=size)
        np.testing.assert_allclose(found, whole.probabilities, atol=1e-6)


def test_missing_modalities_have_four_equal_forms() -> None:
    """None, no entry, a list of None, and arrays without tokens."""
    model, samples = predictor("late_fusion"), random_samples(3)
    rest = {name: x_BTF for name, x_BTF in samples.items() if name != "text"}
    forms: list[dict[str, Any]] = [
        {"text": None},
        {},
        {"text": [None, None, None]},
        {"text": np.zeros((3, 0, 3))},
    ]
    found = [model.predict_proba({**rest, **form}) for form in forms]
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)
    assert np.abs(found[0] - model.predict_proba(samples)).max() > 1e-4


def test_samples_of_different_lengths_do_not_affect_each_other() -> None:
    model, samples = predictor("sft_po"), random_samples(4)
    mixed: dict[str, Any] = dict(samples)
    mixed["type"] = [x_TF[:size] for x_TF, size in zip(samples["type"], (13, 1, 7, 3), strict=True)]
    mixed["text"] = [samples["text"][0], None, samples["text"][2], samples["text"][3][:2]]
    found = model.predict_proba(mixed)
    for number in range(4):
        alone = {name: [values[number]] for name, values in mixed.items()}
        np.testing.assert_allclose(model.predict_proba(alone)[0], found[number], atol=1e-6)


def test_tokens_beyond_the_longest_of_the_dataset_are_not_read() -> None:
    model, samples = predictor("concat"), random_samples(2)
    longer = {**samples, "text": np.concatenate([samples["text"], np.ones((2, 5, 3))], axis=1)}
    np.testing.assert_array_equal(model.predict_proba(longer), model.predict_proba(samples))


def test_modalities_that_the_model_does_not_read_are_ignored() -> None:
    model, samples = predictor("unimodal"), random_samples(2)
    assert list(model.modalities) == ["type"]
    alone = model.predict_proba({"type": samples["type"]})
    np.testing.assert_array_equal(model.predict_proba({**samples, "audio": "not read"}), alone)


def test_regression_predicts_numbers() -> None:
    model = predictor("concat", replace(VARIABLE, task="regression", classes=()))
    found = model.predict(random_samples(5))
    assert (found.labels.shape, found.labels.dtype) == ((5,), np.dtype("float32"))
    assert (found.probabilities, found.classes) == (None, ())
    with pytest.raises(UserError, match="A regression model has no probabilities"):
        model.predict_proba(random_samples(5))


def test_gated_models_return_the_route_of_each_sample() -> None:
    """A sample's scores are those of its route, computed alone."""
    model, samples = predictor("dynmm"), random_samples(12)
    found = model.predict(samples, batch_size=5)
    assert found.routes is not None
    assert found.routes.shape == (12,)
    assert set(found.routes) <= {0, 1}
    network = model._model.members[0]
    inputs = {name: torch.from_numpy(x_BTF).float() for name, x_BTF in samples.items()}
    for number, route in enumerate(found.routes):
        one = {name: x_BTF[number : number + 1] for name, x_BTF in inputs.items()}
        expected = network.on_route(int(route), one, {})[0].numpy()
        np.testing.assert_allclose(found.probabilities[number], expected, atol=1e-6)


# ------------------------------------------------------------------ mistakes

GOOD = random_samples(2)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (GOOD["type"], "Samples must be a dictionary of modalities, such as {'type': array}"),
        ({"types": GOOD["type"]}, r"No modality is called 'types'\. Did you mean 'type'\?"),
        ({}, "There are no samples of type, audio, text"),
        ({**GOOD, "type": GOOD["type"][:1]}, "equally many samples, but got type 1, audio 2"),
        (
            {**GOOD, "type": GOOD["type"][0]},
            r"type must have shape \(samples, any number, 5\), but",
        ),
        ({**GOOD, "type": 3.0}, "type must be an array or a list of arrays, but got float"),
        ({**GOOD, "text": GOOD["text"][..., :2]}, r"text of sample 0 must be .*\(any number, 3\)"),
        ({**GOOD, "audio": GOOD["audio"][:, :5]}, r"audio of sample 0 .*\(6, 1\), but got float64"),
        ({**GOOD, "text": [[[1.0, 2.0, 3.0], [1.0]], None]}, "text of sample 0 must be an array"),
        ({**GOOD, "text": [[["a", "b", "c"]], None]}, "text of sample 0 must be numbers"),
        ({**GOOD, "audio": None}, "audio is missing, but the model needs it"),
        ({**GOOD, "audio": [GOOD["audio"][0], None]}, "audio of sample 1 is missing"),
        (
            {**GOOD, "text": np.full((2, 9, 3), np.nan)},
            "text of sample 0 must be finite, but token",
        ),
        ({**GOOD, "text": np.full((2, 9, 3), 1e300)}, "feature 0 is inf"),
    ],
)
def test_mistakes_in_samples_are_one_clear_line(samples: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        predictor("concat").predict(samples)
    assert "\n" not in str(error.value)


def test_a_sample_without_any_modality_is_an_error() -> None:
    samples = [np.ones((3, 5)), None]
    with pytest.raises(UserError, match=r"Sample 1 has none of the model's modalities \(type\)"):
        predictor("unimodal").predict({"type": samples}, batch_size=1)
    with pytest.raises(UserError, match="`batch_size` must be at least 1, but got 0"):
        predictor("unimodal").predict({"type": samples}, batch_size=0)
