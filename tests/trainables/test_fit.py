"""Training learns, repeats bit by bit, resumes, and reports divergence."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sftsearch.datasets import synthetic
from sftsearch.datasets.catalog import open_dataset
from sftsearch.datasets.samples import Split
from sftsearch.datasets.spec import SPLITS, ModalitySpec
from sftsearch.datasets.store import Store, open_store
from sftsearch.datasets.writer import write_store
from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.config import ConfigError, TrainConfig
from sftsearch.trainables.evaluation import COUNTED, Batches, TrainingDiverged, evaluate
from sftsearch.trainables.fit import Fit

if TYPE_CHECKING:
    from pathlib import Path

    from sftsearch.datasets.spec import DatasetSpec

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_dataset("synthetic", cache=tmp_path_factory.mktemp("stores"))


def small_store(path: Path, spec: DatasetSpec, people: int) -> Store:
    """Write 250 samples per split, of one short modality, from `people` people (0: unknown)."""
    random, count, splits = np.random.default_rng(0), 250, {}
    names = {s: tuple(f"{s}_{p:03d}" for p in range(people)) for s in SPLITS}
    for name in SPLITS:
        labels = random.integers(0, 7, count)
        x_NTF = random.normal(size=(count, 3, 2)).astype(np.float32) * 5
        x_NTF += labels[:, None, None].astype(np.float32)
        people_N = np.arange(count) * 7 % people if people else np.full(count, -1)
        splits[name] = Split(
            name=name, modalities={"x": x_NTF}, labels=labels, subjects=people_N.astype(np.int64)
        )
    spec = replace(
        spec,
        modalities={"x": ModalitySpec(num_tokens=3, num_features=2)},
        classes=tuple("abcdefg"),
        num_samples=dict.fromkeys(SPLITS, count),
        subjects=names,
        best_accuracy=None,
    )
    write_store(path, spec, splits)
    return open_store(path)


@pytest.fixture(scope="module")
def tags(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_dataset("synthetic_tags", cache=tmp_path_factory.mktemp("stores"))


@pytest.fixture(scope="module")
def rating(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_dataset("synthetic_rating", cache=tmp_path_factory.mktemp("stores"))


def start(store: Store, *, seed: int = 0, dropout: float = 0.2, **training: Any) -> Fit:
    config = MODELS["sft"].config(dim=8, num_heads=2, fused_layers=1, dropout=dropout)
    model = build_model("sft", store.spec, config, seed)
    training = {"epochs": 4, "batch_size": 64, "learning_rate": 3e-3} | training
    return Fit(model, store, TrainConfig(**training), seed=seed)


def run(fit: Fit) -> Fit:
    while not fit.done:
        fit.run_epoch()
    return fit


def timeless(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in history]


SECOND_PROCESS = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from sftsearch.datasets.store import open_store
from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.config import TrainConfig
from sftsearch.trainables.fit import Fit
store = open_store(Path(sys.argv[1]))
config = MODELS["sft"].config(dim=8, num_heads=2, fused_layers=1, dropout=0.2)
training = TrainConfig(epochs=4, batch_size=64, learning_rate=3e-3)
fit = Fit(build_model("sft", store.spec, config, 5), store, training, seed=5)
fit.run_epoch()
fit.run_epoch()
print(json.dumps(fit.history))
"""


