"""`stride_paper` at full size: every stride trains a step, the cheapest runs as a trial."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from sftsearch.datasets.catalog import open_dataset
from sftsearch.orchestrator.study import run_study
from sftsearch.orchestrator.study_file import check_study
from sftsearch.search_spaces.load import find_study_file
from sftsearch.trainables.catalog import build_model
from sftsearch.trainables.fit import Fit

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_every_stride_can_train_a_step() -> None:
    torch.set_num_threads(1)
    _, spec, admission = check_study("stride_paper")
    assert admission.table is not None
    assert len(admission.table) == 6 * 8 * 2
    curves = {
        (c.point.branch, c.configuration.parameters["stride"]): c for c in admission.table.values()
    }
    assert len(curves) == 6 * 8
    store = open_dataset(spec.name)
    models = set()
    for (_, stride), candidate in curves.items():
        model, training = candidate.configuration.model, candidate.configuration.train_config
        assert training.mixup == ("manifold" if model == "sft" else "none")
        if (model, stride) in models:
            continue  # the networks of the sensors are equally large
        models.add((model, stride))
        bound = candidate.configuration
        model = build_model(bound.model, spec, bound.model_config, seed=0)
        assert Fit(model, store, bound.train_config, seed=0).seconds_a_step(repeats=1) > 0


def test_the_cheapest_configuration_runs_as_a_trial(tmp_path: Path) -> None:
    text = find_study_file("stride_paper").read_text()
    text = text.replace("epochs: 20", "epochs: 1\n  mixup_warmup: 0")
    text = text.replace("trials: 480", "trials: 1\n  baselines: false")
    file = tmp_path / "stride_paper.yaml"
    file.write_text(text.replace("replicates: 5", "replicates: 1"))
    result = run_study(file, runs=tmp_path)
    (trial,) = result.record.trials
    assert (trial.status, trial.configuration["stride"]) == ("finished", 128)
    assert len(trial.configuration["modalities"]) == 1
    assert trial.values["parameters"] == 124_685
    assert trial.values["top1"] > 0.3
