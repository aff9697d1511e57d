"""Baselines have runs of their own in MLflow, which are no trials."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sftsearch.orchestrator.tracking.client import default_uri, open_client
from sftsearch.orchestrator.tracking.mirror import Mirror
from sftsearch.orchestrator.tracking.reader import read_study

from journals import Journal
from mirrored_study import add_trials, expected

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.medium


def result_of(name: str, fold: int | None) -> dict[str, Any]:
    return {
        "name": name,
        "description": f"what {name} is",
        "modalities": ["left", "right"],
        "parameters": {"segments": 4, "l2": 0.1},
        "seed": 0,
        "fold": fold,
        "values": {"top1": 0.75, "gflops": 1e-6},
        "groups": {"s1": [3.0, 4.0]},
    }


def add_baselines(journal: Journal, *folds: int | None) -> None:
    results = [result_of(name, fold) for name in ("linear", "majority") for fold in folds]
    journal.append("baselines", results=results, num_fitted=9, skipped=["fold 3"], seconds=2.0)


@pytest.mark.parametrize("folds", [(None,), (0, 1, 2)])
def test_read_study_has_the_baselines_of_the_journal(
    tmp_path: Path, folds: tuple[int | None, ...]
) -> None:
    uri = default_uri(tmp_path)
    with Journal(tmp_path / "s") as journal:
        add_trials(journal, 0, 3)
        add_baselines(journal, *folds)
        assert Mirror(journal, uri, tmp_path).close()
        record = read_study(uri, "mirrored", tmp_path)
        assert record == expected(journal)
        assert len(record.baselines) == 2 * len(folds)
        assert len(record.trials) == 3
        tested = {f"{one.name}{'' if one.fold is None else f', fold {one.fold}'}":
                  {"values": {"top1": 0.7}, "groups": {"t": [7.0, 10.0]}}
                  for one in record.baselines}  # fmt: skip
        journal.append("confirmed", trials={}, baselines=tested)
        assert Mirror(journal, uri, tmp_path).close()
        record = read_study(uri, "mirrored", tmp_path)
        assert record == expected(journal)
        assert {one.test_values["top1"] for one in record.baselines if one.test_values} == {0.7}


def test_runs_of_baselines_are_marked_and_written_once(tmp_path: Path) -> None:
    uri = default_uri(tmp_path)
    with Journal(tmp_path / "s") as journal:
        add_trials(journal, 0, 1)
        add_baselines(journal, None)
        assert Mirror(journal, uri, tmp_path).close()
        (tmp_path / "s" / "mirror.json").unlink()  # everything is written again
        mirror = Mirror(journal, uri, tmp_path)
        assert mirror.close()
        mirror.write_note("The best baseline beats the front.")
    client = open_client(uri, tmp_path)
    experiment = client.get_experiment_by_name("mirrored")
    runs = client.search_runs([experiment.experiment_id])
    marked = {run.data.tags["sftsearch.baseline"]: run for run in runs
              if "sftsearch.baseline" in run.data.tags}  # fmt: skip
    assert set(marked) == {"linear", "majority"}
    assert len(runs) == 4  # the study, a trial and two baselines
    linear = marked["linear"]
    assert "sftsearch.trial" not in linear.data.tags
    assert linear.info.run_name == "baseline linear"
    assert linear.info.status == "FINISHED"
    assert linear.data.metrics["top1"] == 0.75
    assert linear.data.params["modalities"] == "left+right"
    (parent,) = [run for run in runs if run.data.tags.get("sftsearch.trial") == ""]
    assert parent.data.tags["mlflow.note.content"] == "The best baseline beats the front."
