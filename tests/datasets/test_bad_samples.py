"""Samples that cannot be used: all are named at once, or left out, and the others are kept."""

from __future__ import annotations

import csv
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.prepare import HOPELESS, prepare
from sftsearch.datasets.readers.arrays import open_source
from sftsearch.datasets.source import Sample, Source, unreadable
from sftsearch.datasets.spec import SPLITS, ModalitySpec
from sftsearch.datasets.store import open_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

SHAPE = ModalitySpec(num_tokens=4, num_features=2, variable_length=True)


def values(number: int) -> dict[str, npt.NDArray[Any]]:
    return {"x": np.full((1 + number % 4, 2), number, dtype=np.float32)}


def damaged(number: int) -> dict[str, npt.NDArray[Any]]:
    raise unreadable(f"clip{number}.wav", "it is not a sound file")


def denied(number: int) -> dict[str, npt.NDArray[Any]]:
    raise PermissionError(13, "Permission denied", f"clip{number}.wav")


def nonfinite(number: int) -> dict[str, npt.NDArray[Any]]:
    return {"x": values(number)["x"] * np.nan}


def source(count: int = 60, **bad: Callable[[int], Any]) -> Source:
    """Return a source in which the samples `n7=damaged` and so on cannot be used."""
    samples = []
    for number in range(count):
        read = bad.get(f"n{number}", values)
        samples.append(
            Sample(
                name=f"clip{number}",
                split=SPLITS[number % 3],
                label=number % 2,
                read=lambda read=read, number=number: read(number),  # type: ignore[misc]
            )
        )
    return Source(
        task="classification", modalities={"x": SHAPE}, classes=("a", "b"), samples=samples,
        licence="", attribution="", source="", description="",
    )  # fmt: skip


def test_all_bad_samples_are_named_at_once_by_reason(tmp_path: Path) -> None:
    mine = source(n5=damaged, n17=damaged, n20=denied, n30=nonfinite)
    with pytest.raises(DatasetError) as raised:
        prepare("mine", mine, tmp_path / "mine")
    assert str(raised.value) == (
        "4 of 60 samples cannot be used: 2 x it is not a sound file (clip5, clip17); 1 x "
        "Permission denied (clip20); 1 x x is not finite (clip30). `--bad drop` leaves out what "
        "cannot be used. For numbers that are not finite choose `--nan zero` or `--nan drop`."
    )


def test_one_bad_sample_is_reported_in_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"^Cannot read clip5\.wav: it is not a sound file\. `--b"
    ):
        prepare("mine", source(n5=damaged), tmp_path / "mine")
    with pytest.raises(DatasetError, match=r"token 0, feature 0 is nan\. For numbers that"):
        prepare("mine", source(n5=nonfinite), tmp_path / "mine")


