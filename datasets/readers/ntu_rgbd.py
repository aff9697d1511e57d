"""Read NTU RGB+D: actions of one or two people as skeletons from a depth camera.

Published at https://rose1.ntu.edu.sg/dataset/actionRecognition/ (A. Shahroudy et al., NTU RGB+D: A
Large Scale Dataset for 3D Human Activity Analysis, CVPR 2016), for research under an agreement.
Files are `SsssCcccPpppRrrrAaaa.skeleton`: setup, camera, performer, replication, action. A file is
text: the number of frames; per frame the number of bodies; per body a line of ten numbers, the
number of joints (25) and a line of twelve numbers per joint, of which x, y and z are read.

A sample has the modalities `person_1` and `person_2`: frames as tokens, 25 x 3 coordinates in
meters relative to the spine base of the first body in its first frame. Longer samples are
subsampled evenly to `tokens` frames. An absent person is a missing modality; in frames without a
person who appears in others, the values are zero.

Splits: `cross_subject`: the published training performers (20 of 60 classes, 53 of 120), every
fifth of them for validation; `cross_view`: cameras 2 and 3 for training, every tenth sample of them
for validation, camera 1 for testing; `cross_setup` (J. Liu et al., NTU RGB+D 120, TPAMI 2020): even
setups for training, every tenth sample of them for validation, odd setups for testing.

The authors list recordings without a body, to be ignored; `--bad drop` leaves them out.

Shapes: T frames, F coordinates.
"""

from __future__ import annotations

import contextlib
import re
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from sftsearch.datasets.errors import DatasetError, look_up
from sftsearch.datasets.source import Sample, Source, unreadable, within
from sftsearch.datasets.spec import ModalitySpec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

TRAINING = (1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38)
"""The published training performers of the cross-subject protocol, for 60 classes."""
TRAINING_120 = (
    *TRAINING,
    *(45, 46, 47, 49, 50, 52, 53, 54, 55, 56, 57, 58, 59, 70, 74, 78, 80, 81, 82, 83, 84, 85, 86),
    *(89, 91, 92, 93, 94, 95, 97, 98, 100, 103),
)
"""The same for 120 classes."""
VALIDATING = TRAINING[4::5]
PROTOCOLS = ("cross_subject", "cross_view", "cross_setup")
PEOPLE = ("person_1", "person_2")
ALONE = "No recording has two people: read without person_2."
NUM_JOINTS = 25
MAX_FRAMES, MAX_BODIES, MAX_BYTES = 10_000, 10, 256 << 20
_NAME = re.compile(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})\.skeleton")


def open_source(
    path: Path,
    *,
    protocol: str = "cross_subject",
    tokens: int = 64,
    classes: int = 60,
    modalities: str = "",
) -> Source:
    """List the skeletons of NTU RGB+D.

    Args:
        path: the folder of .skeleton files.
        protocol: cross_subject, cross_view or cross_setup.
        tokens: maximum frames per sample.
        classes: 60 or 120.
        modalities: person_1, or person_1,person_2; by default both if any sample has two people.

    Raises:
        DatasetError: the folder has another format, or an option is invalid.
    """
    _check_options(protocol, tokens, classes)
    given = _given(modalities)
    samples: list[Sample] = []
    files: list[Path] = []
    for file in sorted(path.glob("[!.]*.skeleton")):  # the others are copies by macOS
        found = _NAME.fullmatch(file.name)
        if found is None:
            raise unreadable(file, "it must be named SsssCcccPpppRrrrAaaa.skeleton")
        _, _, performer, _, action = numbers = tuple(map(int, found.groups()))
        if not 1 <= action <= classes:
            if action > 120:
                raise unreadable(file, f"action {action} is unknown")
            continue  # of the 120-class dataset
        files.append(within(path, file.name))
        samples.append(
            Sample(
                name=file.stem,
                split=_split(protocol, classes, numbers[:3], len(samples)),
                label=action - 1,
                subject=f"performer {performer:03d}" if protocol == "cross_subject" else None,
                read=partial(_read, files[-1], tokens),
                files=(files[-1],),
            )
        )
    if not samples:
        raise unreadable(path, "it has no .skeleton files")
    people = given or (PEOPLE if any(map(_has_two_people, files)) else PEOPLE[:1])
    shape = ModalitySpec(num_tokens=tokens, num_features=3 * NUM_JOINTS, variable_length=True)
    return Source(
        task="classification",
        modalities=dict.fromkeys(people, shape),
        classes=tuple(f"A{number:03d}" for number in range(1, classes + 1)),
        samples=samples,
        licence="see the source page",
        attribution="A. Shahroudy et al.: NTU RGB+D: A Large Scale Dataset for 3D Human Activity "
        "Analysis. CVPR 2016.",
        source="https://rose1.ntu.edu.sg/dataset/actionRecognition/",
        description="Actions of one or two people, as skeletons of 25 joints.",
        notes=[] if given or people == PEOPLE else [ALONE],
    )


