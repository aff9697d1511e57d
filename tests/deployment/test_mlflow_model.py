"""Test exports as MLflow models: logged to the trial's run, registered, loaded by MLflow."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import mlflow
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from mlflow import MlflowClient

from sftsearch.orchestrator.cli.main import main
from sftsearch.orchestrator.deployment.graphs import as_inputs
from sftsearch.orchestrator.deployment.mlflow_model import log_export
from sftsearch.orchestrator.deployment.trained import load_trained
from sftsearch.orchestrator.studies import read_record
from sftsearch.orchestrator.tracking.client import TrackingError, default_uri

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.medium
@pytest.mark.timeout(600)
def test_a_registered_model_predicts(study: Path, tmp_path: Path) -> None:
    """The gated model, from the registry; registering again makes a new version."""
    trial = next(t for t in read_record(study).trials if t.model == "dynmm" and t.seed == 0)
    out, runs = tmp_path / "m", shutil.copytree(study.parent, tmp_path / "runs")
    arguments = ["export", "toy", trial.configuration_id, "--to", "mlflow", "--out", str(out)]
    arguments += ["--register", "activity", "--runs", str(runs)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "Registered as version 1 of 'activity'." in result.output
    uri = default_uri(runs)
    where = {"study": "toy", "trial": trial.key, "uri": uri, "runs": runs}
    assert log_export(out, **where, register="activity") == "2"
    client = MlflowClient(uri)
    version = client.get_model_version("activity", "2")
    assert client.get_run(version.run_id).data.tags["sftsearch.trial"] == trial.key
    loaded = mlflow.pyfunc.load_model(client.get_model_version_download_uri("activity", "2"))
    names = [one.name for one in loaded.metadata.signature.inputs]
    with np.load(out / "artifacts" / "model" / "sample.npz") as file:
        sample = dict(file)
    assert sorted(names) == sorted(sample)
    model = load_trained(study, trial.configuration_id)
    given = as_inputs(model, {name: torch.from_numpy(x) for name, x in sample.items()})
    np.testing.assert_allclose(loaded.predict(sample), model(*given)["scores"], atol=1e-6)


@pytest.mark.medium
def test_a_trial_that_mlflow_does_not_have_is_named(tmp_path: Path) -> None:
    uri = default_uri(tmp_path)
    with pytest.raises(TrackingError, match="does not have the trial x-0 of the study 'toy'"):
        log_export(tmp_path, study="toy", trial="x-0", uri=uri, runs=tmp_path)
