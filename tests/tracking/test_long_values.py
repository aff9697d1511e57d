"""Values above MLflow's limits: they are read back whole."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from mlflow import MlflowClient
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_TAG_VAL_LENGTH

from sftsearch.orchestrator.tracking.client import default_uri
from sftsearch.orchestrator.tracking.long_values import (
    NOTE,
    full_tags,
    shortened_param,
    split_long,
)
from sftsearch.orchestrator.tracking.mirror import Mirror
from sftsearch.orchestrator.tracking.reader import read_study

from journals import Journal
from mirrored_study import COST, CREATED, expected

if TYPE_CHECKING:
    from pathlib import Path


def test_only_long_values_become_artifacts() -> None:
    limit = "x" * MAX_TAG_VAL_LENGTH
    short, artifacts = split_long({"a": limit, "b": limit + "x", NOTE: limit + "x"})
    assert short["a"] == limit
    assert short["b"] == "in the artifact sftsearch/b.txt"
    assert artifacts == {"sftsearch/b.txt": limit + "x"}
    assert len(short[NOTE]) == MAX_TAG_VAL_LENGTH
    assert short[NOTE].endswith("x ...")


def test_parameters_are_shortened_visibly() -> None:
    limit = "x" * MAX_PARAM_VAL_LENGTH
    assert shortened_param(limit) == limit
    assert len(shortened_param(limit + "x")) == MAX_PARAM_VAL_LENGTH
    assert shortened_param(limit + "x").endswith(" ...")


@pytest.mark.medium
def test_a_long_tag_is_read_back_whole(tmp_path: Path) -> None:
    client = MlflowClient(default_uri(tmp_path))
    experiment = client.create_experiment(
        "mine", artifact_location=(tmp_path / "mlartifacts").as_uri()
    )
    groups = json.dumps({f"person {number}": [number, 2 * number] for number in range(2000)})
    assert len(groups) > 3 * MAX_TAG_VAL_LENGTH
    short, artifacts = split_long({"groups": groups, "seed": "3"})
    run = client.create_run(experiment, tags=short)
    for path, text in artifacts.items():
        client.log_text(run.info.run_id, text, path)
    stored = client.get_run(run.info.run_id).data.tags
    assert full_tags(client, run.info.run_id, stored)["groups"] == groups


@pytest.mark.medium
def test_a_study_with_thousands_of_subjects_is_read_back_equal(tmp_path: Path) -> None:
    """A description above the limit of a tag, too."""
    uri = default_uri(tmp_path)
    description = "A study of many people. " * 500
    with Journal(tmp_path / "s") as journal:
        journal.append("created", **(CREATED | {"description": description}))
        journal.append("opened", trials=1, slots=1)
        base = {"configuration_id": "a", "model": "sft", "parameters": {"dim": 8}}
        journal.append("proposed", number=0, branch=0, values={"dim": 8})
        journal.append("admitted", number=0, seeds=[0], cost=COST, **base)
        journal.append("started", trial="a-0", epoch=0, seed=0, cost=COST, **base)
        groups = {f"person {number}": [1.0, 2.0] for number in range(3000)}
        values = {"top1": 0.5, **COST}
        journal.append("finished", trial="a-0", values=values, groups=groups, facts={})
        assert Mirror(journal, uri, tmp_path).close()
        read = read_study(uri, "mirrored", tmp_path)
        assert read == expected(journal)
        assert len(read.trials[0].groups) == 3000
