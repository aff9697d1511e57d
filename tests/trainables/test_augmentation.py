"""Augmentations: what they compute, when, and that nothing but the training batches changes.

Shapes: N samples, B batch, T samples of a modality, F features.
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
from sftsearch.datasets.store import Store, open_store
from sftsearch.datasets.writer import write_store
from sftsearch.trainables.augmentation import Augmentation, crop, draw_rotations
from sftsearch.trainables.augmentation_config import STRENGTHS
from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.config import ConfigError, TrainConfig
from sftsearch.trainables.evaluation import Batches
from sftsearch.trainables.fit import Fit
from sftsearch.trainables.token_windows import Cut

if TYPE_CHECKING:
    from pathlib import Path

NUM_SAMPLES = 120
SHAPES = {
    "imu": ModalitySpec(num_tokens=12, num_features=6, axes=3),
    "sound": ModalitySpec(num_tokens=10, num_features=4, variable_length=True),
    "image": ModalitySpec(num_tokens=4, num_features=2),
}
CUTS = {"imu": Cut(4, 3), "sound": Cut(3, 4, resampled=True), "image": Cut(4, 1)}
EVERYTHING: dict[str, Any] = {
    "time_crop": 0.3, "rotation": 20.0, "scaling": 0.1, "jitter": 0.05, "token_dropout": 0.2,
    "time_mask": 0.3, "frequency_mask": 0.5, "spectrograms": ("sound",), "modality_dropout": 0.2,
}  # fmt: skip
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Write a dataset whose class is the mean of every modality; some samples lack `sound`."""
    random, splits = np.random.default_rng(0), {}
    for name in SPLITS:
        labels = random.integers(0, 2, NUM_SAMPLES)
        modalities = {}
        for modality, shape in SHAPES.items():
            x = random.normal(size=(NUM_SAMPLES, shape.num_tokens, shape.num_features))
            x = x * np.arange(1, shape.num_features + 1) + labels[:, None, None] + 3
            modalities[modality] = x.astype(np.float32)
        length = random.integers(0, 11, NUM_SAMPLES)
        modalities["sound"][np.arange(10) >= length[:, None]] = 0
        splits[name] = Split(
            name=name,
            modalities=modalities,
            labels=labels,
            subjects=np.full(NUM_SAMPLES, -1),
            lengths={"sound": length},
        )
    spec = replace(
        describe("synthetic"),
        modalities=SHAPES,
        classes=("low", "high"),
        num_samples=dict.fromkeys(SPLITS, NUM_SAMPLES),
        subjects=dict.fromkeys(SPLITS, ()),
        best_accuracy=None,
    )
    path = tmp_path_factory.mktemp("stores") / "store"
    write_store(path, spec, splits)
    return open_store(path)


def batch_of(store: Store, size: int = NUM_SAMPLES) -> tuple[Any, Any, Any]:
    return Batches(store, store.split("train"), tuple(SHAPES), "cpu")(np.arange(size))


def augmented(store: Store, seed: int = 0, **options: Any) -> tuple[Any, Any]:
    inputs, lengths, _ = batch_of(store)
    torch.manual_seed(seed)
    augment = Augmentation(TrainConfig(**options), store, CUTS)
    return augment(inputs, lengths, np.random.default_rng(seed))


def test_without_a_strength_a_batch_is_returned_as_it_is(store: Store) -> None:
    inputs, lengths, _ = batch_of(store)
    random = np.random.default_rng(0)
    augment = Augmentation(TrainConfig(rotate=("imu",)), store, CUTS)
    found = augment(inputs, lengths, random)
    assert found[0] is inputs
    assert found[1] is lengths
    assert random.random() == np.random.default_rng(0).random()


@pytest.mark.parametrize("name", STRENGTHS)
def test_each_strength_changes_some_numbers_and_keeps_padding_at_zero(
    store: Store, name: str
) -> None:
    inputs, lengths, _ = batch_of(store)
    before = {modality: x.clone() for modality, x in inputs.items()}
    found, new_lengths = augmented(store, **{name: EVERYTHING[name]})
    changed = {m for m, x in found.items() if not torch.equal(x, before[m])}
    assert changed >= {"imu"}
    assert ("sound" in changed) == (name != "rotation")  # it declares no axes
    for modality, x in inputs.items():
        assert torch.equal(x, before[modality]), "the batch itself is not changed"
        assert found[modality].isfinite().all()
        assert found[modality].shape == x.shape
        assert found[modality].dtype == x.dtype
    padded = torch.arange(10) >= new_lengths["sound"][:, None]
    assert padded.any()
    assert not found["sound"][padded].any()
    if name != "modality_dropout":
        assert torch.equal(new_lengths["sound"], lengths["sound"])
        assert new_lengths.keys() == lengths.keys()


