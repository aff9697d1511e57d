"""Checkpoints are exact and atomic, and invalid ones are refused with one line."""

from __future__ import annotations

import json
import pickle
import struct
from typing import TYPE_CHECKING, Any

import pytest
import torch

from sftsearch.datasets.catalog import open_dataset
from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from sftsearch.trainables.config import TrainConfig
from sftsearch.trainables.fit import Fit

if TYPE_CHECKING:
    from pathlib import Path

    from sftsearch.datasets.store import Store

TENSORS = {"weight": torch.tensor([[0.1, -0.0, 3e-45]]), "step": torch.tensor(7)}
SAFETENSORS_LENGTH = 8  # little-endian size of the JSON header that follows


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_dataset("synthetic", cache=tmp_path_factory.mktemp("stores"))


def start(store: Store, *, seed: int = 0, dim: int = 4, **training: Any) -> Fit:
    config = MODELS["sft_po"].config(dim=dim, num_heads=2, fused_layers=1)
    model = build_model("sft_po", store.spec, config, seed)
    return Fit(model, store, TrainConfig(**{"epochs": 2, "batch_size": 500} | training), seed=seed)


@pytest.fixture(scope="module")
def saved(store: Store, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the bytes of a valid checkpoint after one of two epochs."""
    fit, path = start(store), tmp_path_factory.mktemp("saved") / "checkpoint"
    fit.run_epoch()
    fit.save(path)
    return path.read_bytes()


def header(content: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", content[:SAFETENSORS_LENGTH])
    end = SAFETENSORS_LENGTH + length
    return json.loads(content[SAFETENSORS_LENGTH:end]), content[end:]


def with_header(values: dict[str, Any], tensors: bytes) -> bytes:
    text = json.dumps(values).encode()
    return struct.pack("<Q", len(text)) + text + tensors


def with_record(content: bytes, change: dict[str, Any]) -> bytes:
    """Change keys of the JSON record; the value `...` removes the key."""
    values, tensors = header(content)
    record = json.loads(values["__metadata__"]["sftsearch"]) | change
    record = {key: value for key, value in record.items() if value is not ...}
    values["__metadata__"]["sftsearch"] = json.dumps(record)
    return with_header(values, tensors)


def refusal(store: Store, content: bytes, path: Path) -> str:
    """Return the message that refuses a file, and check that the run did not change."""
    path.write_bytes(content)
    fit = start(store)
    before = {name: tensor.clone() for name, tensor in fit.model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        fit.load(path)
    assert fit.history == []
    assert all(torch.equal(t, before[name]) for name, t in fit.model.state_dict().items())
    message = str(error.value)
    assert message.startswith(f"Cannot resume from {path}: ")
    assert "\n" not in message
    return message


def test_tensors_and_floats_come_back_exactly(tmp_path: Path) -> None:
    record = {"loss": 0.1 + 0.2, "smallest": 5e-324, "text": "ü\n"}
    write_checkpoint(tmp_path / "file", TENSORS, record)
    tensors, read = read_checkpoint(tmp_path / "file", TENSORS)
    assert {key: read[key] for key in record} == record
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor)
        assert tensors[name].dtype == tensor.dtype
    assert torch.signbit(tensors["weight"]).tolist() == [[False, True, False]]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "file", TENSORS, {"epoch": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_checkpoint(tmp_path / "file", TENSORS, {"loss": float("nan")})
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_checkpoint(tmp_path / "folder", TENSORS, {})
    assert read_checkpoint(tmp_path / "file", TENSORS)[1]["epoch"] == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.medium
def test_checkpoint_is_not_a_pickle(saved: bytes) -> None:
    values, _ = header(saved)
    assert json.loads(values["__metadata__"]["sftsearch"])["version"] == 1
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(saved)


def test_a_good_checkpoint_is_accepted(store: Store, saved: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(saved)
    fit = start(store)
    fit.load(tmp_path / "file")
    assert fit.epoch == 1


@pytest.mark.parametrize("keep", [0, 4, 200, -1])
def test_a_truncated_file_is_refused(store: Store, saved: bytes, tmp_path: Path, keep: int) -> None:
    refusal(store, saved[:keep], tmp_path / "file")


@pytest.mark.parametrize(
    "content",
    [
        b"{]" * 500,
        pickle.dumps({"weight": [1.0]}),
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        b"\x00" * 64,
    ],
    ids=["garbage", "pickle", "endless header", "no object", "zeros"],
)
def test_a_file_of_another_kind_is_refused(store: Store, tmp_path: Path, content: bytes) -> None:
    refusal(store, content, tmp_path / "file")


def test_a_missing_file_and_a_folder_are_refused(store: Store, tmp_path: Path) -> None:
    fit = start(store)
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(CheckpointError):
            fit.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"run": ...},
        {"run": []},
        {"history": ...},
        {"history": [{}]},
        {"history": [{"epoch": 1, "loss": "low"}]},
        {"history": []},
        {"correct": [[1]]},
        {"correct": [["1"] * 100]},
        {"correct": None},
    ],
    ids=str,
)
def test_a_damaged_record_is_refused(
    store: Store, saved: bytes, tmp_path: Path, change: dict[str, Any]
) -> None:
    refusal(store, with_record(saved, change), tmp_path / "file")


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"version": 1}'])
def test_malformed_record_is_refused(store: Store, saved: bytes, tmp_path: Path, text: str) -> None:
    values, tensors = header(saved)
    values["__metadata__"]["sftsearch"] = text
    refusal(store, with_header(values, tensors), tmp_path / "file")
    del values["__metadata__"]
    refusal(store, with_header(values, tensors), tmp_path / "file")


def test_unexpected_and_missing_tensors_are_named(
    store: Store, saved: bytes, tmp_path: Path
) -> None:
    values, tensors = header(saved)
    values["model.other"] = values.pop("model.head.linear.bias")
    message = refusal(store, with_header(values, tensors), tmp_path / "file")
    assert "model.head.linear.bias" in message
    assert "model.other" in message


def test_tensor_with_another_shape_or_dtype_is_refused_naming_both(
    store: Store, saved: bytes, tmp_path: Path
) -> None:
    values, tensors = header(saved)
    values["model.tokenizer.modalities.0.projection.weight"]["shape"].reverse()
    message = refusal(store, with_header(values, tensors), tmp_path / "file")
    assert "(3, 4)" in message
    assert "(4, 3)" in message
    values, tensors = header(saved)
    values["model.head.linear.weight"]["dtype"] = "I32"
    message = refusal(store, with_header(values, tensors), tmp_path / "file")
    assert "torch.int32" in message
    assert "torch.float32" in message


def test_weights_that_are_not_finite_are_refused(
    store: Store, saved: bytes, tmp_path: Path
) -> None:
    values, tensors = header(saved)
    first = values["model.head.linear.weight"]["data_offsets"][0]
    damaged = tensors[:first] + struct.pack("<f", float("nan")) + tensors[first + 4 :]
    assert "not finite" in refusal(store, with_header(values, damaged), tmp_path / "file")


def test_checkpoint_of_another_run_is_refused_naming_the_difference(
    store: Store, saved: bytes, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(saved)
    others = {
        "seed": start(store, seed=1),
        "training": start(store, learning_rate=0.5),
        "model.*float32": start(store, dim=6),
    }
    for what, fit in others.items():
        with pytest.raises(CheckpointError, match=what):
            fit.load(tmp_path / "file")
