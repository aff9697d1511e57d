"""Read a Hugging Face dataset saved by `DatasetDict.save_to_disk`.

    dataset_dict.json          {"splits": ["train", "validation", "test"]}
    SPLIT/state.json           the files, in order
    SPLIT/dataset_info.json    the features: names of classes, license, citation
    SPLIT/data-*.arrow         Arrow's stream format
    SPLIT/indices.arrow        the rows that are in the split, in order, if it was filtered

A single `Dataset` has the files of one split in the folder itself. Its splits are drawn (see
`tabular.py`), as are those of a dataset with a training split only. Without a validation split, a
fifth of the training samples validates, by subject if subjects are known. A split called `eval`
is for validation.

Files are read with Arrow, without the `datasets` library. Modalities are columns of lists of
numbers, or of lists of tokens (also `Array2D`), and of sounds (`Audio`: a struct of `bytes` and
`path`), which become log-mel tokens (`sound.py`). Other columns are ignored, except for the label
and subject.

Shapes: T tokens, F features.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from sftsearch.datasets.errors import DatasetError, look_up
from sftsearch.datasets.readers.huggingface_split import (
    SavedSplit,
    is_list,
    is_sound,
    read_json,
    storage,
)
from sftsearch.datasets.readers.sound import num_windows
from sftsearch.datasets.readers.tabular import (
    SPLIT_NAMES,
    SUBJECT_COLUMNS,
    Labels,
    parse_pairs,
    read_labels,
    read_splits,
)
from sftsearch.datasets.source import Sample, Source, unreadable
from sftsearch.datasets.spec import ModalitySpec

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa


NUM_BANDS = 128
MAX_SOUND_TOKENS = 3000
"""Default limit of the tokens of a sound, 30 seconds."""
SPLITS = SPLIT_NAMES | {"eval": "validation", "evaluation": "validation"}


def open_source(
    path: Path,
    *,
    label: str = "label",
    task: str = "auto",
    subject: str = "",
    modalities: str = "",
    dims: str = "",
    tokens: str = "",
    dtype: str = "float32",
) -> Source:
    """List the samples of a Hugging Face dataset saved to disk.

    Args:
        path: the folder with dataset_dict.json.
        label: the column of labels.
        task: auto, classification, multilabel or regression.
        subject: the column of subjects; by default the first of subject, speaker, ...
        modalities: the columns of modalities, with commas; by default all columns of lists.
        dims: features per token of flat lists, as audio=32.
        tokens: maximum tokens of modalities, as audio=300; further tokens are cut off.
        dtype: storage type, float32 or float16.

    Raises:
        DatasetError: the folder has another format.
    """
    notes: list[str] = []
    splits = _splits(path, notes)
    first = next(iter(splits.values()))
    chosen = _modalities(path, first.schema, modalities, label)
    shapes = _shapes(splits, chosen, dims, tokens, dtype)
    classes = first.class_names(label)
    labels = _labels(path, splits, label, task, classes)
    column = _subject_column(first.schema, subject)
    samples: list[Sample] = []
    for split, part in splits.items():
        people = part.column(column) if column else [None] * part.num_rows
        samples += [
            Sample(
                name=f"{split} {row}",
                split=split,
                label=labels.values[len(samples) + row],
                subject=None if people[row] is None else str(people[row]),
                read=partial(part.read, row, shapes),
                bad=labels.fault(len(samples) + row),
            )
            for row in range(part.num_rows)
        ]
    information = first.information
    return Source(
        task=labels.task,
        modalities=shapes,
        classes=tuple(classes) if classes and labels.task == "classification" else labels.classes,
        samples=_with_all_splits(path, samples, notes),
        licence=_text(information.get("license")) or "not stated",
        attribution=_text(information.get("citation")) or "not stated",
        source=_text(information.get("homepage")) or path.name,
        description=f"Read from the Hugging Face dataset {path.name}.",
        notes=[*notes, *_left_out(first.schema, {label, column, *shapes})],
    )


def _labels(
    path: Path, splits: dict[str, SavedSplit], label: str, task: str, classes: list[str]
) -> Labels:
    values = [value for part in splits.values() for value in part.column(label)]
    names = [classes[v] for v in values] if classes and _are_indices(values, classes) else None
    return read_labels(path, values, names, task)


def _subject_column(schema: pa.Schema, given: str) -> str | None:
    """Return the column of subjects, if there is one.

    Raises:
        UserError: there is no column of the given name.
    """
    if given:
        look_up(dict.fromkeys(schema.names), given, kind="column of this dataset")
    return given or next((name for name in SUBJECT_COLUMNS if name in schema.names), None)


def _splits(path: Path, notes: list[str]) -> dict[str, SavedSplit]:
    """Open all splits and check that their columns are equal."""
    file = path / "dataset_dict.json"
    if not file.exists() and (path / "state.json").is_file():
        notes.append("It is a single Dataset, no DatasetDict: its splits are drawn.")
        return {"train": SavedSplit(path, ".")}
    names = read_json(file).get("splits")
    known = isinstance(names, list) and all(isinstance(n, str) and n in SPLITS for n in names)
    if not names or not known or len({SPLITS[name] for name in names}) != len(names):
        raise unreadable(file, f"its splits are invalid: {names!r:.80}")
    splits = {SPLITS[name]: SavedSplit(path, name) for name in names}
    first = next(iter(splits.values()))
    for split in splits.values():
        if not split.schema.equals(first.schema):
            raise unreadable(path, "its splits have different columns")
    return splits


def _with_all_splits(path: Path, samples: list[Sample], notes: list[str]) -> list[Sample]:
    """Draw the splits of a dataset with a training split only, or its missing validation split."""
    present = {sample.split for sample in samples}
    if present not in ({"train"}, {"train", "test"}):
        return samples
    train = [sample for sample in samples if sample.split == "train"]
    drawn = read_splits(
        path,
        None,
        [sample.subject for sample in train],
        [sample.label for sample in train],
        [sample.name for sample in train],
    )
    if "test" in present:
        notes.append("It has no validation split: a fifth of the training samples is.")
        drawn = ["train" if split == "test" else split for split in drawn]
    split_of = dict(zip((sample.name for sample in train), drawn, strict=True))
    return [replace(sample, split=split_of.get(sample.name, "test")) for sample in samples]


def _modalities(path: Path, schema: pa.Schema, given: str, label: str) -> list[str]:
    """Return the columns of modalities: the given ones, or all lists except the label."""
    chosen = [n.strip() for n in given.split(",") if n.strip()]
    lists = [
        field.name
        for field in schema
        if is_list(storage(field.type)) or is_sound(storage(field.type))
    ]
    chosen = chosen or [name for name in lists if name != label]
    for name in (label, *chosen):
        look_up(dict.fromkeys(schema.names), name, kind="column of this dataset")
    flat = next((name for name in chosen if name not in lists), None)
    if not chosen or flat:
        raise unreadable(
            path, f"a modality must be a column of lists or sounds, but {flat or 'none'} is not"
        )
    return chosen


def _left_out(schema: pa.Schema, used: set[str | None]) -> list[str]:
    """Return a note on the columns that are not read."""
    others = [field for field in schema if field.name not in used]
    text = ", ".join(f"{field.name} ({field.type})"[:60] for field in others[:20])
    more = f" and {len(others) - 20} more" if len(others) > 20 else ""
    return [f"Columns left out: {text}{more}."] if others else []


def _text(value: object) -> str:
    return " ".join(value.split())[:500] if isinstance(value, str) else ""


def _are_indices(values: list[Any], names: list[str]) -> bool:
    return all(isinstance(value, int) and 0 <= value < len(names) for value in values)


def _sound_shape(
    splits: dict[str, SavedSplit], name: str, most: int | None, dtype: str
) -> ModalitySpec:
    """Return the shape of a column of sounds; what cannot be read is reported when it is read."""
    lengths = [0]
    for split in splits.values():
        for row in range(split.num_rows):
            with contextlib.suppress(DatasetError):
                found = split.sound(row, name)
                lengths += [num_windows(*found)] if found else []
    if max(lengths) == 0:
        raise unreadable(next(iter(splits.values())).folder, f"{name} has no sound to be read")
    return ModalitySpec(
        num_tokens=min(max(lengths), most or MAX_SOUND_TOKENS),
        num_features=NUM_BANDS,
        variable_length=True,
        dtype=dtype,  # type: ignore[arg-type]
    )


def _shapes(
    splits: dict[str, SavedSplit],
    names: list[str],
    dims: str,
    tokens: str,
    dtype: str,
) -> dict[str, ModalitySpec]:
    width_of, most, shapes = parse_pairs(dims, "dims"), parse_pairs(tokens, "tokens"), {}
    for name in names:
        if next(iter(splits.values())).is_sound(name):
            shapes[name] = _sound_shape(splits, name, most.get(name), dtype)
            continue
        lengths, widths = set(), set()
        for split in splits.values():
            for row in range(split.num_rows):
                found = split.tokens(row, name, width_of.get(name))
                lengths.add(0 if found is None else len(found))
                if found is not None:
                    widths.add(found.shape[1])
            if len(widths) > 1:
                raise unreadable(
                    split.folder, f"{name} has different feature counts: {sorted(widths)[:3]}"
                )
        longest = min(max(lengths), most.get(name, 10**9))
        if longest < 1:
            raise unreadable(next(iter(splits.values())).folder, f"{name} is empty in every sample")
        shapes[name] = ModalitySpec(
            num_tokens=longest,
            num_features=widths.pop(),
            variable_length=any(min(length, longest) != longest for length in lengths),
            dtype=dtype,  # type: ignore[arg-type]
        )
    return shapes
