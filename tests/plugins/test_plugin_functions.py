"""A training function and a loss of a plug-in: equal to known ones, resumed, ended, refused."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from sftsearch.datasets.catalog import describe, open_dataset
from sftsearch.orchestrator.candidates.binding import bind, definition_of
from sftsearch.orchestrator.execution.trial_spec import TrialSpec
from sftsearch.orchestrator.execution.worker import TrainingWorker
from sftsearch.orchestrator.plugins import load_plugins, loaded_plugins, to_json
from sftsearch.orchestrator.study_file import check_study
from sftsearch.search_spaces.mistakes import StudyFileError
from sftsearch.trainables.catalog import build_model
from sftsearch.trainables.config import ConfigError
from sftsearch.trainables.distributed import Workers
from sftsearch.trainables.own_fit import OwnFit, begin_fit
from sftsearch.trainables.own_training import check_trainer
from sftsearch.trainables.training_loss import training_losses

from trial_specs import run, trial_spec

if TYPE_CHECKING:
    from collections.abc import Callable

EXAMPLE = Path(__file__).parent / "examples" / "own_training.py"
SPEC = describe("synthetic")
PARAMETERS = {"dim": 8, "num_heads": 2, "fused_layers": 1}
SGD = {"epochs": 4, "batch_size": 64, "momentum": 0.9, "learning_rate": 0.05, "clip_norm": None,
       "schedule": "constant", "optimizer": "sgd"}  # fmt: skip
NOT_REPEATABLE = ("seconds", "train_loss")


def fit_of(**training: Any) -> Any:
    bound = bind("sft", PARAMETERS, {**SGD, **training}, SPEC)
    model = build_model("sft", SPEC, bound.model_config, seed=0)
    return begin_fit(model, open_dataset("synthetic"), bound.train_config, seed=0)


def history(fit: Any) -> list[dict[str, float]]:
    while not fit.done:
        fit.run_epoch()
    return [{k: v for k, v in one.items() if k not in NOT_REPEATABLE} for one in fit.history]


@pytest.fixture(autouse=True)
def _example() -> None:
    load_plugins([EXAMPLE])


# ------------------------------------------------------------------ the training function


@pytest.mark.medium
def test_descent_with_momentum_equals_torch_s_sgd() -> None:
    """The function of the example computes what `optimizer: sgd` computes, in its own way."""
    own, reference = fit_of(trainer="descent"), fit_of()
    for mine, theirs in zip(history(own), history(reference), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert mine["top1"] == pytest.approx(theirs["top1"], abs=0.01)


@pytest.mark.medium
def test_a_resumed_training_function_equals_an_undisturbed_one(tmp_path: Path) -> None:
    """Weights and moments come from the checkpoint; without the moments the losses differ."""
    whole = history(fit_of(trainer="descent"))
    first = fit_of(trainer="descent")
    for _ in range(2):
        first.run_epoch()
    first.save(tmp_path / "checkpoint")
    first.close()
    resumed = fit_of(trainer="descent")
    resumed.load(tmp_path / "checkpoint")
    assert resumed.epoch == 2
    assert history(resumed) == whole
    forgetful = fit_of(trainer="descent")
    forgetful.load(tmp_path / "checkpoint")
    assert isinstance(forgetful, OwnFit)
    forgetful._own.report.state = {}
    assert history(forgetful)[-1]["loss"] != whole[-1]["loss"]


@pytest.mark.medium
def test_closing_ends_a_function_that_waits_in_its_report() -> None:
    before = threading.active_count()
    fit = fit_of(trainer="descent")
    fit.run_epoch()
    assert threading.active_count() == before + 1
    fit.close()
    assert threading.active_count() == before


@pytest.mark.medium
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("report(1.0)", r"'odd' returned after 1 reports, but must report 4 epochs"),
        ("report(float('nan'))", r"training loss of epoch 1, step 1 is nan"),
        ("raise KeyError('missing')", r"missing"),
    ],
)
def test_an_error_of_a_function_fails_the_epoch(tmp_path: Path, body: str, message: str) -> None:
    file = tmp_path / "odd.py"
    file.write_text(f"def train(config, data, report):\n    {body}\nTRAINERS = {{'odd': train}}\n")
    load_plugins([file])
    with pytest.raises((RuntimeError, KeyError), match=message):
        history(fit_of(trainer="odd"))


@pytest.mark.parametrize(
    "option", [{"average_weights": 0.9}, {"mixup": "input", "mixup_warmup": 0}, {"accumulate": 2}]
)
def test_options_of_the_default_training_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="is carried out by the default training"):
        bind("sft", PARAMETERS, {**SGD, **option, "trainer": "descent"}, SPEC)


def test_several_workers_are_refused() -> None:
    config = bind("sft", PARAMETERS, {**SGD, "trainer": "descent"}, SPEC).train_config
    with pytest.raises(ConfigError, match=r"`trainer` needs a single worker"):
        check_trainer(config, workers=Workers(0, 2).count)


# ------------------------------------------------------------------ the loss


def test_a_loss_replaces_the_task_s_in_training_only() -> None:
    """Focal loss of a probability p: -(1 - p)^2 log p."""
    config = bind("sft", PARAMETERS, {**SGD, "training_loss": "focal"}, SPEC).train_config
    outputs, labels = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1])
    losses = training_losses("classification", config, labels.numpy(), 2)(outputs, labels)
    p = torch.tensor([0.5, 1 / (1 + torch.e**2)])
    torch.testing.assert_close(losses, -((1 - p) ** 2) * p.log(), rtol=1e-5, atol=1e-6)


@pytest.mark.medium
def test_validation_losses_stay_those_of_the_task() -> None:
    """Before any learning, training with either loss evaluates to the same validation loss."""
    still = {"learning_rate": 1e-30, "epochs": 1}
    own, plain = history(fit_of(training_loss="focal", **still)), history(fit_of(**still))
    assert own == plain


def test_a_loss_that_is_reduced_or_combined_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mean.py"
    file.write_text("LOSSES = {'reduced': lambda outputs, labels: outputs.mean()}\n")
    load_plugins([file])
    config = bind("sft", PARAMETERS, {**SGD, "training_loss": "reduced"}, SPEC).train_config
    losses = training_losses("classification", config, torch.zeros(2).numpy(), 2)
    with pytest.raises(ConfigError, match=r"must return one number per sample, \(B,\)"):
        losses(torch.zeros(2, 2), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ConfigError, match="the training has a loss of its own"):
        bind("sft", PARAMETERS, {"training_loss": "focal", "label_smoothing": 0.1}, SPEC)
    with pytest.raises(ConfigError, match="this model has a training loss of its own"):
        bind("multiplication", {"dim": 8, "num_heads": 2}, {"training_loss": "focal"}, SPEC)


# ------------------------------------------------------------------ in studies and workers


def test_a_function_s_source_is_part_of_the_ids_that_use_it(tmp_path: Path) -> None:
    plain = bind("sft", PARAMETERS, SGD, SPEC).id
    with_loss = bind("sft", PARAMETERS, {**SGD, "training_loss": "focal"}, SPEC).id
    edited = tmp_path / "own_training.py"
    edited.write_text(EXAMPLE.read_text() + "# a comment\n")
    load_plugins([edited])
    assert bind("sft", PARAMETERS, SGD, SPEC).id == plain != with_loss
    assert bind("sft", PARAMETERS, {**SGD, "training_loss": "focal"}, SPEC).id != with_loss


def test_a_study_names_its_functions_and_a_search_may_choose_one(tmp_path: Path) -> None:
    study = tmp_path / "own.yaml"
    study.write_text(
        "study: {name: own}\ndataset: {kind: synthetic}\nsearch: {trials: 2}\n"
        "training: {trainer: descent}\nspace:\n  - {kind: sft, num_heads: 2, dim: 8, "
        "training_loss: {kind: choice, values: [task, focal]}}\n"
    )
    source, spec, admission = check_study(study)
    assert admission.table is not None
    assert len(admission.table) == 2
    sha256 = loaded_plugins()["descent"].sha256
    assert definition_of(source, spec)["plugins"] == {"descent": sha256, "focal": sha256}
    study.write_text(study.read_text().replace("trainer: descent", "trainer: ascent"))
    with pytest.raises(StudyFileError, match="`trainer` must be one of default, descent"):
        check_study(study)


@pytest.mark.medium
def test_a_worker_trains_by_the_functions_of_its_spec(
    tmp_path: Path, no_plugins: Callable[[], None]
) -> None:
    training = {"epochs": 2, "batch_size": 256, "trainer": "descent", "training_loss": "focal"}
    spec = dataclasses.replace(
        trial_spec(tmp_path / "trial"), training=training, plugins=to_json(["descent", "focal"])
    )
    assert len(spec.plugins) == 1
    text = spec.to_json()
    no_plugins()
    worker = TrainingWorker()
    worker.start(TrialSpec.from_json(text))
    reports = run(worker)
    assert [len(one["epochs"]) for one in reports] == [1, 1]
    assert "final" in reports[-1]
    threads = threading.active_count()
    worker.start(trial_spec(tmp_path / "next"))
    assert threading.active_count() == threads - 1