@pytest.mark.medium
def test_another_process_has_bit_equal_losses(store: Store) -> None:
    torch.manual_seed(123)  # the global random state must not matter
    fit = start(store, seed=5)
    fit.run_epoch()
    fit.run_epoch()
    command = [sys.executable, "-P", "-c", SECOND_PROCESS, str(store.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=55)
    assert timeless(json.loads(done.stdout)) == timeless(fit.history)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("stop", "changed"),
    [
        (0, {}),
        (1, {}),
        (3, {}),
        (1, {"mixup": "manifold", "mixup_warmup": 1}),
        (3, {"mixup": "manifold", "mixup_warmup": 2, "mixup_weights": "sample"}),
        (3, {"mixup": "modality", "mixup_warmup": 0}),
        (1, {"precision": "bfloat16"}),
    ],
)
def test_resumed_run_equals_the_uninterrupted_one_bit_by_bit(
    store: Store, tmp_path: Path, stop: int, changed: dict[str, Any]
) -> None:
    """Without plateau patience, so that the state of the learning rate matters too."""
    options = {"plateau_patience": 0, "learning_rate": 0.05, "epochs": 5} | changed
    whole = run(start(store, **options))
    first = start(store, **options)
    for _ in range(stop):
        first.run_epoch()
    first.save(tmp_path / "checkpoint")
    second = start(store, **options)
    second.load(tmp_path / "checkpoint")
    assert second.epoch == stop
    run(second)
    assert timeless(second.history) == timeless(whole.history)
    assert second.groups() == whole.groups()
    assert second.result() == whole.result()
    for name, weights in whole.model.state_dict().items():
        assert torch.equal(weights, second.model.state_dict()[name]), name


@pytest.mark.medium
def test_another_seed_gives_another_loss(store: Store) -> None:
    """Even from the same weights: batch order and dropout depend on the seed."""
    first, second = start(store, epochs=1), start(store, seed=1, epochs=1)
    second.model.load_state_dict(first.model.state_dict())
    assert first.run_epoch()["train_loss"] != second.run_epoch()["train_loss"]


