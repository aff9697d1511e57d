"""Preparation of stores: values, invalid sources, interruption and resuming, bounded memory."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sftsearch.datasets import prepare as preparing
from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.prepare import prepare
from sftsearch.datasets.samples import Rows
from sftsearch.datasets.source import Sample, Source
from sftsearch.datasets.spec import SPLITS, ModalitySpec
from sftsearch.datasets.store import open_store, verify

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

MODALITIES = {
    "sound": ModalitySpec(num_tokens=20, num_features=3, variable_length=True),
    "image": ModalitySpec(num_tokens=5, num_features=4, dtype="float16"),
}


def values_of(number: int) -> dict[str, npt.NDArray[Any]]:
    """Return the values of sample `number`; one in ten lacks the sound."""
    random = np.random.default_rng(number)
    length = 0 if number % 10 == 3 else int(random.integers(1, 21))
    return {
        "sound": 100 + random.standard_normal((length, 3)),
        "image": random.standard_normal((5, 4)).astype(np.float32),
    }


def sample(number: int, **changes: Any) -> Sample:
    fields: dict[str, Any] = {
        "name": f"clip {number}",
        "split": SPLITS[number % 3],
        "label": number % 2,
        "subject": f"p{number % 9}",
        "read": lambda: values_of(number),
    }
    return Sample(**fields | changes)


def source(count: int = 90, **changes: Any) -> Source:
    fields: dict[str, Any] = {
        "task": "classification",
        "modalities": MODALITIES,
        "classes": ("no", "yes"),
        "samples": [sample(number) for number in range(count)],
        "licence": "none",
        "attribution": "nobody",
        "source": "this test",
        "description": "Numbers.",
    }
    return Source(**fields | changes)


def with_sample(number: int, **changes: Any) -> Source:
    original = source()
    samples = [replace(one, **changes) if i == number else one
               for i, one in enumerate(original.samples)]  # fmt: skip
    return replace(original, samples=samples)


def altered(number: int, change: Callable[[dict[str, Any]], object]) -> Source:
    """Return a source in which `change` is applied to the values of sample `number`."""

    def read() -> dict[str, Any]:
        values = values_of(number)
        change(values)
        return values

    return with_sample(number, read=read)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use small batches, so that a store has many."""
    monkeypatch.setattr(preparing, "BATCH_BYTES", 4000)


# Round trip


@pytest.mark.parametrize("batch_bytes", [1, 4000, 1 << 30])
def test_the_store_has_the_samples_of_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_bytes: int
) -> None:
    monkeypatch.setattr(preparing, "BATCH_BYTES", batch_bytes)
    done = prepare("mine", source(), tmp_path / "mine")
    assert (done.path, done.num_samples) == (tmp_path / "mine", 90)
    assert (done.num_zeroed, done.num_dropped) == (0, 0)
    store = open_store(done.path)
    verify(store)
    assert store.spec.num_samples == dict.fromkeys(SPLITS, 30)
    assert store.spec.subjects["train"] == ("p0", "p3", "p6")
    for offset, name in enumerate(SPLITS):
        split = store.split(name, unseal_test=True)
        assert store.class_counts[name] == (15, 15)
        for row, number in enumerate(range(offset, 90, 3)):
            expected = values_of(number)
            length = len(expected["sound"])
            assert split.lengths["sound"][row] == length
            sound = split.modalities["sound"][row]
            np.testing.assert_array_equal(sound[:length], expected["sound"].astype(np.float32))
            assert not sound[length:].any()
            image = split.modalities["image"][np.array([row])][0]
            np.testing.assert_array_equal(image, expected["image"].astype(np.float16))
            assert split.labels[row] == number % 2
            assert store.spec.subjects[name][split.subjects[row]] == f"p{number % 9}"


