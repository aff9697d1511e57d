"""Read VGGSound and similar audio-visual datasets: AudioSet, Kinetics-Sounds and more.

These datasets are published as annotations of videos; features must be computed by the user. The
folder has

    features/rgb/CLIP.npy    I3D features of a clip, (T, F); 38 x 1024 in the SFT paper
    features/flow/CLIP.npy   the same for the optical flow; also CLIP_rgb.npy and CLIP_flow.npy
    audio/CLIP.wav           sound, converted to log-mel tokens (`sound.py`)

and the published annotations. A clip that lacks a file is left out and counted; with `missing=true`
it is kept if it has any file. Of a clip that is listed with two classes the first counts.

    VGGSound          vggsound.csv, or the older train.csv and test.csv; CLIP is ID_SSSSSS
    AudioSet          *_train_segments.csv, eval_segments.csv, class_labels_indices.csv; ID_SSSSSS
    Kinetics-Sounds   train.csv, val.csv, test.csv and a class list; ID_SSSSSS_EEEEEE
    Moments in Time   trainingSet.csv, validationSet.csv; the path without its extension
    Epic-Kitchens     EPIC_100_train.csv, EPIC_100_validation.csv, and for the names of classes
                      EPIC_100_verb_classes.csv, EPIC_100_noun_classes.csv; the narration's id

ID is the YouTube id; SSSSSS and EEEEEE are start and end in seconds, six digits.

Shapes: T tokens, F features.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.readers.clips import Clip, Published, hold_out_videos, source_of_clips
from sftsearch.datasets.source import Source, unreadable, within

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

MAX_ROWS = 10_000_000


def open_vggsound(
    path: Path,
    *,
    classes: str = "",
    modalities: str = "rgb,spec,flow",
    spec_tokens: int = 998,
    missing: bool = False,
) -> Source:
    """List the clips of VGGSound, or of VGGS10 and VGGS100 with a class list.

    The validation clips are a fifth of the published training clips, drawn by clip: clips of one
    video may be in both splits, as in the paper.

    Args:
        path: the folder.
        classes: a file with one class per line; all classes by default.
        modalities: some of rgb, spec and flow, with commas.
        spec_tokens: windows of sound per clip, 10 ms each; ten seconds have 998.
        missing: keep clips that lack some of their files.

    Raises:
        DatasetError: the folder has another format, or an option is invalid.
    """
    chosen = _class_list(path, classes)
    listed = _vggsound_clips(path)
    rows = [clip for clip in listed if chosen is None or clip.label in chosen]
    published = Published(
        clips=rows,
        classes=_classes(rows, chosen, path),
        attribution="H. Chen et al.: VGGSound: A Large-scale Audio-Visual Dataset. ICASSP 2020.",
        source="https://www.robots.ox.ac.uk/~vgg/data/vggsound/",
        description="Clips of VGGSound: video and sound.",
    )
    return source_of_clips(path, published, modalities, spec_tokens, missing)


def _vggsound_clips(path: Path) -> list[Clip]:
    """Return the clips of vggsound.csv, or of train.csv and test.csv as published at first."""
    file, clips = path / "vggsound.csv", []
    older = [(path / f"{split}.csv", split) for split in ("train", "test")]
    if not file.is_file() and all(one.is_file() for one, _ in older):
        for one, split in older:
            for name, label, *_ in _rows(one, 2):
                video, _, start = name.removesuffix(".mp4").rpartition("_")
                clips.append(Clip(name=_youtube(video, start), split=split, label=label))
        return clips
    for row in _rows(file, 4):
        if row[3] not in ("train", "test"):
            raise unreadable(file, f"a split must be train or test, not {row[3]!r:.40}")
        clips.append(Clip(name=_youtube(row[0], row[1]), split=row[3], label=row[2]))
    return clips


def open_audioset(
    path: Path, *, modalities: str = "rgb,spec", spec_tokens: int = 1000, missing: bool = False
) -> Source:
    """List the clips of AudioSet, with several labels each.

    Args and raises as `open_vggsound`. The validation clips are a fifth of the training clips.
    """
    named = _rows(path / "class_labels_indices.csv", 3, header=True)
    names = {row[1]: row[2] for row in named}
    clips = []
    for file in sorted(path.glob("*_segments.csv")):
        split = "test" if file.name.startswith("eval") else "train"
        for row in _rows(file, 4, comments=True):
            labels = [name.strip() for name in ",".join(row[3:]).split(",")]
            unknown = next((name for name in labels if name not in names), None)
            if unknown is not None:
                raise unreadable(file, f"label {unknown!r:.40} is not in class_labels_indices.csv")
            known = [names[name] for name in labels]
            name = _youtube(row[0], row[1])
            clips.append(Clip(name=name, split=split, label=known))
    published = Published(
        clips=clips,
        classes=tuple(names.values()),
        attribution="J. F. Gemmeke et al.: Audio Set: An Ontology and Human-labeled Dataset for "
        "Audio Events. ICASSP 2017.",
        source="https://research.google.com/audioset/",
        description="Clips of AudioSet: video and sound, with several labels each.",
        licence="CC BY 4.0 (the annotations)",
        multilabel=True,
    )
    return source_of_clips(path, published, modalities, spec_tokens, missing)


def open_kinetics_sounds(
    path: Path,
    *,
    classes: str = "classes.txt",
    modalities: str = "rgb,spec",
    spec_tokens: int = 1000,
    missing: bool = False,
) -> Source:
    """List the clips of Kinetics whose classes can be heard.

    Args and raises as `open_vggsound`; the class list must exist.
    """
    chosen = _class_list(path, classes)
    clips = []
    for file_split, split in (("train", "train"), ("val", "validation"), ("test", "test")):
        file = path / f"{file_split}.csv"
        with _reading(file) as rows:
            names = ("label", "youtube_id", "time_start", "time_end")
            columns = _header(file, rows, names)
            for row in filter(None, rows):
                label, video, start, end = (row[column] for column in columns)
                if chosen is None or label in chosen:
                    name = f"{_youtube(video, start)}_{_seconds(end)}"
                    clips.append(Clip(name=name, split=split, label=label, subject=video))
    published = Published(
        clips=clips,
        classes=_classes(clips, chosen, path),
        attribution="R. Arandjelovic, A. Zisserman: Look, Listen and Learn. ICCV 2017. W. Kay et "
        "al.: The Kinetics Human Action Video Dataset. arXiv:1705.06950.",
        source="https://github.com/cvdfoundation/kinetics-dataset",
        description="Clips of Kinetics whose actions can be seen and heard.",
    )
    return source_of_clips(path, published, modalities, spec_tokens, missing)


def open_moments_in_time(
    path: Path, *, modalities: str = "rgb,spec", spec_tokens: int = 300, missing: bool = False
) -> Source:
    """List the clips of Moments in Time.

    Args and raises as `open_vggsound`. The published validation clips are the test split; a fifth
    of the training clips is the validation split.
    """
    clips = []
    for file, split in (("trainingSet.csv", "train"), ("validationSet.csv", "test")):
        for row in _rows(path / file, 2):
            name = row[0].rsplit(".", 1)[0]
            clips.append(Clip(name=name, split=split, label=row[1]))
    published = Published(
        clips=clips,
        classes=_classes(clips, None, path),
        attribution="M. Monfort et al.: Moments in Time Dataset: One Million Videos for Event "
        "Understanding. TPAMI 2019.",
        source="http://moments.csail.mit.edu/",
        description="Clips of Moments in Time: three seconds of an action.",
    )
    return source_of_clips(path, published, modalities, spec_tokens, missing)


def open_epic_kitchens(
    path: Path,
    *,
    label: str = "verb",
    modalities: str = "rgb,spec,flow",
    spec_tokens: int = 400,
    missing: bool = False,
) -> Source:
    """List the actions of Epic-Kitchens-100.

    Args and raises as `open_vggsound`. `label` is verb or noun. The published validation actions
    are the test split; the actions of a fifth of the training videos are the validation split.
    """
    if label not in ("verb", "noun"):
        raise DatasetError(f"Option `label` must be verb or noun, but got {label!r}.")
    clips = []
    for file, split in (("EPIC_100_train.csv", "train"), ("EPIC_100_validation.csv", "test")):
        with _reading(path / file) as rows:
            columns = _header(path / file, rows, ("narration_id", "video_id", f"{label}_class"))
            for row in rows:
                name, video, number = (row[column] for column in columns)
                if not number.isdigit():
                    raise unreadable(path / file, f"{label}_class of {name} is {number!r:.40}")
                clips.append(Clip(name=name, split=split, label=int(number), subject=video))
    most = max((clip.label for clip in clips), default=0)
    if most > 10_000:
        raise unreadable(path, f"{label}_class goes up to {most}")
    classes = _epic_classes(path, label, most)
    named = [replace(clip, label=classes[clip.label]) for clip in clips]
    published = Published(
        clips=hold_out_videos(named),
        classes=classes,
        attribution="D. Damen et al.: Rescaling Egocentric Vision: Collection, Pipeline and "
        "Challenges for EPIC-KITCHENS-100. IJCV 2022.",
        source="https://epic-kitchens.github.io/",
        description="Actions in kitchens: video and sound of head-mounted cameras.",
        licence="CC BY-NC 4.0",
    )
    return source_of_clips(path, published, modalities, spec_tokens, missing)


def _epic_classes(path: Path, label: str, most: int) -> tuple[str, ...]:
    """Return the names of all classes; `verb_0`, ... up to the largest label without the list."""
    file = path / f"EPIC_100_{label}_classes.csv"
    if not file.is_file():
        return tuple(f"{label}_{number}" for number in range(most + 1))
    with _reading(file) as rows:
        columns = _header(file, rows, ("id", "key"))
        name_of = {row[columns[0]]: row[columns[1]] for row in filter(None, rows)}
    numbers = [str(number) for number in range(len(name_of))]
    if len(name_of) <= most or set(numbers) != name_of.keys():
        raise unreadable(file, f"its ids must be 0, 1, ... with {most} among them")
    if len(set(name_of.values())) < len(name_of):
        raise unreadable(file, "two classes have the same name")
    return tuple(name_of[number] for number in numbers)


# ------------------------------------------------------------------ annotations


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[Iterator[list[str]]]:
    """Open a CSV file; convert every read error to one line."""
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            yield csv.reader(stream, skipinitialspace=True, strict=True)
    except (OSError, csv.Error, UnicodeDecodeError, IndexError) as error:
        raise unreadable(file, getattr(error, "strerror", None) or error) from error


def _rows(
    file: Path, width: int, *, header: bool = False, comments: bool = False
) -> list[list[str]]:
    """Return the rows of a CSV file; check that each has at least `width` cells."""
    found = []
    with _reading(file) as rows:
        for number, row in enumerate(itertools.islice(rows, MAX_ROWS), start=1):
            if not row or (header and number == 1):
                continue
            if comments and (row[0].startswith("#") or row[0] == "YTID"):
                continue  # some copies lack the # of the header
            if len(row) < width:
                raise unreadable(file, f"row {number} must have {width} cells, but has {len(row)}")
            found.append(row)
    return found


def _header(file: Path, rows: Iterator[list[str]], names: Iterable[str]) -> list[int]:
    header = next(rows, [])
    for name in names:
        if name not in header:
            raise unreadable(file, f"it has no column {name}")
    return [header.index(name) for name in names]


def _youtube(video: str, start: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", video):
        raise DatasetError(f"A video id must be letters, digits, - and _, but got {video!r:.80}.")
    return f"{video}_{_seconds(start)}"


def _seconds(text: str) -> str:
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]+)?", text):
        raise DatasetError(f"A time must be a number of seconds, but got {text!r:.40}.")
    return f"{int(float(text)):06d}"


def _class_list(folder: Path, name: str) -> set[str] | None:
    if not name:
        return None
    file = within(folder, name)
    try:
        chosen = {line.strip() for line in file.read_text(encoding="utf-8").splitlines()} - {""}
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(file, getattr(error, "strerror", None) or error) from error
    if len(chosen) < 2:
        raise unreadable(file, "it must have two or more classes, one per line")
    return chosen


def _classes(clips: Sequence[Clip], chosen: set[str] | None, path: Path) -> tuple[str, ...]:
    found = {clip.label for clip in clips}
    if chosen is not None and chosen - found:
        raise unreadable(path, f"no clip has the class {min(chosen - found)!r:.60}")
    return tuple(sorted(found))
