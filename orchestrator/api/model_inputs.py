"""Check samples that a user gives to a model, and cut them into padded batches.

Shapes: B samples, T tokens, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sftsearch.datasets.errors import UserError, look_up
from sftsearch.datasets.source import as_float32

if TYPE_CHECKING:
    import numpy.typing as npt

    from sftsearch.datasets.spec import DatasetSpec, ModalitySpec

    Given = npt.ArrayLike | Sequence[npt.ArrayLike | None]
    """An array (B, T, F), or a list of B arrays (T_i, F), where None is a missing modality."""
    Batch = tuple[dict[str, npt.NDArray[np.float32]], dict[str, npt.NDArray[np.int64]]]


class ModelInputs:
    """Samples of the modalities that a model reads, checked."""

    def __init__(
        self, samples: Mapping[str, Given | None], spec: DatasetSpec, modalities: Sequence[str]
    ) -> None:
        """Check names, shapes and numbers of samples.

        Args:
            samples: as given to `Predictor.predict`.
            spec: of the dataset.
            modalities: those that the model reads.

        Raises:
            UserError: a name or shape is wrong, or there are no samples.
        """
        if not isinstance(samples, Mapping):
            raise UserError(
                "Samples must be a dictionary of modalities, such as "
                f"{{'{modalities[0]}': array}}, but got {type(samples).__name__}."
            )
        for name in samples:
            look_up(spec.modalities, str(name), kind="modality")
        self._shapes = {name: spec.modalities[name] for name in modalities}
        found = {name: samples.get(name) for name in modalities}
        given = {name: values for name, values in found.items() if values is not None}
        self._given = {
            name: _split(values, self._shapes[name], name) for name, values in given.items()
        }
        counts = {name: len(values) for name, values in self._given.items()}
        if len(set(counts.values())) > 1:
            text = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise UserError(f"All modalities must have equally many samples, but got {text}.")
        self._num = next(iter(counts.values()), 0)
        if not self._num:
            raise UserError(f"There are no samples of {', '.join(modalities)}.")
        for name, shape in self._shapes.items():
            if name not in self._given:
                _check_optional(name, shape)

    def __len__(self) -> int:
        return self._num

    def batch(self, start: int, end: int) -> Batch:
        """Return samples `start` to `end` (exclusive), padded to the longest of each modality.

        Returns:
            {modality: (B, T, F)}, and {modality: (B,)}, the tokens of modalities of variable
            length.

        Raises:
            UserError: a number is not finite, or a sample has no modality.
        """
        values, lengths = {}, {}
        present_B = np.zeros(end - start, dtype=bool)
        for name, shape in self._shapes.items():
            x_BTF, length_B = self._pad(name, shape, start, end)
            values[name] = x_BTF
            present_B |= length_B > 0
            if shape.variable_length:
                lengths[name] = length_B
        if not present_B.all():
            number, names = start + int(present_B.argmin()), ", ".join(self._shapes)
            raise UserError(f"Sample {number} has none of the model's modalities ({names}).")
        return values, lengths

    def _pad(
        self, name: str, shape: ModalitySpec, start: int, end: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        if name not in self._given:
            empty = np.zeros((end - start, 1, shape.num_features), dtype=np.float32)
            return empty, np.zeros(end - start, dtype=np.int64)
        found = [as_float32(x_TF[: shape.num_tokens]) for x_TF in self._given[name][start:end]]
        for number, x_TF in enumerate(found, start=start):
            _check_finite(x_TF, f"{name} of sample {number}")
        length_B = np.array([len(x_TF) for x_TF in found], dtype=np.int64)
        x_BTF = np.zeros((len(found), max(1, length_B.max()), shape.num_features), np.float32)
        for row_TF, x_TF in zip(x_BTF, found, strict=True):
            row_TF[: len(x_TF)] = x_TF
        return x_BTF, length_B


def _split(values: Given, shape: ModalitySpec, name: str) -> list[npt.NDArray[np.generic]]:
    """Return the samples of a modality, (T_i, F) each; no tokens if one is missing."""
    if isinstance(values, np.ndarray) and values.ndim != 3:
        raise UserError(
            f"{name} must have shape (samples, {_expected(shape)}), but got {values.shape}."
        )
    if not isinstance(values, np.ndarray | Sequence):
        raise UserError(
            f"{name} must be an array or a list of arrays, but got {type(values).__name__}."
        )
    return [_sample(one, shape, f"{name} of sample {n}") for n, one in enumerate(values)]


def _sample(value: npt.ArrayLike | None, shape: ModalitySpec, what: str) -> npt.NDArray[np.generic]:
    """Return one sample, (T, F)."""
    if value is None:
        _check_optional(what, shape)
        return np.zeros((0, shape.num_features), dtype=np.float32)
    try:
        x_TF = np.asarray(value)
    except ValueError as error:  # lists of different lengths
        raise UserError(f"{what} must be an array of numbers ({_expected(shape)}).") from error
    is_right = x_TF.ndim == 2 and x_TF.dtype.kind in "fiub" and x_TF.shape[1] == shape.num_features
    if not is_right or not (shape.variable_length or len(x_TF) == shape.num_tokens):
        raise UserError(
            f"{what} must be numbers of shape ({_expected(shape)}), but got {x_TF.dtype} "
            f"{x_TF.shape}."
        )
    return x_TF


def _expected(shape: ModalitySpec) -> str:
    tokens = "any number" if shape.variable_length else shape.num_tokens
    return f"{tokens}, {shape.num_features}"


def _check_optional(what: str, shape: ModalitySpec) -> None:
    """Raise if a modality may not be missing."""
    if not shape.variable_length:
        raise UserError(
            f"{what} is missing, but the model needs it: in the dataset every sample has it."
        )


def _check_finite(x_TF: npt.NDArray[np.float32], what: str) -> None:
    is_finite = np.isfinite(x_TF)
    if not is_finite.all():
        token, feature = (int(index[0]) for index in np.nonzero(~is_finite))
        raise UserError(
            f"{what} must be finite, but token {token}, feature {feature} is "
            f"{x_TF[token, feature]}."
        )
