"""Each training option equals a plain PyTorch loop, and resumes bit by bit after any epoch."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from drive_parallel import TINY, build
from sklearn.utils.class_weight import compute_class_weight
from torch.optim import SGD, Adam, AdamW, Optimizer, lr_scheduler

from sftsearch.datasets.catalog import open_dataset
from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.checkpoint import CheckpointError
from sftsearch.trainables.config import ConfigError, TrainConfig
from sftsearch.trainables.evaluation import evaluate
from sftsearch.trainables.fit import Fit
from sftsearch.trainables.optimization import Optimization, averaging, factor_at
from sftsearch.trainables.training_loss import balanced_weights, training_losses

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from sftsearch.datasets.store import Store

EPOCHS, BATCH, RATE = 4, 270, 0.02
NUM_STEPS = 8  # of 2,000 samples; the last batch has 110
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_dataset("synthetic", cache=tmp_path_factory.mktemp("stores"))


def start(store: Store, kind: str = "sft_po", model: dict[str, Any] | None = None,
          **training: Any) -> Fit:  # fmt: skip
    """Prepare the training of a small model without dropout."""
    config = MODELS[kind].config
    sizes = {name: value for name, value in TINY.items() if hasattr(config, name)}
    built = build_model(kind, store.spec, config(**sizes | (model or {})), seed=0)
    defaults = {"epochs": EPOCHS, "batch_size": BATCH, "learning_rate": RATE}
    return Fit(built, store, TrainConfig(**(defaults | training)), seed=0)


def run(fit: Fit) -> Fit:
    while not fit.done:
        fit.run_epoch()
    return fit


def timeless(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in history]


def column(fit: Fit, name: str) -> list[float]:
    return [entry[name] for entry in fit.history]


# A plain loop


def plain(
    store: Store,
    make: Callable[[Any], Optimizer],
    schedule: Callable[[Optimizer], Any] | None = None,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    clip: float | None = 0.8,
    batch: int = BATCH,
    after_step: Callable[[nn.Module], None] | None = None,
) -> tuple[list[float], nn.Module]:
    """Return the mean training loss of each epoch, and the model."""
    fit = start(store)  # only its model and samples are used
    model, samples = fit.model, fit._train_batches
    optimizer = make(model.parameters())
    scheduler = schedule(optimizer) if schedule else None
    means = []
    for epoch in range(EPOCHS):
        order = np.random.default_rng([0, epoch]).permutation(samples.size)
        model.train()
        total = 0.0
        for first in range(0, len(order), batch):
            inputs, lengths, labels = samples(order[first : first + batch])
            mean = loss(model(inputs, lengths), labels)
            optimizer.zero_grad()
            mean.backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            if scheduler:
                scheduler.step()
            if after_step:
                after_step(model)
            total += mean.item() * len(labels)
        means.append(total / len(order))
    return means, model


def adamw(parameters: Any, **options: Any) -> Optimizer:
    return AdamW(parameters, lr=RATE, fused=True, weight_decay=0.0, **options)


def linear_then_cosine(optimizer: Optimizer) -> Any:
    """Return torch's schedulers for a warm-up of 1.5 epochs, 12 steps, and a cosine."""
    parts = [
        lr_scheduler.LinearLR(optimizer, start_factor=1 / 12, total_iters=11),
        lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS * NUM_STEPS - 12),
    ]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[12])


def smoothed(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels, label_smoothing=0.3, reduction="none").mean()


