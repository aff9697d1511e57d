"""Sound as tokens, compared with slow references."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile

from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.readers.sound import FLOOR, log_mel, mel_bands, mfcc, read_sound

if TYPE_CHECKING:
    from pathlib import Path


def tone(frequency: float, seconds: float = 0.5, rate: int = 16_000) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)


def slow_log_mel(x: np.ndarray, rate: int, num_bands: int) -> np.ndarray:
    """Return log-mel tokens by definition: sums over samples, frequencies and bands."""
    window, hop = rate // 40, rate // 100
    size = 1024 if num_bands == 128 else 256  # the least power of two without empty bands
    hamming = [0.54 - 0.46 * math.cos(2 * math.pi * n / (window - 1)) for n in range(window)]
    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = [700 * (10 ** (top * i / (num_bands + 1) / 2595) - 1) for i in range(num_bands + 2)]
    mel = [2595 * math.log10(1 + f / 700) for f in edges]
    tokens = []
    for start in range(0, len(x) - window + 1, hop):
        frame = x[start : start + window] * hamming
        row = []
        power = []
        for k in range(size // 2 + 1):
            angles = 2 * np.pi * k * np.arange(window) / size
            power.append(np.sum(frame * np.cos(angles)) ** 2 + np.sum(frame * np.sin(angles)) ** 2)
        for band in range(num_bands):
            total = 0.0
            for k, value in enumerate(power):
                m = 2595 * math.log10(1 + k * rate / size / 700)
                low, center, high = mel[band], mel[band + 1], mel[band + 2]
                if low < m < high:
                    total += value * min((m - low) / (center - low), (high - m) / (high - center))
            row.append(math.log(total + FLOOR))
        tokens.append(row)
    return np.array(tokens)


def test_no_band_is_constant() -> None:
    x = np.random.default_rng(0).standard_normal(16_000)
    assert log_mel(x).std(axis=0).min() > 0.2
    assert log_mel(x, rate=8000, num_bands=64).std(axis=0).min() > 0.2


@pytest.mark.parametrize(("rate", "num_bands"), [(16_000, 128), (8000, 32)])
def test_log_mel_equals_its_definition(rate: int, num_bands: int) -> None:
    x = np.random.default_rng(0).standard_normal(rate // 25)
    expected = slow_log_mel(x, rate, num_bands)
    found = log_mel(x, rate=rate, num_bands=num_bands)
    assert found.dtype == np.float32
    assert found.shape == expected.shape == (2, num_bands)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_tone_is_loudest_in_its_band() -> None:
    centers = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 130) / 2595) - 1)
    for frequency in (440.0, 1000.0, 4000.0):
        loudest = log_mel(tone(frequency)).mean(axis=0).argmax()
        assert centers[loudest] < frequency < centers[loudest + 2]


def test_ten_seconds_have_998_windows() -> None:
    assert log_mel(tone(440, 10.0)).shape == (998, 128)
    assert log_mel(tone(440, 0.01)).shape == (1, 128)  # padded to a window


def test_bands_sum_to_one_between_the_first_and_last_center() -> None:
    sums = mel_bands(16_000, 4096, 20).sum(axis=1)
    np.testing.assert_allclose(sums[200:1500], 1.0, atol=1e-12)


def test_mfcc_are_the_orthonormal_cosine_transform() -> None:
    x = np.random.default_rng(0).standard_normal(4000)
    log = log_mel(x).astype(np.float64)
    n = log.shape[1]
    expected = np.zeros((len(log), 13))
    for k in range(13):
        scale = math.sqrt((1 if k == 0 else 2) / n)
        basis = [math.cos(math.pi * (i + 0.5) * k / n) for i in range(n)]
        expected[:, k] = scale * log @ basis
    np.testing.assert_allclose(mfcc(x), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("ending", ["wav", "flac"])
def test_files_are_read_as_one_channel_at_one_rate(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"x.{ending}"
    both = np.stack([tone(440, rate=48_000), np.zeros(24_000)], axis=1)
    soundfile.write(file, both, 48_000)
    x = read_sound(file)
    assert len(x) == 8000
    np.testing.assert_allclose(x[200:-200], tone(440)[200:-200] / 2, atol=2e-3)
    assert len(read_sound(file, seconds=0.1)) == 1600
    assert len(read_sound(file, 48_000)) == 24_000


def test_float_files_keep_nan(tmp_path: Path) -> None:
    file = tmp_path / "x.wav"
    x = np.array([0.5, np.nan, 0.25])
    soundfile.write(file, x, 16_000, subtype="DOUBLE")
    np.testing.assert_array_equal(read_sound(file), x)


def test_wrong_headers_are_ignored_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.wav"
    soundfile.write(file, tone(440), 16_000)
    content = bytearray(file.read_bytes())
    content[40:44] = (0xFFFFFFF0).to_bytes(4, "little")  # the size of the data
    file.write_bytes(bytes(content))
    assert len(read_sound(file)) <= 8000
    content[24:28] = (1).to_bytes(4, "little")  # the rate
    file.write_bytes(bytes(content))
    with pytest.raises(DatasetError, match="it has 1 channels at 1 Hz"):
        read_sound(file)


@pytest.mark.parametrize("content", [b"", b"RIFF", b"not a sound at all" * 10])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.wav"
    file.write_bytes(content)
    with pytest.raises(DatasetError, match=f"Cannot read {file}: ") as raised:
        read_sound(file)
    assert "\n" not in str(raised.value)


def test_an_empty_sound_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.wav"
    soundfile.write(file, np.zeros(0), 16_000)
    with pytest.raises(DatasetError, match="it has no samples"):
        read_sound(file)
