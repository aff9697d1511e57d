"""Write and read checkpoints: tensors and a JSON record in one safetensors file, without pickle.

Files are untrusted: nothing is used before the whole file has been checked.
"""

from __future__ import annotations

import json
import os
import secrets
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch

from sftsearch.datasets.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

FORMAT_VERSION = 1
"""Incremented when older checkpoints can no longer be read."""

OWN = "own."
_RECORD = "sftsearch"
_MAX_FILE_BYTES = 4 << 30  # a real checkpoint has a few megabytes


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or belongs to another run."""

    def __init__(self, path: Path, why: str) -> None:
        what = " ".join(why.split())[:300].rstrip(".")
        super().__init__(
            f"Cannot resume from {path}: {what}. Delete the file to restart the trial."
        )


def write_checkpoint(
    path: Path, tensors: Mapping[str, torch.Tensor], record: Mapping[str, Any]
) -> None:
    """Write tensors and record atomically.

    Args:
        path: the file; its folder must exist.
        tensors: by name; on any device.
        record: JSON values; floats are read back exactly.

    Raises:
        OSError: the file cannot be written.
        ValueError: the record holds NaN or infinity.
    """
    text = json.dumps({"version": FORMAT_VERSION, **record}, allow_nan=False)
    dense = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    content = safetensors.torch.save(dense, metadata={_RECORD: text})
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_checkpoint(
    path: Path, expected: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read tensors and record; the tensors must have the names, shapes and dtypes of `expected`.

    The file may also have tensors of a plug-in's training function, whose names begin with `OWN`.

    Raises:
        CheckpointError: the file is missing, damaged, or does not match `expected`.
    """
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise CheckpointError(path, f"it has more than {_MAX_FILE_BYTES >> 30} GiB")
        with safetensors.safe_open(path, framework="pt") as file:
            record = _parse_record(path, file.metadata())
            names = set(file.keys())
            others = {name for name in names - set(expected) if name.startswith(OWN)}
            _check_names(path, names - others, set(expected))
            tensors = {name: file.get_tensor(name) for name in [*expected, *sorted(others)]}
    except FileNotFoundError:
        raise CheckpointError(path, "there is no such file") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(path, str(error) or type(error).__name__) from error
    for name, tensor in tensors.items():
        _check_tensor(path, name, tensor, expected.get(name, tensor))
    return tensors, record


def _check_tensor(path: Path, name: str, tensor: torch.Tensor, expected: torch.Tensor) -> None:
    if tensor.shape != expected.shape or tensor.dtype != expected.dtype:
        found = f"{name} is {tensor.dtype} {tuple(tensor.shape)}"
        own = f"{expected.dtype} {tuple(expected.shape)}"
        raise CheckpointError(path, f"{found}, but this run's is {own}")
    if not tensor.isfinite().all():
        raise CheckpointError(path, f"{name} has values that are not finite")


def _check_names(path: Path, names: set[str], expected: set[str]) -> None:
    if names != expected:
        missing, unexpected = sorted(expected - names)[:3], sorted(names - expected)[:3]
        raise CheckpointError(
            path,
            f"it belongs to another model (missing tensors: {missing}, unexpected: {unexpected})",
        )


def _parse_record(path: Path, metadata: dict[str, str] | None) -> dict[str, Any]:
    try:
        record = json.loads((metadata or {}).get(_RECORD, ""))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"its record is not JSON ({error})") from error
    if not isinstance(record, dict) or record.get("version") != FORMAT_VERSION:
        raise CheckpointError(path, f"its record does not have version {FORMAT_VERSION}")
    return record
