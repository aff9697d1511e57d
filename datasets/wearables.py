"""Load the shipped dataset of activities of 23 people: smartphone and smartwatch sensors.

Source: M. Matey-Sanz, S. Casteleyn, C. Granell, "Dataset of inertial measurements of smartphones
and smartwatches for human activity recognition", Data in Brief (2023), 109809;
https://doi.org/10.5281/zenodo.8398688, CC BY 4.0. Changes: `shipped/ATTRIBUTION.md`.

A sample is a window of 1.28 s at 100 Hz: 128 tokens of 3 axes for each sensor, acceleration in
units of 10 m/s^2, angular velocity in rad/s. The label is the activity of the middle 160 ms.
Splits are by person: nobody is in two splits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sftsearch.datasets import shipped_file
from sftsearch.datasets.spec import DatasetSpec, ModalitySpec

if TYPE_CHECKING:
    import pyarrow as pa

    from sftsearch.datasets.samples import Split

SHIPPED = shipped_file.FOLDER / "wearables.parquet"

READER_VERSION = 1
"""Increased whenever the same file yields different samples."""

CLASSES = ("SEATED", "STANDING_UP", "WALKING", "TURNING", "SITTING_DOWN")
SENSOR = ModalitySpec(num_tokens=128, num_features=3, axes=3)
MODALITIES = dict.fromkeys(("phone_acc", "phone_gyro", "watch_acc", "watch_gyro"), SENSOR)
NUM_SAMPLES = {"train": 2029, "validation": 441, "test": 815}
HELD_OUT = {
    "validation": ("s04", "s12", "s20"),
    "test": ("s03", "s07", "s11", "s15", "s19", "s23"),
}


def spec() -> DatasetSpec:
    """Return the dataset spec; computes a checksum of the shipped file, about 10 ms.

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
        fingerprint=shipped_file.fingerprint("wearables", SHIPPED, reader_version=READER_VERSION),
    )


def load() -> dict[str, Split]:
    """Load the samples of the shipped file, in file order within each split.

    Raises:
        DatasetError: the file is missing, damaged or of another format.
    """
    return shipped_file.read_splits(SHIPPED, _read)


def _subjects() -> dict[str, tuple[str, ...]]:
    held_out = {person for people in HELD_OUT.values() for person in people}
    people = [f"s{number:02d}" for number in range(1, 24)]
    return {"train": tuple(p for p in people if p not in held_out), **HELD_OUT}


def _read(rows: pa.Table, split: str) -> Split:
    from sftsearch.datasets.samples import Split

    return Split(
        name=split,
        modalities={name: shipped_file.read_tokens(rows, name, SENSOR) for name in MODALITIES},
        labels=shipped_file.read_labels(rows, CLASSES),
        subjects=shipped_file.read_subjects(rows, "subject", _subjects()[split]),
    )
