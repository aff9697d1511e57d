"""Custom Parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sftsearch.datasets.errors import DatasetError, UserError
from sftsearch.datasets.prepare import prepare
from sftsearch.datasets.readers.parquet import open_source
from sftsearch.datasets.shipped_file import FOLDER
from sftsearch.datasets.store import open_store

SHARED = Path(__file__).parents[4] / "shared" / "data"
SHARED_DATA = pytest.mark.skipif(
    not SHARED.is_dir(), reason="needs shared data, which may not ship"
)
LENGTHS = [3, 1, 0, 2, 3, 3]


def sound(row: int) -> list[float]:
    return [row + i / 10 for i in range(2 * LENGTHS[row])]


def table(**changes: Any) -> pa.Table:
    """Return six rows: sound of 0 to 3 tokens x 2, picture of 4 tokens x 1."""
    columns: dict[str, Any] = {
        "id": [f"r{n}" for n in range(6)],
        "label": [n % 2 for n in range(6)],
        "label_name": ["no", "yes"] * 3,
        "split": ["train", "train", "train", "val", "val", "test"],
        "speaker": ["a", "b", "a", "c", "c", "d"],
        "sound": pa.array([sound(n) or None for n in range(6)], pa.list_(pa.float32())),
        "sound_tokens": pa.array(LENGTHS, pa.int32()),
        "picture": pa.array([[n, 1.0, 2.0, 3.0] for n in range(6)], pa.list_(pa.float64())),
    }
    columns |= changes
    columns = {name: values for name, values in columns.items() if values is not None}
    return pa.table(columns).replace_schema_metadata({"modality.sound.dims": "2"})


def saved(tmp_path: Path, rows: pa.Table, group: int = 2) -> Path:
    file = tmp_path / "mine.parquet"
    pq.write_table(rows, file, row_group_size=group)
    return file


def test_rows_are_read(tmp_path: Path) -> None:
    source = open_source(saved(tmp_path, table()))
    assert source.task == "classification"
    assert source.classes == ("no", "yes")
    assert list(source.modalities) == ["sound", "picture"]
    shape = source.modalities["sound"]
    assert (shape.num_tokens, shape.num_features, shape.variable_length) == (3, 2, True)
    shape = source.modalities["picture"]
    assert (shape.num_tokens, shape.num_features, shape.variable_length) == (4, 1, False)
    store = open_store(prepare("mine", source, tmp_path / "store").path)
    assert store.spec.subjects == {"train": ("a", "b"), "validation": ("c",), "test": ("d",)}
    train = store.split("train")
    assert train.lengths["sound"].tolist() == [3, 1, 0]
    np.testing.assert_allclose(train.modalities["sound"][0], np.reshape(sound(0), (3, 2)))
    np.testing.assert_array_equal(train.modalities["picture"][1][:, 0], [1, 1, 2, 3])
    assert train.labels.tolist() == [0, 1, 0]


def test_token_counts_follow_from_the_lists(tmp_path: Path) -> None:
    source = open_source(saved(tmp_path, table(sound_tokens=None)))
    assert source.modalities["sound"].num_tokens == 3
    values = source.samples[2].read()
    assert values["sound"] is None
    assert values["picture"] is not None


def test_lists_of_lists_need_no_dims(tmp_path: Path) -> None:
    nested = [[[n, n + 1, n + 2]] * (1 + n % 2) for n in range(6)]
    source = open_source(saved(tmp_path, table(picture=nested)))
    shape = source.modalities["picture"]
    assert (shape.num_tokens, shape.num_features, shape.variable_length) == (2, 3, True)
    np.testing.assert_array_equal(source.samples[3].read()["picture"], [[3, 4, 5]] * 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["large", "fixed"])
def test_large_and_fixed_size_lists_are_read(tmp_path: Path, kind: str) -> None:
    of = pa.large_list(pa.float32()) if kind == "large" else pa.list_(pa.float32(), 4)
    rows = table(picture=pa.array([[n, 1.0, 2.0, 3.0] for n in range(6)], of))
    values = open_source(saved(tmp_path, rows)).samples[5].read()["picture"]
    np.testing.assert_array_equal(values[:, 0], [5, 1, 2, 3])  # type: ignore[index]


def test_options(tmp_path: Path) -> None:
    file = saved(tmp_path, table(valence=[0.5 * n for n in range(6)]))
    source = open_source(
        file, label="valence", modalities="picture", dims="picture=2", tokens="picture=1",
        dtype="float16", subject="id", licence="mine", attribution="me",
    )  # fmt: skip
    assert source.task == "regression"
    shape = source.modalities["picture"]
    assert (shape.num_tokens, shape.num_features, shape.dtype) == (1, 2, "float16")
    assert source.samples[4].read()["picture"].tolist() == [[4.0, 1.0], [2.0, 3.0]]  # type: ignore[union-attr]
    assert [s.subject for s in source.samples] == [f"r{n}" for n in range(6)]
    assert (source.licence, source.attribution) == ("mine", "me")
    tags = saved(tmp_path, table(tags=[[0, 1], [1, 1]] * 3))
    assert open_source(tags, label="tags").task == "multilabel"


def test_without_splits_they_are_drawn_by_subject(tmp_path: Path) -> None:
    people = [f"p{n % 5}" for n in range(20)]
    rows = pa.table({"label": [0, 1] * 10, "subject": people, "x": [[float(n)] for n in range(20)]})
    source = open_source(saved(tmp_path, rows))
    assert len({(s.subject, s.split) for s in source.samples}) == 5
    assert prepare("mine", source, tmp_path / "store").num_samples == 20


def test_a_folder_with_one_file(tmp_path: Path) -> None:
    saved(tmp_path, table())
    assert len(open_source(tmp_path).samples) == 6
    pq.write_table(table(), tmp_path / "other.parquet")
    with pytest.raises(DatasetError, match="it must have one Parquet file, but has 2"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"label": "labl"}, "it has no column 'labl' for a label; it has id, label"),
        ({}, {"modalities": "smell"}, "it has no column 'smell' for a modality"),
        ({}, {"subject": "who"}, "it has no column 'who' for a subject"),
        ({}, {"dims": "sund=2"}, "No modality of option `dims` is called 'sund'. Did you mean"),
        ({}, {"dims": "picture=3"}, "picture of row 0 is not a multiple of 3 features"),
        ({"split": ["later"] * 6}, {}, "a split must be one of"),
        ({"sound": None, "picture": None}, {}, "it has no column of lists"),
        ({"picture": [[]] * 6}, {}, "picture is empty in every row|is null"),
        ({"label": [None] * 6}, {}, "no sample has a label"),
        ({}, {"split": "NOSUCH"}, "it has no column 'NOSUCH' for a split; it has "),
        ({}, {"subject": "NOSUCH"}, "it has no column 'NOSUCH' for a subject; it has "),
    ],
)
def test_invalid_columns_and_options_are_refused(
    tmp_path: Path, changes: Any, options: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        open_source(saved(tmp_path, table(**changes)), **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sound_tokens": [3, 1, 0, 2, 3, 2]}, "sound of row 5 has 3 tokens, but sound_tokens"),
        ({"picture": [["a"] * 4] * 6}, "picture of row 0 must be numbers"),
        ({"picture": [[1.0, None, 2.0, 3.0]] * 6}, "picture of row 0 must be numbers"),
        ({"picture": [[[1.0], [1.0, 2.0]]] * 6}, "picture of row 0 must have tokens of 1 feat"),
    ],
)
def test_invalid_rows_are_refused(tmp_path: Path, changes: Any, message: str) -> None:
    source = open_source(saved(tmp_path, table(**changes)))
    with pytest.raises(DatasetError, match=message) as raised:
        prepare("mine", source, tmp_path / "store")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1", b"x" * 1000])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "mine.parquet"
    file.write_bytes(content)
    with pytest.raises(DatasetError, match=f"Cannot read {file}: "):
        open_source(file)


def test_nan_is_left_to_prepare(tmp_path: Path) -> None:
    source = open_source(saved(tmp_path, table(picture=[[0.0, float("nan"), 1.0, 2.0]] * 6)))
    with pytest.raises(DatasetError, match=r"6 x picture is not finite \(r0, r1, "):
        prepare("mine", source, tmp_path / "store")


SENSORS = {
    "pocket": (1500, 3, False),
    "wrist": (300, 9, False),
    "chest": (300, 9, False),
    "waist": (300, 9, True),
    "ankle": (300, 9, True),
}


@pytest.mark.medium
@pytest.mark.parametrize(
    ("file", "count", "shapes"),
    [
        (FOLDER / "digits.parquet", 1200, {"audio": (128, 32, True), "image": (64, 1, False)}),
        (
            FOLDER / "wearables.parquet",
            3285,
            dict.fromkeys(("phone_acc", "phone_gyro", "watch_acc", "watch_gyro"), (128, 3, False)),
        ),
        # Data that may not ship.
        pytest.param(
            SHARED / "avdigits" / "avdigits.parquet",
            3000,
            {"audio": (256, 32, True), "image": (196, 4, False)},
            marks=SHARED_DATA,
        ),
        pytest.param(SHARED / "umafall" / "umafall.parquet", 725, SENSORS, marks=SHARED_DATA),
    ],
    ids=lambda value: value.stem if isinstance(value, Path) else "",
)
def test_real_files(tmp_path: Path, file: Path, count: int, shapes: Any) -> None:
    source, name = open_source(file), file.stem
    found = {k: (m.num_tokens, m.num_features, m.variable_length)
             for k, m in source.modalities.items()}  # fmt: skip
    assert found == shapes
    store = open_store(prepare(name, source, tmp_path / name).path)
    assert sum(store.spec.num_samples.values()) == count
    rows = pq.read_table(file).to_pylist()
    train = [row for row in rows if row["split"] == "train"]
    split = store.split("train")
    for number in range(0, len(train), max(1, len(train) // 7)):
        for key, (_, width, _) in shapes.items():
            expected = np.array(train[number][key] or [], np.float32).reshape(-1, width)
            np.testing.assert_array_equal(split.modalities[key][number][: len(expected)], expected)
            assert not split.modalities[key][number][len(expected) :].any()


def write_column(tmp_path: Path, column: pa.Array) -> Path:
    file = tmp_path / "column.parquet"
    labels = [number % 2 for number in range(len(column))]
    pq.write_table(pa.table({"label": labels, "sound": column}), file, row_group_size=4)
    return file


SOUND = np.arange(12 * 6, dtype=np.float32).reshape(12, 3, 2)


def test_tensors_are_tokens_by_their_first_dimension(tmp_path: Path) -> None:
    file = write_column(tmp_path, pa.FixedShapeTensorArray.from_numpy_ndarray(SOUND))
    source = open_source(file)
    shape = source.modalities["sound"]
    assert (shape.num_tokens, shape.num_features, shape.variable_length) == (3, 2, False)
    for sample, wanted in zip(source.samples, SOUND, strict=True):
        np.testing.assert_array_equal(sample.read()["sound"], wanted)


def test_tensors_of_more_dimensions_have_flat_features(tmp_path: Path) -> None:
    pictures = np.arange(12 * 24, dtype=np.float32).reshape(12, 2, 3, 4)
    file = write_column(tmp_path, pa.FixedShapeTensorArray.from_numpy_ndarray(pictures))
    source = open_source(file)
    assert source.modalities["sound"].num_features == 12
    np.testing.assert_array_equal(source.samples[5].read()["sound"], pictures[5].reshape(2, 12))


def test_permuted_tensors_are_refused(tmp_path: Path) -> None:
    kind = pa.fixed_shape_tensor(pa.float32(), [3, 2], permutation=[1, 0])
    storage = pa.array(SOUND.reshape(12, 6).tolist(), pa.list_(pa.float32(), 6))
    file = write_column(tmp_path, pa.ExtensionArray.from_storage(kind, storage))
    with pytest.raises(DatasetError, match="the dimensions of sound are permuted"):
        open_source(file)


@pytest.mark.parametrize("view", [pa.list_view, pa.large_list_view])
def test_list_views_are_lists(tmp_path: Path, view: Any) -> None:
    rows = [token[: 1 + i % 3].tolist() for i, token in enumerate(SOUND)]
    flat = pa.array([np.ravel(row).tolist() for row in rows], view(pa.float32()))
    nested = pa.array(rows, view(view(pa.float32())))
    for column, dims in ((flat, "sound=2"), (nested, "")):
        source = open_source(write_column(tmp_path, column), dims=dims)
        assert source.modalities["sound"].variable_length
        for sample, wanted in zip(source.samples, rows, strict=True):
            np.testing.assert_array_equal(sample.read()["sound"], wanted)
