"""A trained model: numpy arrays in, numpy arrays out.

Shapes: B samples, T tokens, F features, C classes or labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sftsearch.datasets.errors import UserError
from sftsearch.orchestrator.api.model_inputs import ModelInputs

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

    from sftsearch.datasets.spec import ModalitySpec, Task
    from sftsearch.orchestrator.api.model_inputs import Given
    from sftsearch.orchestrator.api.samples import Labels
    from sftsearch.trainables.deployed_model import DeployedModel


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prediction:
    """What a model predicts for B samples."""

    labels: Labels
    """Classification: names of classes, (B,). Multi-label: whether each label applies, (B, C).
    Regression: numbers in the units of the labels, (B,)."""
    probabilities: npt.NDArray[np.float32] | None
    """(B, C), in the order of `classes`; None for regression."""
    classes: tuple[str, ...]
    """Names of the classes, or of the labels of a multi-label task; empty for regression."""
    routes: npt.NDArray[np.int64] | None
    """Gated models: the route of each sample, from 0, (B,). None for others and for ensembles."""

    def __len__(self) -> int:
        return len(self.labels)


class Predictor:
    """A trained model on the CPU; load it with `Configuration.load`."""

    def __init__(
        self, model: DeployedModel, configuration_id: str, replicates: tuple[int, ...]
    ) -> None:
        self._model, self._spec = model, model.spec
        self._configuration_id, self._replicates = configuration_id, replicates

    @property
    def configuration_id(self) -> str:
        """The id of the configuration."""
        return self._configuration_id

    @property
    def replicates(self) -> tuple[int, ...]:
        """The replicate whose weights it has; of an ensemble, all whose scores it averages."""
        return self._replicates

    @property
    def task(self) -> Task:
        """`classification`, `multilabel` or `regression`."""
        return self._spec.task

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, or of the labels of a multi-label task; empty for regression."""
        return self._spec.classes

    @property
    def modalities(self) -> dict[str, ModalitySpec]:
        """The modalities that the model reads, by name, and their shapes."""
        return {name: self._spec.modalities[name] for name in self._model.modalities}

    def predict(self, samples: Mapping[str, Given | None], *, batch_size: int = 256) -> Prediction:
        """Predict the labels of samples as the dataset stores them, before any normalization.

        Args:
            samples: by modality, an array (B, T, F) or a list of arrays (T_i, F). A modality of
                variable length may have any number of tokens (those beyond the longest of the
                dataset are not read), and may be missing: in all samples if its entry is None or
                absent, in one if the entry of the list is None or has no tokens. Modalities of the
                dataset that the model does not read are ignored.
            batch_size: number of samples that are computed at a time.

        Raises:
            UserError: a name or shape is wrong, a number is not finite, or a sample has no
                modality.
        """
        inputs = ModelInputs(samples, self._spec, self._model.modalities)
        if batch_size < 1:
            raise UserError(f"`batch_size` must be at least 1, but got {batch_size}.")
        scores, routes = self._compute(inputs, batch_size)
        return Prediction(
            labels=self._labels(scores),
            probabilities=None if self.task == "regression" else scores,
            classes=self.classes,
            routes=routes,
        )

    def predict_proba(
        self, samples: Mapping[str, Given | None], *, batch_size: int = 256
    ) -> npt.NDArray[np.float32]:
        """Return the probabilities of classes or labels, (B, C), in the order of `classes`.

        Raises:
            UserError: the task is regression, or as in `predict`.
        """
        found = self.predict(samples, batch_size=batch_size).probabilities
        if found is None:
            raise UserError("A regression model has no probabilities: use `predict`.")
        return found

    def _compute(
        self, inputs: ModelInputs, batch_size: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64] | None]:
        """Return the scores (B, C) and the routes (B,)."""
        import torch

        results = []
        with torch.inference_mode():
            for start in range(0, len(inputs), batch_size):
                values, lengths = inputs.batch(start, min(start + batch_size, len(inputs)))
                results.append(
                    self._model(
                        {name: torch.from_numpy(x_BTF) for name, x_BTF in values.items()},
                        {name: torch.from_numpy(length_B) for name, length_B in lengths.items()},
                    )
                )
        joined = {name: torch.cat([one[name] for one in results]).numpy() for name in results[0]}
        return joined["scores"], joined.get("route")

    def _labels(self, scores_BC: npt.NDArray[np.float32]) -> Labels:
        if self.task == "regression":
            return scores_BC[:, 0]
        if self.task == "multilabel":
            return scores_BC >= 0.5
        names_C: npt.NDArray[np.str_] = np.array(self.classes)
        named_B: npt.NDArray[np.str_] = names_C[scores_BC.argmax(axis=1)]
        return named_B

    def __repr__(self) -> str:
        names = ", ".join(self._model.modalities)
        which = ", ".join(map(str, self._replicates))
        noun = "replicate" if len(self._replicates) == 1 else "replicates"
        return f"Predictor({self._configuration_id}, {noun} {which}: {names} -> {self.task})"


def load_predictor(
    folder: Path, configuration_id: str, *, replicate: int | None, ensemble: bool
) -> Predictor:
    """Load the trained model of a configuration; see `Configuration.load`."""
    from sftsearch.orchestrator.deployment.trained import choose_replicates, load_replicates
    from sftsearch.orchestrator.plugins import check_plugins
    from sftsearch.orchestrator.search.state import StudyState
    from sftsearch.orchestrator.storage.journal import read_entries

    state = StudyState.of(read_entries(folder))
    if (created := state.created) is not None:
        check_plugins(created.name, created.definition, created.facts)
    chosen = choose_replicates(folder, state, configuration_id, replicate, ensemble=ensemble)
    model = load_replicates(folder, state, configuration_id, chosen)
    return Predictor(model, configuration_id, chosen)
