"""CMU-MOSEI and CMU-MOSI in their published formats."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest

from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.prepare import prepare
from sftsearch.datasets.readers.mosei import CLASSES, open_mosi, open_source, to_class
from sftsearch.datasets.store import open_store

if TYPE_CHECKING:
    from pathlib import Path

COUNTS = {"train": 6, "valid": 4, "test": 5}
WIDTHS = {"vision": 35, "audio": 74, "text": 300}


def mult(tokens: dict[str, int]) -> dict[str, Any]:
    """Return the content of a MulT pickle: labels (N, 1, 1), ids [video, start, end]."""
    random = np.random.default_rng(0)
    content = {}
    for split, count in COUNTS.items():
        part: dict[str, Any] = {
            name: random.standard_normal((count, tokens[name], width)).astype(np.float32)
            for name, width in WIDTHS.items()
        }
        part["labels"] = np.linspace(-3, 3, count).reshape(count, 1, 1).astype(np.float32)
        part["id"] = np.array([[f"{split}{i // 2}", str(i), "9.5"] for i in range(count)])
        content[split] = part
    return content


def mmsa() -> dict[str, Any]:
    """Return the content of an MMSA pickle: also lengths and texts, ids `video$_$clip`."""
    content = mult({"vision": 20, "audio": 30, "text": 10})
    for split, part in content.items():
        count = COUNTS[split]
        part["regression_labels"] = part.pop("labels").reshape(count)
        part["classification_labels"] = np.zeros(count)
        part["annotations"] = np.array(["Neutral"] * count)
        part["raw_text"] = np.array(["words"] * count)
        part["text_bert"] = np.zeros((count, 3, 10), np.float32)
        part["id"] = [f"{split}{i // 2}$_${i}" for i in range(count)]
        part["audio_lengths"] = [30 - i for i in range(count)]
        part["vision_lengths"] = [1 + i for i in range(count)]
    return content


def saved(tmp_path: Path, content: Any, protocol: int = 4) -> Path:
    file = tmp_path / "mosei.pkl"
    file.write_bytes(pickle.dumps(content, protocol))
    return file


ALIGNED = {"vision": 50, "audio": 50, "text": 50}
UNALIGNED = {"vision": 500, "audio": 500, "text": 50}


@pytest.mark.parametrize("tokens", [ALIGNED, UNALIGNED], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_mult_pickles_are_read(tmp_path: Path, tokens: dict[str, int], protocol: int) -> None:
    content = mult(tokens)
    source = open_source(saved(tmp_path, content, protocol))
    assert source.task == "classification"
    assert source.classes == CLASSES
    assert list(source.modalities) == ["vision", "audio", "text"]
    for name, shape in source.modalities.items():
        assert (shape.num_tokens, shape.num_features) == (tokens[name], WIDTHS[name])
        assert not shape.variable_length
    store = open_store(prepare("mosei", source, tmp_path / "mosei").path)
    for file_split, split_name in (("train", "train"), ("valid", "validation"), ("test", "test")):
        split = store.split(split_name, unseal_test=True)
        for name in WIDTHS:
            np.testing.assert_array_equal(split.modalities[name], content[file_split][name])
        values = content[file_split]["labels"].reshape(-1)
        expected = [round(float(y)) + 3 for y in values]
        assert split.labels.tolist() == expected
        videos = [store.spec.subjects[split_name][code] for code in split.subjects]
        assert videos == content[file_split]["id"][:, 0].tolist()


def test_mmsa_pickles_have_lengths(tmp_path: Path) -> None:
    content = mmsa()
    source = open_source(saved(tmp_path, content), labels="regression")
    assert source.task == "regression"
    assert source.classes == ()
    varies = {name: shape.variable_length for name, shape in source.modalities.items()}
    assert varies == {"vision": True, "audio": True, "text": False}
    store = open_store(prepare("mosei", source, tmp_path / "mosei").path)
    train = store.split("train")
    assert train.lengths["audio"].tolist() == content["train"]["audio_lengths"]
    for i, length in enumerate(content["train"]["vision_lengths"]):
        vision = train.modalities["vision"][i]
        np.testing.assert_array_equal(vision[:length], content["train"]["vision"][i, :length])
        assert not vision[length:].any()
    np.testing.assert_allclose(train.labels, np.linspace(-3, 3, 6), rtol=1e-6)
    assert store.spec.subjects["train"] == ("train0", "train1", "train2")


def test_mosi_is_read(tmp_path: Path) -> None:
    source = open_mosi(saved(tmp_path, mult(ALIGNED)))
    assert "MOSI" in source.description
    assert len(source.samples) == 15


@pytest.mark.parametrize(
    ("value", "label"),
    [(-3.0, 0), (-2.6, 0), (-2.5, 1), (-0.4, 3), (0.0, 3), (0.5, 3), (1.5, 5), (2.51, 6), (3.0, 6)],
)
def test_classes_are_rounded_as_numpy_rounds(value: float, label: int) -> None:
    assert to_class(value) == label == int(np.round(value)) + 3


def test_infinite_audio_is_left_to_prepare(tmp_path: Path) -> None:
    content = mult(ALIGNED)
    content["train"]["audio"][2, 7, 3] = -np.inf
    source = open_source(saved(tmp_path, content))
    with pytest.raises(DatasetError, match=r"audio of sample .* token 7, feature 3 is -inf"):
        prepare("mosei", source, tmp_path / "mosei")
    done = prepare("mosei", source, tmp_path / "mosei", nan="zero")
    assert done.num_zeroed == 1
    assert open_store(done.path).split("train").modalities["audio"][2, 7, 3] == 0


def changed(change: Any) -> dict[str, Any]:
    content = mult(ALIGNED)
    change(content)
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(lambda c: c.pop("valid")), "it must have train, valid and test"),
        ([1, 2], "it must have train, valid and test"),
        (changed(lambda c: c.update(test=3)), "test is not a dict"),
        (changed(lambda c: c["train"].pop("audio")), "train has no audio of numbers"),
        (changed(lambda c: c["train"].update(audio=np.zeros((6, 50)))), "train has no audio of"),
        (
            changed(lambda c: c["train"].update(audio=c["train"]["audio"][:5])),
            r"audio of train has shape \(5, 50, 74\), but there are 6 labels",
        ),
        (
            changed(lambda c: c["test"].update(text=np.zeros((5, 50, 299)))),
            "text must have the same shape in all splits",
        ),
        (
            changed(lambda c: c["train"]["labels"].__setitem__((2, 0, 0), 3.5)),
            r"labels must be in \[-3, 3\], but clip 2 of train has 3.5",
        ),
        (
            changed(lambda c: c["train"]["labels"].__setitem__((2, 0, 0), np.nan)),
            r"labels must be in \[-3, 3\], but clip 2 of train has nan",
        ),
        (
            changed(lambda c: c["train"].update(labels=np.zeros((6, 2)))),
            "train must have one label per clip",
        ),
    ],
)
def test_invalid_pickles_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as raised:
        open_source(saved(tmp_path, content))
    assert "\n" not in str(raised.value)


def test_invalid_lengths_are_refused(tmp_path: Path) -> None:
    content = mmsa()
    content["test"]["audio_lengths"][1] = 31
    source = open_source(saved(tmp_path, content))
    with pytest.raises(DatasetError, match="audio of clip 1 has 30 tokens, not 31"):
        prepare("mosei", source, tmp_path / "mosei")
    content["test"]["audio_lengths"] = [1.5] * 5
    with pytest.raises(DatasetError, match="audio_lengths of test must be 5 non-negative integers"):
        open_source(saved(tmp_path, content))


def test_a_video_in_two_splits_is_refused(tmp_path: Path) -> None:
    content = mult(ALIGNED)
    content["test"]["id"] = content["test"]["id"].astype("U9")
    content["test"]["id"][0, 0] = "train1"
    source = open_source(saved(tmp_path, content))
    with pytest.raises(DatasetError, match="share a subject, but 'train1' is in train and"):
        prepare("mosei", source, tmp_path / "mosei")


def test_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="`labels` must be seven or regression, but got 'five'"):
        open_source(saved(tmp_path, mult(ALIGNED)), labels="five")


# Computational sequences

CLIPS = {
    "v1": [(0.0, 2.0, 1.0), (2.0, 5.0, -2.0)],
    "v2": [(0.0, 3.0, 3.0)],
    "v3": [(1.0, 2.0, 0.0)],
}
RATES = {"visual_facet": (4, 35), "acoustic_covarep": (10, 74), "glove_words": (2, 300)}


def write_csd(folder: Path) -> None:
    """Write sequences whose features are the start times of their tokens."""
    for name, (rate, width) in RATES.items():
        with h5py.File(folder / f"{name}.csd", "w") as file:
            for video in CLIPS:
                begin = np.arange(5 * rate) / rate
                features = np.repeat(begin[:, None], width, axis=1).astype(np.float32)
                file[f"{name}/data/{video}/features"] = features
                file[f"{name}/data/{video}/intervals"] = np.stack([begin, begin + 1 / rate], axis=1)
            file[f"{name}/metadata/creator"] = "somebody"
    with h5py.File(folder / "CMU_MOSEI_Labels.csd", "w") as file:
        for video, clips in CLIPS.items():
            file[f"All Labels/data/{video}/features"] = np.array([[y, 0, 0] for *_, y in clips])
            file[f"All Labels/data/{video}/intervals"] = np.array([c[:2] for c in clips])
    for fold, video in (("train", "v1"), ("valid", "v2"), ("test", "v3")):
        (folder / f"{fold}.txt").write_text(f"{video}\nnot-here\n" if fold == "test" else video)


@pytest.mark.medium
def test_sequences_are_cut_to_clips(tmp_path: Path) -> None:
    write_csd(tmp_path)
    source = open_source(tmp_path, labels="regression", tokens="audio=25")
    assert {s.name: (s.split, s.label, s.subject) for s in source.samples} == {
        "v1[0]": ("train", 1.0, "v1"),
        "v1[1]": ("train", -2.0, "v1"),
        "v2[0]": ("validation", 3.0, "v2"),
        "v3[0]": ("test", 0.0, "v3"),
    }
    assert source.modalities["audio"].num_tokens == 25
    values = source.samples[1].read()  # from 2 to 5 seconds
    assert values["vision"][:, 0].tolist() == [2 + i / 4 for i in range(12)]  # type: ignore[index]
    assert values["text"][:, 299].tolist() == [2 + i / 2 for i in range(6)]  # type: ignore[index]
    np.testing.assert_allclose(values["audio"][:, 0], 2 + np.arange(30) / 10, rtol=1e-6)  # type: ignore[index]
    done = prepare("mosei", source, tmp_path / "store")
    assert done.num_samples == 4
    by_name = {(one.modality, one.split): one for one in done.report.coverage}
    audio = by_name["audio", "train"]
    assert (audio.samples, audio.longest, audio.cut) == (2, 30, 1)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "train.txt").unlink(), "train.txt: No such file.*standard folds"),
        (lambda f: (f / "valid.txt").write_text("v1"), "video v1 is also in train"),
        (lambda f: (f / "glove_words.csd").unlink(), r"must have one .csd of text \(text or glove"),
        (lambda f: (f / "more_audio.csd").write_bytes(b"x"), "one .csd of audio"),
        (lambda f: (f / "CMU_MOSEI_Labels.csd").unlink(), r"must have one \*label\*.csd of sent"),
        (lambda f: (f / "glove_words.csd").write_bytes(b"not HDF5"), "glove_words.csd: OSError"),
        (lambda f: [(f / f"{x}.txt").write_text("other") for x in ("train", "valid", "test")],
         r"video other is also in|no clip is from a video"),
    ],
)  # fmt: skip
def test_invalid_folders_are_refused(tmp_path: Path, damage: Any, message: str) -> None:
    write_csd(tmp_path)
    damage(tmp_path)
    with pytest.raises(DatasetError, match=message) as raised:
        open_source(tmp_path)
    assert "\n" not in str(raised.value)


def test_clips_padded_at_their_beginning_keep_their_tokens(tmp_path: Path) -> None:
    content = mmsa()
    for part in content.values():
        for name in ("audio", "vision"):
            for x_TF, length in zip(part[name], part[f"{name}_lengths"], strict=True):
                x_TF[: len(x_TF) - length] = 0
    part = content["train"]
    part["vision"][0, :] = 0  # zeros are no sign of padding if nothing follows them
    clips = open_source(saved(tmp_path, content)).samples
    for number in range(COUNTS["train"]):
        values = clips[number].read()
        np.testing.assert_array_equal(values["audio"], part["audio"][number, number:])
    np.testing.assert_array_equal(clips[0].read()["vision"], np.zeros((1, WIDTHS["vision"])))
    np.testing.assert_array_equal(clips[1].read()["vision"], part["vision"][1, -2:])


def test_clips_padded_at_their_end_are_read_from_their_beginning(tmp_path: Path) -> None:
    content = mmsa()
    part = content["train"]
    for x_TF, length in zip(part["audio"], part["audio_lengths"], strict=True):
        x_TF[length:] = 0
    part["audio"][2, 0] = 0  # a silent first token
    values = open_source(saved(tmp_path, content)).samples[2].read()
    np.testing.assert_array_equal(values["audio"], part["audio"][2, :28])


@pytest.mark.parametrize("convert", [list, np.ndarray.tolist, lambda x: [[one] for one in x]])
def test_labels_may_be_lists(tmp_path: Path, convert: Any) -> None:
    content = mmsa()
    wanted = [sample.label for sample in open_source(saved(tmp_path, content)).samples]
    for part in content.values():
        part["regression_labels"] = convert(part["regression_labels"])
    assert [sample.label for sample in open_source(saved(tmp_path, content)).samples] == wanted


@pytest.mark.parametrize("labels", [["a"] * 6, [None] * 6, [[0], [1, 2], [0], [0], [0], [0]]])
def test_lists_without_numbers_are_no_labels(tmp_path: Path, labels: list[Any]) -> None:
    content = mmsa()
    content["train"]["regression_labels"] = labels
    with pytest.raises(DatasetError, match="train"):
        open_source(saved(tmp_path, content))


def test_emotions_are_no_sentiment(tmp_path: Path) -> None:
    write_csd(tmp_path)
    sentiment = [sample.label for sample in open_source(tmp_path).samples]
    labels = tmp_path / "CMU_MOSEI_Labels.csd"
    emotions = tmp_path / "CMU_MOSEI_LabelsEmotions.csd"
    with h5py.File(emotions, "w") as file:
        for video, clips in CLIPS.items():
            file[f"Emotion Labels/data/{video}/features"] = np.ones((len(clips), 6))
            file[f"Emotion Labels/data/{video}/intervals"] = np.array([c[:2] for c in clips])
    assert [sample.label for sample in open_source(tmp_path).samples] == sentiment
    labels.unlink()
    with pytest.raises(
        DatasetError, match=r"one \*label\*.csd of sentiment, not 0; its labels are emo"
    ):
        open_source(tmp_path)
    emotions.rename(labels)
    with pytest.raises(DatasetError, match="its labels are emotions, not the sentiment"):
        open_source(tmp_path)


def test_one_of_several_sequences_is_chosen(tmp_path: Path) -> None:
    write_csd(tmp_path)
    before = open_source(tmp_path).samples[1].read()
    other = next(file for file in tmp_path.glob("*.csd") if "audio" in file.name.lower()
                 or "covarep" in file.name.lower())  # fmt: skip
    (tmp_path / "OpenSmile.csd").write_bytes(b"damaged")
    with pytest.raises(DatasetError, match="not 2: set `--option sequences=audio=FILE`"):
        open_source(tmp_path)
    source = open_source(tmp_path, sequences=f"audio={other.name}")
    np.testing.assert_array_equal(source.samples[1].read()["audio"], before["audio"])
    assert list(open_source(tmp_path, modalities="vision,text").modalities) == ["vision", "text"]
    with pytest.raises(DatasetError, match="`sequences` must be MODALITY=FILE"):
        open_source(tmp_path, sequences="sound=a.csd")
    with pytest.raises(DatasetError, match="A file must be in"):
        open_source(tmp_path, sequences="audio=../a.csd")


def test_modalities_of_a_pickle_are_chosen(tmp_path: Path) -> None:
    source = open_source(saved(tmp_path, mmsa()), modalities="text,vision")
    assert list(source.modalities) == ["vision", "text"]
    assert set(source.samples[0].read()) >= {"vision", "text"}
