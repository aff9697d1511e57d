"""Datasets as `DatasetDict.save_to_disk` writes them."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from sftsearch.datasets.errors import DatasetError, UserError
from sftsearch.datasets.prepare import prepare
from sftsearch.datasets.reader_catalog import reader_for
from sftsearch.datasets.readers.huggingface import open_source
from sftsearch.datasets.readers.sound import log_mel, read_sound
from sftsearch.datasets.store import open_store

if TYPE_CHECKING:
    from pathlib import Path

SIZES = {"train": 5, "validation": 3, "test": 2}
PICTURE = pa.list_(pa.list_(pa.float32()))


class Array2DType(pa.ExtensionType):
    """The two-dimensional type of the `datasets` library."""

    def __init__(self) -> None:
        super().__init__(pa.list_(pa.list_(pa.float32())), "datasets.features.features.Array2D")

    def __arrow_ext_serialize__(self) -> bytes:
        return b"[[2, 3], float32]"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: Any, serialized: bytes) -> Array2DType:
        return cls()


def rows(split: str) -> dict[str, Any]:
    start = list(SIZES).index(split) * 10
    numbers = range(start, start + SIZES[split])
    return {
        "label": pa.array([n % 2 for n in numbers], pa.int64()),
        "speaker": [f"{split}{n % 2}" for n in numbers],
        "sound": [[float(n)] * (1 + n % 3) for n in numbers],
        "picture": pa.array(
            [[[n, 1, 2], [3, 4, 5]] for n in numbers], pa.list_(pa.list_(pa.float32()))
        ),
        "text": ["words"] * len(numbers),
    }


def save(folder: Path, change: Any = None, extension: bool = False) -> None:
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(SIZES)}))
    for split in SIZES:
        columns = rows(split)
        if extension:
            storage = columns["picture"]
            columns["picture"] = pa.ExtensionArray.from_storage(Array2DType(), storage)
        table = pa.table(columns)
        target = folder / split
        target.mkdir(exist_ok=True)
        for number, part in enumerate((table.slice(0, 1), table.slice(1))):
            file = target / f"data-{number:05d}-of-00002.arrow"
            with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
                out.write_table(part)
        files = [{"filename": f"data-{n:05d}-of-00002.arrow"} for n in range(2)]
        (target / "state.json").write_text(json.dumps({"_data_files": files, "_split": split}))
        features = {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}
        information = {"features": features, "license": "cc-by-4.0", "citation": "Some\none"}
        (target / "dataset_info.json").write_text(json.dumps(information))


@pytest.mark.parametrize("extension", [False, True], ids=["lists", "Array2D"])
def test_samples_are_read(tmp_path: Path, extension: bool) -> None:
    save(tmp_path, extension=extension)
    source = open_source(tmp_path, modalities="sound,picture")
    assert source.classes == ("no", "yes")
    assert (source.licence, source.attribution) == ("cc-by-4.0", "Some one")
    shape = source.modalities["picture"]
    assert (shape.num_tokens, shape.num_features, shape.variable_length) == (2, 3, False)
    assert source.modalities["sound"].variable_length
    store = open_store(prepare("mine", source, tmp_path / "store").path)
    assert store.spec.num_samples == SIZES
    train = store.split("train")
    np.testing.assert_array_equal(train.modalities["picture"][3], [[3, 1, 2], [3, 4, 5]])
    assert train.lengths["sound"].tolist() == [1, 2, 3, 1, 2]
    assert train.labels.tolist() == [0, 1, 0, 1, 0]
    assert store.spec.subjects["test"] == ("test0", "test1")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "dataset_dict.json").write_text("{"), "dataset_dict.json: "),
        (
            lambda f: (f / "dataset_dict.json").write_text('{"splits": ["../x"]}'),
            "its splits are invalid",
        ),
        (lambda f: (f / "train" / "state.json").unlink(), r"state.json: No such file"),
        (lambda f: (f / "train" / "state.json").write_text("[]"), "it must be a JSON object"),
        (lambda f: (f / "train" / "state.json").write_text('{"_data_files": []}'), "no data files"),
        (
            lambda f: (f / "train" / "state.json").write_text(
                '{"_data_files": [{"filename": "../../x"}]}'
            ),
            "A file must be in",
        ),
        (
            lambda f: (f / "train" / "data-00000-of-00002.arrow").write_bytes(b"not Arrow"),
            r"data-00000-of-00002.arrow: ",
        ),
    ],
)
def test_invalid_folders_are_refused(tmp_path: Path, damage: Any, message: str) -> None:
    save(tmp_path)
    damage(tmp_path)
    with pytest.raises(DatasetError, match=message) as raised:
        open_source(tmp_path)
    assert "\n" not in str(raised.value)


def test_options_are_checked(tmp_path: Path) -> None:
    save(tmp_path)
    with pytest.raises(UserError, match="No column of this dataset is called 'labl'"):
        open_source(tmp_path, label="labl")
    with pytest.raises(DatasetError, match="sound of sample 0 is not a multiple of 2 features"):
        open_source(tmp_path, modalities="sound", dims="sound=2")
    with pytest.raises(
        DatasetError, match="a modality must be a column of lists or sounds, but text is not"
    ):
        open_source(tmp_path, modalities="sound,text")


def names_and_splits(folder: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for sample in open_source(folder, modalities="sound").samples:
        found[sample.split].append(sample.name)
    return found


def test_only_the_indexed_rows_are_read(tmp_path: Path) -> None:
    save(tmp_path)
    indices = pa.table({"indices": pa.array([4, 0, 2], pa.uint64())})
    file = tmp_path / "train" / "indices.arrow"
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, indices.schema) as out:
        out.write_table(indices)
    state = tmp_path / "train" / "state.json"
    files = json.loads(state.read_text()) | {"_indices_data_files": [{"filename": file.name}]}
    state.write_text(json.dumps(files))
    train = [s for s in open_source(tmp_path, modalities="sound").samples if s.split == "train"]
    assert [s.subject for s in train] == ["train0", "train0", "train0"]
    assert [s.read()["sound"][0, 0] for s in train] == [4, 0, 2]  # type: ignore[index]
    wrong = pa.table({"indices": pa.array([5], pa.uint64())})
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, wrong.schema) as out:
        out.write_table(wrong)
    with pytest.raises(DatasetError, match=r"its indices must be in \[0, 5\)"):
        open_source(tmp_path)


def test_a_fifth_validates_without_a_validation_split(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    found = names_and_splits(tmp_path)
    assert found["test"] == ["test 0", "test 1"]
    assert sorted(found["train"] + found["validation"]) == [f"train {n}" for n in range(5)]
    assert "It has no validation split" in open_source(tmp_path).notes[0]


def test_eval_is_for_validation(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "validation").rename(tmp_path / "eval")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "eval", "test"]}')
    assert {split: len(found) for split, found in names_and_splits(tmp_path).items()} == SIZES
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "eval", "validation"]}')
    with pytest.raises(DatasetError, match="its splits are invalid"):
        open_source(tmp_path)


def test_a_single_dataset_has_drawn_splits(tmp_path: Path) -> None:
    save(tmp_path)
    found = names_and_splits(tmp_path / "train")
    assert sum(map(len, found.values())) == SIZES["train"]
    (note, *_) = open_source(tmp_path / "train").notes
    assert note == "It is a single Dataset, no DatasetDict: its splits are drawn."
    assert reader_for("mine", tmp_path / "train") == "huggingface"


def wave(seconds: float, rate: int = 8000) -> bytes:
    content = io.BytesIO()
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, int(seconds * rate))
    soundfile.write(content, sound, rate, format="WAV")
    return content.getvalue()


def with_sounds(folder: Path, cells: list[dict[str, Any] | None]) -> None:
    """Replace the columns of all splits by a label and sounds; `cells` are those of training."""
    save(folder)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for split, count in SIZES.items():
        found = cells if split == "train" else [{"bytes": wave(0.1), "path": "x.wav"}] * count
        table = pa.table(
            {"label": pa.array([n % 2 for n in range(count)]), "audio": pa.array(found, kind)}
        )
        file = folder / split / "data-00000-of-00002.arrow"
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
            out.write_table(table)
        state = {"_data_files": [{"filename": file.name}]}
        (folder / split / "state.json").write_text(json.dumps(state))


def save_sounds(folder: Path) -> None:
    """Write a dataset of embedded sounds, for the fuzzer."""
    with_sounds(folder, [{"bytes": wave(0.05), "path": "x.wav"}] * SIZES["train"])


def test_sounds_become_log_mel_tokens(tmp_path: Path) -> None:
    cells = [{"bytes": wave(0.1 * n), "path": None} for n in range(1, 5)]
    with_sounds(tmp_path, [*cells, None])
    source = open_source(tmp_path, tokens="audio=30")
    shape = source.modalities["audio"]
    assert (shape.num_tokens, shape.num_features, shape.variable_length) == (30, 128, True)
    expected = log_mel(read_sound("x", content=wave(0.1)))
    np.testing.assert_array_equal(source.samples[0].read()["audio"], expected)  # type: ignore[arg-type]
    done = prepare("mine", source, tmp_path / "store", bad="drop")
    audio = done.report.coverage[0]
    assert (audio.samples, audio.longest, audio.cut) == (4, 38, 1)
    assert done.report.dropped == {"it has no modality": ("train 4",)}


def test_damaged_and_external_sounds_are_bad_samples(tmp_path: Path) -> None:
    good = {"bytes": wave(0.1), "path": None}
    cells = [good, {"bytes": b"RIFF", "path": None}, good, {"bytes": None, "path": "a.wav"}, good]
    with_sounds(tmp_path, cells)
    message = r"2 of 10 samples .*\(train 1\).*save the dataset with embedded sounds.*\(train 3\)"
    with pytest.raises(DatasetError, match=message):
        prepare("mine", open_source(tmp_path), tmp_path / "store")
    assert prepare("mine", open_source(tmp_path), tmp_path / "store", bad="drop").num_samples == 8


def test_pointers_of_git_lfs_are_named(tmp_path: Path) -> None:
    save(tmp_path)
    file = tmp_path / "train" / "data-00000-of-00002.arrow"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(DatasetError, match=r"it is a Git LFS pointer.*`git lfs pull`"):
        open_source(tmp_path)


def test_links_of_the_hub_are_followed(tmp_path: Path) -> None:
    folder = tmp_path / "snapshots" / "main"
    folder.mkdir(parents=True)
    save(folder)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.rglob("*.arrow"))):
        file.rename(blobs / str(number))
        file.symlink_to(blobs / str(number))
    assert len(open_source(folder, modalities="sound").samples) == sum(SIZES.values())
    blobs.rename(tmp_path / "moved")
    for file in folder.rglob("*.arrow"):
        target = tmp_path / "moved" / file.readlink().name
        file.unlink()
        file.symlink_to(target)
    with pytest.raises(DatasetError, match="is a link out of it"):
        open_source(folder)
