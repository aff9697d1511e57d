"""The report of a preparation: the table of a messy dataset, and each of its warnings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from sftsearch.datasets.preparation_report import Coverage, read_report
from sftsearch.datasets.prepare import prepare
from sftsearch.datasets.source import Sample, Source
from sftsearch.datasets.spec import SPLITS, ModalitySpec
from sftsearch.orchestrator.cli.main import main

PAGE = Path(__file__).parents[2] / "docs" / "datasets.md"
CLASSES = ("sit", "stand", "walk")


def source(count: int = 150, *, people: bool = True, **changes: Any) -> Source:
    """Return a dataset about which there is nothing to warn."""
    shapes = {
        "audio": ModalitySpec(num_tokens=10, num_features=2, variable_length=True),
        "image": ModalitySpec(num_tokens=4, num_features=2, variable_length=True),
    }
    samples = [
        Sample(
            name=f"clip{number}",
            split=SPLITS[number % 3],
            label=number // 3 % 3,
            subject=f"{SPLITS[number % 3]} {number % 2}" if people else None,
            read=lambda number=number: {  # type: ignore[misc]
                "audio": np.full((1 + number % 10, 2), number),
                "image": np.full((4, 2), number),
            },
        )
        for number in range(count)
    ]
    fields: dict[str, Any] = {
        "task": "classification", "modalities": shapes, "classes": CLASSES, "samples": samples,
        "licence": "", "attribution": "", "source": "", "description": "",
    }  # fmt: skip
    return Source(**fields | changes)


def warnings(tmp_path: Path, mine: Source) -> tuple[str, ...]:
    return prepare("mine", mine, tmp_path / "mine").report.warnings


def with_lengths(lengths: dict[str, Any]) -> Source:
    """Return a source whose modalities have the lengths that functions of the number give."""
    base = source()
    samples = []
    for number, one in enumerate(base.samples):
        found = {name: np.ones((length(number), 2)) for name, length in lengths.items()}
        samples.append(
            Sample(name=one.name, split=one.split, label=one.label, subject=one.subject,
                   read=lambda found=found: found)  # type: ignore[misc]
        )  # fmt: skip
    return source(samples=samples)


def test_without_a_cause_there_is_no_warning(tmp_path: Path) -> None:
    assert warnings(tmp_path, source()) == ()


def test_the_table_has_samples_missing_lengths_and_cuts(tmp_path: Path) -> None:
    mine = with_lengths({"audio": lambda n: n % 7 * 3, "image": lambda n: 4})
    report = prepare("mine", mine, tmp_path / "mine").report
    found = [n % 7 * 3 for n in range(0, 150, 3)]
    assert report.coverage[0] == Coverage(
        modality="audio",
        split="train",
        samples=50,
        missing=found.count(0),
        shortest=3,
        longest=18,
        cut=sum(length > 10 for length in found),
    )
    assert report.coverage[-1] == Coverage(
        modality="image", split="test", samples=50, missing=0, shortest=4, longest=4, cut=0
    )
    assert len(report.coverage) == 6
    assert read_report(tmp_path / "mine") == report


def test_cut_samples_are_counted_with_the_longest(tmp_path: Path) -> None:
    mine = with_lengths({"audio": lambda n: 40 if n == 7 else 3, "image": lambda n: 4})
    assert warnings(tmp_path, mine) == (
        "1 of 150 samples of audio are cut to 10 tokens; the longest has 40.",
    )


def test_a_modality_that_most_samples_lack_is_named(tmp_path: Path) -> None:
    mine = with_lengths({"audio": lambda n: 0 if n % 3 == 1 else 3, "image": lambda n: 4})
    assert warnings(tmp_path, mine) == (
        "audio is missing from 50 of the 50 samples of validation.",
    )


def test_classes_absent_from_a_split_are_named(tmp_path: Path) -> None:
    mine = source()
    samples = [one for one in mine.samples if one.split == "train" or one.label != 2]
    found = warnings(tmp_path, source(samples=samples))
    assert found == (
        "validation has no sample of 1 of 3 classes: walk.",
        "test has no sample of 1 of 3 classes: walk.",
    )


def test_one_validation_subject_is_said(tmp_path: Path) -> None:
    mine = source()
    samples = [one for one in mine.samples if one.split != "validation" or one.subject[-1] == "1"]  # type: ignore[index]
    (one, two) = warnings(tmp_path, source(samples=samples))
    assert one.startswith("validation has one subject (validation 1)")
    assert two.startswith("validation has 25 samples")


def test_few_validation_samples_are_said_with_their_resolution(tmp_path: Path) -> None:
    mine = source(60, people=False)
    assert warnings(tmp_path, mine) == (
        "validation has 20 samples: differences between configurations of less than 5 points mean "
        "nothing.",
    )


def test_what_the_reader_says_comes_first(tmp_path: Path) -> None:
    mine = source(60, people=False, notes=["Columns left out: age."])
    assert warnings(tmp_path, mine)[0] == "Columns left out: age."


def test_columns_of_text_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setenv("SFTSEARCH_CACHE", str(tmp_path / "cache"))
    rows = pa.table(
        {
            "label": ["a", "b"] * 30,
            "acc": ["0.1 0.2"] * 60,
            "age": list(range(60)),
            "gyro": [[float(n)] for n in range(60)],
        }
    )
    pq.write_table(rows, tmp_path / "mine.parquet")
    done = CliRunner().invoke(
        main, ["data", "prepare", "mine", "--from", str(tmp_path / "mine.parquet")]
    )
    assert done.exit_code == 0
    text = (
        "Columns left out, because a modality must be lists of numbers: acc (string), age (int64)."
    )
    assert f"warning: {text}" in done.output


def messy(folder: Path) -> None:
    """Write the messy dataset of docs/datasets.md."""
    rows = ["name,label,split,subject,age"]
    for number in range(48):
        name = f"clip{number:02d}"
        split = "train" if number < 30 else "validation" if number < 38 else "test"
        label = CLASSES[number % 2] if split == "validation" else CLASSES[number % 3]
        person = {"train": f"p{number % 4}", "validation": "p7", "test": f"q{number % 3}"}[split]
        rows.append(f"{name},{'' if number == 11 else label},{split},{person},31")
        for modality, length, width in (("acc", 20 + number, 3), ("audio", 5 + number % 9, 8)):
            if modality == "audio" and number % 5 == 2:
                continue
            file = folder / modality / f"{name}.npy"
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, np.random.default_rng(number).standard_normal((length, width)))
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    (folder / "acc" / "clip17.npy").write_bytes(b"not an array")
    np.save(folder / "audio" / "clip99.npy", np.ones((3, 8)))


@pytest.mark.medium
def test_the_page_shows_the_table_of_a_messy_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFTSEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    messy(tmp_path / "messy")
    command = [
        "data",
        "prepare",
        "messy",
        "--from",
        str(tmp_path / "messy"),
        "--option",
        "tokens=acc=60",
    ]
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code == 1
    assert "labels.csv" in refused.output or "clip17" in refused.output
    done = CliRunner().invoke(main, [*command, "--bad", "drop"])
    assert done.exit_code == 0
    shown = done.output[done.output.index(" modality ") :]
    block = PAGE.read_text().split("<!-- messy -->\n```text\n")[1].split("```")[0]
    assert [line.rstrip() for line in shown.splitlines()] == block.splitlines()
    again = CliRunner().invoke(main, ["data", "info", "messy"])
    assert shown in again.output