PLAIN: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"make": adamw}),
    (
        {"weight_decay": 0.1},
        {"make": lambda p: AdamW(p, lr=RATE, weight_decay=0.1, fused=True)},
    ),
    (
        {"optimizer": "adam", "weight_decay": 0.1},
        {"make": lambda p: Adam(p, lr=RATE, weight_decay=0.1, fused=True)},
    ),
    (
        {"optimizer": "sgd", "weight_decay": 0.1},
        {"make": lambda p: SGD(p, lr=RATE, momentum=0.9, weight_decay=0.1)},
    ),
    ({"optimizer": "sgd", "momentum": 0.0}, {"make": lambda p: SGD(p, lr=RATE)}),
    ({"schedule": "constant"}, {"make": adamw}),
    (
        {"schedule": "cosine"},
        {
            "make": adamw,
            "schedule": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=EPOCHS * NUM_STEPS),
        },
    ),
    (
        {"schedule": "cosine", "warmup_epochs": 1.5},
        {"make": adamw, "schedule": linear_then_cosine},
    ),
    (
        {"schedule": "step", "step_epochs": 2, "plateau_factor": 0.3},
        {
            "make": adamw,
            "schedule": lambda o: lr_scheduler.StepLR(o, step_size=2 * NUM_STEPS, gamma=0.3),
        },
    ),
    (
        {"warmup_epochs": 0.5},
        {
            "make": adamw,
            "schedule": lambda o: lr_scheduler.LinearLR(o, start_factor=1 / 4, total_iters=3),
        },
    ),
    ({"clip_norm": None}, {"make": adamw, "clip": None}),
    ({"clip_norm": 0.05}, {"make": adamw, "clip": 0.05}),
    ({"label_smoothing": 0.3}, {"make": adamw, "loss": smoothed}),
    # One large batch has the gradient of the mean loss over the same samples. (Adam would divide
    # gradients that are only rounding by their size.)
    (
        {"accumulate": 3, "optimizer": "sgd"},
        {"make": lambda p: SGD(p, lr=RATE, momentum=0.9), "batch": 3 * BATCH},
    ),
]


