"""Convert sound files to tokens: log-mel bands or cepstral coefficients (MFCC).

The front end of audio transformers: 16 kHz, one channel, windows of 25 ms (Hamming) every 10 ms,
power spectra, 128 bands of the mel scale, logarithm. A window is padded with zeros to the least
power of two for which every band has a frequency of the spectrum. The mel scale is HTK's,
m(f) = 2595 log10(1 + f / 700); a band is a triangle of height 1 over mel, from the center of its
lower neighbor to that of its upper one (S. Young et al., The HTK Book, sec. 5.4). MFCC are the
first coefficients of the orthonormal DCT-II of the log-mel bands.

Shapes: S samples of sound, T windows, F bands or coefficients.
"""

from __future__ import annotations

import functools
import io
import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.fft import dct  # type: ignore[import-untyped]
from scipy.signal import resample_poly  # type: ignore[import-untyped]

from sftsearch.datasets.source import unreadable

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

RATE = 16_000
WINDOW, HOP = 400, 160
"""Samples: 25 ms and 10 ms."""
FLOOR = 1e-10
"""Added to powers before the logarithm, so that silence is finite."""
MAX_SECONDS = 3600.0
MAX_CHANNELS = 32


def read_sound(
    file: Path | str,
    rate: int = RATE,
    seconds: float = MAX_SECONDS,
    content: bytes | None = None,
) -> npt.NDArray[Any]:
    """Read the first seconds of a sound file, channels averaged, resampled to `rate`, (S,).

    Args:
        file: the file; with `content`, only its name in errors.
        rate: samples a second of the result.
        seconds: how much to read.
        content: the bytes of the file, if it is part of another one.

    Raises:
        DatasetError: the file is unreadable or empty.
    """
    import soundfile  # type: ignore[import-untyped]

    try:
        with soundfile.SoundFile(file if content is None else io.BytesIO(content)) as sound:
            source_rate, channels = sound.samplerate, sound.channels
            if not 1000 <= source_rate <= 768_000 or not 1 <= channels <= MAX_CHANNELS:
                raise unreadable(file, f"it has {channels} channels at {source_rate} Hz")
            count = int(min(seconds, MAX_SECONDS) * source_rate)
            # The length in the header may be wrong, so it is not used.
            blocks = [
                block.mean(axis=1)
                for block in sound.blocks(1 << 16, frames=count, dtype="float64", always_2d=True)
            ]
    except (soundfile.SoundFileError, OSError, RuntimeError, TypeError) as error:
        why = re.sub(r"^Error opening .*: ", "", str(error))
        raise unreadable(file, why) from error
    x_S = np.concatenate(blocks) if blocks else np.zeros(0)
    if not len(x_S):
        raise unreadable(file, "it has no samples")
    if source_rate == rate:
        return x_S
    common = np.gcd(source_rate, rate)
    resampled: npt.NDArray[Any] = resample_poly(x_S, rate // common, source_rate // common)
    return resampled


def num_windows(file: Path | str, content: bytes) -> int:
    """Return the tokens of `log_mel` for the bytes of a sound file, by its header.

    Raises:
        DatasetError: the file is unreadable.
    """
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(content)) as sound:
            frames, rate = int(sound.frames), int(sound.samplerate)
    except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
        raise unreadable(file, re.sub(r"^Error opening .*: ", "", str(error))) from error
    count = math.ceil(min(frames, MAX_SECONDS * rate) * RATE / rate)
    return 1 + max(count - WINDOW, 0) // HOP


def log_mel(
    x_S: npt.NDArray[Any], *, rate: int = RATE, num_bands: int = 128
) -> npt.NDArray[np.float32]:
    """Return the log power in mel bands, (T, F); sound shorter than a window is padded to one."""
    window, hop = _windows(rate)
    if len(x_S) < window:
        x_S = np.pad(x_S, (0, window - len(x_S)))
    frames_TW = np.lib.stride_tricks.sliding_window_view(x_S, window)[::hop]
    num_points = spectrum_points(rate, window, num_bands)
    bands_KF = mel_bands(rate, num_points, num_bands)
    parts = []
    for start in range(0, len(frames_TW), 1024):  # windows overlap, so blocks bound the memory
        block_TW = frames_TW[start : start + 1024] * np.hamming(window)
        power_TK = np.abs(np.fft.rfft(block_TW, num_points, axis=1)) ** 2
        parts.append(np.log(power_TK @ bands_KF + FLOOR))
    return np.concatenate(parts).astype(np.float32)


def mfcc(
    x_S: npt.NDArray[Any], *, rate: int = RATE, num_bands: int = 128, num_coefficients: int = 13
) -> npt.NDArray[np.float32]:
    """Return the first cepstral coefficients, (T, F)."""
    log_TF = log_mel(x_S, rate=rate, num_bands=num_bands).astype(np.float64)
    coefficients = dct(log_TF, type=2, norm="ortho", axis=1)[:, :num_coefficients]
    return np.ascontiguousarray(coefficients, dtype=np.float32)


def _windows(rate: int) -> tuple[int, int]:
    return WINDOW * rate // RATE, HOP * rate // RATE


@functools.cache
def spectrum_points(rate: int, window: int, num_bands: int) -> int:
    """Return the points of the spectrum: a power of two for which no band is empty.

    With 512 points, the first of 128 bands at 16 kHz would be constant.
    """
    num_points = 1 << (window - 1).bit_length()
    while not mel_bands(rate, num_points, num_bands).any(axis=0).all():
        num_points *= 2
    return num_points


@functools.cache
def mel_bands(rate: int, num_points: int, num_bands: int) -> npt.NDArray[np.float64]:
    """Return the weight of each frequency of a spectrum in each band, (K, F)."""
    mel_K = to_mel(np.arange(num_points // 2 + 1) * rate / num_points)
    edges = np.linspace(0.0, to_mel(np.array(rate / 2)), num_bands + 2)
    low, center, high = edges[:-2], edges[1:-1], edges[2:]
    rising = (mel_K[:, None] - low) / (center - low)
    falling = (high - mel_K[:, None]) / (high - center)
    weights: npt.NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling))
    return weights


def to_mel(frequency: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Convert frequencies in Hz to the mel scale."""
    mel: npt.NDArray[np.float64] = 2595.0 * np.log10(1.0 + frequency / 700.0)
    return mel
