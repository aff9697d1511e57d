"""Read computational sequences of the CMU-MultimodalSDK: one HDF5 file (`.csd`) per modality.

A file has one group, named like the sequence, with `data/SEGMENT/features` (T, F) and
`data/SEGMENT/intervals` (T, 2) in seconds. SEGMENT is a video, or `VIDEO[NUMBER]` for a clip. The
label file has the same format: its intervals are the clips, its first feature is the sentiment.
Labels of emotions only, as in CMU_MOSEI_LabelsEmotions.csd, are left alone.

If a folder has several sequences of a modality, as the SDK downloads them, option `sequences`
chooses one.

A clip has the tokens whose midpoint is in its interval; modalities are not aligned. The published
folds are lists of videos, expected as files `train.txt`, `valid.txt` and `test.txt` with one video
per line.

Shapes: T tokens, F features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.readers.hdf5 import Reader
from sftsearch.datasets.readers.tabular import parse_pairs
from sftsearch.datasets.source import unreadable, within
from sftsearch.datasets.spec import ModalitySpec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from sftsearch.datasets.source import Values

FOLDS = {"train": "train", "valid": "validation", "test": "test"}
MARKS = {
    "vision": ("vision", "visual", "facet", "openface"),
    "audio": ("audio", "acoustic", "covarep", "opensmile"),
    "text": ("text", "glove", "word", "bert"),
}
"""Parts of file names that identify a modality."""
DEFAULT_TOKENS = {"vision": 500, "audio": 500, "text": 50}
"""Maximum tokens per clip, as in the unaligned pickles."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A clip whose values are read on demand."""

    name: str
    split: str
    value: float
    """The sentiment, in [-3, 3]."""
    video: str | None
    read: Callable[[], Values]


