"""Read the files of clips of audio-visual datasets, and hold out a fifth for validation.

`audiovisual.py` documents the folder layout and reads the annotations of each dataset.

Shapes: T tokens, F features.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.readers.arrays import read_array
from sftsearch.datasets.readers.named_files import NamedFiles
from sftsearch.datasets.readers.sound import log_mel, read_sound
from sftsearch.datasets.source import Sample, Source, unreadable
from sftsearch.datasets.spec import ModalitySpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

MODALITIES = ("rgb", "spec", "flow")
"""In the order of the SFT paper; spec is the sound."""
NUM_BANDS = 128
SECONDS = 30.0
"""Maximum seconds of sound to read per clip."""
VALIDATION = 0.2
VALIDATION_SEED = 1111
"""As in the code of the SFT paper: numpy shuffles the training clips; the last fifth validates."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A clip in the annotations."""

    name: str
    split: str
    label: Any
    """A class name, or a list of label names."""
    subject: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """The annotations of a dataset."""

    clips: Sequence[Clip]
    classes: tuple[str, ...]
    attribution: str
    source: str
    description: str
    licence: str = "see the source page"
    multilabel: bool = False


def source_of_clips(
    path: Path, published: Published, modalities: str, spec_tokens: int, missing: bool
) -> Source:
    """Return the clips that have files, with a fifth of the training clips held out.

    Args:
        path: the folder.
        published: the annotations.
        modalities: some of rgb, spec and flow, with commas.
        spec_tokens: windows of sound per clip, 10 ms each.
        missing: keep clips that lack some of their files.

    Raises:
        DatasetError: an option is invalid, or no clip has its files.
    """
    names = [name.strip() for name in modalities.split(",")]
    if not names or len(set(names)) != len(names) or not set(names) <= set(MODALITIES):
        raise DatasetError(
            f"Option `modalities` must be some of {', '.join(MODALITIES)}, but got {modalities!r}."
        )
    if spec_tokens < 1:
        raise DatasetError(f"Option `spec_tokens` must be positive, but got {spec_tokens}.")
    listed, notes = _first_labels(published.clips)
    folders = {name: _folder(path, name) for name in names}
    with_files = [(clip, _files(folders, clip)) for clip in listed]
    is_kept = any if missing else all
    found = [(clip, files) for clip, files in with_files if is_kept(files.values())]
    if not found:
        raise unreadable(path, "no clip has its files: features/rgb/CLIP.npy, audio/CLIP.wav, ...")
    for files in folders.values():
        files.check([clip.name for clip in listed])
    if len(found) < len(listed):
        dropped = f"{len(listed) - len(found)} of {len(listed)}"
        notes.append(f"Left out {dropped} listed clips, because they lack files.")
    shapes = _shapes(found, names, spec_tokens, missing)
    clips = _hold_out([clip for clip, _ in found])
    codes = {name: code for code, name in enumerate(published.classes)}
    samples = [
        Sample(
            name=clip.name,
            split=clip.split,
            label=_label(clip, codes, published),
            subject=clip.subject,
            read=partial(_read, files),
            files=tuple(file for file in files.values() if file),
        )
        for clip, (_, files) in zip(clips, found, strict=True)
    ]
    return Source(
        task="multilabel" if published.multilabel else "classification",
        modalities=shapes,
        classes=published.classes,
        samples=samples,
        licence=published.licence,
        attribution=published.attribution,
        source=published.source,
        description=published.description,
        notes=notes,
    )


def _first_labels(clips: Sequence[Clip]) -> tuple[list[Clip], list[str]]:
    """Keep the first entry of clips that are listed in one split with several classes.

    Kinetics-600 lists some clips twice. A clip in two splits is left to the preparation.
    """
    first = {(clip.name, clip.split): clip for clip in reversed(clips)}
    kept = [clip for clip in clips if first[clip.name, clip.split] is clip]
    others = [clip for clip in clips if clip.label != first[clip.name, clip.split].label]
    if not others:
        return kept, []
    shown = ", ".join(clip.name for clip in others[:3])
    return kept, [f"Clips with two classes, of which the first counts: {len(others)} ({shown})."]


def _label(clip: Clip, codes: dict[str, int], published: Published) -> int | tuple[int, ...]:
    if published.multilabel:
        return tuple(int(name in clip.label) for name in published.classes)
    return codes[clip.label]


def _folder(path: Path, modality: str) -> NamedFiles:
    if modality == "spec":
        return NamedFiles(path, "audio", ".wav")
    return NamedFiles(path, f"features/{modality}", ".npy")


def _files(folders: Mapping[str, NamedFiles], clip: Clip) -> dict[str, Path | None]:
    """Return the files of a clip; extractors of features write `CLIP_rgb.npy` or `CLIP.npy`."""
    return {
        name: files.find(clip.name) or files.find(f"{clip.name}_{name}")
        for name, files in folders.items()
    }


def _shapes(
    clips: Sequence[tuple[Clip, dict[str, Path | None]]],
    names: Sequence[str],
    spec_tokens: int,
    missing: bool,
) -> dict[str, ModalitySpec]:
    """Return the shape of each modality; the longest clip gives the number of tokens."""
    shapes = {}
    for name in names:
        if name == "spec":
            shapes[name] = ModalitySpec(
                num_tokens=spec_tokens, num_features=NUM_BANDS, variable_length=True
            )
            continue
        sizes = []
        for _, files in clips:
            file = files[name]
            with contextlib.suppress(DatasetError):  # reading it will name the file
                sizes += [read_array(file, header=True)] if file else []
        if not sizes:
            raise DatasetError(f"No clip has {name}. Remove it from option `modalities`.")
        lengths, widths = zip(*sizes, strict=True)
        if len(set(widths)) != 1:
            raise DatasetError(f"{name} has different feature counts: {sorted(set(widths))[:3]}.")
        varies = missing or len(set(lengths)) > 1
        shapes[name] = ModalitySpec(
            num_tokens=max(lengths), num_features=widths[0], variable_length=varies
        )
    return shapes


def _read(files: Mapping[str, Path | None]) -> dict[str, npt.NDArray[Any] | None]:
    values: dict[str, npt.NDArray[Any] | None] = {}
    for name, file in files.items():
        if file is None:
            values[name] = None
        elif name == "spec":
            values[name] = log_mel(read_sound(file, seconds=SECONDS))
        else:
            values[name] = read_array(file)
    return values


def hold_out_videos(clips: list[Clip]) -> list[Clip]:
    """Move a fifth of the training videos to validation."""
    videos = sorted({str(clip.subject) for clip in clips if clip.split == "train"})
    np.random.RandomState(VALIDATION_SEED).shuffle(videos)
    held = set(videos[len(videos) - int(VALIDATION * len(videos)) :])
    return [
        replace(clip, split="validation")
        if clip.split == "train" and clip.subject in held
        else clip
        for clip in clips
    ]


def _hold_out(clips: list[Clip]) -> list[Clip]:
    """Move a fifth of the training clips to validation unless there is a validation split."""
    if any(clip.split == "validation" for clip in clips):
        return clips
    train = np.array([i for i, clip in enumerate(clips) if clip.split == "train"], dtype=np.int64)
    np.random.RandomState(VALIDATION_SEED).shuffle(train)
    held = set(train[len(train) - int(VALIDATION * len(train)) :].tolist())
    return [replace(c, split="validation") if i in held else c for i, c in enumerate(clips)]