@pytest.mark.medium
@pytest.mark.parametrize(("options", "loop"), PLAIN, ids=[str(options) for options, _ in PLAIN])
def test_an_option_trains_as_a_plain_loop(
    store: Store, options: dict[str, Any], loop: dict[str, Any]
) -> None:
    losses, model = plain(store, **loop)
    fit = run(start(store, **options))
    assert column(fit, "train_loss") == pytest.approx(losses, rel=1e-6)
    for ours, theirs in zip(fit.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.medium
def test_options_that_change_training_are_not_without_effect(store: Store) -> None:
    """Else an equal plain loop would prove nothing."""
    options = [options for options, _ in PLAIN if options != {"schedule": "constant"}]
    found = [column(run(start(store, epochs=3, **one)), "train_loss")[-1] for one in options]
    assert len(set(found)) == len(options)


@pytest.mark.medium
def test_averaged_weights_are_evaluated_and_saved(store: Store) -> None:
    """The averages start from the weights after the first step."""
    averages: list[Tensor] = []

    @torch.no_grad()
    def average(model: nn.Module) -> None:
        current = [parameter.clone() for parameter in model.parameters()]
        averages[:] = [
            0.9 * old + 0.1 * new for old, new in zip(averages or current, current, strict=True)
        ]

    losses, model = plain(store, adamw, after_step=average)
    fit = run(start(store, average_weights=0.9))
    assert column(fit, "train_loss") == pytest.approx(losses, rel=1e-6)
    for ours, theirs in zip(fit.model.parameters(), averages, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    distance = max((a - b).abs().max() for a, b in zip(averages, model.parameters(), strict=True))
    assert distance > 1e-2
    assert all(fit.weights()[name] is not None for name in fit.model.state_dict())
    chosen = build_model("sft_po", store.spec, fit.model.config, seed=9)  # type: ignore[arg-type]
    chosen.load_state_dict(fit.weights())
    seen = evaluate(chosen, store, store.split("validation")).metrics
    assert seen["loss"] == fit.history[-1]["loss"]


def test_averages_of_indices_and_masks_are_copies() -> None:
    """5 * 0.999 + 5 * 0.001 is less than 5 in float32."""
    values = [torch.arange(100), torch.tensor([True, False])]
    averages = [value.clone() for value in values]
    for _ in range(50):
        for average, value in zip(averages, values, strict=True):
            averaging(0.999)([average], [value], 1)
    assert all(torch.equal(a, v) for a, v in zip(averages, values, strict=True))


@pytest.mark.medium
@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_has_averages(store: Store, name: str) -> None:
    config = TrainConfig(epochs=2, batch_size=500, average_weights=0.5)
    fit = Fit(build(name, store, torch.float32), store, config, seed=0)
    run(fit)
    seen = evaluate(fit.model, store, store.split("validation"), config).metrics
    assert seen["loss"] == fit.history[-1]["loss"]


# Training loss


@pytest.mark.medium
def test_class_weights_are_those_of_scikit_learn(store: Store) -> None:
    """The mean is over samples; the weights' mean over the training split is 1."""
    labels = store.split("train").labels
    expected = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    weights = torch.tensor(expected, dtype=torch.float32)

    def weighted(outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs, labels, weights, reduction="none").mean()

    losses, _ = plain(store, adamw, loss=weighted)
    fit = run(start(store, class_weights="balanced"))
    assert column(fit, "train_loss") == pytest.approx(losses, rel=1e-6)


def test_a_class_without_samples_has_weight_zero() -> None:
    """Two of three classes have 1 and 3 of 4 samples: 4 / (2 x 1) and 4 / (2 x 3)."""
    found = balanced_weights(np.array([2, 0, 2, 2]), 3)
    assert found.tolist() == pytest.approx([2.0, 0.0, 2 / 3])


def test_smoothing_and_weights_together_are_those_of_torch() -> None:
    """In float64: -w_y (1 - e) log p_y - e / C sum_c w_c log p_c, by hand."""
    config = TrainConfig(label_smoothing=0.2, class_weights="balanced")
    labels = np.array([0, 1, 1, 2, 2, 2])
    losses = training_losses("classification", config, labels, 3)
    outputs = torch.randn(6, 3, dtype=torch.float64, generator=torch.manual_seed(0))
    weights, log_p = [2.0, 1.0, 2 / 3], outputs.log_softmax(dim=1)
    for row, label, found in zip(log_p, labels, losses(outputs, torch.tensor(labels)), strict=True):
        spread = sum(weight * value for weight, value in zip(weights, row, strict=True)) / 3
        assert found.item() == pytest.approx(-0.8 * weights[label] * row[label] - 0.2 * spread)


@pytest.mark.medium
@pytest.mark.parametrize("option", [{"label_smoothing": 0.3}, {"class_weights": "balanced"}])
def test_the_validation_loss_stays_plain(store: Store, option: dict[str, Any]) -> None:
    fit = start(store, **option)
    entry = fit.run_epoch()
    split = store.split("validation")
    inputs, lengths, labels = fit.validation_batches(np.arange(len(split)))
    with torch.no_grad():
        expected = F.cross_entropy(fit.model.eval()(inputs, lengths), labels).item()
    assert entry["loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("option", [{"label_smoothing": 0.3}, {"class_weights": "balanced"}])
def test_other_tasks_refuse_options_of_the_cross_entropy(
    tmp_path: Path, option: dict[str, Any]
) -> None:
    (name,) = option
    for dataset in ("synthetic_tags", "synthetic_rating"):
        other = open_dataset(dataset, cache=tmp_path)
        with pytest.raises(ConfigError, match=f"`{name}` changes the cross-entropy") as error:
            start(other, **option)
        assert error.value.parameters == (name,)


# Learning rate


def test_warm_up_counts_steps_and_cosine_takes_the_rest() -> None:
    """2.5 epochs of 4 steps are 10; then half a cosine over the other 10."""
    config = TrainConfig(epochs=5, schedule="cosine", warmup_epochs=2.5)
    factors = [factor_at(step, 4, 5, config) for step in range(20)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    expected = [(1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)]
    assert factors[10:] == pytest.approx(expected)


@pytest.mark.medium
def test_warm_up_multiplies_plateau_and_steps(store: Store) -> None:
    """At learning rate ~0 no epoch is better than the first; entries are of an epoch's start."""
    tiny = {"learning_rate": 1e-30, "warmup_epochs": 2, "epochs": 6, "plateau_factor": 0.5}
    fit = run(start(store, **tiny, plateau_patience=1))
    # 16 steps of warm-up; reduced after epochs 3 and 5, as without a warm-up.
    expected = [1 / 16, 9 / 16, 1, 0.5, 0.5, 0.25]
    assert column(fit, "learning_rate") == pytest.approx([1e-30 * factor for factor in expected])
    fit = run(start(store, **tiny, schedule="step", step_epochs=1))
    expected = [1 / 16, 0.5 * 9 / 16, 0.25, 0.125, 0.0625, 0.03125]
    assert column(fit, "learning_rate") == pytest.approx([1e-30 * factor for factor in expected])


# Patience


@pytest.mark.parametrize(
    ("losses", "patience", "is_over"),
    [
        ([], 1, False),
        ([3.0], 1, False),
        ([3.0, 2.0, 1.0], 1, False),
        ([3.0, 2.0, 2.0], 1, True),  # an equal loss is no improvement
        ([3.0, 2.0, 2.5, 2.1], 3, False),
        ([3.0, 2.0, 2.5, 2.1, 2.2], 3, True),
        ([3.0, 2.0, 2.5, 1.9, 2.2], 3, False),
        ([1.0, 2.0, 1.0, 2.0], None, False),
        ([9.0, 8.0, 7.0, 6.0, 5.0, 4.0], 2, True),  # the last epoch
    ],
)
def test_patience_counts_epochs_since_the_lowest_loss(
    store: Store, losses: list[float], patience: int | None, is_over: bool
) -> None:
    config = TrainConfig(epochs=6, patience=patience)
    model = build("sft_po", store, torch.float32)
    assert Optimization(model, config, 1).is_over(losses) == is_over


@pytest.mark.medium
def test_patience_ends_a_trial_which_is_then_complete(store: Store) -> None:
    """At learning rate ~0 the first epoch is the best; the value is the mean of the last three."""
    fit = run(start(store, learning_rate=1e-30, epochs=9, patience=4))
    assert fit.epoch == 5
    assert fit.result()["loss"] == pytest.approx(np.mean(column(fit, "loss")[-3:]))
    assert fit.result()["top1"] == pytest.approx(fit.history[0]["top1"])


# Stages of gated models


def gated(store: Store, **training: Any) -> Fit:
    """Prepare DynMM with two stages of two epochs, without noise."""
    own = {"alone": 0.5, "noise": False, "joint_learning_rate": 0.003, "tau_end": 1.0}
    return start(store, "dynmm", own, **training)


@pytest.mark.medium
@pytest.mark.parametrize("optimizer", [AdamW, Adam, SGD])
def test_a_stage_trains_as_with_a_new_optimizer(
    store: Store, optimizer: type[AdamW | Adam | SGD]
) -> None:
    name = optimizer.__name__.lower()
    fit = run(gated(store, optimizer=name, weight_decay=0.01))
    other = gated(store)
    model, samples, means = other.model, other._train_batches, []
    for epoch in range(EPOCHS):
        if epoch in (0, 2):
            options = {"momentum": 0.9} if optimizer is SGD else {}
            rate = RATE if epoch == 0 else 0.003
            made = optimizer(model.parameters(), rate, weight_decay=0.01, fused=True, **options)
        order = np.random.default_rng([0, epoch]).permutation(samples.size)
        model.begin_epoch(epoch, EPOCHS)
        model.train()
        total = 0.0
        for first in range(0, len(order), BATCH):
            inputs, lengths, labels = samples(order[first : first + BATCH])
            losses = model.losses(
                lambda p, y: F.cross_entropy(p, y, reduction="none"), model(inputs, lengths), labels
            )
            made.zero_grad()
            losses.mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.8)
            made.step()
            total += losses.sum().item()
        means.append(total / len(order))
    assert column(fit, "train_loss") == pytest.approx(means, rel=1e-6)


@pytest.mark.medium
def test_each_stage_has_its_own_schedule(store: Store) -> None:
    """Two stages of two epochs: a quarter of an epoch of warm-up is two of eight steps."""
    fit = run(gated(store, schedule="cosine", warmup_epochs=0.25))
    middle = (1 + math.cos(math.pi * (8 - 2) / (16 - 2))) / 2
    expected = [RATE / 2, RATE * middle, 0.003 / 2, 0.003 * middle]
    assert column(fit, "learning_rate") == pytest.approx(expected)


@pytest.mark.medium
def test_plateau_and_patience_judge_only_the_stage_with_the_gate(store: Store) -> None:
    """At learning rate ~0 stage I, epochs 1 to 4, has no improvement, and does not count."""
    own = {"alone": 0.5, "joint_learning_rate": 1e-30}
    tiny = {"epochs": 8, "learning_rate": 1e-30, "plateau_patience": 0, "plateau_factor": 0.5}
    fit = run(start(store, "dynmm", own, **tiny))
    rates = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.25]
    assert column(fit, "learning_rate") == pytest.approx([1e-30 * rate for rate in rates])
    assert run(start(store, "dynmm", own, **tiny, patience=2)).epoch == 7
    without = own | {"alone": 0.0}
    assert run(start(store, "dynmm", without, **tiny, patience=2)).epoch == 3


# Resuming

RESUMED: dict[str, dict[str, Any]] = {
    "adam": {"optimizer": "adam"},
    "sgd": {"optimizer": "sgd"},
    "sgd without momentum": {"optimizer": "sgd", "momentum": 0.0},
    "cosine": {"schedule": "cosine", "warmup_epochs": 1.5},
    "step": {"schedule": "step", "step_epochs": 1},
    "constant": {"schedule": "constant", "clip_norm": None},
    "plateau": {"plateau_patience": 0, "warmup_epochs": 1.3, "learning_rate": 0.2},
    "loss": {"label_smoothing": 0.1, "class_weights": "balanced"},
    "accumulate": {"accumulate": 3, "mixup": "manifold", "mixup_warmup": 1},
    "average": {"average_weights": 0.9},
    "best average": {"average_weights": 0.9, "score_epoch": "best"},
    "patience": {"patience": 1, "learning_rate": 0.2},
    "stages": {
        "kind": "dynmm", "model": {"joint_learning_rate": 0.003}, "schedule": "cosine",
        "optimizer": "sgd", "average_weights": 0.9, "patience": 1,
    },
    "batch norm": {"kind": "msaf", "average_weights": 0.9, "accumulate": 2},
    "blending": {"kind": "gradient_blending", "average_weights": 0.9},
}  # fmt: skip


@pytest.mark.medium
@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_equals_the_uninterrupted_one_after_any_epoch(
    store: Store, tmp_path: Path, name: str
) -> None:
    options = copy.deepcopy(RESUMED[name])
    whole = start(store, **options)
    whole.save(tmp_path / "0")
    while not whole.done:
        whole.run_epoch()
        whole.save(tmp_path / str(whole.epoch))
    for stop in range(whole.epoch + 1):
        resumed = start(store, **options)
        resumed.load(tmp_path / str(stop))
        assert resumed.epoch == stop
        assert run(resumed).epoch == whole.epoch
        assert timeless(resumed.history) == timeless(whole.history)
        assert resumed.result() == whole.result()
        expected, found = whole._tensors(), resumed._tensors()
        assert found.keys() == expected.keys()
        for key, tensor in found.items():
            assert torch.equal(tensor, expected[key]), key


SEVERAL_WORKERS = """
import json, sys
from pathlib import Path
import torch
from drive_parallel import build
from sftsearch.datasets.catalog import open_dataset
from sftsearch.trainables import distributed
from sftsearch.trainables.config import TrainConfig
from sftsearch.trainables.distributed import Workers
from sftsearch.trainables.fit import Fit

rank, count, port, folder = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
torch.set_num_threads(1)
workers, listener = Workers(rank, count), None
if count > 1 and rank == 0:
    listener = distributed.listen(distributed.LOOPBACK)
    port = listener.getsockname()[1]
    print(port, flush=True)
if count > 1:
    distributed.join(workers, distributed.LOOPBACK, port, listener)
store, found = open_dataset("synthetic", cache=folder), {}
for name, options in json.loads(sys.argv[5]):
    for resumes in (False, True):
        model = build(name, store, torch.float32)
        fit = Fit(model, store, TrainConfig(**options), seed=0, workers=workers)
        if resumes and rank == 0:
            fit.load(folder / f"{count}")
        fit.follow_first()
        while not fit.done:
            fit.run_epoch()
            if rank == 0 and fit.epoch == 1:
                fit.save(folder / f"{count}")
        found[f"{name} {resumes}"] = fit.history
print(json.dumps(found))
distributed.leave()
"""


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_workers_train_and_resume_as_one(store: Store, tmp_path: Path) -> None:
    """Up to rounding; batch normalization differs, but its averages are the first worker's."""
    options = {"optimizer": "sgd", "learning_rate": 0.05, "schedule": "cosine", "epochs": 3}
    options |= {"accumulate": 3, "batch_size": 269, "average_weights": 0.8, "warmup_epochs": 0.5}
    options |= {"class_weights": "balanced", "label_smoothing": 0.1}
    runs = [("sft_po", options | {"patience": 1}), ("dynmm_fusion", options), ("msaf", options)]

    def launch(rank: int, count: int, port: str) -> subprocess.Popen[str]:
        code = [sys.executable, "-P", "-c", SEVERAL_WORKERS, str(rank), str(count), port]
        command = [*code, str(tmp_path), json.dumps(runs)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    open_dataset("synthetic", cache=tmp_path)
    first = launch(0, 2, "0")
    assert first.stdout is not None
    both = [first, launch(1, 2, first.stdout.readline().strip())]
    outputs = [one.communicate(timeout=150)[0] for one in (*both, launch(0, 1, "0"))]
    found = [json.loads(out.splitlines()[-1]) for out in outputs]
    for name, _ in runs:
        histories = [
            timeless(one[f"{name} {resumes}"]) for one in found for resumes in (False, True)
        ]
        first_whole, first_resumed, second_whole, second_resumed, alone, _ = histories
        assert first_whole == first_resumed == second_whole == second_resumed
        if name == "sft_po":
            assert len(alone) == len(first_whole)
            for one, other in zip(alone, first_whole, strict=True):
                assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
                assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)


@pytest.mark.medium
def test_checkpoints_of_other_options_are_refused(store: Store, tmp_path: Path) -> None:
    options: list[dict[str, Any]] = [
        {},
        {"optimizer": "sgd"},
        {"average_weights": 0.9},
        {"schedule": "constant"},
        {"patience": 2},
    ]
    for number, one in enumerate(options):
        start(store, **one).save(tmp_path / str(number))
    for number, other in itertools.permutations(range(len(options)), 2):
        with pytest.raises(CheckpointError, match=r"training|another model"):
            start(store, **options[other]).load(tmp_path / str(number))


PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text()


def test_the_page_lists_every_option_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \|", PAGE, flags=re.MULTILINE)
    defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    assert {name: yaml.safe_load(text) for name, text in rows} == {
        name: "none" if default == "none" else default for name, default in defaults.items()
    }


def test_the_recipes_of_the_page_are_valid() -> None:
    recipes = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
    assert len(recipes) == 7
    for recipe in recipes:
        TrainConfig(**recipe["training"])
        for branch in recipe.get("space", []):
            MODELS[branch.pop("kind")].config(**branch)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("optimizer", "lion"),
        ("momentum", 1.0),
        ("schedule", "linear"),
        ("warmup_epochs", -1),
        ("warmup_epochs", math.inf),
        ("step_epochs", 0),
        ("clip_norm", 0.0),
        ("patience", 0),
        ("patience", 1.5),
        ("accumulate", 0),
        ("average_weights", 0.0),
        ("average_weights", 1.0),
        ("label_smoothing", 1.0),
        ("class_weights", "inverse"),
    ],
)
def test_an_option_is_checked(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        TrainConfig(**{field: value})
    assert error.value.parameters[0] == field
    assert repr(value) in str(error.value)


def test_a_warm_up_must_be_shorter_than_the_training() -> None:
    with pytest.raises(ConfigError, match=r"\(warmup_epochs=5, epochs=5\)") as error:
        TrainConfig(warmup_epochs=5, epochs=5)
    assert error.value.parameters == ("warmup_epochs", "epochs")
