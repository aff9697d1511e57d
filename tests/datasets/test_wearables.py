"""The shipped sensor recordings, compared with the published data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import pytest

from sftsearch.datasets import shipped_file, wearables
from sftsearch.datasets.catalog import open_dataset
from sftsearch.datasets.errors import DatasetError

if TYPE_CHECKING:
    from pathlib import Path

    from sftsearch.datasets.samples import Split


@pytest.fixture(scope="module")
def splits() -> dict[str, Split]:
    return wearables.load()


@pytest.fixture(scope="module")
def rows() -> list[dict[str, object]]:
    """Return the published rows, read independently."""
    columns = ["split", "subject", "label_name", "watch_acc"]
    return pq.read_table(wearables.SHIPPED, columns=columns).to_pylist()


def test_splits_have_the_published_sizes(splits: dict[str, Split]) -> None:
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 2029,
        "validation": 441,
        "test": 815,
    }


def test_splits_have_the_published_people() -> None:
    subjects = wearables.spec().subjects
    assert subjects["validation"] == ("s04", "s12", "s20")
    assert subjects["test"] == ("s03", "s07", "s11", "s15", "s19", "s23")
    assert len(subjects["train"]) == 14
    assert len({person for people in subjects.values() for person in people}) == 23


def test_samples_equal_the_published_rows(
    splits: dict[str, Split], rows: list[dict[str, object]]
) -> None:
    spec = wearables.spec()
    for name, published in shipped_file.PUBLISHED_SPLITS.items():
        split, expected = splits[name], [row for row in rows if row["split"] == published]
        people = [spec.subjects[name][code] for code in split.subjects]
        assert people == [row["subject"] for row in expected]
        assert [spec.classes[c] for c in split.labels] == [row["label_name"] for row in expected]
        for index in (0, len(split) // 2, len(split) - 1):
            tokens = np.asarray(expected[index]["watch_acc"], dtype=np.float32).reshape(-1, 3)
            np.testing.assert_array_equal(split.modalities["watch_acc"][index], tokens)


def test_statistics_equal_the_published_ones(splits: dict[str, Split]) -> None:
    """Compare with the statistics published with the file, which are of rounded numbers."""
    published = {
        "phone_acc": ((-0.16109, 0.03366, -0.06915), (0.47691, 0.84556, 0.42837)),
        "phone_gyro": ((-0.00234, 0.04544, 0.01933), (1.05026, 1.4502, 0.74778)),
        "watch_acc": ((-0.84866, -0.33706, 0.10777), (0.30432, 0.23875, 0.33523)),
        "watch_gyro": ((0.00195, -0.01647, 0.02526), (1.662, 0.95806, 1.26196)),
    }
    for name, (mean, std) in published.items():
        tokens = np.concatenate([split.modalities[name] for split in splits.values()])
        tokens = tokens.astype(np.float64).reshape(-1, 3)
        np.testing.assert_allclose(tokens.mean(axis=0), mean, atol=2e-5)
        np.testing.assert_allclose(tokens.std(axis=0), std, rtol=2e-4)


def test_acceleration_is_in_tens_of_meters_per_second_squared(splits: dict[str, Split]) -> None:
    """A seated person measures only gravity: 9.81 m/s^2."""
    still = splits["train"].labels == wearables.CLASSES.index("SEATED")
    for name in ("phone_acc", "watch_acc"):
        strength = np.linalg.norm(splits["train"].modalities[name][still], axis=2)
        assert np.median(strength) == pytest.approx(0.981, abs=0.02)


@pytest.mark.medium
def test_another_shipped_file_makes_another_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_dataset("wearables", cache=tmp_path)
    changed = tmp_path / "wearables.parquet"
    pq.write_table(pq.read_table(wearables.SHIPPED), changed, compression="none")
    monkeypatch.setattr(wearables, "SHIPPED", changed)
    after = open_dataset("wearables", cache=tmp_path)
    assert after.path != before.path
    assert after.spec.fingerprint != before.spec.fingerprint
    assert after.checksums == before.checksums  # only the compression was changed


def test_a_missing_or_damaged_file_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wearables, "SHIPPED", tmp_path / "wearables.parquet")
    with pytest.raises(DatasetError, match=r"No such file.*Install sftsearch again\.$"):
        wearables.spec()
    wearables.SHIPPED.write_bytes(b"PAR1, cut short")
    with pytest.raises(DatasetError, match=r"Install sftsearch again\.$"):
        wearables.load()


def test_a_file_of_other_people_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pq.read_table(wearables.SHIPPED).slice(0, 50)
    renamed = table.set_column(4, "subject", [["s99"] * len(table)])
    pq.write_table(renamed, tmp_path / "wearables.parquet")
    monkeypatch.setattr(wearables, "SHIPPED", tmp_path / "wearables.parquet")
    with pytest.raises(DatasetError, match=r"s99.*Install sftsearch again"):
        wearables.load()


def test_the_attribution_ships_with_the_data() -> None:
    text = (wearables.SHIPPED.parent / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for needed in ("wearables.parquet", "CC BY 4.0", "10.5281/zenodo.8398688", "Matey-Sanz"):
        assert needed in text
