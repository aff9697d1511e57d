"""Confirm studies whose front is trained again on training and validation before."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from sftsearch.datasets.catalog import open_dataset
from sftsearch.datasets.folds import open_pooled
from sftsearch.orchestrator.candidates.binding import bind
from sftsearch.orchestrator.cli.main import main
from sftsearch.orchestrator.confirm import confirm_study
from sftsearch.orchestrator.deployment.trained import load_trained
from sftsearch.orchestrator.storage.trial_files import REFIT_WEIGHTS
from sftsearch.orchestrator.studies import StudyError, read_record, trial_folder
from sftsearch.orchestrator.study import StudyResult, run_study
from sftsearch.orchestrator.tracking.reader import read_study
from sftsearch.trainables.catalog import build_model
from sftsearch.trainables.evaluation import evaluate
from sftsearch.trainables.fit import Fit

from journals import read_events

if TYPE_CHECKING:
    from sftsearch.datasets.store import Store

STUDY = """
study: {name: again}
dataset: {kind: synthetic}
search: {sampler: {kind: exhaustive}, trials: 2, replicates: {min: 1, max: 1, fresh: 2}}
training: {epochs: 2, batch_size: 64, learning_rate: 3e-3}
space: [{kind: sft, num_heads: 2, dim: 8, fused_layers: 1, stride: {kind: choice, values: [1, 2]}}]
"""

pytestmark = [pytest.mark.medium, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    folder = tmp_path_factory.mktemp("refit")
    (folder / "again.yaml").write_text(STUDY)
    return run_study(folder / "again.yaml", runs=folder / "runs", formats=())


@pytest.fixture
def runs(finished: StudyResult, tmp_path: Path) -> Path:
    """Return a copy of the runs folder, as a study is confirmed once."""
    shutil.copytree(finished.folder.parent, tmp_path / "runs")
    return tmp_path / "runs"


def both_splits(store: Store, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the valid samples of a modality in training and validation, and all labels."""
    found, labels = [], []
    for split in (store.split("train"), store.split("validation")):
        values = np.asarray(split.modalities[name][np.arange(len(split))], np.float64)
        lengths = split.lengths.get(name, np.full(len(split), values.shape[1]))
        found += [row[:length] for row, length in zip(values, lengths, strict=True)]
        labels.append(split.labels)
    return np.concatenate(found), np.concatenate(labels)


