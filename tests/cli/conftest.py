"""Fixtures: a small study file, and a runs folder with a written journal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from journals import Journal

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(
        "study: {name: small}\ndataset: {kind: wearables}\nsearch: {trials: 2}\n"
        "space:\n  - kind: sft\n    patch: 8\n    fused_layers: 1\n"
        "    stride: {kind: choice, values: [1, 4]}\n"
    )
    return path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Return a runs folder with a study of one finished and one failed trial."""
    with Journal(tmp_path / "runs" / "small") as journal:
        journal.append(
            "created", name="small", description="", dataset="wearables", num_seeds=2,
            objectives=[["top1", "maximize"], ["gflops", "minimize"]], facts={}, definition={},
            definition_hash="",
        )  # fmt: skip
        journal.append("opened", trials=4, slots=1)
        cost = {"gflops": 0.5, "gmacs": 0.6, "parameters": 100}
        parameters = {"stride": 4, "modalities": ["watch_acc"]}
        body = {"configuration_id": "abc", "model": "sft", "cost": cost, "parameters": parameters}
        for number in (0, 1):
            journal.append("proposed", number=number, branch=0, values=parameters)
        journal.append("admitted", number=0, seeds=[0, 1], **body)
        journal.append("refused", number=1, reason="repeat", detail="", excess=1.0)
        for seed in (0, 1):
            journal.append("started", trial=f"abc-{seed}", epoch=0, seed=seed, **body)
        values = cost | {"top1": 0.75}
        journal.append("finished", trial="abc-0", values=values, groups={"s1": [3, 4]}, facts={})
        journal.append("failed", trial="abc-1", reason="the loss is not finite")
    log = tmp_path / "runs" / "small" / "trials" / "abc-0" / "trial.log"
    log.parent.mkdir(parents=True)
    log.write_text("epoch 1\n")
    return tmp_path / "runs"