@pytest.mark.medium
def test_training_does_not_change_the_random_state(store: Store) -> None:
    before = torch.random.get_rng_state()
    start(store).run_epoch()
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.medium
def test_an_epoch_takes_every_sample_once_and_adamw_steps(store: Store) -> None:
    """Compare with plain PyTorch: no dropout, and one batch, so that order does not matter."""
    fit = start(store, dropout=0.0, batch_size=2000, weight_decay=0.1, clip_norm=1e-3)
    reference = start(store, dropout=0.0).model
    train = store.split("train")
    inputs = {
        name: torch.tensor((x_NTF - store.statistics[name][0]) / store.statistics[name][1])
        for name, x_NTF in train.modalities.items()
    }
    optimizer = torch.optim.AdamW(
        reference.parameters(), lr=3e-3, weight_decay=0.1, foreach=False, fused=False
    )
    loss = F.cross_entropy(reference(inputs), torch.tensor(train.labels))
    loss.backward()
    gradients = [p.grad for p in reference.parameters() if p.grad is not None]
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    for gradient in gradients:
        gradient.mul_(1e-3 / norm)
    optimizer.step()
    # The sum of 2,000 float32 terms has another order.
    assert fit.run_epoch()["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
    for ours, theirs in zip(fit.model.parameters(), reference.parameters(), strict=True):
        gradient = theirs.grad
        assert gradient is not None
        # Adam divides by the gradient's size; skip gradients that are only rounding (keys' biases).
        known = gradient.abs() > 1e-3 * gradient.abs().max()
        torch.testing.assert_close(ours[known], theirs[known], rtol=1e-4, atol=1e-5)


@pytest.mark.medium
def test_the_last_incomplete_batch_counts_by_its_samples(store: Store) -> None:
    """At learning rate ~0 the mean training loss is the loss of the split at any batch size."""
    losses = [
        start(store, dropout=0.0, batch_size=size, learning_rate=1e-30).run_epoch()["train_loss"]
        for size in (2000, 1999, 640)
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


@pytest.mark.medium
def test_the_learning_rate_falls_on_a_plateau(store: Store) -> None:
    """At learning rate ~0 no epoch is better than the first; patience 1 allows one such epoch."""
    fit = run(start(store, learning_rate=1e-30, plateau_patience=1, plateau_factor=0.5, epochs=6))
    rates = [entry["learning_rate"] for entry in fit.history]
    assert rates == [1e-30, 1e-30, 1e-30, 5e-31, 5e-31, 2.5e-31]


@pytest.mark.medium
def test_history_has_the_metrics_of_an_evaluation(store: Store) -> None:
    fit = start(store)
    last = fit.run_epoch()
    seen = evaluate(fit.model, store, store.split("validation"), batch_size=7)
    assert list(last) == [
        *("epoch", "train_loss", "loss", "top1", "map", "balanced_accuracy", "macro_f1"),
        *("learning_rate", "seconds"),
    ]
    assert seen.num_absent_classes == 0
    assert seen.metrics == pytest.approx({name: last[name] for name in seen.metrics}, rel=1e-5)
    correct = sum(right for right, _ in seen.groups.values())
    assert correct / 500 == pytest.approx(last["top1"])


@pytest.mark.medium
def test_result_is_the_mean_of_three_epochs_or_the_best(store: Store) -> None:
    last, best = run(start(store)), run(start(store, score_epoch="best"))
    top1 = [entry["top1"] for entry in last.history]
    assert last.result()["top1"] == pytest.approx(np.mean(top1[-3:]))
    assert best.result()["top1"] == max(top1)
    assert set(last.result()) == {"loss", "top1", "map", "balanced_accuracy", "macro_f1"}
    for fit in (last, best):
        correct = sum(right for right, _ in fit.groups().values())
        assert correct / 500 == pytest.approx(fit.result()["top1"])
    short = run(start(store, epochs=2))
    assert short.result()["top1"] == pytest.approx(np.mean(top1[:2]))


@pytest.mark.medium
def test_best_weights_reproduce_the_result_also_after_a_resume(
    store: Store, tmp_path: Path
) -> None:
    fit = start(store, score_epoch="best", epochs=5)
    for _ in range(3):
        fit.run_epoch()
    fit.save(tmp_path / "checkpoint")
    resumed = start(store, score_epoch="best", epochs=5)
    resumed.load(tmp_path / "checkpoint")
    for one in (run(fit), run(resumed)):
        chosen = build_model("sft", store.spec, one.model.config, seed=9)
        chosen.load_state_dict(one.weights())
        again = evaluate(chosen, store, store.split("validation"))
        assert again.metrics["top1"] == one.result()["top1"]
    last = run(start(store, epochs=5))
    assert all(last.weights()[n] is t or last.weights()[n].equal(t)
               for n, t in last.model.state_dict().items())  # fmt: skip


def test_result_before_the_first_epoch_raises(store: Store) -> None:
    with pytest.raises(RuntimeError, match="No epoch"):
        start(store).result()


@pytest.mark.parametrize("people", [0, 1, 2, 3, 120])
def test_groups_count_correct_decisions_by_subject_or_block(
    tmp_path: Path, store: Store, people: int
) -> None:
    """Three people have named groups, and 120 are counted modulo 100.

    The samples of fewer or unknown people are cut into 20 blocks, each class of a person alone.
    """
    own = small_store(tmp_path / "store", store.spec, people)
    fit = start(own)
    fit.run_epoch()
    codes = (np.arange(250) * 7 % people if people else np.zeros(250, dtype=int)).tolist()
    names = [f"validation_{code:03d}" if people == 3 else f"{code % 100:02d}" for code in codes]
    if people < 3:
        number = 20 // max(people, 1)
        alike = list(zip(codes, own.split("validation").labels.tolist(), strict=True))
        blocks = [alike[:n].count(one) * number // alike.count(one) for n, one in enumerate(alike)]
        prefixes = [f"validation_{code:03d} block " if people else "" for code in codes]
        names = [f"{person}{block:02d}" for person, block in zip(prefixes, blocks, strict=True)]
    assert {name: size for name, (_, size) in fit.groups().items()} == {
        name: names.count(name) for name in set(names)
    }
    split = own.split("validation")
    guesses = fit.model({"x": scaled(own, split)}).argmax(dim=1).numpy()
    for name, (right, _) in fit.groups().items():
        in_group = np.array(names) == name
        assert right == (guesses == split.labels)[in_group].sum()
    assert "top5" in fit.history[0]  # seven classes


def scaled(store: Store, split: Split) -> torch.Tensor:
    mean_F, std_F = store.statistics["x"]
    return torch.tensor((split.modalities["x"] - mean_F) / std_F)


@pytest.mark.medium
def test_non_finite_loss_raises_with_epoch_and_step(store: Store) -> None:
    fit = start(store)
    fit.run_epoch()
    with torch.no_grad():
        fit.model.head.linear.bias[0] = float("nan")
    with pytest.raises(TrainingDiverged, match=r"epoch 2, step 1 is nan"):
        fit.run_epoch()
    assert fit.epoch == 1


@pytest.mark.medium
def test_huge_learning_rate_raises_training_diverged(store: Store) -> None:
    fit = start(store, learning_rate=1e30)
    with pytest.raises(TrainingDiverged):
        run(fit)


@pytest.mark.medium
def test_the_test_split_stays_sealed(store: Store) -> None:
    """No epoch reads it: training works without its file."""
    (store.path / "test.arrow").rename(store.path / "hidden")
    try:
        start(store).run_epoch()
    finally:
        (store.path / "hidden").rename(store.path / "test.arrow")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("epochs", True),
        ("batch_size", 2.0),
        ("learning_rate", 0.0),
        ("learning_rate", "1e-3"),
        ("learning_rate", float("nan")),
        ("weight_decay", -1),
        ("clip_norm", float("inf")),
        ("plateau_factor", 1.0),
        ("score_epoch", "mean"),
        ("mixup", "cutmix"),
        ("mixup_alpha", 0.0),
        ("mixup_warmup", -1),
        ("mixup_weights", "modality"),
        ("regression_loss", "huber"),
        ("precision", "float16"),
        ("compile", 1),
    ],
)
def test_a_training_configuration_is_checked(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        TrainConfig(**{field: value})
    assert f"`{field}`" in str(error.value)
    assert repr(value) in str(error.value)


def test_a_warm_up_must_leave_an_epoch_to_mix() -> None:
    with pytest.raises(ConfigError, match=r"\(mixup_warmup=5, epochs=5\)"):
        TrainConfig(mixup="manifold", epochs=5)
    assert TrainConfig(mixup="manifold", epochs=6).mixup_warmup == 5


@pytest.mark.medium
@pytest.mark.parametrize("mixup", ["none", "manifold", "input", "modality"])
def test_sft_reaches_the_best_possible_accuracy_within_two_percent(
    store: Store, mixup: Any
) -> None:
    """Half of synthetic's class is an exclusive or of both modalities, which needs fusion."""
    config = MODELS["sft_po"].config(dim=16, num_heads=2, fused_layers=2, dropout=0.1)
    model = build_model("sft_po", store.spec, config, seed=0)
    training = TrainConfig(epochs=15, learning_rate=2e-3, mixup=mixup)
    run(Fit(model, store, training, seed=0))
    test = evaluate(model, store, store.split("test", unseal_test=True))
    best = store.spec.best_accuracy
    assert best is not None
    assert test.metrics["top1"] > best - 0.02


@pytest.mark.medium
def test_sft_recognizes_activities_from_a_watch(tmp_path: Path) -> None:
    """On three people that are not in the training split."""
    wearables = open_dataset("wearables", cache=tmp_path)
    config = MODELS["sft"].config(
        modalities=("watch_acc", "watch_gyro"),
        patch=8,
        dim=16,
        num_heads=2,
        fused_layers=1,
        stride=4,
        dropout=0.2,
    )
    model = build_model("sft", wearables.spec, config, seed=0)
    fit = run(Fit(model, wearables, TrainConfig(epochs=8), seed=0))
    assert fit.result()["top1"] > 0.80


# Mixup


@pytest.mark.medium
def test_warm_up_epochs_and_evaluation_are_not_mixed(store: Store) -> None:
    plain = start(store, epochs=3)
    mixed = start(store, epochs=3, mixup="manifold", mixup_warmup=2)
    for _ in range(2):
        assert timeless([plain.run_epoch()]) == timeless([mixed.run_epoch()])
    mixed.model.load_state_dict(plain.model.state_dict())
    assert mixed.run_epoch()["train_loss"] != plain.run_epoch()["train_loss"]
    seen = evaluate(mixed.model, store, store.split("validation"))
    assert seen.metrics["loss"] == pytest.approx(mixed.history[-1]["loss"], rel=1e-6)


# Tasks and lengths


def small_fit(store: Store, **training: Any) -> Fit:
    config = MODELS["sft_po"].config(dim=16, num_heads=2, fused_layers=1)
    model = build_model("sft_po", store.spec, config, seed=0)
    return Fit(model, store, TrainConfig(**{"learning_rate": 2e-3} | training), seed=0)


def on_test_split(fit: Fit, store: Store) -> dict[str, float]:
    return evaluate(fit.model, store, store.split("test", unseal_test=True), fit.config).metrics


@pytest.mark.medium
@pytest.mark.parametrize(("loss", "mixup"), [("l1", "none"), ("l2", "none"), ("l1", "manifold")])
def test_ratings_are_learned_nearly_optimally(rating: Store, loss: Any, mixup: Any) -> None:
    """The optimal mean absolute error is 0.567; predicting 0 gives sqrt(2 / pi) 1.5 = 1.197."""
    fit = run(small_fit(rating, epochs=8, regression_loss=loss, mixup=mixup))
    found = on_test_split(fit, rating)
    assert found["mae"] < 1.06 * synthetic.best_mae()
    assert found["pearson"] > 0.97 * synthetic.best_pearson()
    assert fit.history[-1]["loss"] == pytest.approx(fit.history[-1]["mae"]) or loss == "l2"


@pytest.mark.medium
@pytest.mark.parametrize("mixup", ["none", "manifold"])
def test_tags_are_learned_nearly_optimally(tags: Store, mixup: Any) -> None:
    fit = run(small_fit(tags, epochs=8, mixup=mixup))
    best = float(np.mean(synthetic.best_tag_accuracies()))  # which is also the best F1
    assert on_test_split(fit, tags)["micro_f1"] > best - 0.02


@pytest.mark.medium
def test_losses_match_the_tasks_in_float64(tags: Store, rating: Store) -> None:
    """At learning rate ~0, so that the weights do not change."""
    for store, loss in ((tags, "l1"), (rating, "l1"), (rating, "l2")):
        fit = small_fit(store, epochs=1, learning_rate=1e-30, regression_loss=loss, batch_size=300)
        entry, split = fit.run_epoch(), store.split("validation")
        inputs, lengths, _ = fit.validation_batches(np.arange(len(split)))
        p, y = fit.model(inputs, lengths).detach().double(), torch.tensor(split.labels).double()
        if store is tags:
            expected = -(y * p.sigmoid().log() + (1 - y) * (1 - p.sigmoid()).log()).mean()
        else:
            errors = p[:, 0] - y
            expected = errors.abs().mean() if loss == "l1" else errors.square().mean()
        assert entry["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_batches_have_lengths_and_zero_padding(rating: Store) -> None:
    split = rating.split("train")
    batches = Batches(rating, split, ("left", "right"), "cpu")
    rows = np.array([5, 3, 11, 700])
    inputs, lengths, labels = batches(rows)
    assert list(lengths) == ["right"]
    assert lengths["right"].tolist() == split.lengths["right"][rows].tolist()
    assert labels.tolist() == split.labels[rows].tolist()
    for row, length, x_TF in zip(rows, lengths["right"], inputs["right"], strict=True):
        mean_F, std_F = rating.statistics["right"]
        expected = (split.modalities["right"][row][:length] - mean_F) / std_F
        np.testing.assert_allclose(x_TF[:length], expected, rtol=1e-6)
        assert (x_TF[length:] == 0).all()


def test_padding_is_never_read(rating: Store) -> None:
    """NaN after the lengths gives the same outputs, bit by bit."""
    fit = small_fit(rating)
    inputs, lengths, _ = fit.validation_batches(np.arange(50))
    before = fit.network(inputs, lengths)
    positions = torch.arange(inputs["right"].shape[1])
    inputs["right"][positions >= lengths["right"][:, None]] = math.nan
    assert torch.equal(fit.network(inputs, lengths), before)


@pytest.mark.medium
def test_the_best_epoch_of_a_regression_has_the_lowest_error(rating: Store) -> None:
    for rate in (0.03, 0.05, 0.1):  # which rate overshoots depends on the machine's rounding
        fit = run(small_fit(rating, epochs=4, learning_rate=rate, score_epoch="best"))
        errors = [entry["mae"] for entry in fit.history]
        assert fit.result()["mae"] == min(errors)
        if errors[-1] != min(errors) != errors[0]:
            return
    pytest.fail("The best epoch was always the first or the last: inconclusive.")


@pytest.mark.medium
def test_groups_count_decisions_only_if_a_metric_is_their_share(
    rating: Store, tags: Store, tmp_path: Path
) -> None:
    """Ratings count signs (acc2); tags have no groups, as no metric of theirs is such a share."""
    counts = run(small_fit(rating, epochs=1))
    right, count = np.sum(list(counts.groups().values()), axis=0)
    assert count == 500
    assert right / count == pytest.approx(counts.result()[COUNTED["regression"]])
    none = small_fit(tags, epochs=2)
    none.run_epoch()
    none.save(tmp_path / "checkpoint")
    resumed = small_fit(tags, epochs=2)
    resumed.load(tmp_path / "checkpoint")
    resumed.run_epoch()
    assert resumed.groups() == {}
    assert evaluate(resumed.model, tags, tags.split("validation")).groups == {}


# Precision and compilation


@pytest.mark.medium
def test_bfloat16_trains_nearly_the_same_with_float32_weights(store: Store) -> None:
    """Matrix products have eight bits, 0.4 % each, averaged over the samples of an epoch."""
    whole, half = (start(store, dropout=0.0, precision=p) for p in ("float32", "bfloat16"))
    for _ in range(2):
        expected, entry = whole.run_epoch(), half.run_epoch()
        assert entry["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-2)
        assert entry["train_loss"] != expected["train_loss"]
        assert entry["loss"] == pytest.approx(expected["loss"], rel=2e-2)
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}
    again = evaluate(half.model, store, store.split("validation"), half.config)
    assert again.metrics["loss"] == half.history[-1]["loss"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch uses it itself
def test_a_compiled_run_is_nearly_the_same_and_repeats_bit_by_bit(
    rating: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training, mixup and evaluation are compiled; 2,000 samples end in an incomplete batch."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    options: dict[str, Any] = {"epochs": 3, "batch_size": 150}
    options |= {"mixup": "manifold", "mixup_warmup": 1}
    plain, whole = (run(small_fit(rating, **options, compile=c)) for c in (False, True))
    for ours, theirs in zip(whole.history, plain.history, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3
    assert not torch._dynamo.utils.counters["graph_break"]
    first = small_fit(rating, **options, compile=True)
    first.run_epoch()
    first.save(tmp_path / "checkpoint")
    second = small_fit(rating, **options, compile=True)
    second.load(tmp_path / "checkpoint")
    assert timeless(run(second).history) == timeless(whole.history)