@pytest.mark.parametrize("dataset", ["synthetic", "wearables"])
def test_pooled_training_has_the_samples_of_both_splits(dataset: str) -> None:
    store = open_dataset(dataset)
    pooled = open_pooled(store)
    train, spec = pooled.split("train"), store.spec
    sizes = spec.num_samples
    assert len(train) == pooled.spec.num_samples["train"] == sizes["train"] + sizes["validation"]
    for name in spec.modalities:
        values, labels = both_splits(store, name)
        mean, std = pooled.statistics[name]
        np.testing.assert_allclose(mean, values.mean(axis=0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(std, values.std(axis=0), rtol=1e-4)
        np.testing.assert_array_equal(train.labels, labels)
    people = [*pooled.spec.subjects["train"], "nobody"]  # a code of -1
    expected = [
        [*spec.subjects[name], "nobody"][code]
        for name in ("train", "validation")
        for code in store.split(name).subjects
    ]
    assert [people[code] for code in train.subjects] == expected
    assert len(pooled.split("validation")) == sizes["validation"]
    assert pooled.spec.fingerprint != spec.fingerprint
    again = pickle.loads(pickle.dumps(pooled))
    np.testing.assert_array_equal(again.split("train").labels, train.labels)


def test_refitted_models_are_confirmed_and_exported(runs: Path) -> None:
    call = ["confirm", "again", "--runs", str(runs), "--refit", "--yes"]
    result = CliRunner().invoke(main, call)
    assert result.exit_code == 0, result.output
    assert "trained again on training and validation" in " ".join(result.output.split())
    record = read_record(runs / "again")
    assert record.refit
    assert read_study(f"sqlite:///{runs / 'mlflow.db'}", "again", runs) == record
    tested = [trial for trial in record.trials if trial.test_values]
    assert tested
    store = open_dataset("synthetic")
    pooled, test = open_pooled(store), store.split("test", unseal_test=True)
    for trial in tested:
        bound = bind(trial.model, trial.configuration, {"epochs": 2, "batch_size": 64,
                     "learning_rate": 3e-3}, store.spec)  # fmt: skip
        fit = Fit(build_model(trial.model, store.spec, bound.model_config, trial.seed), pooled,
                  bound.train_config, seed=trial.seed)  # fmt: skip
        while not fit.done:
            fit.run_epoch()
        expected = evaluate(fit.model, pooled, test, bound.train_config).metrics
        assert trial.test_values == pytest.approx(expected, rel=1e-9)
        model = load_trained(runs / "again", trial.configuration_id, replicate=trial.seed)
        for name, weights in fit.weights().items():
            np.testing.assert_array_equal(model.members[0].network.state_dict()[name], weights)
    identity, ensemble = next(iter(record.ensembles.items()))
    model = load_trained(runs / "again", identity, ensemble=True)
    inputs = {
        name: torch.from_numpy(np.array(one[np.arange(len(test))], np.float32))
        for name, one in test.modalities.items()
    }
    lengths = {name: torch.from_numpy(one) for name, one in test.lengths.items()}
    with torch.no_grad():
        right = model(inputs, lengths)["scores"].argmax(dim=1).numpy() == test.labels
    assert ensemble.num_members == 2
    assert ensemble.test_values["top1"] == pytest.approx(right.mean(), abs=1e-12)
    assert "The mean of its 2 replicates" in " ".join(result.output.split())
    out = str(runs / "export")
    exported = CliRunner().invoke(
        main, ["export", "again", "--best", "--to", "pt2", "--out", out, "--runs", str(runs)]
    )
    assert exported.exit_code == 0, exported.output
    assert "refitted fresh replicate" in (runs / "export" / "card.md").read_text()


def test_refitted_baselines_have_both_splits(runs: Path, finished: StudyResult) -> None:
    plain = Path(shutil.copytree(runs, runs.parent / "plain"))
    before, after = confirm_study(plain / "again"), confirm_study(runs / "again", refit=True)
    assert not before.refit
    with pytest.raises(StudyError, match="was confirmed without a refit"):
        confirm_study(plain / "again", refit=True)
    assert confirm_study(runs / "again", refit=True) == after
    by_name = {
        (one.name, one.fold): (one.test_groups, other.test_groups)
        for one, other in zip(before.baselines, after.baselines, strict=True)
    }
    # Linear models that were trained on more samples decide differently; the majority may not.
    assert any(one != other for (name, _), (one, other) in by_name.items() if name == "linear")


def test_an_interrupted_refit_is_not_repeated(runs: Path) -> None:
    def stop(done: int, of: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    folder = runs / "again"
    with pytest.raises(KeyboardInterrupt):
        confirm_study(folder, refit=True, progress=stop)
    (first,) = [event for event in read_events(folder) if event.kind == "refitted"]
    file = Path(trial_folder(folder, str(first.body["trial"]))) / REFIT_WEIGHTS
    written = file.stat().st_mtime_ns
    assert not read_record(folder).confirmed
    seen: list[tuple[int, int]] = []
    record = confirm_study(folder, refit=True, progress=lambda *now: seen.append(now))
    assert file.stat().st_mtime_ns == written
    refitted = [event.body["trial"] for event in read_events(folder) if event.kind == "refitted"]
    tested = {trial.key for trial in record.trials if trial.test_values}
    assert sorted(map(str, refitted)) == sorted(tested)
    assert seen == [(number, len(tested)) for number in range(len(tested))]
