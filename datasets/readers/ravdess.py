"""Read the speech of RAVDESS: 24 actors say two sentences in eight emotions.

Published at https://zenodo.org/record/1188976 (S. R. Livingstone, F. A. Russo, The Ryerson
Audio-Visual Database of Emotional Speech and Song, PLoS ONE 13(5), 2018), CC BY-NC-SA 4.0. Files
are `Actor_12/03-01-05-01-02-01-12.wav`: modality, channel, emotion, intensity, statement,
repetition, actor; actors with odd numbers are men, those with even numbers women.

A sample is the sound as 13 cepstral coefficients (MFCC) every 10 ms. Six folds of four consecutive
actors, two men and two women, as in the MSAF paper; `fold` is the test split, the next one the
validation split, the others are for training. By default a sample is the whole recording; the MSAF
paper skips half a second and keeps 2.45 seconds: `start_ms=500`, `tokens=243`.

Shapes: T tokens, F features.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.readers.sound import RATE, mfcc, read_sound
from sftsearch.datasets.source import Sample, Source, unreadable, within
from sftsearch.datasets.spec import ModalitySpec

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
NUM_ACTORS, NUM_FOLDS = 24, 6
NUM_COEFFICIENTS = 13
SECONDS = 10.0
"""Seconds of sound to read; the longest recording has under six."""
MAX_SKIPPED_MS = 5000
_NAME = re.compile(r"03-01-(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)\.wav", re.IGNORECASE)


def open_source(path: Path, *, fold: int = 0, tokens: int = 600, start_ms: int = 0) -> Source:
    """List the recordings of RAVDESS speech.

    Args:
        path: the folder of Actor_01, ..., Actor_24.
        fold: the test fold, 0 to 5.
        tokens: maximum windows of 10 ms per recording.
        start_ms: milliseconds to skip at the beginning of each recording.

    Raises:
        DatasetError: the folder has another format, or an option is invalid.
    """
    if not 0 <= fold < NUM_FOLDS or tokens < 1 or not 0 <= start_ms <= MAX_SKIPPED_MS:
        raise DatasetError(
            f"Option `fold` must be 0 to {NUM_FOLDS - 1}, `tokens` positive, `start_ms` 0 to "
            f"{MAX_SKIPPED_MS}, but got (fold={fold}, tokens={tokens}, start_ms={start_ms})."
        )
    samples = []
    for file in sorted(path.glob("Actor_*/[!.]*")):
        found = _NAME.fullmatch(file.name)
        if found is None:
            continue  # songs and videos have similar names
        emotion, *_, actor = map(int, found.groups())
        if not 1 <= emotion <= len(EMOTIONS) or not 1 <= actor <= NUM_ACTORS:
            raise unreadable(file, f"its emotion {emotion} or actor {actor} is unknown")
        if file.parent.name != f"Actor_{actor:02d}":
            raise unreadable(file, f"it is of actor {actor}, but in the folder of another actor")
        inside = within(path, f"{file.parent.name}/{file.name}")
        samples.append(
            Sample(
                name=file.stem,
                split=_split(actor, fold),
                label=emotion - 1,
                subject=f"actor {actor:02d}",
                read=partial(_read, inside, start_ms),
                files=(inside,),
            )
        )
    if not samples:
        raise unreadable(path, "it has no Actor_01/03-01-...-01.wav")
    return Source(
        task="classification",
        modalities={
            "audio": ModalitySpec(
                num_tokens=tokens, num_features=NUM_COEFFICIENTS, variable_length=True
            )
        },
        classes=EMOTIONS,
        samples=samples,
        licence="CC BY-NC-SA 4.0",
        attribution="S. R. Livingstone, F. A. Russo: The Ryerson Audio-Visual Database of "
        "Emotional Speech and Song (RAVDESS). PLoS ONE 13(5), e0196391 (2018).",
        source="https://zenodo.org/record/1188976",
        description="Two sentences spoken by 24 actors in eight emotions: sound.",
    )


def fold_of(actor: int) -> int:
    """Return the fold of an actor, 1 to 24: two men and two women each."""
    return (actor - 1) // 4


def _split(actor: int, fold: int) -> str:
    splits = {fold: "test", (fold + 1) % NUM_FOLDS: "validation"}
    return splits.get(fold_of(actor), "train")


def _read(file: Path, start_ms: int) -> dict[str, npt.NDArray[np.float32]]:
    skipped = start_ms * RATE // 1000
    x_S = read_sound(file, seconds=SECONDS)
    if len(x_S) <= skipped:
        raise unreadable(file, f"it has no sound after {start_ms} ms")
    return {"audio": mfcc(x_S[skipped:])}