def test_the_same_generator_gives_the_same_batch(store: Store) -> None:
    first, again, other = (augmented(store, seed=seed, **EVERYTHING)[0] for seed in (1, 1, 2))
    for name, x in first.items():
        assert torch.equal(x, again[name])
        assert not torch.equal(x, other[name])


# ------------------------------------------------------------- time crop


def test_crop_interpolates_the_part_that_is_kept() -> None:
    x = torch.zeros(3, 12, 2, dtype=torch.float64)
    lengths, share, start = [12, 7, 0], [0.75, 0.9, 0.8], [0.1, 0.05, 0.2]
    x[:2] = torch.randn(2, 12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[1, 7:] = 0
    parts = (torch.tensor(values, dtype=torch.float64) for values in (share, start))
    found = crop(x, torch.tensor(lengths), *parts)
    for row, length in enumerate(lengths[:2]):
        centers = (start[row] + share[row] * (np.arange(length) + 0.5) / length) * length
        for feature in range(2):
            known = x[row, :length, feature].numpy()
            expected = np.interp(centers, np.arange(length) + 0.5, known)
            np.testing.assert_allclose(
                found[row, :length, feature], expected, rtol=1e-10, atol=1e-12
            )
        assert not found[row, length:].any()
    assert not found[2].any()


def test_all_modalities_keep_the_same_part_of_the_time(store: Store) -> None:
    """On a line from 0 to 1 the first and last values show what is kept: it is at least 70 %."""
    spec = store.spec
    inputs = {
        name: ((torch.arange(s.num_tokens) + 0.5) / s.num_tokens)
        .view(1, -1, 1)
        .expand(500, -1, s.num_features)
        for name, s in spec.modalities.items()
    }
    augment = Augmentation(TrainConfig(time_crop=0.3), store, CUTS)
    found, _ = augment(inputs, {}, np.random.default_rng(0))
    steps = {name: x[:, 5, 0] - x[:, 4, 0] for name, x in found.items() if x.shape[1] > 5}
    shares = {name: step * spec.modalities[name].num_tokens for name, step in steps.items()}
    torch.testing.assert_close(shares["imu"], shares["sound"], rtol=0, atol=1e-4)
    assert 0.699 < float(shares["imu"].min()) < 0.71
    assert 0.99 < float(shares["imu"].max()) < 1.001


# ------------------------------------------------------------- rotation


def test_rotations_are_orthogonal_with_angles_of_the_given_deviation() -> None:
    rotations = draw_rotations(20_000, 15.0, np.random.default_rng(0))
    products = rotations @ rotations.transpose(0, 2, 1)
    np.testing.assert_allclose(products, np.broadcast_to(np.eye(3), products.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(rotations), 1, rtol=1e-12)
    angles = np.degrees(np.arccos((np.trace(rotations, axis1=1, axis2=2) - 1) / 2))
    # The root of the mean square of 20,000 angles, within four standard errors: 15 (1 +- 0.02).
    assert np.sqrt((angles**2).mean()) == pytest.approx(15, rel=0.02)
    np.testing.assert_allclose(rotations.mean(axis=0), np.eye(3) * rotations.mean(axis=0)[0, 0],
                               atol=0.02)  # no axis is preferred  # fmt: skip


def test_rotation_turns_the_vectors_of_the_sensor(store: Store) -> None:
    """In the units of the sensor the lengths and angles of all triples stay."""
    inputs, _, _ = batch_of(store)
    found, _ = augmented(store, rotation=40.0)
    mean, std = (torch.tensor(values) for values in store.statistics["imu"])
    before, after = ((x["imu"] * std + mean).double() for x in (inputs, found))
    vectors = [x.reshape(NUM_SAMPLES, 24, 3) for x in (before, after)]
    grams = [x @ x.transpose(1, 2) for x in vectors]
    torch.testing.assert_close(grams[1], grams[0], rtol=1e-4, atol=1e-3)
    assert not torch.allclose(vectors[1], vectors[0], atol=0.5)
    turns = [torch.linalg.lstsq(*(x[i] for x in vectors)).solution for i in range(NUM_SAMPLES)]
    assert len({tuple(turn.flatten().tolist()) for turn in turns}) == NUM_SAMPLES


def test_named_modalities_are_rotated_in_place_of_declared_ones(store: Store) -> None:
    spec = replace(store.spec, modalities={**SHAPES, "image": replace(SHAPES["imu"], axes=None)})
    config = TrainConfig(rotation=10, rotate=("image",))
    assert config.rotated(spec) == ("image",)
    assert TrainConfig(rotation=10).rotated(spec) == ("imu",)
    assert config.canonical(spec).rotate == ("image",)


# ------------------------------------------------------------- values


def test_scaling_multiplies_each_modality_of_a_sample_by_one_factor(store: Store) -> None:
    inputs, _, _ = batch_of(store)
    found, _ = augmented(store, scaling=0.2)
    factors = (found["imu"] / inputs["imu"]).flatten(1)
    torch.testing.assert_close(factors, factors[:, :1].expand_as(factors))
    logarithms = factors[:, 0].log()
    # 120 draws: the standard error of a deviation is 0.2 / sqrt(240) = 0.013.
    assert float(logarithms.std()) == pytest.approx(0.2, abs=0.052)
    assert not torch.allclose(factors[:, 0], (found["image"] / inputs["image"])[:, 0, 0])


def test_jitter_adds_noise_of_the_given_deviation_to_real_samples(store: Store) -> None:
    inputs, lengths, _ = batch_of(store)
    found, _ = augmented(store, jitter=0.3)
    noise = found["imu"] - inputs["imu"]
    # 8,640 draws: four standard errors are 0.3 * 4 / sqrt(17,280) = 0.009.
    assert float(noise.std()) == pytest.approx(0.3, abs=0.009)
    assert abs(float(noise.mean())) < 4 * 0.3 / 8640**0.5
    real = torch.arange(10) < lengths["sound"][:, None]
    assert bool((found["sound"] != inputs["sound"])[real].any(dim=-1).all())


def test_token_dropout_zeroes_the_samples_of_whole_tokens(store: Store) -> None:
    inputs, lengths, _ = batch_of(store)
    found, _ = augmented(store, token_dropout=0.3)
    patches = found["imu"].view(NUM_SAMPLES, 4, 18)
    dropped = (patches == 0).all(dim=-1)
    assert torch.equal((patches == 0).any(dim=-1), dropped)
    assert torch.equal(found["imu"].view(-1, 18)[~dropped.flatten()],
                       inputs["imu"].view(-1, 18)[~dropped.flatten()])  # fmt: skip
    # 480 tokens: four standard errors of the share are 4 sqrt(0.3 0.7 / 480) = 0.084.
    assert float(dropped.float().mean()) == pytest.approx(0.3, abs=0.084)
    for row in torch.where(lengths["sound"] == 9)[0]:  # three segments of three samples each
        kept = (found["sound"][row, :9] != 0).all(dim=-1).view(3, 3)
        assert bool((kept.all(dim=1) | (~kept).all(dim=1)).all())


def test_masks_hide_adjacent_samples_and_features_of_spectrograms(store: Store) -> None:
    inputs, _, _ = batch_of(store)
    for name, most, axis in (("time_mask", 6, 1), ("frequency_mask", 3, 2)):
        found, _ = augmented(store, **{name: 0.5}, spectrograms=("imu",))
        assert torch.equal(found["sound"], inputs["sound"])
        hidden = (found["imu"] == 0).all(dim=3 - axis)
        assert torch.equal(hidden.sum(dim=1) * (72 // found["imu"].shape[axis]),
                           (found["imu"] == 0).sum(dim=(1, 2)))  # fmt: skip
        widths = hidden.sum(dim=1)
        assert set(widths.tolist()) == set(range(most + 1))
        edges = hidden.float().diff(dim=1).abs().sum(dim=1)
        assert bool((edges <= 2).all()), "one run"


def test_modality_dropout_leaves_at_least_one_that_the_sample_had(store: Store) -> None:
    _, before, _ = batch_of(store)
    found, lengths = augmented(store, modality_dropout=0.6)
    whole = {name: torch.full((NUM_SAMPLES,), s.num_tokens) for name, s in SHAPES.items()}
    for name, length in lengths.items():
        known = before.get(name, whole[name])
        assert bool(((length == 0) | (length == known)).all())
        assert not found[name][length == 0].any()
    left = torch.stack([*lengths.values()]) > 0
    assert bool(left.any(dim=0).all())
    # Of those that always exist: dropped by chance, less the cases in which all would be.
    dropped = float((~left)[0].float().mean())
    assert 0.3 < dropped < 0.6
    alone, same = Augmentation(TrainConfig(modality_dropout=0.9), store, {"imu": CUTS["imu"]})(
        {"imu": batch_of(store)[0]["imu"]}, {}, np.random.default_rng(0)
    )
    assert same == {}
    assert torch.equal(alone["imu"], batch_of(store)[0]["imu"])


# ------------------------------------------------------------- training


def start(store: Store, seed: int = 0, kind: str = "sft_po", **training: Any) -> Fit:
    options = {"segments": 4, "tokenizer": "linear_statistics"} if kind == "sft_po" else {}
    sizes = {"dim": 8, "num_heads": 2, "fused_layers": 1} if kind == "sft_po" else {}
    config = MODELS[kind].config(**sizes, **options)
    model = build_model(kind, store.spec, config, seed)
    defaults = {"epochs": 3, "batch_size": 50, "learning_rate": 0.01}
    return Fit(model, store, TrainConfig(**defaults | training), seed=seed)


def run(fit: Fit) -> list[dict[str, float]]:
    while not fit.done:
        fit.run_epoch()
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in fit.history]


MIXED: dict[str, Any] = {"mixup": "manifold", "mixup_warmup": 1, "average_weights": 0.9}


@pytest.mark.medium
@pytest.mark.parametrize("stop", [0, 1, 2])
def test_a_resumed_run_is_bit_equal(store: Store, tmp_path: Path, stop: int) -> None:
    whole, first, second = (start(store, **EVERYTHING, **MIXED) for _ in range(3))
    expected = run(whole)
    for _ in range(stop):
        first.run_epoch()
    first.save(tmp_path / "checkpoint")
    second.load(tmp_path / "checkpoint")
    assert run(second) == expected
    for name, weights in whole.weights().items():
        assert torch.equal(weights, second.weights()[name]), name


@pytest.mark.medium
@pytest.mark.parametrize("name", STRENGTHS)
def test_each_strength_changes_training_and_leaves_the_validation_split_alone(
    store: Store, name: str
) -> None:
    plain, changed = start(store), start(store, **{name: EVERYTHING[name]})
    assert run(plain) != run(changed)
    assert [entry["learning_rate"] for entry in plain.history] == [0.01] * 3
    again = start(store)
    again.model.load_state_dict(changed.model.state_dict())
    batch = next(again.validation_batches.in_order(64))
    evaluated = [fit.model.eval()(*batch[:2]) for fit in (changed, again)]
    assert torch.equal(*evaluated)


@pytest.mark.medium
def test_models_without_tokens_are_augmented_too(store: Store) -> None:
    assert run(start(store, kind="mlp")) != run(start(store, kind="mlp", **EVERYTHING))


@pytest.mark.medium
def test_time_of_a_step_includes_augmentation(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []

    def note(_: Augmentation, inputs: Any, lengths: Any, random: object) -> Any:
        called.append(random)
        return inputs, lengths

    monkeypatch.setattr(Augmentation, "__call__", note)
    start(store, jitter=0.1).seconds_a_step(repeats=2)
    assert len(called) == 3


# ------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time_crop": 1.0}, r"`time_crop` must lie in \[0, 1\), but got 1.0"),
        ({"token_dropout": -0.1}, r"`token_dropout` must lie in \[0, 1\)"),
        ({"modality_dropout": 1}, r"`modality_dropout` must lie in \[0, 1\)"),
        ({"time_mask": 2}, r"`time_mask` must lie in \[0, 1\)"),
        ({"frequency_mask": 2}, r"`frequency_mask` must lie in \[0, 1\)"),
        ({"rotation": -1}, r"`rotation` must lie in \[0, inf\)"),
        ({"scaling": float("nan")}, "`scaling` must lie in"),
        ({"jitter": "much"}, "`jitter` must lie in"),
        ({"rotate": []}, "`rotate` must be a non-empty list of distinct names"),
        ({"spectrograms": ["a", "a"]}, "`spectrograms` must be a non-empty list of distinct names"),
    ],
)
def test_invalid_values_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        TrainConfig(**options)
    assert caught.value.parameters == tuple(options)


def test_augmentations_that_do_not_fit_the_dataset_are_refused(store: Store) -> None:
    plain = replace(store.spec, modalities={"image": SHAPES["image"], "sound": SHAPES["sound"]})
    for options, spec, message in (
        ({"rotation": 5}, plain, "`rotation` needs a modality with three axes, but 'synthetic'"),
        ({"rotation": 5, "rotate": ["image"]}, plain, "image has 2 features"),
        ({"rotation": 5, "rotate": ["imo"]}, store.spec, "no modality 'imo'. Did you mean 'imu'?"),
        ({"time_mask": 0.1, "spectrograms": ["sond"]}, store.spec, "Did you mean 'sound'?"),
    ):
        with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
            TrainConfig(**options).canonical(spec)
    assert TrainConfig(rotate=("imo",)).canonical(plain) == TrainConfig()


def test_the_sensors_of_wearables_have_three_axes() -> None:
    spec = describe("wearables")
    assert TrainConfig(rotation=5).rotated(spec) == tuple(spec.modalities)


def test_a_store_built_before_axes_were_declared_still_opens(tmp_path: Path) -> None:
    manifest = open_dataset("wearables", cache=tmp_path).path / "manifest.json"
    text = manifest.read_text()
    assert '"axes": 3' in text
    lines = [line for line in text.splitlines() if '"axes"' not in line]
    manifest.write_text("\n".join(lines).replace('"float32",\n   }', '"float32"\n   }'))
    store = open_dataset("wearables", cache=tmp_path)
    assert store.spec.modalities["watch_acc"].axes == 3
