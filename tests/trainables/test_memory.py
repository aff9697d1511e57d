"""Count memory: against closed forms, what torch allocates on a CPU, and what CUDA allocates."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import allocated_memory
import pytest
import torch

from sftsearch.trainables import memory
from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.config import TrainConfig
from sftsearch.trainables.memory import MEGABYTE, LiveBytes, count_memory

from shapes import MOSEI, VGGS, dataset_spec

SUPPORT = Path(__file__).parents[1] / "support"
TRAINING = TrainConfig(batch_size=4)
TINY = dataset_spec(3, left=(6, 5), right=(4, 2))
FLOAT = 4
MIXED = {"mixup": "manifold", "mixup_warmup": 0}


def sft(**options: Any) -> Any:
    return MODELS["sft"].config(dim=8, num_heads=2, fused_layers=1, tokens=2, **options)


def bytes_of(model: torch.nn.Module) -> tuple[int, int]:
    """Return the bytes of the parameters, and of the buffers."""
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    return parameters, sum(b.numel() * b.element_size() for b in model.buffers())


# ------------------------------------------------------------- live storages


def test_live_bytes_counts_a_storage_once_until_its_last_reference_is_gone() -> None:
    live = LiveBytes()
    with live:
        a = torch.zeros(100)  # 400 bytes
        view = a.view(10, 10)[2:]
        b = a + 1
        assert (live.now, live.peak) == (800, 800)
        del b
        view.mul_(2)  # in place
        assert (live.now, live.peak) == (400, 800)
        del a
        assert live.now == 400  # the view is left
        del view
        assert (live.now, live.peak) == (0, 800)


def test_live_bytes_counts_what_a_backward_pass_keeps() -> None:
    """Exp keeps its output for the gradient; the factors of a product are both kept."""
    x = torch.ones(250, requires_grad=True)  # 1000 bytes, given
    live = LiveBytes()
    with live:
        live.add([x])
        y = x.exp()
        z = (y * y.detach()).sum()  # the product is freed, the sum has 4 bytes
        assert (live.now, live.peak) == (2004, 3004)
        z.backward()
    assert live.now == 1000 + 1000 + 4 + 1000  # x, y (held here), z, the gradient
    del y, z
    assert live.now == 2000


def test_live_bytes_forgets_tensors_that_outlive_it() -> None:
    live = LiveBytes()
    with live:
        a = torch.zeros(10)
    gone = weakref.ref(live)
    del a
    assert live.now == 0
    del live
    assert gone() is None


# ------------------------------------------------------------- the metrics


@pytest.mark.medium
@pytest.mark.parametrize("name", ["sft", "mmtm", "dynmm", "msaf_lstm", "gradient_blending"])
def test_weights_are_the_bytes_of_parameters_and_buffers(name: str) -> None:
    config = MODELS[name].config(**({"segments": 2} if name == "msaf_lstm" else {}))
    model = build_model(name, TINY, config, seed=0)
    counted = count_memory(name, TINY, config, TRAINING)
    assert counted.weights_mb * MEGABYTE == sum(bytes_of(model))
    assert counted.inference_memory_mb > counted.weights_mb


@pytest.mark.medium
def test_each_copy_of_the_weights_adds_their_bytes() -> None:
    """A model of one batch: what a training holds besides is a multiple of the parameters.

    AdamW has two moments and a step of 4 bytes per tensor; averages copy parameters and buffers,
    and count in 8 bytes.
    """
    model = build_model("sft", TINY, sft(), seed=0)
    parameters, buffers = bytes_of(model)
    tensors = len(list(model.parameters()))

    def train(**options: Any) -> float:
        training = dataclasses.replace(TRAINING, **options)
        return count_memory("sft", TINY, sft(), training).train_memory_mb * MEGABYTE

    plain = train()
    assert train(optimizer="adam") == plain
    assert plain - train(optimizer="sgd") == parameters + FLOAT * tensors
    assert plain - train(optimizer="sgd", momentum=0.0) == 2 * parameters + FLOAT * tensors
    state = sum(t.nbytes for t in model.state_dict().values())
    assert train(score_epoch="best") - plain == state
    assert train(average_weights=0.99) - plain == parameters + buffers + 8
    assert plain < train(accumulate=2) <= plain + parameters


@pytest.mark.medium
def test_workers_share_the_batch_and_copy_the_gradients() -> None:
    """The first of two workers has three of five samples, and buckets for all gradients."""
    five, three = (dataclasses.replace(TRAINING, batch_size=size) for size in (5, 3))
    shared = count_memory("sft", TINY, sft(), five, workers=2)
    alone = count_memory("sft", TINY, sft(), three)
    parameters, _ = bytes_of(build_model("sft", TINY, sft(), seed=0))
    assert (shared.train_memory_mb - alone.train_memory_mb) * MEGABYTE == parameters
    assert shared.inference_memory_mb == alone.inference_memory_mb


@pytest.mark.medium
def test_a_split_smaller_than_a_batch_is_the_batch() -> None:
    small = dataclasses.replace(TINY, num_samples={"train": 3, "validation": 1, "test": 1})
    sizes = [dataclasses.replace(TRAINING, batch_size=size) for size in (3, 500)]
    counted = [count_memory("sft", small, sft(), training) for training in sizes]
    assert counted[0] == counted[1]


@pytest.mark.medium
def test_math_holds_the_attention_weights() -> None:
    """One layer of one modality: at least the (B, H, T, T) weights more, T = 1201 with CLS."""
    config = MODELS["late_fusion"].config(modalities=("spec",), num_layers=1)
    fused, math_ = (
        count_memory("late_fusion", VGGS, config, TRAINING, attention=kind)
        for kind in ("fused", "math")
    )
    weights = 4 * 5 * 1201 * 1201 * FLOAT / MEGABYTE
    assert math_.train_memory_mb - fused.train_memory_mb > weights
    assert math_.inference_memory_mb - fused.inference_memory_mb > weights / 4


@pytest.mark.medium
def test_all_routes_are_trained_and_the_largest_is_used() -> None:
    """A gated model holds all its experts; its forward pass is that of the expensive expert."""
    large = {"kind": "late_fusion", "num_layers": 3}
    both = ({"kind": "unimodal", "modalities": ["left"]}, large)
    dim = {"dim": 8, "num_heads": 2}
    gated = count_memory("dynmm", TINY, MODELS["dynmm"].config(experts=both, **dim), TRAINING)
    late_fusion = MODELS["late_fusion"].config(num_layers=3, **dim)
    alone = count_memory("late_fusion", TINY, late_fusion, TRAINING)
    assert gated.train_memory_mb > alone.train_memory_mb
    assert gated.weights_mb > alone.weights_mb
    activations = [m.inference_memory_mb - m.weights_mb for m in (gated, alone)]
    assert activations[0] == pytest.approx(activations[1], rel=0.2)  # and the gate's


@pytest.mark.parametrize("task", ["multilabel", "regression"])
@pytest.mark.medium
def test_other_tasks_and_lengths_are_counted(task: Any) -> None:
    lengths = {m: dataclasses.replace(s, variable_length=True) for m, s in TINY.modalities.items()}
    classes = TINY.classes if task == "multilabel" else ()
    spec = dataclasses.replace(TINY, modalities=lengths, task=task, classes=classes)
    plain = count_memory("sft", TINY, sft(), TRAINING)
    counted = count_memory("sft", spec, sft(), TRAINING)
    assert plain.train_memory_mb < counted.train_memory_mb < 1.2 * plain.train_memory_mb


@pytest.mark.medium
def test_augmentations_change_no_memory_except_the_masks_of_dropped_modalities() -> None:
    plain = count_memory("sft", TINY, sft(), TRAINING)
    crop = dataclasses.replace(TRAINING, time_crop=0.2, jitter=0.1, token_dropout=0.1)
    assert count_memory("sft", TINY, sft(), crop) == plain
    dropped = dataclasses.replace(TRAINING, modality_dropout=0.1)
    lengths = {m: dataclasses.replace(s, variable_length=True) for m, s in TINY.modalities.items()}
    varies = dataclasses.replace(TINY, modalities=lengths)
    found = count_memory("sft", TINY, sft(), dropped)
    assert found.train_memory_mb == count_memory("sft", varies, sft(), TRAINING).train_memory_mb
    assert found.train_memory_mb > plain.train_memory_mb
    assert found.inference_memory_mb == plain.inference_memory_mb


@pytest.mark.medium
@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_is_counted_with_mixup_dropout_and_half_precision(name: str) -> None:
    modalities = {"unimodal": ("left",)}.get(name)
    small = {"dim": 8, "num_heads": 2, "dropout": 0.1, "segments": 2}
    fields = {field.name for field in dataclasses.fields(MODELS[name].config)}
    options = {key: value for key, value in small.items() if key in fields}
    config = MODELS[name].config(modalities=modalities, **options)
    mixup = MIXED if MODELS[name].mixes_latents else MIXED | {"mixup": "input"}
    training = dataclasses.replace(TRAINING, precision="bfloat16", **mixup)
    counted = count_memory(name, TINY, config, training)
    assert counted.train_memory_mb > counted.inference_memory_mb > counted.weights_mb > 0


# ------------------------------------------------------------- counts are repeatable and kept


def test_a_count_changes_neither_random_numbers_nor_gradients() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    memory._counted.clear()
    count_memory("sft", TINY, sft(), TRAINING)
    assert torch.equal(torch.rand(4), expected)
    assert torch.ones(1).add(1).item() == 2  # no longer fake
    assert torch.is_grad_enabled()


def test_counts_are_kept_by_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fields that change no shape share a count; all others are counted again."""
    keys: list[str] = []

    def count(*_: Any) -> memory.Memory:
        keys.append("counted")
        return memory.Memory(len(keys), 0.0, 0.0)

    monkeypatch.setattr(memory, "_counted", {})
    monkeypatch.setattr(memory, "_count", count)
    same = [
        (sft(), TRAINING),
        (sft(), dataclasses.replace(TRAINING, learning_rate=0.1, epochs=7)),
        (sft(dropout=0.0), dataclasses.replace(TRAINING, weight_decay=0.1)),
    ]
    assert [count_memory("sft", TINY, *pair).train_memory_mb for pair in same] == [1, 1, 1]
    assert count_memory("sft", TINY, sft(dropout=0.1), TRAINING).train_memory_mb == 2
    assert count_memory("sft", TINY, sft(dropout=0.3), TRAINING).train_memory_mb == 2
    others: list[dict[str, Any]] = [
        {"batch_size": 5}, MIXED, {"precision": "bfloat16"}, {"score_epoch": "best"},
        {"optimizer": "sgd"}, {"optimizer": "sgd", "momentum": 0.0}, {"average_weights": 0.9},
        {"accumulate": 2}, MIXED | {"mixup_weights": "sample"}, {"label_smoothing": 0.1},
        {"class_weights": "balanced"},
    ]  # fmt: skip
    for number, options in enumerate(others, start=3):
        training = dataclasses.replace(TRAINING, **options)
        assert count_memory("sft", TINY, sft(), training).train_memory_mb == number, options
    longer = dataset_spec(3, left=(7, 5), right=(4, 2))
    assert count_memory("sft", longer, sft(), TRAINING).train_memory_mb == len(others) + 3
    assert count_memory("sft", TINY, sft(), TRAINING, workers=2).train_memory_mb == len(others) + 4