def test_statistics_are_of_all_valid_tokens_of_training(
    tmp_path: Path, small_batches: None
) -> None:
    store = open_store(prepare("mine", source(), tmp_path / "mine").path)
    sound = np.concatenate([values_of(n)["sound"].astype(np.float32) for n in range(0, 90, 3)])
    mean, std = store.statistics["sound"]
    np.testing.assert_allclose(mean, sound.astype(np.float64).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(std, sound.astype(np.float64).std(axis=0), rtol=1e-6)


def test_many_batches_are_read_as_one_split(tmp_path: Path, small_batches: None) -> None:
    split = open_store(prepare("mine", source(), tmp_path / "mine").path).split("train")
    assert isinstance(split.modalities["image"], Rows)
    rows = np.array([29, 0, 13, 13, 7])
    for tokens in split.modalities.values():
        np.testing.assert_array_equal(tokens[rows], np.stack([tokens[:][row] for row in rows]))
        np.testing.assert_array_equal(tokens[3:9], tokens[:][3:9])
        np.testing.assert_array_equal(tokens[np.arange(30) % 7 == 0], tokens[:][::7])


def test_fingerprints_are_equal_only_for_equal_samples(tmp_path: Path) -> None:
    first = open_store(prepare("mine", source(), tmp_path / "a" / "mine").path)
    second = open_store(prepare("mine", source(), tmp_path / "b" / "mine").path)
    assert first.spec == second.spec
    assert first.checksums == second.checksums
    other = with_sample(7, label=0)
    third = open_store(prepare("mine", other, tmp_path / "c" / "mine").path)
    assert third.spec.fingerprint != first.spec.fingerprint


@pytest.mark.parametrize(
    ("task", "classes", "label"),
    [("regression", (), 2.5), ("multilabel", ("a", "b"), (1, 0))],
)
def test_other_tasks(tmp_path: Path, task: Any, classes: tuple[str, ...], label: Any) -> None:
    samples = [replace(one, label=label) for one in source().samples]
    mine = source(task=task, classes=classes, samples=samples)
    labels = open_store(prepare("mine", mine, tmp_path / "mine").path).split("train").labels
    assert labels.dtype == np.float32
    np.testing.assert_array_equal(labels, np.array([label] * 30, dtype=np.float32))


# Invalid sources


@pytest.mark.parametrize(
    ("mine", "message"),
    [
        (with_sample(1, name="clip 0"), "'clip 0' cannot be used: it is listed more than once"),
        (with_sample(1, split="dev"), r"'clip 1' must be in train, validation, test, but got"),
        (with_sample(1, subject="p0"), r"must not share a subject, but 'p0' is in train"),
        (source(2), r"must have samples in every split, but test has none"),
        (with_sample(4, label=7), r"`labels` must be in \[0, 2\), but got 0 to 7"),
        (with_sample(4, label=-1), r"`labels` must be in \[0, 2\)"),
        (altered(4, lambda v: v.update(image=np.ones((4, 4)))), "must have 5 tokens, but got 4"),
        (altered(4, lambda v: v.update(image=None)), "image of sample 'clip 4' must have 5 tokens"),
        (altered(4, lambda v: v.update(sound=np.ones((4, 2)))), r"must be numbers \(tokens, 3\)"),
        (altered(4, lambda v: v.update(sound=np.ones(3))), r"must be numbers \(tokens, 3\)"),
        (
            altered(4, lambda v: v.update(sound=np.array([["a", "b", "c"]]))),
            r"must be numbers \(tokens, 3\), but got <U1",
        ),
    ],
)  # fmt: skip
def test_invalid_sources_are_refused(tmp_path: Path, mine: Source, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as raised:
        prepare("mine", mine, tmp_path / "mine")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "mine").exists()


def test_a_sample_without_any_modality_is_refused(tmp_path: Path) -> None:
    shapes = {"sound": MODALITIES["sound"]}
    with pytest.raises(DatasetError, match=r"9 x it has no modality \(clip 3, clip 13"):
        prepare("mine", source(modalities=shapes), tmp_path / "mine")


def test_a_modality_that_all_training_samples_lack_is_left_out(tmp_path: Path) -> None:
    samples = [
        replace(one, read=lambda i=i: values_of(i) | {"sound": None}) if i % 3 == 0 else one
        for i, one in enumerate(source().samples)
    ]
    done = prepare("mine", source(samples=samples), tmp_path / "mine")
    assert list(open_store(done.path).spec.modalities) == ["image"]
    assert done.report.warnings[0].startswith("No training sample has sound: it is left out.")


def test_an_existing_store_is_not_overwritten(tmp_path: Path) -> None:
    prepare("mine", source(), tmp_path / "mine")
    with pytest.raises(DatasetError, match=r"already exists.*sftsearch data remove mine"):
        prepare("mine", source(), tmp_path / "mine")


# Numbers that are not finite


def with_nonfinite(value: float) -> Source:
    return altered(4, lambda values: values["image"].__setitem__((2, 1), value))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_nonfinite_numbers_are_reported_with_sample_and_modality(
    tmp_path: Path, value: float
) -> None:
    """1e30 is infinite in float16."""
    expected = r"image of sample 'clip 4' must be finite.*token 2, feature 1 is -?(nan|inf)"
    with pytest.raises(DatasetError, match=expected):
        prepare("mine", with_nonfinite(value), tmp_path / "mine")


def test_nan_zero_replaces_nonfinite_numbers(tmp_path: Path) -> None:
    done = prepare("mine", with_nonfinite(-np.inf), tmp_path / "mine", nan="zero")
    assert (done.num_zeroed, done.num_dropped, done.num_samples) == (1, 0, 90)
    image = open_store(done.path).split("validation").modalities["image"][np.array([1])][0]
    assert image[2, 1] == 0
    assert np.count_nonzero(image) == 19


def test_nan_drop_drops_samples_with_nonfinite_numbers(tmp_path: Path) -> None:
    done = prepare("mine", with_nonfinite(np.nan), tmp_path / "mine", nan="drop")
    assert (done.num_zeroed, done.num_dropped, done.num_samples) == (0, 1, 89)
    assert done.report.dropped == {"image is not finite in float16": ("clip 4",)}
    store = open_store(done.path)
    assert store.spec.num_samples == {"train": 30, "validation": 29, "test": 30}
    assert store.class_counts["validation"] == (14, 15)


def test_nan_drop_reports_a_split_without_samples(tmp_path: Path) -> None:
    samples = [
        replace(one, read=lambda i=i: values_of(i) | {"image": np.full((5, 4), np.nan)})
        if i % 3 == 2
        else one
        for i, one in enumerate(source().samples)
    ]
    with pytest.raises(DatasetError, match="No sample of test is left"):
        prepare("mine", source(samples=samples), tmp_path / "mine", nan="drop")


# Interruption


@pytest.mark.parametrize("after", [0, 1, 30, 44, 89, 90])
def test_an_interrupted_preparation_resumes_with_the_same_result(
    tmp_path: Path, small_batches: None, after: int
) -> None:
    reference = open_store(prepare("mine", source(), tmp_path / "reference" / "mine").path)

    def interrupt(done: int, total: int) -> None:
        if done == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare("mine", source(), tmp_path / "mine", progress=interrupt)
    assert not (tmp_path / "mine").exists()
    read: list[int] = []
    again = source(
        samples=[
            replace(one, read=lambda i=i: read.append(i) or values_of(i))  # type: ignore[func-returns-value]
            for i, one in enumerate(source().samples)
        ]
    )
    store = open_store(prepare("mine", again, tmp_path / "mine").path)
    verify(store)
    assert store.spec == reference.spec
    assert store.checksums == reference.checksums
    assert store.statistics["sound"][1].tolist() == reference.statistics["sound"][1].tolist()
    assert read == list(range(90 - len(read), 90))
    if after > 44:
        assert len(read) < 60  # samples in parts are not read again
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "reference"]


