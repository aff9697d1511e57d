"""Read datasets that ship as one Parquet file with one row per sample.

The file may have been damaged or changed since installation; every problem becomes a `DatasetError`
that says what to do.

Shapes: N samples, T tokens, F features.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from sftsearch.datasets.checksums import file_sha256
from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.spec import SPLITS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from sftsearch.datasets.samples import Split
    from sftsearch.datasets.spec import ModalitySpec

# Not `importlib.resources`: it cannot open a namespace package of an editable install.
FOLDER = Path(__file__).parent / "shipped"

PUBLISHED_SPLITS = {"train": "train", "validation": "val", "test": "test"}
"""Names of the splits in the files."""


def fingerprint(name: str, file: Path, *, reader_version: int) -> str:
    """Return the fingerprint of a dataset: a hash of its name, reader version and file content.

    Raises:
        DatasetError: the file cannot be read.
    """
    try:
        content = f"{name}, reader {reader_version}, parquet {file_sha256(file)}"
    except OSError as error:
        raise _unreadable(file, str(error.strerror)) from error
    return hashlib.sha256(content.encode()).hexdigest()


def read_splits(file: Path, read: Callable[[pa.Table, str], Split]) -> dict[str, Split]:
    """Read the samples of a file, in file order within each split.

    Args:
        file: a Parquet file with a column `split` of train, val and test.
        read: converts the rows of a split, given with its name; raises LookupError or ValueError
            for invalid rows.

    Raises:
        DatasetError: the file is missing or damaged, or `read` rejects its rows.
    """
    # Imported here, as numpy below: specs need the checksum of a file, not its content.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with file.open("rb") as stream:  # its OSError is clearer than that of pyarrow
            table = pq.read_table(stream)
        return {split: read(_rows(table, split), split) for split in SPLITS}
    except (OSError, pa.ArrowException, LookupError, ValueError) as error:
        raise _unreadable(file, str(error)) from error


def read_labels(rows: pa.Table, classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the class of every row, (N,), from the columns `label` and `label_name`.

    Raises:
        ValueError: a label does not match its name.
    """
    label_N: npt.NDArray[np.int64] = rows["label"].to_numpy().astype("int64")
    if [classes[label] for label in label_N] != rows["label_name"].to_pylist():
        raise ValueError("labels and their names differ")
    return label_N


def read_subjects(rows: pa.Table, column: str, people: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the index into `people` of the person of every row, (N,).

    Raises:
        KeyError: a row names a person who is not in `people`.
    """
    import numpy as np

    codes = {person: code for code, person in enumerate(people)}
    return np.array([codes[person] for person in rows[column].to_pylist()], dtype=np.int64)


def read_tokens(rows: pa.Table, name: str, shape: ModalitySpec) -> npt.NDArray[np.float32]:
    """Return a modality of fixed length, (N, T, F).

    Raises:
        ValueError: a row has the wrong number of values.
    """
    sizes_N, values = read_lists(rows, name)
    if not (sizes_N == shape.num_tokens * shape.num_features).all():
        expected = f"{shape.num_tokens} x {shape.num_features}"
        raise ValueError(f"{name} has samples that are not {expected}")
    return values.reshape(-1, shape.num_tokens, shape.num_features)


def read_lists(rows: pa.Table, name: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the number of values in each row, (N,), -1 for null, and all values, flat."""
    import pyarrow.compute as pc

    column = rows[name].combine_chunks()
    sizes = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False)
    return sizes.astype("int64"), column.flatten().to_numpy(zero_copy_only=False)


def _rows(table: pa.Table, split: str) -> pa.Table:
    import pyarrow.compute as pc

    return table.filter(pc.equal(table["split"], PUBLISHED_SPLITS[split])).combine_chunks()


def _unreadable(file: Path, why: str) -> DatasetError:
    what = " ".join(why.split())[:200].rstrip(".")
    return DatasetError(f"Cannot read the shipped dataset {file}: {what}. Install sftsearch again.")