class ComputationalSequence:
    """A computational sequence; a child process keeps its file open."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._reader = Reader(file)
        arrays = self._reader.arrays()
        roots = {name.split("/", 1)[0] for name in arrays}
        if len(roots) != 1:
            raise unreadable(file, f"it must have one computational sequence, but has {len(roots)}")
        (self.root,) = roots
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name, array in arrays.items():
            parts = name.split("/")
            if len(parts) == 4 and parts[1] == "data" and parts[3] == "features":
                self.shapes[parts[2]] = array.shape
        wrong = next((s for s, shape in self.shapes.items() if len(shape) != 2), None)
        if wrong is not None or not self.shapes:
            what = wrong or "any segment"
            raise unreadable(file, f"it has no features (tokens, features) of {what}")

    def features(self, segment: str) -> npt.NDArray[Any]:
        """Return the features of a segment, (T, F)."""
        return self._reader.read(f"{self.root}/data/{segment}/features")

    def intervals(self, segment: str) -> npt.NDArray[Any]:
        """Return start and end of each token in seconds, (T, 2)."""
        found = self._reader.read(f"{self.root}/data/{segment}/intervals")
        if found.shape != (self.shapes[segment][0], 2):
            raise unreadable(self.file, f"intervals of {segment} have the shape {found.shape}")
        return found


def list_clips(
    folder: Path, tokens: str, names: Sequence[str], chosen: str
) -> tuple[dict[str, ModalitySpec], list[Clip]]:
    """Return the modalities and clips of a folder of `.csd` files.

    Args:
        folder: the folder.
        tokens: maximum tokens of modalities, as audio=500,text=50.
        names: the modalities to read.
        chosen: files of modalities, as vision=FILE,audio=FILE; by default found by their names.

    Raises:
        DatasetError: a modality, the labels or a fold is missing, or a file has another format.
    """
    most = DEFAULT_TOKENS | parse_pairs(tokens, "tokens")
    files = sorted(folder.glob("[!.]*.csd"))
    truth = _sentiment(folder, [file for file in files if "label" in file.name.lower()])
    rest = [file for file in files if "label" not in file.name.lower()]
    file_of = _parse_files(chosen, folder)
    found = {name: file_of.get(name) or _find(folder, rest, name) for name in names}
    sequences = {name: ComputationalSequence(file) for name, file in found.items()}
    shapes = {}
    for name, sequence in sequences.items():
        widths = {shape[1] for shape in sequence.shapes.values()}
        if len(widths) != 1:
            raise unreadable(
                sequence.file, f"it has different feature counts: {sorted(widths)[:3]}"
            )
        shapes[name] = ModalitySpec(
            num_tokens=most[name], num_features=widths.pop(), variable_length=True
        )
    fold_of = _folds(folder)
    clips = []
    for segment in sorted(truth.shapes):
        video = segment.partition("[")[0]
        if video in fold_of:
            clips += _clips(truth, segment, fold_of[video], sequences, shapes)
    if not clips:
        raise unreadable(folder, "no clip is from a video in train.txt, valid.txt or test.txt")
    return shapes, clips


def _sentiment(folder: Path, files: list[Path]) -> ComputationalSequence:
    """Return the one sequence of labels that are not emotions only."""
    labels = [file for file in files if "emotion" not in file.name.lower()]
    if len(labels) != 1:
        what = f"it must have one *label*.csd of sentiment, not {len(labels)}"
        only = "; its labels are emotions" if files and not labels else ""
        raise unreadable(folder, what + only)
    truth = ComputationalSequence(labels[0])
    if "emotion" in truth.root.lower() or {shape[1] for shape in truth.shapes.values()} == {6}:
        raise unreadable(labels[0], "its labels are emotions, not the sentiment")
    return truth


def _parse_files(chosen: str, folder: Path) -> dict[str, Path]:
    """Return the file of each modality in a text such as `vision=FILE,audio=FILE`."""
    files = {}
    for part in filter(None, chosen.split(",")):
        name, equals, file = (x.strip() for x in part.partition("="))
        if not equals or not file or name not in MARKS:
            raise DatasetError(
                f"Option `sequences` must be MODALITY=FILE,... with {', '.join(MARKS)}, but got "
                f"{chosen!r:.100}."
            )
        files[name] = within(folder, file)
    return files


def _find(folder: Path, files: list[Path], modality: str) -> Path:
    found = [file for file in files if any(mark in file.name.lower() for mark in MARKS[modality])]
    if len(found) != 1:
        marks = " or ".join(MARKS[modality])
        many = f": set `--option sequences={modality}=FILE`" if found else ""
        raise unreadable(
            folder,
            f"it must have one .csd of {modality} ({marks} in its name), not {len(found)}{many}",
        )
    return found[0]


def _folds(folder: Path) -> dict[str, str]:
    fold_of: dict[str, str] = {}
    for file_split, split in FOLDS.items():
        file = folder / f"{file_split}.txt"
        try:
            videos = file.read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            what = "save the standard folds of the SDK in it, one video per line"
            raise unreadable(
                file, f"{getattr(error, 'strerror', None) or error}: {what}"
            ) from error
        for video in videos:
            if fold_of.setdefault(video, split) != split:
                raise unreadable(file, f"video {video} is also in {fold_of[video]}")
    return fold_of


def _clips(
    truth: ComputationalSequence,
    segment: str,
    split: str,
    sequences: dict[str, ComputationalSequence],
    shapes: dict[str, ModalitySpec],
) -> list[Clip]:
    """Return the clips of a segment of the labels, one per row."""
    features, intervals = truth.features(segment), truth.intervals(segment)
    video = segment.partition("[")[0]
    clips = []
    for number, (row, interval) in enumerate(zip(features, intervals, strict=True)):
        value = float(row[0]) if len(row) else float("nan")
        if not abs(value) <= 3:
            raise unreadable(
                truth.file, f"labels must be in [-3, 3], but {segment}, row {number} has {value}"
            )
        name = segment if "[" in segment else f"{segment}[{number}]"
        where = (segment, video, float(interval[0]), float(interval[1]))
        clips.append(
            Clip(
                name=name,
                split=split,
                value=value,
                video=video,
                read=_Cut(sequences, shapes, *where),
            )
        )
    return clips


class _Cut:
    """Reads the tokens of each sequence that are in the interval of a clip."""

    def __init__(
        self,
        sequences: dict[str, ComputationalSequence],
        shapes: dict[str, ModalitySpec],
        segment: str,
        video: str,
        begin: float,
        end: float,
    ) -> None:
        self._sequences, self._shapes = sequences, shapes
        self._segment, self._video, self._interval = segment, video, (begin, end)

    def __call__(self) -> dict[str, npt.NDArray[Any] | None]:
        values: dict[str, npt.NDArray[Any] | None] = {}
        for name, sequence in self._sequences.items():
            if self._segment in sequence.shapes and "[" in self._segment:
                x_TF = sequence.features(self._segment)
            elif self._video in sequence.shapes:
                middle_T = sequence.intervals(self._video).mean(axis=1)
                begin, end = self._interval
                x_TF = sequence.features(self._video)[(middle_T >= begin) & (middle_T < end)]
            else:
                x_TF = None
            values[name] = x_TF
        return values