def test_another_source_restarts(tmp_path: Path, small_batches: None) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare("mine", source(), tmp_path / "mine", progress=interrupt)
    other = with_sample(2, label=1)
    store = open_store(prepare("mine", other, tmp_path / "mine").path)
    assert store.class_counts["test"] == (14, 16)
    assert store.spec.num_samples == dict.fromkeys(SPLITS, 30)


def test_changed_files_restart(tmp_path: Path, small_batches: None) -> None:
    """Restart although the list of samples is the same."""
    file = tmp_path / "files" / "a.npy"
    file.parent.mkdir()
    file.write_bytes(b"before")
    before = preparing.revision_of(tmp_path / "files")
    assert before == preparing.revision_of(tmp_path / "files")
    assert before == preparing.revision_of(file) != preparing.revision_of(None)

    def interrupt(done: int, total: int) -> None:
        if done == 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare("mine", source(), tmp_path / "mine", revision=before, progress=interrupt)
    file.write_bytes(b"after it was fixed")
    fixed = altered(0, lambda values: values.update(image=np.zeros((5, 4))))
    after = preparing.revision_of(tmp_path / "files")
    store = open_store(prepare("mine", fixed, tmp_path / "mine", revision=after).path)
    assert not store.split("train").modalities["image"][0].any()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"identity": 3}'])
def test_a_damaged_record_restarts(tmp_path: Path, small_batches: None, content: str) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare("mine", source(), tmp_path / "mine", progress=interrupt)
    (tmp_path / ".preparing-mine" / "progress.json").write_text(content)
    store = open_store(prepare("mine", source(), tmp_path / "mine").path)
    assert store.spec.num_samples == dict.fromkeys(SPLITS, 30)


