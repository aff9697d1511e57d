"""The contract of every dataset in the catalog; a new dataset is tested by being listed."""

from __future__ import annotations

import itertools
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sftsearch.datasets.catalog import DATASETS, describe, open_dataset, store_path
from sftsearch.datasets.errors import SealedSplitError
from sftsearch.datasets.spec import SPLITS
from sftsearch.datasets.store import verify

if TYPE_CHECKING:
    from pathlib import Path

    from sftsearch.datasets.samples import Split
    from sftsearch.datasets.store import Store

# Waits for a line after the imports, so that two processes build at the same moment.
BUILD = """
import sys
from pathlib import Path
from sftsearch.datasets.catalog import open_dataset
print("ready", flush=True)
sys.stdin.readline()
store = open_dataset(sys.argv[1], cache=Path(sys.argv[2]))
print(store.spec.fingerprint, store.split("train").labels.sum())
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", params=sorted(DATASETS))
def store(request: pytest.FixtureRequest, cache: Path) -> Store:
    return open_dataset(request.param, cache=cache)


@pytest.fixture
def splits(store: Store) -> dict[str, Split]:
    return {name: store.split(name, unseal_test=True) for name in SPLITS}


def test_is_described_without_being_built(store: Store, tmp_path: Path) -> None:
    spec = describe(store.spec.name)
    assert spec == store.spec
    assert DATASETS[spec.name].spec() == spec
    for text in (spec.licence, spec.attribution, spec.source, spec.description):
        assert text == text.strip() != ""
        assert "\n" not in text
    assert store_path(spec, cache=tmp_path).exists() is False


def test_has_the_declared_samples(store: Store, splits: dict[str, Split]) -> None:
    for name, split in splits.items():
        count = store.spec.num_samples[name]
        assert len(split) == count
        assert list(split.modalities) == list(store.spec.modalities)
        for modality, shape in store.spec.modalities.items():
            assert split.modalities[modality].shape == (count, shape.num_tokens, shape.num_features)
            tokens = split.modalities[modality][:]
            assert tokens.shape == (count, shape.num_tokens, shape.num_features)
            assert tokens.dtype == np.float32
            assert np.isfinite(tokens).all()
        assert split.subjects.shape == (count,)
        assert split.subjects.dtype == np.int64


def test_has_labels_of_its_task(store: Store, splits: dict[str, Split]) -> None:
    task, num_classes = store.spec.task, store.spec.num_classes
    assert store.spec.num_outputs == (num_classes or 1)
    for split in splits.values():
        if task == "classification":
            assert split.labels.shape == (len(split),)
            assert split.labels.dtype == np.int64
            assert set(split.labels.tolist()) <= set(range(num_classes))
        else:
            shape = (len(split), num_classes) if task == "multilabel" else (len(split),)
            assert split.labels.shape == shape
            assert split.labels.dtype == np.float32
            assert np.isfinite(split.labels).all()
            assert task == "regression" or set(np.unique(split.labels)) == {0.0, 1.0}


def test_has_every_class_in_every_split(store: Store, splits: dict[str, Split]) -> None:
    """In a multi-label task, every label has positive and negative samples."""
    for name, split in splits.items():
        counts = store.class_counts[name]
        assert len(counts) == store.spec.num_classes
        if store.spec.task == "classification":
            expected = [(split.labels == c).sum() for c in range(len(counts))]
        else:
            expected = [(split.labels[:, c] == 1).sum() for c in range(len(counts))]
        assert list(counts) == expected
        assert all(0 < count < len(split) for count in counts)


def test_has_lengths_of_variable_modalities_and_zero_padding(
    store: Store, splits: dict[str, Split]
) -> None:
    shapes = store.spec.modalities
    variable = [name for name, shape in shapes.items() if shape.variable_length]
    for split in splits.values():
        assert list(split.lengths) == variable
        longest = np.zeros(len(split), dtype=np.int64)
        for name, shape in shapes.items():
            lengths = split.lengths.get(name, np.full(len(split), shape.num_tokens))
            assert lengths.shape == (len(split),)
            assert lengths.dtype == np.int64
            assert lengths.min() >= 0
            assert lengths.max() <= shape.num_tokens
            for tokens, length in zip(split.modalities[name], lengths, strict=True):
                assert not tokens[length:].any()
            longest = np.maximum(longest, lengths)
        assert longest.min() > 0  # no sample lacks every modality


def test_has_no_person_in_two_splits(store: Store, splits: dict[str, Split]) -> None:
    for name, split in splits.items():
        people = store.spec.subjects[name]
        codes = set(split.subjects.tolist())
        assert codes == (set(range(len(people))) if people else {-1})
    for one, other in itertools.combinations(SPLITS, 2):
        assert set(store.spec.subjects[one]).isdisjoint(store.spec.subjects[other])


def test_has_no_sample_in_two_splits(store: Store, splits: dict[str, Split]) -> None:
    del store
    seen = [
        {b"".join(t[i].tobytes() for t in split.modalities.values()) for i in range(len(split))}
        for split in splits.values()
    ]
    for one, other in itertools.combinations(seen, 2):
        assert one.isdisjoint(other)


def test_views_are_read_only(store: Store) -> None:
    split = store.split("train")
    tokens = [part for x in split.modalities.values() for part in getattr(x, "parts", (x,))]
    for lengths in split.lengths.values():
        assert not lengths.flags.writeable
    for array in (*tokens, split.labels, split.subjects):
        assert not array.flags.writeable
        assert not array.flags.owndata
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_the_test_split_is_sealed(store: Store) -> None:
    with pytest.raises(SealedSplitError, match="sealed"):
        store.split("test")
    assert len(store.split("test", unseal_test=True)) == store.spec.num_samples["test"]


def test_statistics_match_the_training_split(store: Store, splits: dict[str, Split]) -> None:
    for name, (mean, std) in store.statistics.items():
        train = splits["train"]
        tokens = train.modalities[name][:].astype(np.float64)
        lengths = train.lengths.get(name, np.full(len(train), tokens.shape[1]))
        flat = np.concatenate([x[:length] for x, length in zip(tokens, lengths, strict=True)])
        assert mean.dtype == std.dtype == np.float32
        np.testing.assert_allclose(mean, flat.mean(axis=0), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(std, flat.std(axis=0), rtol=1e-6)


def test_reopening_gives_the_same(store: Store, cache: Path) -> None:
    again = open_dataset(store.spec.name, cache=cache)
    assert again.path == store.path
    assert again.spec.fingerprint == store.spec.fingerprint
    verify(again)


def test_building_twice_gives_identical_bytes(store: Store, tmp_path: Path) -> None:
    again = open_dataset(store.spec.name, cache=tmp_path)
    files = sorted(file.name for file in store.path.iterdir())
    assert files == sorted(file.name for file in again.path.iterdir())
    for file in files:
        assert (store.path / file).read_bytes() == (again.path / file).read_bytes()


@pytest.mark.medium
def test_two_processes_may_build_concurrently(store: Store, tmp_path: Path) -> None:
    command = [sys.executable, "-c", BUILD, store.spec.name, str(tmp_path)]
    with ExitStack() as stack:  # waits for both processes, also if an assertion fails
        builders = [
            stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for _ in range(2)
        ]
        ready = [builder.stdout.readline() for builder in builders if builder.stdout]
        assert ready == ["ready\n"] * 2
        for builder in builders:
            assert builder.stdin is not None
            builder.stdin.write("go\n")
            builder.stdin.flush()
        printed = [builder.communicate()[0] for builder in builders]
        assert [builder.returncode for builder in builders] == [0, 0]
    labels = store.split("train").labels.sum()
    assert printed == [f"{store.spec.fingerprint} {labels!s}\n"] * 2
    assert [folder.name for folder in tmp_path.iterdir()] == [store.path.name]
    verify(open_dataset(store.spec.name, cache=tmp_path))