COUNT = """
import sys, torch
torch.set_num_threads(int(sys.argv[1]))
from shapes import MOSEI
from sftsearch.trainables.catalog import MODELS
from sftsearch.trainables.config import TrainConfig
from sftsearch.trainables.memory import count_memory
for name in ("mult", "msaf_lstm", "dynmm"):
    print(count_memory(name, MOSEI, MODELS[name].config(), TrainConfig()))
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_counts_are_equal_in_other_processes() -> None:
    """With other numbers of threads, hash seeds and collections of garbage."""
    outputs = [
        subprocess.run(
            [sys.executable, "-c", COUNT, threads],
            env=os.environ | {"PYTHONHASHSEED": threads},
            capture_output=True, text=True, check=True,
        ).stdout
        for threads in ("1", "4")
    ]  # fmt: skip
    assert outputs[0] == outputs[1]
    here = [
        count_memory(name, MOSEI, MODELS[name].config(), TrainConfig())
        for name in ("mult", "msaf_lstm", "dynmm")
    ]
    assert outputs[0].splitlines() == [str(one) for one in here]


# ------------------------------------------------------------- what is really allocated


def allocated(name: str, shape: str, options: dict[str, Any], attention: str) -> dict[str, float]:
    """Measure the allocations in a process of its own."""
    script = str(SUPPORT / "allocated_memory.py")
    command = [sys.executable, script, name, shape, json.dumps(options), attention]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, float] = json.loads(printed.splitlines()[-1])
    return found


def counted_at(name: str, shape: str, options: dict[str, Any], attention: Any) -> dict[str, float]:
    spec, config = allocated_memory.spec_at(shape), allocated_memory.config_at(name, shape)
    training = dataclasses.replace(TRAINING, **options)
    counted = count_memory(name, spec, config, training, attention=attention)
    return {
        "train": counted.train_memory_mb * MEGABYTE,
        "inference": counted.inference_memory_mb * MEGABYTE,
    }


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("shape", ["VGGS", "MOSEI"])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_allocates_what_is_counted(name: str, shape: str) -> None:
    """Within 10 %; a kernel's own scratch space is left out on both sides."""
    measured = allocated(name, shape, {}, "fused")
    assert counted_at(name, shape, {}, "fused") == pytest.approx(measured, rel=0.1)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "options", "attention"),
    [
        ("late_fusion", {}, "math"),
        ("sft", MIXED, "fused"),
        ("mbt", {"mixup": "modality", "mixup_warmup": 0, "mixup_weights": "sample"}, "fused"),
        ("unimodal", {"optimizer": "sgd", "average_weights": 0.9, "score_epoch": "best"}, "fused"),
        ("concat", {"accumulate": 2, "precision": "bfloat16"}, "math"),
    ],
)
def test_training_options_allocate_what_is_counted(
    name: str, options: dict[str, Any], attention: str
) -> None:
    measured = allocated(name, "MOSEI", options, attention)
    assert counted_at(name, "MOSEI", options, attention)["train"] == pytest.approx(
        measured["train"], rel=0.1
    )


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("shape", ["VGGS", "MOSEI"])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_cuda_device_allocates_what_is_counted(
    name: str, shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 10 % of the highest sum of allocated bytes, without cuBLAS's workspace."""
    from sftsearch.trainables.fit import Fit

    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    spec, config = allocated_memory.spec_at(shape), allocated_memory.config_at(name, shape)
    store = allocated_memory.store_of(spec, tmp_path / "store")
    fit = Fit(build_model(name, spec, config, 0), store, TRAINING, seed=0, device="cuda")
    fit.model.begin_epoch(TRAINING.epochs - 1, TRAINING.epochs)
    torch.cuda.reset_peak_memory_stats()
    fit.seconds_a_step(repeats=1)
    measured = torch.cuda.max_memory_allocated()
    assert counted_at(name, shape, {}, "fused")["train"] == pytest.approx(measured, rel=0.1)