def test_a_concurrent_preparation_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / ".preparing-mine"
    folder.mkdir()
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(DatasetError, match="'mine' is being prepared by another process"):
        prepare("mine", source(), tmp_path / "mine")
    os.close(descriptor)
    prepare("mine", source(), tmp_path / "mine")


PREPARE_AND_PAUSE = """
import sys
from pathlib import Path
import numpy as np
from sftsearch.datasets import prepare as preparing
from sftsearch.datasets.source import Sample, Source
from sftsearch.datasets.spec import SPLITS, ModalitySpec

preparing.BATCH_BYTES = 1 << 20

def read(number):
    return {"x": np.random.default_rng(number).standard_normal((100, 40)).astype(np.float32)}

samples = [
    Sample(name=str(n), split=SPLITS[n % 3], label=n % 2, read=lambda n=n: read(n))
    for n in range(3000)
]
source = Source(
    task="classification", modalities={"x": ModalitySpec(num_tokens=100, num_features=40)},
    classes=("a", "b"), samples=samples, licence="", attribution="", source="", description="",
)

def pause(done, total):
    if done == int(sys.argv[2]):
        print("paused", flush=True)
        sys.stdin.read()

done = preparing.prepare("mine", source, Path(sys.argv[1]), progress=pause)
print(done.num_samples)
"""


@pytest.mark.medium
def test_a_killed_preparation_resumes(tmp_path: Path) -> None:
    """Kill it twice; the result equals that of an undisturbed run."""
    script = tmp_path / "prepare.py"
    script.write_text(PREPARE_AND_PAUSE)

    def run(path: Path, stop: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-P", str(script), str(path), str(stop)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    for stop in (1000, 2100):
        with run(tmp_path / "mine", stop) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "paused\n"
            process.send_signal(signal.SIGKILL)
    for path in (tmp_path / "mine", tmp_path / "reference" / "mine"):
        with run(path, -1) as process:
            assert process.communicate(timeout=100)[0] == "3000\n"
    first, second = open_store(tmp_path / "mine"), open_store(tmp_path / "reference" / "mine")
    assert first.spec == second.spec
    assert first.checksums == second.checksums


MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from sftsearch.datasets.prepare import prepare
from sftsearch.datasets.source import Sample, Source
from sftsearch.datasets.spec import SPLITS, ModalitySpec

def read(number):
    return {"x": np.full((1000, 256), number % 7, dtype=np.float32)}  # a megabyte

samples = [
    Sample(name=str(n), split=SPLITS[n % 3], label=n % 2, read=lambda n=n: read(n))
    for n in range(2000)
]
source = Source(
    task="classification", modalities={"x": ModalitySpec(num_tokens=1000, num_features=256)},
    classes=("a", "b"), samples=samples, licence="", attribution="", source="", description="",
)
prepare("mine", source, Path(sys.argv[1]))
status = Path("/proc/self/status").read_text()
print(*(line.split()[1] for line in status.splitlines() if line.startswith(("VmHWM", "RssAnon"))))
"""


@pytest.mark.slow
def test_memory_stays_bounded(tmp_path: Path) -> None:
    """Prepare two gigabytes; mapped file pages can be evicted and are not counted."""
    command = [sys.executable, "-P", "-c", MEMORY, str(tmp_path / "mine")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=250)
    highest, anonymous = (int(text) / 1024 for text in done.stdout.split())
    assert anonymous < 500
    assert highest < 1000


# Folders that cannot be written


def test_a_file_in_the_place_of_a_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(DatasetError, match=r"cache/prepared: Not a directory\. Make room"):
        prepare("mine", source(), tmp_path / "cache" / "prepared" / "mine")


WITH_LITTLE_SPACE = """
import resource, sys
from pathlib import Path
from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.prepare import prepare

sys.path.insert(0, sys.argv[2])
from test_prepare import source

resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # EFBIG, raised where ENOSPC would be
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    prepare("mine", source(), Path(sys.argv[1]))
except DatasetError as error:
    print(error)
"""


@pytest.mark.medium
def test_a_disk_without_space_is_one_line_and_the_same_call_continues(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    command = [sys.executable, "-P", "-c", WITH_LITTLE_SPACE, str(tmp_path / "mine"), here]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=100)
    assert done.stdout.startswith(
        f"Cannot write the dataset in {tmp_path}: File too large. Make room"
    )
    assert done.stdout.count("\n") == 1
    assert prepare("mine", source(), tmp_path / "mine").num_samples == 90
