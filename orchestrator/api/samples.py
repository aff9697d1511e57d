"""Datasets: prepare one from files, and read its samples.

Shapes: N samples, T tokens, F features, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sftsearch.datasets import catalog, reader_catalog
from sftsearch.datasets.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from sftsearch.datasets.prepare import OnBad, OnNaN
    from sftsearch.datasets.samples import Split
    from sftsearch.datasets.spec import DatasetSpec, ModalitySpec, Task
    from sftsearch.datasets.store import Store

    Labels = npt.NDArray[np.str_] | npt.NDArray[np.bool_] | npt.NDArray[np.float32]
    """Classification: names of classes, (N,). Multi-label: whether each label applies, (N, C).
    Regression: numbers in the units of the labels, (N,)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Samples:
    """The N samples of one split."""

    inputs: dict[str, npt.NDArray[np.float32] | list[npt.NDArray[np.generic]]]
    """By modality: (N, T, F), or with variable length a list of (T_i, F), where no tokens mean that
    the modality is missing. `Predictor.predict` takes them as they are."""
    labels: Labels
    """In the form of `Prediction.labels`: names of classes, (N,); whether each label applies,
    (N, C); or numbers, (N,)."""
    subjects: tuple[str | None, ...]
    """The subject of each sample; None if it is unknown."""

    def __len__(self) -> int:
        return len(self.labels)


class Dataset:
    """A dataset on this machine; `open_dataset` and `prepare_dataset` return it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def name(self) -> str:
        """The name, as in `dataset.kind` of a study file."""
        return self._store.spec.name

    @property
    def task(self) -> Task:
        """`classification`, `multilabel` or `regression`."""
        return self._store.spec.task

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, or of the labels of a multi-label task; empty for regression."""
        return self._store.spec.classes

    @property
    def modalities(self) -> dict[str, ModalitySpec]:
        """The shape of each modality, by name."""
        return dict(self._store.spec.modalities)

    @property
    def num_samples(self) -> dict[str, int]:
        """The number of samples by split."""
        return dict(self._store.spec.num_samples)

    @property
    def license(self) -> str:
        """The license of the samples."""
        return self._store.spec.licence

    @property
    def attribution(self) -> str:
        """Credit, to be shown with all results."""
        return self._store.spec.attribution

    def samples(self, split: str = "validation") -> Samples:
        """Return the samples of a split.

        Args:
            split: `train` or `validation`. `test` is sealed: only `sftsearch confirm` reads it.

        Raises:
            UserError: there is no such split, it is the test split, or a file is damaged.
        """
        from sftsearch.datasets.samples import views

        spec, found = self._store.spec, self._store.split(split)
        rows_N = np.arange(len(found))
        people = (*spec.subjects[split], None)  # code -1, the last one: unknown
        return Samples(
            inputs={
                name: views(found.modalities[name], rows_N)
                if shape.variable_length
                else np.asarray(found.modalities[name])
                for name, shape in spec.modalities.items()
            },
            labels=_labels(spec, found),
            subjects=tuple(people[code] for code in found.subjects.tolist()),
        )

    def __repr__(self) -> str:
        number = sum(self.num_samples.values())
        return f"Dataset('{self.name}', {number} samples of {', '.join(self.modalities)})"


def _labels(spec: DatasetSpec, split: Split) -> Labels:
    if spec.task == "classification":
        names_C: npt.NDArray[np.str_] = np.array(spec.classes)
        named_N: npt.NDArray[np.str_] = names_C[split.labels]
        return named_N
    labels = split.labels.astype(np.float32)
    return labels > 0.5 if spec.task == "multilabel" else labels


def open_dataset(name: str, *, root: str | Path | None = None) -> Dataset:
    """Open a dataset: one that is built in or was prepared on this machine.

    Args:
        name: as listed by `sftsearch data list`.
        root: a folder or URI of prepared datasets; None: the local cache.

    Raises:
        UserError: there is no such dataset, or it is damaged.
    """
    return Dataset(catalog.open_dataset(name, root=None if root is None else str(root)))


def prepare_dataset(
    name: str,
    source: str | Path | None = None,
    *,
    reader: str | None = None,
    options: Mapping[str, object] | None = None,
    nan: OnNaN = "fail",
    bad: OnBad | None = None,
    plugins: Sequence[str | Path] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Prepare a dataset from published files or your own, as `sftsearch data prepare`.

    Args:
        name: study files refer to the dataset by it.
        source: a file or folder; None only for a reader that generates its samples.
        reader: see `sftsearch data list --readers`; None: `name`, or derived from the path.
        options: of the reader, such as `{"label": "class", "dims": {"audio": 32}}`.
        nan: how to handle numbers that are not finite: `fail`, or replace them by `zero`, or `drop`
            the sample.
        bad: how to handle samples that cannot be used: `fail` with an error that names them all, or
            `drop` them. None: `drop` if `nan` is, else `fail`.
        plugins: Python files with readers of your own, which are imported.
        progress: called with the number of samples read and of all samples.

    Raises:
        UserError: the name is invalid or used, an option is unknown, or the files are not what the
            reader expects.
    """
    from sftsearch.datasets.prepare import prepare, revision_of
    from sftsearch.orchestrator.plugins import load_plugins

    if nan not in ("fail", "zero", "drop"):
        raise UserError(f"`nan` must be fail, zero or drop, but got {nan!r}.")
    if bad not in (None, "fail", "drop"):
        raise UserError(f"`bad` must be fail or drop, but got {bad!r}.")
    catalog.check_new_name(name)
    load_plugins(plugins)
    path = None if source is None else Path(source).expanduser()
    if path is not None and not path.exists():
        raise UserError(f"There is no file or folder '{path}'.")
    texts = [f"{key}={_as_text(value)}" for key, value in (options or {}).items()]
    found = reader_catalog.read_source(reader or reader_catalog.reader_for(name, path), path, texts)
    prepare(
        name,
        found,
        catalog.prepared_folder() / name,
        nan=nan,
        bad=bad,
        revision=revision_of(path),
        options=texts,
        progress=progress or (lambda done, total: None),
    )
    return open_dataset(name)


def _as_text(value: object) -> str:
    """Return the value of an option as on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return ",".join(f"{key}={one}" for key, one in value.items())
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
