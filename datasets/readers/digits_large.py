"""Read the Free Spoken Digit Dataset, each recording paired with an MNIST image.

Published at https://github.com/Jakobovski/free-spoken-digit-dataset (Z. Jackson et al., CC BY-SA
4.0), `recordings/DIGIT_SPEAKER_NUMBER.wav` at 8 kHz, and by Y. LeCun et al. as IDX files
(`train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-...`, optionally gzipped; license
not stated). Folder: `recordings/` and the four IDX files.

A sample is a recording, tokens of 10 ms with 32 log-mel bands divided by 5, and an image of the
same digit, 196 tokens of 2 x 2 pixels in [0, 1]. Splits are by speaker, as in the shipped
`digits`. Training and validation use images of the training part, testing those of the test part;
no image is used twice. Speakers and writers are unrelated.

Shapes: N images, T tokens, F features.
"""

from __future__ import annotations

import gzip
import re
import zlib
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from sftsearch.datasets.digits import SPEAKERS
from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.readers.sound import log_mel, read_sound
from sftsearch.datasets.source import Sample, Source, unreadable, within
from sftsearch.datasets.spec import ModalitySpec

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

SIDE = 28
IMAGE = ModalitySpec(num_tokens=196, num_features=4)
NUM_BANDS = 32
RATE = 8000
MAX_IMAGES = 100_000
_RECORDING = re.compile(r"([0-9])_([a-z]{1,30})_([0-9]{1,6})\.wav")


def open_source(path: Path, *, tokens: int = 256) -> Source:
    """List recordings of spoken digits, each paired with an image of the digit.

    Args:
        path: a folder with recordings/ of the Free Spoken Digit Dataset and the MNIST IDX files.
        tokens: maximum windows of 10 ms per recording.

    Raises:
        DatasetError: the folder has another format.
    """
    if tokens < 1:
        raise DatasetError(f"Option `tokens` must be positive, but got {tokens}.")
    split_of = {name: split for split, names in SPEAKERS.items() for name in names}
    parts = {part: _Images(path, part) for part in ("train", "t10k")}
    samples = []
    for file in sorted((path / "recordings").glob("*.wav")):
        found = _RECORDING.fullmatch(file.name)
        if found is None:
            raise unreadable(file, "it must be named DIGIT_SPEAKER_NUMBER.wav")
        digit, speaker = int(found[1]), found[2]
        if speaker not in split_of:
            raise unreadable(file, f"the speaker must be one of {', '.join(sorted(split_of))}")
        split = split_of[speaker]
        image = parts["t10k" if split == "test" else "train"].take(digit)
        inside = within(path, f"recordings/{file.name}")
        samples.append(
            Sample(
                name=file.stem,
                split=split,
                label=digit,
                subject=speaker,
                read=partial(_read, inside, image),
            )
        )
    if not samples:
        raise unreadable(path, "it has no recordings/DIGIT_SPEAKER_NUMBER.wav")
    return Source(
        task="classification",
        modalities={
            "audio": ModalitySpec(num_tokens=tokens, num_features=NUM_BANDS, variable_length=True),
            "image": IMAGE,
        },
        classes=tuple("0123456789"),
        samples=samples,
        licence="CC BY-SA 4.0 (sound); not stated (MNIST)",
        attribution="Z. Jackson et al.: Free Spoken Digit Dataset, CC BY-SA 4.0. Y. LeCun et al.: "
        "Gradient-Based Learning Applied to Document Recognition. Proc. IEEE 86(11), 1998.",
        source="https://github.com/Jakobovski/free-spoken-digit-dataset",
        description="Spoken digits, each with an image of the same digit written by hand.",
    )


class _Images:
    """A part of MNIST; returns each image once, in a deterministic order."""

    def __init__(self, path: Path, part: str) -> None:
        self._pixels = read_idx(path, f"{part}-images-idx3-ubyte", (SIDE, SIDE))
        labels = read_idx(path, f"{part}-labels-idx1-ubyte", ())
        if len(labels) != len(self._pixels):
            raise unreadable(path, f"{part} has {len(self._pixels)} images, {len(labels)} labels")
        order = np.random.default_rng(0).permutation(len(labels))
        self._unused = {digit: order[labels[order] == digit].tolist() for digit in range(10)}
        self._path, self._part = path, part

    def take(self, digit: int) -> npt.NDArray[np.uint8]:
        if not self._unused[digit]:
            raise unreadable(self._path, f"{self._part} has too few images of {digit}")
        image: npt.NDArray[np.uint8] = self._pixels[self._unused[digit].pop(0)]
        return image


def read_idx(path: Path, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Read an IDX file of bytes, gzipped or not, (N, *shape).

    Raises:
        DatasetError: the file is missing, or has another format or size.
    """
    files = [within(path, name), within(path, f"{name}.gz")]
    file = next((file for file in files if file.is_file()), files[0])
    size = int(np.prod(shape, dtype=np.int64))
    most = MAX_IMAGES * size + 16
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            content = stream.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(file, getattr(error, "strerror", None) or error) from error
    axes = 1 + len(shape)
    head = np.frombuffer(content[4 : 4 + 4 * axes], ">u4")
    if content[:4] != bytes([0, 0, 8, axes]) or len(head) != axes or len(content) > most:
        raise unreadable(file, f"it is not an IDX file of bytes with {axes} axes")
    count = int(head[0])
    if tuple(head[1:].tolist()) != shape or len(content) != 4 + 4 * axes + count * size:
        raise unreadable(file, f"its header {head.tolist()} does not fit its {len(content)} bytes")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(count, *shape)


def _read(file: Path, image: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
    x_S = read_sound(file, RATE)
    bands = log_mel(x_S, rate=RATE, num_bands=NUM_BANDS)
    half = SIDE // 2
    patches = image.reshape(half, 2, half, 2).transpose(0, 2, 1, 3).reshape(half * half, 4)
    return {"audio": bands / 5, "image": patches.astype(np.float32) / 255}
