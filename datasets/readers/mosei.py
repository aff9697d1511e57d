"""Read CMU-MOSEI and CMU-MOSI: clips of speakers, labeled with their sentiment.

Published as: the pickles of MulT (https://github.com/yaohungt/Multimodal-Transformer) and of MMSA
(https://github.com/thuiar/MMSA), aligned to words or not, and the computational sequences (`.csd`,
HDF5) of the CMU-MultimodalSDK (https://github.com/CMU-MultiComp-Lab/CMU-MultimodalSDK).

The label is a number in [-3, 3]. By default it is rounded to seven classes, as in the papers;
`labels=regression` keeps it. The subject of a clip is its source video.

MulT files have no lengths: clips are padded to 50 (text) or 50 to 500 tokens and read with the
padding. MMSA files have the lengths of vision and audio. Zeros pad a clip at its end, or (an option
of MMSA-FET) at its beginning: if there are zeros before the last `length` tokens and numbers
after the first ones, the last ones are read. The audio of some files has infinities; `--nan` says
how to handle them.

Shapes: N clips, T tokens, F features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sftsearch.datasets.errors import DatasetError, look_up
from sftsearch.datasets.readers import csd, safe_pickle
from sftsearch.datasets.source import Sample, Source, unreadable
from sftsearch.datasets.spec import ModalitySpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

SPLITS = {"train": "train", "valid": "validation", "test": "test"}
"""Names of the splits in the files."""
MODALITIES = ("vision", "audio", "text")
"""In the order of the SFT paper."""
CLASSES = tuple(f"{number:+d}" if number else "0" for number in range(-3, 4))
SOURCES = {
    "mosei": "http://multicomp.cs.cmu.edu/resources/cmu-mosei-dataset/",
    "mosi": "http://multicomp.cs.cmu.edu/resources/cmu-mosi-dataset/",
}
CREDIT = {
    "mosei": "A. Zadeh et al.: Multimodal Language Analysis in the Wild: CMU-MOSEI Dataset and "
    "Interpretable Dynamic Fusion Graph. ACL 2018.",
    "mosi": "A. Zadeh et al.: MOSI: Multimodal Corpus of Sentiment Intensity and Subjectivity "
    "Analysis in Online Opinion Videos. arXiv:1606.06259 (2016).",
}


def open_source(
    path: Path,
    *,
    labels: str = "seven",
    tokens: str = "",
    modalities: str = "",
    sequences: str = "",
) -> Source:
    """List the clips of CMU-MOSEI: a pickle of MulT or MMSA, or a folder of .csd files.

    Args:
        path: the pickle, or the folder.
        labels: seven (rounded to classes) or regression.
        tokens: maximum tokens of modalities, as audio=500,text=50; for .csd files.
        modalities: some of vision, audio and text, with commas; all by default.
        sequences: the .csd files of modalities of which there are several, as vision=FILE.

    Raises:
        DatasetError: the file has another format, or a label is out of range.
    """
    return _open("mosei", path, labels, tokens, modalities, sequences)


def open_mosi(
    path: Path,
    *,
    labels: str = "seven",
    tokens: str = "",
    modalities: str = "",
    sequences: str = "",
) -> Source:
    """List the clips of CMU-MOSI: a pickle of MulT or MMSA, or a folder of .csd files.

    Args and raises as `open_source`.
    """
    return _open("mosi", path, labels, tokens, modalities, sequences)


def _open(
    name: str, path: Path, labels: str, tokens: str, modalities: str, sequences: str
) -> Source:
    if labels not in ("seven", "regression"):
        raise DatasetError(f"Option `labels` must be seven or regression, but got {labels!r}.")
    given = {one.strip() for one in modalities.split(",") if one.strip()}
    for one in given:
        look_up(dict.fromkeys(MODALITIES), one, kind="modality of this dataset")
    chosen = [one for one in MODALITIES if one in given or not given]
    if path.is_dir():
        shapes, clips = csd.list_clips(path, tokens, chosen, sequences)
    else:
        shapes, clips = _from_pickle(path)
        shapes = {one: shapes[one] for one in chosen}
    return Source(
        task="classification" if labels == "seven" else "regression",
        modalities=shapes,
        classes=CLASSES if labels == "seven" else (),
        samples=[
            Sample(
                name=clip.name,
                split=clip.split,
                label=to_class(clip.value) if labels == "seven" else clip.value,
                subject=clip.video,
                read=clip.read,
            )
            for clip in clips
        ],
        licence="see the source page",
        attribution=CREDIT[name],
        source=SOURCES[name],
        description=f"Clips of CMU-{name.upper()}, with sentiment in [-3, 3].",
    )


def to_class(value: float) -> int:
    """Convert a sentiment in [-3, 3] to its class: round(y) + 3, halves to even."""
    return round(value) + 3


def _from_pickle(file: Path) -> tuple[dict[str, ModalitySpec], list[csd.Clip]]:
    content = safe_pickle.load(file)
    if not isinstance(content, dict) or not set(SPLITS) <= content.keys():
        raise unreadable(file, "it must have train, valid and test")
    parts = {file_split: _part(file, file_split, content[file_split]) for file_split in SPLITS}
    shapes = _shapes(file, parts)
    clips = [
        clip
        for file_split, part in parts.items()
        for clip in _clips(file, file_split, part, shapes)
    ]
    return shapes, clips


def _part(file: Path, file_split: str, found: Any) -> dict[str, Any]:
    """Check a split: (N, T, F) by modality, N labels, and optional ids and lengths."""
    if not isinstance(found, dict):
        raise unreadable(file, f"{file_split} is not a dict")
    label = found.get("regression_labels", found.get("labels"))
    if isinstance(label, list):  # as in the files of Self-MM
        label = _array(label)
    count = len(label) if isinstance(label, np.ndarray) else 0
    for name in MODALITIES:
        x_NTF = found.get(name)
        if not isinstance(x_NTF, np.ndarray) or x_NTF.ndim != 3 or x_NTF.dtype.kind not in "fiu":
            raise unreadable(
                file, f"{file_split} has no {name} of numbers (clips, tokens, features)"
            )
        if len(x_NTF) != count or 0 in x_NTF.shape:
            raise unreadable(
                file,
                f"{name} of {file_split} has shape {x_NTF.shape}, but there are {count} labels",
            )
    part: dict[str, Any] = {name: found[name] for name in MODALITIES}
    part["values"] = _values(file, file_split, label)
    part["ids"] = _identifiers(found.get("id"), count)
    for name in MODALITIES:
        lengths = found.get(f"{name}_lengths")
        if lengths is not None:
            part[f"{name}_lengths"] = _lengths(
                file, f"{name}_lengths of {file_split}", lengths, count
            )
    return part


def _array(found: Any) -> npt.NDArray[Any]:
    """Convert a list to an array; an empty array if its entries have different shapes."""
    try:
        return np.asarray(found)
    except ValueError:
        return np.empty(0)


def _values(file: Path, file_split: str, label: Any) -> list[float]:
    if not isinstance(label, np.ndarray) or label.dtype.kind not in "fiu":
        raise unreadable(file, f"{file_split} has no numeric labels")
    if label.size != len(label):
        raise unreadable(file, f"{file_split} must have one label per clip, but has {label.shape}")
    values = label.reshape(-1).astype(np.float64)
    wrong = np.flatnonzero(~(np.abs(values) <= 3))
    if len(wrong):
        got = f"clip {wrong[0]} of {file_split} has {values[wrong[0]]}"
        raise unreadable(file, f"labels must be in [-3, 3], but {got}")
    found: list[float] = values.tolist()
    return found


def _lengths(file: Path, what: str, lengths: Any, count: int) -> list[int]:
    array = _array(lengths)
    if array.dtype.kind not in "iu" or array.size != count or (count and array.min() < 0):
        raise unreadable(file, f"{what} must be {count} non-negative integers")
    found: list[int] = array.reshape(-1).tolist()
    return found


def _identifiers(found: Any, count: int) -> list[str]:
    """Return the ids of clips: `video$_$clip` in MMSA, [video, start, end] in MulT."""
    if found is None or len(found) != count:
        return [""] * count
    names = []
    for one in found:
        parts = np.ravel(np.asarray(one, dtype=object)).tolist()
        texts = [x.decode("utf-8", "replace") if isinstance(x, bytes) else str(x) for x in parts]
        names.append(" ".join(texts))
    return names


def _video(identifier: str) -> str | None:
    for mark in ("$_$", "[", " "):
        identifier = identifier.partition(mark)[0]
    return identifier or None


def _shapes(file: Path, parts: Mapping[str, dict[str, Any]]) -> dict[str, ModalitySpec]:
    shapes = {}
    for name in MODALITIES:
        found = {part[name].shape[1:] for part in parts.values()}
        if len(found) != 1:
            raise unreadable(
                file, f"{name} must have the same shape in all splits, but has {sorted(found)}"
            )
        (num_tokens, num_features) = found.pop()
        shapes[name] = ModalitySpec(
            num_tokens=num_tokens,
            num_features=num_features,
            variable_length=all(f"{name}_lengths" in part for part in parts.values()),
        )
    return shapes


def _clips(
    file: Path, file_split: str, part: dict[str, Any], shapes: Mapping[str, ModalitySpec]
) -> list[csd.Clip]:
    clips, seen = [], set()
    for number, identifier in enumerate(part["ids"]):
        name = f"{file_split} {identifier or number}"
        name = f"{name} ({number})" if name in seen else name
        seen.add(name)
        clips.append(
            csd.Clip(
                name=name,
                split=SPLITS[file_split],
                value=part["values"][number],
                video=_video(identifier),
                read=_Rows(file, part, number, shapes),
            )
        )
    return clips


def _without_padding(x_TF: npt.NDArray[Any], length: int) -> npt.NDArray[Any]:
    """Return the first `length` tokens, or the last ones if the padding is at the beginning."""
    padding = len(x_TF) - length
    is_at_front = padding > 0 and not x_TF[:padding].any() and x_TF[length:].any()
    return x_TF[padding:] if is_at_front else x_TF[:length]


class _Rows:
    """Reads the values of a clip from the arrays of a pickle, which may be memory-mapped."""

    def __init__(
        self, file: Path, part: dict[str, Any], number: int, shapes: Mapping[str, ModalitySpec]
    ) -> None:
        self._file, self._part, self._number, self._shapes = file, part, number, shapes

    def __call__(self) -> dict[str, npt.NDArray[Any]]:
        """Return (T, F) by modality.

        Raises:
            DatasetError: a length exceeds the tokens of its modality.
        """
        values = {}
        for name, shape in self._shapes.items():
            x_TF = self._part[name][self._number]
            if shape.variable_length:
                length = self._part[f"{name}_lengths"][self._number]
                if length > len(x_TF):
                    what = f"{name} of clip {self._number} has {len(x_TF)} tokens, not {length}"
                    raise unreadable(self._file, what)
                x_TF = _without_padding(x_TF, length)
            values[name] = np.asarray(x_TF)
        return values
