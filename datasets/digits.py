"""Load the shipped dataset of spoken digits, each paired with an image of a handwritten digit.

Sources: Z. Jackson et al., "Free Spoken Digit Dataset",
https://github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0; E. Alpaydin, C. Kaynak,
"Optical Recognition of Handwritten Digits", UCI Machine Learning Repository (1998),
https://doi.org/10.24432/C50P49, CC BY 4.0. Changes: `shipped/ATTRIBUTION.md`.

A sample is a recording (up to 128 tokens of 10 ms with 32 log-mel bands, divided by 5) and an image
(64 tokens: its 8 x 8 pixels row by row, in [0, 1]). Images were drawn by class, so speaker and
writer are unrelated. Splits are by speaker, and no speaker or image is in two splits.

Shapes: N samples, T tokens, F features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sftsearch.datasets import shipped_file
from sftsearch.datasets.spec import DatasetSpec, ModalitySpec

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from sftsearch.datasets.samples import Split

SHIPPED = shipped_file.FOLDER / "digits.parquet"

READER_VERSION = 1
"""Increased whenever the same file yields different samples."""

CLASSES = tuple("0123456789")
AUDIO = ModalitySpec(num_tokens=128, num_features=32, variable_length=True)
IMAGE = ModalitySpec(num_tokens=64, num_features=1)
NUM_SAMPLES = {"train": 600, "validation": 200, "test": 400}
SPEAKERS = {
    "train": ("jackson", "lucas", "yweweler"),
    "validation": ("nicolas",),
    "test": ("george", "theo"),
}


def spec() -> DatasetSpec:
    """Return the dataset spec; computes a checksum of the shipped file, about 5 ms.

    Raises:
        DatasetError: the shipped file is missing.
    """
    return DatasetSpec(
        name="digits",
        modalities={"audio": AUDIO, "image": IMAGE},
        classes=CLASSES,
        num_samples=dict(NUM_SAMPLES),
        subjects=dict(SPEAKERS),
        licence="CC BY-SA 4.0",
        attribution=(
            "Z. Jackson et al.: Free Spoken Digit Dataset, CC BY-SA 4.0. E. Alpaydin, C. Kaynak: "
            "Optical Recognition of Handwritten Digits. UCI Machine Learning Repository (1998), "
            "CC BY 4.0. Recordings turned into log-mel bands, paired with images by class and "
            "split by speaker."
        ),
        source="https://github.com/Jakobovski/free-spoken-digit-dataset",
        description=(
            "Ten digits spoken by six people, each with an image of the same digit written by "
            "hand: up to 1.28 s of sound and 8 x 8 pixels, split by speaker."
        ),
        fingerprint=shipped_file.fingerprint("digits", SHIPPED, reader_version=READER_VERSION),
    )


def load() -> dict[str, Split]:
    """Load the samples of the shipped file, in file order within each split.

    Raises:
        DatasetError: the file is missing, damaged or of another format.
    """
    return shipped_file.read_splits(SHIPPED, _read)


def _read(rows: pa.Table, split: str) -> Split:
    from sftsearch.datasets.samples import Split

    audio_NTF, length_N = _audio(rows)
    return Split(
        name=split,
        modalities={"audio": audio_NTF, "image": shipped_file.read_tokens(rows, "image", IMAGE)},
        labels=shipped_file.read_labels(rows, CLASSES),
        subjects=shipped_file.read_subjects(rows, "speaker", SPEAKERS[split]),
        lengths={"audio": length_N},
    )


def _audio(rows: pa.Table) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return the recordings, zero-padded (N, T, F), and their token counts, (N,)."""
    import numpy as np

    sizes_N, values = shipped_file.read_lists(rows, "audio")
    length_N = rows["audio_tokens"].to_numpy().astype(np.int64)
    num_tokens, num_features = AUDIO.num_tokens, AUDIO.num_features
    if not (sizes_N == length_N * num_features).all():
        raise ValueError(f"audio has samples that are not `audio_tokens` x {num_features}")
    if length_N.min() < 1 or length_N.max() > num_tokens:
        raise ValueError(f"audio has samples without 1 to {num_tokens} tokens")
    x_NTF = np.zeros((len(length_N), num_tokens, num_features), dtype=np.float32)
    x_NTF[np.arange(num_tokens) < length_N[:, None]] = values.reshape(-1, num_features)
    return x_NTF, length_N
