"""Activities of 23 people from the sensors of a smartphone and a smartwatch.

Source: M. Matey-Sanz, S. Casteleyn, C. Granell, "Dataset of inertial measurements of smartphones
and smartwatches for human activity recognition", Data in Brief (2023), 109809;
https://doi.org/10.5281/zenodo.8398688, CC BY 4.0. What was changed: `shipped/ATTRIBUTION.md`.

A sample is a window of 1.28 s at 100 Hz, 128 tokens of 3 axes a sensor: acceleration in units of
10 m/s^2, rate of rotation in rad/s. The label is the activity of its middle 160 ms. The splits are
by person: nobody who is validated or tested on was trained on.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.spec import SPLITS, DatasetSpec, ModalitySpec
from sftsearch.datasets.store import Split, file_sha256

if TYPE_CHECKING:
    import numpy.typing as npt

# Not `importlib.resources`: it cannot open a namespace package of an editable install.
SHIPPED = Path(__file__).parent / "shipped" / "wearables.parquet"

READER_VERSION = 1
"""Raised whenever the same file is read into other samples."""

CLASSES = ("SEATED", "STANDING_UP", "WALKING", "TURNING", "SITTING_DOWN")
SENSOR = ModalitySpec(num_tokens=128, num_features=3)
MODALITIES = dict.fromkeys(("phone_acc", "phone_gyro", "watch_acc", "watch_gyro"), SENSOR)
PUBLISHED_SPLITS = {"train": "train", "validation": "val", "test": "test"}
NUM_SAMPLES = {"train": 2029, "validation": 441, "test": 815}
HELD_OUT = {
    "validation": ("s04", "s12", "s20"),
    "test": ("s03", "s07", "s11", "s15", "s19", "s23"),
}


def spec() -> DatasetSpec:
    """Return what the data set declares; costs a checksum of the shipped file, about 10 ms.

    Raises:
        DatasetError: the shipped file is missing.
    """
    return DatasetSpec(
        name="wearables",
        modalities=dict(MODALITIES),
        classes=CLASSES,
        num_samples=dict(NUM_SAMPLES),
        subjects=_subjects(),
        licence="CC BY 4.0",
        attribution=(
            "M. Matey-Sanz, S. Casteleyn, C. Granell: Dataset of inertial measurements of "
            "smartphones and smartwatches for human activity recognition. Data in Brief (2023), "
            "109809. Resampled, windowed and split by person."
        ),
        source="https://doi.org/10.5281/zenodo.8398688",
        description=(
            "Five activities of 23 people, from the accelerometers and gyroscopes of a phone "
            "and a watch: windows of 1.28 s, split by person."
        ),
        fingerprint=_fingerprint(),
    )


def load() -> dict[str, Split]:
    """Read the shipped file into samples, in its order within each split.

    Raises:
        DatasetError: the file is missing or not the one this module describes.
    """
    try:
        table = pq.read_table(SHIPPED)
        return {split: _read(table, split) for split in SPLITS}
    except (OSError, pa.ArrowException, LookupError, ValueError) as error:
        raise _unreadable(str(error)) from error


def _subjects() -> dict[str, tuple[str, ...]]:
    held_out = {person for people in HELD_OUT.values() for person in people}
    everybody = [f"s{number:02d}" for number in range(1, 24)]
    return {"train": tuple(p for p in everybody if p not in held_out), **HELD_OUT}


def _fingerprint() -> str:
    try:
        content = f"wearables, reader {READER_VERSION}, parquet {file_sha256(SHIPPED)}"
    except OSError as error:
        raise _unreadable(str(error.strerror)) from error
    return hashlib.sha256(content.encode()).hexdigest()


def _unreadable(why: str) -> DatasetError:
    what = " ".join(why.split())[:200].rstrip(".")
    return DatasetError(
        f"Cannot read the shipped data set {SHIPPED}: {what}. Install sftsearch again."
    )


def _read(table: pa.Table, split: str) -> Split:
    rows = table.filter(pc.equal(table["split"], PUBLISHED_SPLITS[split])).combine_chunks()
    labels = rows["label"].to_numpy().astype(np.int64)
    if [CLASSES[label] for label in labels] != rows["label_name"].to_pylist():
        raise ValueError("labels and their names differ")
    people = {person: code for code, person in enumerate(_subjects()[split])}
    codes = [people[person] for person in rows["subject"].to_pylist()]
    return Split(
        name=split,
        modalities={name: _tokens(rows, name) for name in MODALITIES},
        labels=labels,
        subjects=np.array(codes, dtype=np.int64),
    )


def _tokens(rows: pa.Table, name: str) -> npt.NDArray[np.float32]:
    """Return one sensor of every row, (N, T, F)."""
    column = rows[name].combine_chunks()
    shape = (len(column), SENSOR.num_tokens, SENSOR.num_features)
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    if not (lengths == shape[1] * shape[2]).all():
        raise ValueError(f"{name} has windows that are not {shape[1]} x {shape[2]}")
    x_NTF: npt.NDArray[np.float32] = column.flatten().to_numpy(zero_copy_only=False)
    return x_NTF.reshape(shape)
