"""Save an export as an MLflow model, log it to the run of its trial, and register it.

The model is Python code (`mlflow_script.py`) that runs the ONNX graphs; it has no pickle.
"""

from __future__ import annotations

import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from mlflow.exceptions import MlflowException

from sftsearch.orchestrator.deployment.graphs import LENGTH
from sftsearch.orchestrator.tracking.client import (
    TrackingError,
    find_runs,
    no_answer,
    open_client,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow warns of its own type hints
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from sftsearch.orchestrator.deployment.verify import Arrays
    from sftsearch.trainables.deployed_model import DeployedModel

SCRIPT = Path(__file__).with_name("mlflow_script.py")
ARTIFACTS = "export"
"""Folder of the model among the artifacts of a run."""


def save_mlflow(folder: Path, export: Path, model: DeployedModel, example: Arrays) -> None:
    """Write an MLflow model.

    Args:
        folder: to write; empty.
        export: folder of the ONNX export, which is copied.
        model: the trained model.
        example: some samples, as inputs by name.
    """
    mlflow.pyfunc.save_model(
        path=str(folder),
        python_model=str(SCRIPT),
        artifacts={"model": str(export)},
        signature=signature_of(model),
        input_example=example,
        pip_requirements=[f"{name}=={version(name)}" for name in ("mlflow", "onnxruntime")],
    )


def signature_of(model: DeployedModel) -> ModelSignature:
    """Return the names, types and shapes of inputs and outputs."""
    inputs: list[ColSpec | TensorSpec] = []
    for name in model.modalities:
        shape = model.spec.modalities[name]
        length = -1 if shape.variable_length else shape.num_tokens
        inputs.append(TensorSpec(np.dtype(np.float32), (-1, length, shape.num_features), name=name))
    inputs += [
        TensorSpec(np.dtype(np.int64), (-1,), name=f"{name}{LENGTH}")
        for name in model.variable_modalities
    ]
    outputs: list[ColSpec | TensorSpec] = [
        TensorSpec(np.dtype(np.float32), (-1, model.spec.num_outputs))
    ]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs))


def log_export(
    folder: Path, *, study: str, trial: str, uri: str, runs: Path, register: str | None = None
) -> str:
    """Log an MLflow model to the run of its trial, and register it under a name, if given.

    Args:
        folder: of the model.
        study: its name.
        trial: the key of the trial.
        uri: of MLflow.
        runs: the runs folder.
        register: name of a registered model; it gets a new version.

    Returns:
        the registered version; empty without a name.

    Raises:
        TrackingError: MLflow does not answer, or does not have the trial.
    """
    client = open_client(uri, runs)
    try:
        experiment = client.get_experiment_by_name(study)
        found = {} if experiment is None else find_runs(client, experiment.experiment_id)
        run = found.get(trial)
        if run is None:
            raise TrackingError(f"MLflow does not have the trial {trial} of the study '{study}'.")
        client.log_artifacts(run.info.run_id, str(folder), ARTIFACTS)
        if register is None:
            return ""
        source = f"{run.info.artifact_uri}/{ARTIFACTS}"
        return _register(client, register, source, run.info.run_id)
    except MlflowException as error:
        raise no_answer(uri, error) from None


def _register(client: MlflowClient, name: str, source: str, run_id: str) -> str:
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    made = client.create_model_version(name, source, run_id)
    return str(made.version)