def _check_options(protocol: str, tokens: int, classes: int) -> None:
    if protocol not in PROTOCOLS or tokens < 1 or classes not in (60, 120):
        raise DatasetError(
            f"Option `protocol` must be one of {', '.join(PROTOCOLS)}, `tokens` positive, "
            f"`classes` 60 or 120, but got (protocol={protocol}, tokens={tokens}, "
            f"classes={classes})."
        )


def _given(modalities: str) -> tuple[str, ...]:
    """Return the people named by option `modalities`, in the order of the reader; () for none."""
    chosen = {name.strip() for name in modalities.split(",") if name.strip()}
    for name in chosen:
        look_up(dict.fromkeys(PEOPLE), name, kind="modality of this dataset")
    return tuple(name for name in PEOPLE if name in chosen)


def _has_two_people(file: Path) -> bool:
    """Return whether a file has two bodies; False if it is damaged, which reading it reports."""
    with contextlib.suppress(DatasetError):
        return len({body for frame in read_skeletons(file) for body in frame}) > 1
    return False


def _split(protocol: str, classes: int, taken: tuple[int, ...], number: int) -> str:
    """Return the split of a recording, by its setup, camera and performer, and its number."""
    setup, camera, performer = taken
    if protocol == "cross_subject":
        training = TRAINING if classes == 60 else TRAINING_120
        if performer in training[4::5]:
            return "validation"
        return "train" if performer in training else "test"
    if camera == 1 if protocol == "cross_view" else setup % 2 == 1:
        return "test"
    return "validation" if number % 10 == 9 else "train"


def _read(file: Path, tokens: int) -> dict[str, npt.NDArray[np.float32] | None]:
    frames = read_skeletons(file)
    bodies = list(dict.fromkeys(body for frame in frames for body in frame))
    # The two bodies in the most frames; ties go to the one that appears first.
    num_frames = {body: sum(body in frame for frame in frames) for body in bodies}
    chosen = sorted(bodies, key=lambda body: -num_frames[body])[:2]
    if not chosen:
        raise unreadable(file, "it has no bodies")
    rows = np.linspace(0, len(frames) - 1, min(tokens, len(frames))).round().astype(int)
    origin = next(frame[chosen[0]][0] for frame in frames if chosen[0] in frame)
    values: dict[str, npt.NDArray[np.float32] | None] = dict.fromkeys(PEOPLE)
    for name, body in zip(PEOPLE, chosen, strict=False):
        absent = np.zeros((NUM_JOINTS, 3))
        found = [frames[row][body] - origin if body in frames[row] else absent for row in rows]
        values[name] = np.stack(found).reshape(len(rows), -1).astype(np.float32)
    return values


def read_skeletons(file: Path) -> list[dict[str, npt.NDArray[np.float64]]]:
    """Return the joints in meters, (25, 3), by frame and body.

    Raises:
        DatasetError: the file is unreadable or has another format.
    """
    try:
        if file.stat().st_size > MAX_BYTES:
            raise unreadable(file, f"it has more than {MAX_BYTES} bytes")
        lines = iter(file.read_text(encoding="ascii").splitlines())
        frames = [_frame(lines) for _ in range(_count(next(lines), MAX_FRAMES))]
    except (StopIteration, RuntimeError):  # a StopIteration may surface as RuntimeError
        raise unreadable(file, "it ends too early") from None
    except (OSError, ValueError, IndexError) as error:
        if isinstance(error, DatasetError):
            raise
        raise unreadable(file, getattr(error, "strerror", None) or error) from error
    if not frames:
        raise unreadable(file, "it has no frames")
    return frames


def _frame(lines: Iterator[str]) -> dict[str, npt.NDArray[np.float64]]:
    frame = {}
    for _ in range(_count(next(lines), MAX_BODIES)):
        body = next(lines).split()[0]
        if _count(next(lines), NUM_JOINTS) != NUM_JOINTS:
            raise ValueError(f"a body must have {NUM_JOINTS} joints")
        joints = [next(lines).split()[:3] for _ in range(NUM_JOINTS)]
        frame[body] = np.array(joints, dtype=np.float64).reshape(NUM_JOINTS, 3)
    return frame


def _count(line: str, most: int) -> int:
    if not re.fullmatch(r"\s*[0-9]{1,9}\s*", line) or int(line) > most:
        raise ValueError(f"a count must be an integer up to {most}, but is {line[:40]!r}")
    return int(line)