def test_many_bad_samples_are_listed_in_a_file(tmp_path: Path) -> None:
    bad = {f"n{number}": damaged for number in range(10, 40)}
    with pytest.raises(
        DatasetError, match=r"clip10, clip11, clip12 and 27 more.*All are listed in"
    ):
        prepare("mine", source(**bad), tmp_path / "mine")
    with (tmp_path / ".preparing-mine" / "bad_samples.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["sample"] for row in rows] == [f"clip{number}" for number in range(10, 40)]
    assert rows[0] == {
        "sample": "clip10",
        "split": "validation",
        "reason": "it is not a sound file",
    }


def test_bad_samples_are_dropped_and_counted(tmp_path: Path) -> None:
    mine = source(n5=damaged, n17=damaged, n20=denied)
    done = prepare("mine", mine, tmp_path / "mine", bad="drop")
    assert (done.num_samples, done.num_dropped) == (57, 3)
    assert open_store(done.path).spec.num_samples == {"train": 20, "validation": 20, "test": 17}
    assert done.report.dropped == {
        "it is not a sound file": ("clip5", "clip17"),
        "Permission denied": ("clip20",),
    }


def test_dropping_nonfinite_numbers_drops_other_bad_samples_too(tmp_path: Path) -> None:
    mine = source(n5=damaged, n30=nonfinite)
    done = prepare("mine", mine, tmp_path / "mine", nan="drop")
    assert done.report.dropped == {
        "it is not a sound file": ("clip5",), "x is not finite": ("clip30",),
    }  # fmt: skip


@pytest.mark.parametrize(("nan", "bad"), [("drop", "fail"), ("zero", "fail"), ("fail", "drop")])
def test_each_option_handles_its_own_samples(tmp_path: Path, nan: Any, bad: Any) -> None:
    with pytest.raises(DatasetError, match="clip5" if bad == "fail" else "clip30"):
        prepare("mine", source(n5=damaged, n30=nonfinite), tmp_path / "mine", nan=nan, bad=bad)


def test_a_wrong_option_is_reported_before_everything_is_read(tmp_path: Path) -> None:
    read: list[int] = []

    def wrong(number: int) -> dict[str, npt.NDArray[Any]]:
        read.append(number)
        return {"x": np.zeros((2, 3))}

    mine = source(3 * HOPELESS, **{f"n{number}": wrong for number in range(3 * HOPELESS)})
    with pytest.raises(DatasetError, match=f"{HOPELESS} of {HOPELESS} samples cannot be used"):
        prepare("mine", mine, tmp_path / "mine")
    assert len(read) == HOPELESS


def test_samples_to_be_dropped_do_not_end_the_reading(tmp_path: Path) -> None:
    """Even if the first ones are all dropped."""
    mine = source(3 * HOPELESS, **{f"n{number}": nonfinite for number in range(HOPELESS + 20)})
    done = prepare("mine", mine, tmp_path / "mine", nan="drop")
    assert (done.num_samples, done.num_dropped) == (2 * HOPELESS - 20, HOPELESS + 20)


def test_what_was_read_is_kept_when_bad_samples_are_repaired(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="2 of 60 samples"):
        prepare("mine", source(n5=damaged, n30=nonfinite), tmp_path / "mine")
    read: list[int] = []
    repaired = source()
    samples = [
        replace(one, read=lambda i=i: read.append(i) or values(i))  # type: ignore[func-returns-value]
        for i, one in enumerate(repaired.samples)
    ]
    again = prepare("mine", replace(repaired, samples=samples), tmp_path / "mine")
    assert read == [5, 30]
    fresh = prepare("mine", repaired, tmp_path / "other" / "mine")
    assert open_store(again.path).checksums == open_store(fresh.path).checksums


def test_numbers_replaced_by_zero_are_read_again_for_another_choice(tmp_path: Path) -> None:
    mine = source(n30=nonfinite, n5=damaged)
    with pytest.raises(DatasetError, match="clip5"):
        prepare("mine", mine, tmp_path / "mine", nan="zero")
    done = prepare("mine", mine, tmp_path / "mine", nan="drop", bad="drop")
    assert (done.num_samples, done.num_zeroed) == (58, 0)


def write_arrays(folder: Path, count: int = 30) -> list[str]:
    names = [f"clip{number:02d}" for number in range(count)]
    (folder / "x").mkdir(parents=True)
    rows = ["name,label,split"]
    for number, name in enumerate(names):
        np.save(folder / "x" / f"{name}.npy", values(number)["x"])
        rows.append(f"{name},{'ab'[number % 2]},{SPLITS[number % 3]}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return names


def test_one_changed_file_costs_one_sample(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    names = write_arrays(folder)
    (folder / "x" / f"{names[4]}.npy").write_bytes(b"\x93NUMPY\x01\x00")
    with pytest.raises(DatasetError, match="clip04"):
        prepare("mine", open_source(folder), tmp_path / "store")
    np.save(folder / "x" / f"{names[4]}.npy", np.ones((2, 2)))
    (folder / "x" / f"{names[9]}.npy").unlink()
    table = (folder / "labels.csv").read_text().replace("clip20,a", "clip20,b")
    (folder / "labels.csv").write_text(table.replace("clip09,b,train\n", ""))
    source = open_source(folder)
    read: list[str] = []
    samples = [
        replace(one, read=lambda one=one: read.append(one.name) or one.read())  # type: ignore[func-returns-value,misc]
        for one in source.samples
    ]
    done = prepare("mine", replace(source, samples=samples), tmp_path / "store")
    assert read == ["clip04"]
    store = open_store(done.path)
    assert store.spec.num_samples == {"train": 9, "validation": 10, "test": 10}
    assert store.class_counts["test"] == (4, 6)


def test_other_options_of_the_reader_read_everything_again(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    write_arrays(folder)
    source = open_source(folder)
    first, *others = source.samples
    bad = replace(source, samples=[replace(first, bad="it has no label"), *others])
    with pytest.raises(DatasetError, match="it has no label"):
        prepare("mine", bad, tmp_path / "store", options=["gain=1"])
    read: list[str] = []
    samples = [
        replace(one, read=lambda one=one: read.append(one.name) or one.read())  # type: ignore[func-returns-value,misc]
        for one in source.samples
    ]
    prepare("mine", replace(source, samples=samples), tmp_path / "store", options=["gain=2"])
    assert len(read) == 30


def test_equal_entries_count_once_and_different_ones_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    write_arrays(folder)
    file = folder / "labels.csv"
    file.write_text(file.read_text() + "clip03,b,train\n")
    done = prepare("mine", open_source(folder), tmp_path / "store")
    assert done.num_samples == 30
    assert "Listed more than once with equal entries: 1, kept once." in done.report.warnings
    file.write_text(file.read_text() + "clip04,b,train\n")
    with pytest.raises(DatasetError, match="'clip04' cannot be used: it is listed more than once"):
        prepare("mine", open_source(folder), tmp_path / "second")
    done = prepare("mine", open_source(folder), tmp_path / "second", bad="drop")
    assert done.num_samples == 29


def test_samples_without_a_label_are_bad(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    write_arrays(folder)
    file = folder / "labels.csv"
    file.write_text(file.read_text().replace("clip03,b", "clip03,").replace("clip05,b", "clip05, "))
    with pytest.raises(DatasetError, match=r"2 x it has no label \(clip03, clip05\)"):
        prepare("mine", open_source(folder), tmp_path / "store")
    done = prepare("mine", open_source(folder), tmp_path / "store", bad="drop")
    assert done.num_samples == 28
    assert open_store(done.path).spec.classes == ("a", "b")
