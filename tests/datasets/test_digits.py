"""The shipped spoken and written digits, compared with the published data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_digits

from sftsearch.datasets import digits, shipped_file
from sftsearch.datasets.catalog import open_dataset
from sftsearch.datasets.errors import DatasetError

if TYPE_CHECKING:
    from pathlib import Path

    from sftsearch.datasets.samples import Split

PUBLISHED_SPEAKERS = {
    "train": {"jackson": 200, "lucas": 200, "yweweler": 200},
    "validation": {"nicolas": 200},
    "test": {"george": 200, "theo": 200},
}


@pytest.fixture(scope="module")
def splits() -> dict[str, Split]:
    return digits.load()


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict[str, Any]]]:
    """Return the published rows by split, read independently."""
    table = pq.read_table(digits.SHIPPED).to_pylist()
    published = {"train": "train", "validation": "val", "test": "test"}
    return {name: [r for r in table if r["split"] == key] for name, key in published.items()}


@pytest.mark.medium
def test_samples_equal_the_published_rows(
    splits: dict[str, Split], rows: dict[str, list[dict[str, Any]]]
) -> None:
    spec = digits.spec()
    for name, split in splits.items():
        assert len(split) == len(rows[name]) == spec.num_samples[name]
        for index, row in enumerate(rows[name]):
            assert spec.classes[split.labels[index]] == row["label_name"]
            assert spec.subjects[name][split.subjects[index]] == row["speaker"]
            audio = np.zeros((128, 32), dtype=np.float32)
            audio[: row["audio_tokens"]] = np.reshape(row["audio"], (-1, 32))
            np.testing.assert_array_equal(split.modalities["audio"][index], audio)
            assert split.lengths["audio"][index] == row["audio_tokens"]
            image = np.reshape(row["image"], (64, 1))
            np.testing.assert_array_equal(split.modalities["image"][index], image)


def test_every_speaker_says_every_digit_twenty_times(splits: dict[str, Split]) -> None:
    for name, speakers in PUBLISHED_SPEAKERS.items():
        assert digits.spec().subjects[name] == tuple(speakers)
        said = zip(splits[name].subjects.tolist(), splits[name].labels.tolist(), strict=True)
        counts = np.zeros((len(speakers), 10), dtype=int)
        for speaker, digit in said:
            counts[speaker, digit] += 1
        assert (counts == 20).all()
        assert counts.sum(axis=1).tolist() == list(speakers.values())


def test_statistics_equal_the_published_ones(splits: dict[str, Split]) -> None:
    """Compare with the statistics published with the file; of audio the first 8 bands."""
    mean = (-0.71477, -0.59644, -0.59401, -0.58301, -0.57532, -0.57356, -0.57967, -0.5901)
    std = (0.73013, 0.74447, 0.76027, 0.77594, 0.84093, 0.8728, 0.8752, 0.88737)
    lengths = np.concatenate([split.lengths["audio"] for split in splits.values()])
    assert (lengths.min(), np.median(lengths), lengths.max()) == (12, 40, 128)
    padded = np.concatenate([split.modalities["audio"] for split in splits.values()])
    valid = [x[:length] for x, length in zip(padded, lengths, strict=True)]
    bands = np.concatenate(valid).astype(np.float64)[:, :8]
    np.testing.assert_allclose(bands.mean(axis=0), mean, atol=1e-5)  # the last published digit
    np.testing.assert_allclose(bands.std(axis=0), std, atol=1e-5)
    pixels = np.concatenate([split.modalities["image"] for split in splits.values()])
    assert pixels.mean(dtype=np.float64) == pytest.approx(0.30529, abs=1e-5)
    assert pixels.std(dtype=np.float64) == pytest.approx(0.37622, abs=1e-5)


def test_images_equal_those_of_scikit_learn(
    splits: dict[str, Split], rows: dict[str, list[dict[str, Any]]]
) -> None:
    """Sixteen gray levels are exact in float32; an image shows the spoken digit."""
    published = load_digits()
    drawn = {name: [row["sklearn_index"] for row in of_split] for name, of_split in rows.items()}
    for name, indices in drawn.items():
        images = splits[name].modalities["image"][:].reshape(-1, 64)
        np.testing.assert_array_equal(images, published.data[indices] / 16)
        np.testing.assert_array_equal(splits[name].labels, published.target[indices])
    used = [index for indices in drawn.values() for index in indices]
    assert len(set(used)) == len(used)  # no image is used more than once


def test_a_store_keeps_lengths_and_ignores_padding(
    tmp_path: Path, splits: dict[str, Split]
) -> None:
    store = open_dataset("digits", cache=tmp_path)
    train = store.split("train")
    np.testing.assert_array_equal(train.lengths["audio"], splits["train"].lengths["audio"])
    tokens = splits["train"].modalities["audio"][:].astype(np.float64)
    num_valid = splits["train"].lengths["audio"].sum()
    mean, _ = store.statistics["audio"]
    np.testing.assert_allclose(mean, tokens.sum(axis=(0, 1)) / num_valid, rtol=1e-6)


def test_another_shipped_file_changes_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digits.spec().fingerprint
    changed = tmp_path / "digits.parquet"
    pq.write_table(pq.read_table(digits.SHIPPED), changed, compression="none")
    monkeypatch.setattr(digits, "SHIPPED", changed)
    assert digits.spec().fingerprint != before
    monkeypatch.setattr(digits, "READER_VERSION", digits.READER_VERSION + 1)
    other_reader = digits.spec().fingerprint
    assert other_reader not in (
        before,
        shipped_file.fingerprint("other", changed, reader_version=2),
    )


def test_a_missing_or_damaged_file_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits, "SHIPPED", tmp_path / "digits.parquet")
    for ask in (digits.spec, digits.load):
        with pytest.raises(DatasetError, match=r"No such file.*Install sftsearch again\.$"):
            ask()
    digits.SHIPPED.write_bytes(b"PAR1, cut short")
    with pytest.raises(DatasetError, match=r"Install sftsearch again\.$"):
        digits.load()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("speaker", "nobody", "nobody"),
        ("label", 3, "labels and their names differ"),
        ("label", 10, "index out of range"),
        ("audio", [0.0] * 33, "not `audio_tokens` x 32"),
        ("audio", None, "not `audio_tokens` x 32"),
        ("image", [0.0] * 63, "not 64 x 1"),
        ("image", None, "not 64 x 1"),
        ("audio_tokens", 0, "without 1 to 128 tokens"),
        ("audio_tokens", 129, "without 1 to 128 tokens"),
    ],
)
def test_a_file_with_invalid_rows_is_refused(
    column: str, value: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pq.read_table(digits.SHIPPED).slice(100, 20)  # zeros of the training split
    changed = table.to_pylist()
    assert {row["split"] for row in changed} == {"train"}
    changed[7][column] = value
    if column == "audio_tokens":
        changed[7]["audio"] = [0.0] * 32 * changed[7][column]
    monkeypatch.setattr(digits, "SHIPPED", tmp_path / "digits.parquet")
    pq.write_table(pa.Table.from_pylist(changed, schema=table.schema), digits.SHIPPED)
    with pytest.raises(DatasetError, match=f"{message}.*Install sftsearch again"):
        digits.load()


def test_the_attribution_ships_with_the_data() -> None:
    text = (digits.SHIPPED.parent / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for needed in (
        "digits.parquet",
        "CC BY-SA 4.0",
        "Zohar Jackson",
        "Alpaydin",
        digits.spec().source,
    ):
        assert needed in text
