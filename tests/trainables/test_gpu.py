"""Training on a CUDA device matches the CPU, in float32 and bfloat16, and is repeatable.

No test needs Ray. Without a device they are skipped; `python -m pytest -m gpu` runs only these.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch

from sftsearch.datasets.catalog import open_dataset
from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.config import TrainConfig
from sftsearch.trainables.evaluation import evaluate
from sftsearch.trainables.fit import Fit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sftsearch.datasets.store import Store

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.timeout(300),  # the first use of a device takes a while
]

DEVICE = "cuda"
SMALL = {
    "dim": 16,
    "num_heads": 2,
    "num_layers": 3,
    "fusion_layer": 1,
    "unimodal_layers": 1,
    "fused_layers": 2,
    # Layers that draw random numbers do so on their device, and devices differ.
    "noise": False,
    "alone": 0.0,
    "block_dropout": 0.0,
}
OF_CLASSES = ("multiplication", "multiplicative")
"""Models for classification only."""


def mixed(name: str) -> dict[str, Any]:
    """Return the training options that mix latents, or inputs if a model cannot mix latents."""
    mixup = "manifold" if MODELS[name].mixes_latents else "input"
    return {"mixup": mixup, "mixup_warmup": 0}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    """Return the stores that the models train on."""
    cache = tmp_path_factory.mktemp("stores")
    return {name: open_dataset(name, cache=cache) for name in ("synthetic", "synthetic_tags")}


@pytest.fixture
def store(stores: dict[str, Store], request: pytest.FixtureRequest) -> Store:
    """Return a multi-label store in which one modality has a variable length, or is missing."""
    call = getattr(request.node, "callspec", None)
    of_classes = call is not None and call.params.get("name") in OF_CLASSES
    return stores["synthetic" if of_classes else "synthetic_tags"]


@pytest.fixture
def _deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def start(name: str, store: Store, device: str, **training: Any) -> Fit:
    known = {field.name for field in dataclasses.fields(MODELS[name].config)}
    options: dict[str, Any] = {key: value for key, value in SMALL.items() if key in known}
    if name == "unimodal":
        options["modalities"] = ("right",)
    model = build_model(name, store.spec, MODELS[name].config(**options), seed=0)
    training = {"epochs": 2, "batch_size": 250} | training
    return Fit(model, store, TrainConfig(**training), seed=0, device=device)


def timeless(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in history]


@pytest.mark.parametrize("mixes", [False, True], ids=["plain", "mixed"])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_first_step_matches_the_cpu(store: Store, name: str, mixes: bool) -> None:
    """One step per epoch: its loss is the epoch's. Mixup draws are equal on both devices."""
    training = mixed(name) if mixes else {}
    fits = [start(name, store, device, batch_size=2000, **training) for device in ("cpu", DEVICE)]
    cpu, gpu = (fit.run_epoch() for fit in fits)
    assert gpu["train_loss"] == pytest.approx(cpu["train_loss"], rel=1e-4)
    # AdamW's first step divides gradients by their size, which amplifies rounding of tiny ones.
    assert gpu["loss"] == pytest.approx(cpu["loss"], rel=1e-2)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_an_epoch_trains_in_float32_and_bfloat16(store: Store, name: str) -> None:
    """Eight steps; bfloat16 keeps eight bits of each factor, 0.4 %."""
    runs: list[tuple[str, Any]] = [("cpu", "float32"), (DEVICE, "float32"), (DEVICE, "bfloat16")]
    fits = [start(name, store, device, precision=precision) for device, precision in runs]
    cpu, whole, half = (fit.run_epoch() for fit in fits)
    assert whole["train_loss"] == pytest.approx(cpu["train_loss"], rel=1e-2)
    assert half["train_loss"] == pytest.approx(whole["train_loss"], rel=2e-2)
    assert half["loss"] == pytest.approx(whole["loss"], rel=5e-2)
    assert {p.dtype for p in fits[2].model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_evaluation_matches_the_cpu(store: Store, name: str) -> None:
    fit = start(name, store, DEVICE)
    on_gpu = fit.run_epoch()
    split = store.split("validation")
    seen = evaluate(fit.model, store, split, fit.config, device=DEVICE)
    assert seen.metrics["loss"] == pytest.approx(on_gpu["loss"], rel=1e-5)
    on_cpu = evaluate(fit.model.cpu(), store, split, fit.config).metrics
    assert on_gpu["loss"] == pytest.approx(on_cpu["loss"], rel=1e-4)
    for name_, value in on_cpu.items():
        assert on_gpu[name_] == pytest.approx(value, abs=0.01)


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_resumed_run_equals_the_uninterrupted_one_bit_by_bit(
    store: Store, tmp_path: Path, name: str, precision: str
) -> None:
    """With deterministic algorithms, which torch must have for all operations of the models."""
    options: dict[str, Any] = (
        {"epochs": 3, "precision": precision} | mixed(name) | {"mixup_warmup": 1}
    )
    whole, first, second = (start(name, store, DEVICE, **options) for _ in range(3))
    for _ in range(3):
        whole.run_epoch()
    first.run_epoch()
    first.save(tmp_path / "checkpoint")
    second.load(tmp_path / "checkpoint")
    for _ in range(2):
        second.run_epoch()
    assert timeless(second.history) == timeless(whole.history)
    for key, weights in whole.model.state_dict().items():
        assert torch.equal(weights, second.model.state_dict()[key]), key


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch uses it itself
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_compiled_run_is_nearly_the_same(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    options: dict[str, Any] = {"precision": precision} | mixed("sft")
    plain, compiled = (start("sft", store, DEVICE, compile=c, **options) for c in (False, True))
    for _ in range(2):
        expected, entry = plain.run_epoch(), compiled.run_epoch()
        assert entry["train_loss"] == pytest.approx(expected["train_loss"], rel=2e-2)


def test_a_trial_measures_on_the_device(store: Store, tmp_path: Path) -> None:
    from sftsearch.orchestrator.candidates.binding import bind
    from sftsearch.orchestrator.execution.trial_spec import TrialSpec
    from sftsearch.orchestrator.execution.worker import TrainingWorker

    parameters, training = {"dim": 64, "num_heads": 2}, {"epochs": 1}
    bound = bind("sft", parameters, training, store.spec)
    cost = dataclasses.asdict(MODELS["sft"].cost(store.spec, bound.model_config))
    worker = TrainingWorker()
    worker.start(
        TrialSpec(
            key="c-0",
            folder=str(tmp_path),
            dataset="synthetic_tags",
            num_folds=None,
            model="sft",
            parameters=parameters,
            training=training,
            seed=0,
            cost=cost,
            num_journalled=0,
            threads=1,
            device=DEVICE,
        )
    )
    report = worker.step()
    assert "failed" not in report, report
    assert report["final"]["values"]["latency_ms"] > 0
    assert report["final"]["values"]["train_step_ms"] > 0
    assert report["final"]["facts"]["device"] == torch.cuda.get_device_name()
