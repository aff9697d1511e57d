"""Read and write recorded tables, on which searches are simulated in seconds.

A table is a Parquet file with a row for every (configuration, replicate, epoch): costs, validation
metrics, seconds, and every validation and test decision as bits. Its metadata describe how it was
recorded. A search that is simulated on it (`simulate`) sees the values of real training.

Shapes: N configurations, R replicates, E epochs, S samples.
"""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sftsearch.datasets.errors import UserError
from sftsearch.orchestrator.surrogate.fold_effects import additive_means
from sftsearch.trainables.training_record import LAST_EPOCHS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Facts = dict[str, Any]  # JSON of a file

META = b"sftsearch.table"
FORMAT = 1
MAX_BYTES = 1 << 30
MAX_ROWS = 20_000_000
MAX_HOLES = 1_000
"""Maximum number of array cells in memory per row of the file, against sparse tables."""


class TableError(UserError):
    """The recorded table cannot be read or does not match the study."""


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A recorded table in memory."""

    ids: list[str]
    models: list[str]
    parameters: list[dict[str, Any]]
    costs: dict[str, Floats]
    """By name, (N,)."""
    metrics: dict[str, Floats]
    """By name, (N, R, E); NaN where a replicate was not recorded."""
    seconds: Floats
    """Of each epoch, (N, R, E)."""
    facts: Facts
    """Metadata: dataset, folds, objectives, training, versions."""

    @property
    def num_epochs(self) -> int:
        """Number of epochs of every trial."""
        return int(self.seconds.shape[2])

    @property
    def num_folds(self) -> int | None:
        """Number of grouped folds, which the replicates use in turn."""
        folds: int | None = self.facts.get("folds")
        return folds

    @property
    def num_replicates(self) -> NDArray[np.int64]:
        """Number of recorded replicates of each configuration, (N,)."""
        counts: NDArray[np.int64] = np.isfinite(self.seconds[:, :, 0]).sum(axis=1)
        return counts

    def values(self, metric: str) -> Floats:
        """Return the value of every replicate: the mean of its last epochs, (N, R)."""
        found: Floats = self.metrics[metric][:, :, -LAST_EPOCHS:].mean(axis=2)
        return found

    def true_means(self, metric: str) -> Floats:
        """Return the mean over all recorded replicates, adjusted for fold effects, (N,)."""
        values_NR = self.values(metric)
        folds_R = np.arange(values_NR.shape[1]) % (self.num_folds or 1)
        return additive_means(values_NR, folds_R).means


def read_table(path: Path) -> Table:
    """Read a recorded table, without the decisions.

    Raises:
        TableError: the file cannot be read or does not have this format.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise TableError(f"The table '{path}' is larger than {MAX_BYTES:,} bytes.")
        file = pq.ParquetFile(path)
        if file.metadata.num_rows > MAX_ROWS:
            raise TableError(f"The table '{path}' has more than {MAX_ROWS:,} rows.")
        facts = json.loads((file.schema_arrow.metadata or {}).get(META, b"{}"))
        names = [n for n in file.schema_arrow.names if not n.startswith("right_")]
        rows = file.read(columns=names)
    except (OSError, ValueError, pa.ArrowException) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TableError(f"Cannot read the table '{path}': {first}.") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise TableError(
            f"'{path}' is not a recorded table of format {FORMAT}: record one with "
            "`sftsearch table`."
        )
    try:
        return _from_rows(rows, facts)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TableError(f"The table '{path}' is damaged: {first}.") from error


def _from_rows(rows: pa.Table, facts: Facts) -> Table:
    ids = rows["configuration_id"].to_pylist()
    order = {identity: n for n, identity in enumerate(dict.fromkeys(ids))}
    row_of = np.array([order[identity] for identity in ids], dtype=np.int64)
    cells = row_of, _numbers(rows, "replicate", 0), _numbers(rows, "epoch", 1) - 1
    shape = (len(order), int(cells[1].max()) + 1, int(cells[2].max()) + 1)
    if math.prod(shape) > MAX_HOLES * len(ids):
        raise ValueError("almost all of its replicates and epochs are missing")

    def spread(name: str) -> Floats:
        array = np.full(shape, np.nan)
        array[cells] = rows[name].to_numpy()
        return array

    first = np.unique(row_of, return_index=True)[1]
    table = Table(
        ids=list(order),
        models=rows["model"].take(first).to_pylist(),
        parameters=[dict(json.loads(text)) for text in rows["parameters"].take(first).to_pylist()],
        costs={n: rows[f"cost_{n}"].to_numpy()[first].astype(float) for n in facts["costs"]},
        metrics={name: spread(name) for name in facts["metrics"]},
        seconds=spread("seconds"),
        facts=facts,
    )
    _check_complete(table, len(ids))
    return table


def _numbers(rows: pa.Table, name: str, least: int) -> NDArray[np.int64]:
    """Return a column of integers from `least` to 9,999."""
    column = rows[name].to_numpy()
    if column.dtype.kind not in "iu" or column.min() < least or column.max() >= 10_000:
        raise ValueError(f"a number of `{name}` is out of range")
    numbers: NDArray[np.int64] = column.astype(np.int64)
    return numbers


def _check_complete(table: Table, num_rows: int) -> None:
    """Raise ValueError for missing or duplicate epochs, or values out of range."""
    recorded = np.isfinite(table.seconds)
    if recorded.sum() != num_rows or not (recorded.all(axis=2) | ~recorded.any(axis=2)).all():
        raise ValueError("a replicate has a missing or duplicate epoch")
    if (table.seconds[recorded] < 0).any():
        raise ValueError("a number of `seconds` is negative")
    if not all((cost > 0).all() and np.isfinite(cost).all() for cost in table.costs.values()):
        raise ValueError("a cost is not positive")
    for name, values in table.metrics.items():
        if not np.isfinite(values[recorded]).all():
            raise ValueError(f"a value of `{name}` is not finite")


def write_table(path: Path, rows: Mapping[str, object], facts: Mapping[str, object]) -> None:
    """Write a table atomically.

    Args:
        path: the file.
        rows: columns as in `record`.
        facts: metadata; `costs` and `metrics` list the names of those columns.

    Raises:
        TableError: the file cannot be written.
    """
    table = pa.table(dict(rows))
    table = table.replace_schema_metadata({META: json.dumps({"format": FORMAT, **facts})})
    unfinished = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, unfinished, compression="zstd", compression_level=19)
        unfinished.replace(path)
    except OSError as error:
        raise TableError(f"Cannot write the table '{path}': {error.strerror}.") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
