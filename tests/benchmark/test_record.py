"""Record a tiny space with real training, interrupt and resume it, and simulate it."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from sftsearch.datasets.catalog import describe, open_dataset
from sftsearch.datasets.folds import open_fold
from sftsearch.orchestrator.benchmark import record as recording
from sftsearch.orchestrator.benchmark.record import RecordingError, record_table
from sftsearch.orchestrator.benchmark.simulator import simulate
from sftsearch.orchestrator.benchmark.table import META, read_table
from sftsearch.orchestrator.execution.cluster import connected
from sftsearch.orchestrator.search.state import StudyState
from sftsearch.orchestrator.storage.journal import Entry, Journal
from sftsearch.orchestrator.study import run_study
from sftsearch.orchestrator.study_file import check_study

from journals import raw, read_events

if TYPE_CHECKING:
    from pathlib import Path

    from sftsearch.orchestrator.benchmark.table import Table
    from sftsearch.orchestrator.storage.event import Event

    from journals import RawEvent

STUDY = """
study: {name: tiny}
dataset: {kind: wearables, folds: 5}
search: {baselines: false, sampler: {kind: exhaustive}, trials: 6, replicates: 2}
training: {epochs: 2, batch_size: 256}
resources: {cpus: 1, concurrent_trials: 1}
space:
  - {kind: unimodal, patch: 8, num_heads: 2, unimodal_layers: 1, fused_layers: 1, tokens: 1,
     modalities: [watch_acc], dim: {kind: choice, values: [4, 8]}}
  - {kind: sft, patch: 8, num_heads: 2, unimodal_layers: 1, fused_layers: 1, tokens: 1,
     modalities: [phone_acc, watch_acc], dim: 4}
"""
QUICK = """
study: {name: tiny}
dataset: {kind: synthetic}
search: {baselines: false, sampler: {kind: exhaustive}, trials: 4, replicates: 2}
training: {epochs: 2, batch_size: 256}
resources: {cpus: 1, concurrent_trials: 1}
space:
  - {kind: sft, num_heads: 2, fused_layers: 1, stride: 2, dim: {kind: choice, values: [4, 8]}}
"""
"""Without folds and subjects; training takes almost no time."""
NEAR, MORE = 1, 4
"""One configuration gets four replicates in total."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", autouse=True)
def ray() -> Any:
    """One Ray for this file's studies: starting it takes seconds."""
    with connected(None):
        yield


def write(folder: Path, text: str = STUDY) -> Path:
    file = folder / "tiny.yaml"
    file.write_text(text)
    return file


def record(folder: Path, text: str = STUDY) -> Path:
    out = folder / "tiny.parquet"
    arguments: dict[str, Any] = {"near": NEAR, "near_replicates": MORE}
    assert record_table(write(folder, text), out, runs=folder / "runs", **arguments)
    return out


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("recorded"))


@pytest.fixture(scope="module")
def table(recorded: Path) -> Table:
    return read_table(recorded)


def test_record_table_adds_replicates_near_the_front(
    table: Table,
) -> None:
    assert sorted(table.num_replicates) == [2, 2, 4]
    assert table.num_epochs == 2
    assert table.num_folds == 5
    assert table.costs.keys() == {"gflops", "gmacs", "parameters", "gflops_dense"}
    best = table.values("top1")[:, :2].mean(axis=1)
    nearest = int(np.argmax(table.num_replicates))
    # The cheapest one is always on the front, another one only if it is better.
    cheapest = int(np.argmin(table.costs["gflops"]))
    assert nearest == cheapest or best[nearest] > best[cheapest]
    assert table.facts["fingerprint"] == describe("wearables").fingerprint


def bits(recorded: Path, name: str) -> list[np.ndarray]:
    column = pq.read_table(recorded)[name].to_pylist()
    return [np.unpackbits(np.frombuffer(row, np.uint8)) for row in column]


def test_record_table_bits_agree_with_the_accuracy_of_their_row(recorded: Path) -> None:
    """Check the validation samples of each fold, and the test split."""
    rows = pq.read_table(recorded)
    facts = json.loads(rows.schema.metadata[META])
    store = open_dataset("wearables")
    for found, top1, fold in zip(
        bits(recorded, "right_validation"),
        rows["top1"].to_pylist(),
        rows["fold"].to_pylist(),
        strict=True,
    ):
        subjects = facts["subjects"]["validation"][fold]
        assert len(subjects) == len(open_fold(store, fold, 5).split("validation"))
        assert len(found) == 8 * -(-len(subjects) // 8)
        assert found.sum() / len(subjects) == pytest.approx(top1, rel=1e-6)
    number = len(facts["subjects"]["test"][0])
    assert {len(found) for found in bits(recorded, "right_test")} == {8 * -(-number // 8)}
    assert [fold for fold, r in zip(rows["fold"].to_pylist(), rows["replicate"].to_pylist(),
                                    strict=True) if fold != r % 5] == []  # fmt: skip


def values_of(events: list[RawEvent], kind: str, name: str) -> dict[Any, Any]:
    return {e.body[name]: e.body for e in events if e.kind == kind}


def test_simulate_agrees_with_the_real_study(recorded: Path, tmp_path: Path) -> None:
    """Proposals and reported values are equal, up to the rounding to 32 bits."""
    real = [
        e
        for e in read_events(recorded.parent / "runs" / "tiny")
        if e.kind not in ("recorded", "mirrored")
    ]
    granted = next(e.id for e in real if e.kind == "replicated")
    before = [e for e in real if e.id < granted]
    source, _, admission = check_study(recorded.parent / "tiny.yaml")
    done = simulate(source, admission, read_table(recorded), workers=1)
    ours = [raw(entry) for entry in done.journal.entries()]

    def decided(events: list[RawEvent]) -> list[Any]:
        kinds = ("proposed", "admitted", "started", "epoch", "finished", "told")
        return [(e.kind, e.body.get("trial"), e.body.get("epoch")) for e in events
                if e.kind in kinds]  # fmt: skip

    assert [e.body for e in ours if e.kind == "proposed"] == [
        e.body for e in before if e.kind == "proposed"
    ]
    assert [e.body for e in ours if e.kind == "admitted"] == [
        e.body for e in before if e.kind == "admitted"
    ]
    # Ray may start a trial earlier, while another one still runs; the order of the ends is equal.
    assert sorted(map(str, decided(ours))) == sorted(map(str, decided(before)))
    for number, body in values_of(before, "told", "number").items():
        simulated = values_of(ours, "told", "number")[number]
        assert simulated["state"] == body["state"]
        assert simulated["values"] == pytest.approx(body["values"], rel=1e-6)
    for key, body in values_of(before, "finished", "trial").items():
        values = values_of(ours, "finished", "trial")[key]["values"]
        assert {"top1", "gflops"} <= body["values"].keys() & values.keys()
        for name in body["values"].keys() & values.keys() - {"seconds"}:
            assert values[name] == pytest.approx(body["values"][name], rel=1e-6), name
    assert [e.body["reported"] for e in ours if e.kind == "concluded"] == [
        e.body["reported"] for e in before if e.kind == "concluded"
    ]
    assert done.num_reused == 0


class HaltedError(Exception):
    """The driver dies."""


def halt_after(monkeypatch: pytest.MonkeyPatch, kind: str, number: int) -> None:
    """Raise HaltedError once, after `number` events of a kind."""
    original, left = Journal.append, [number]

    def append(self: Journal, event: Event) -> Entry:
        entry = original(self, event)
        left[0] -= event.kind == kind
        if left[0] == 0 and event.kind == kind:
            raise HaltedError
        return entry

    monkeypatch.setattr(Journal, "append", append)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("quick"), QUICK)


@pytest.mark.parametrize(("kind", "number"), [("epoch", 3), ("replicated", 1)])
def test_record_table_resumes_an_interrupted_recording(
    quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, number: int
) -> None:
    """The second case interrupts between granting and training more replicates."""
    halt_after(monkeypatch, kind, number)
    with pytest.raises(Exception, match=r"Halted|^$"):
        record(tmp_path, QUICK)
    monkeypatch.undo()
    out = record(tmp_path, QUICK)
    events = list(read_events(tmp_path / "runs" / "tiny"))
    ended = [e.body["trial"] for e in events if e.kind == "finished"]
    assert len(ended) == len(set(ended)) == 4 + 2
    assert len([e for e in events if e.kind == "replicated"]) == NEAR
    again, first = pq.read_table(out), pq.read_table(quick)
    assert again.drop(["seconds"]).equals(first.drop(["seconds"]))


def test_record_table_writes_a_complete_table_again_unchanged(quick: Path) -> None:
    before = pq.read_table(quick)
    assert pq.read_table(record(quick.parent, QUICK)).equals(before)


def test_record_table_refuses_studies_that_do_not_enumerate_the_space(tmp_path: Path) -> None:
    for text in (
        STUDY.replace("kind: exhaustive", "kind: random"),
        STUDY.replace("replicates: 2", "replicates: {min: 2, max: 3}"),
        STUDY.replace("replicates: 2", "replicates: 2, early_stopping: median"),
        STUDY.replace("replicates: 2", "replicates: {min: 2, max: 2, fresh: 1}"),
    ):
        with pytest.raises(RecordingError, match="recording a table requires"):
            record_table(write(tmp_path, text), tmp_path / "t.parquet", runs=tmp_path)


def test_record_table_refuses_an_existing_study_that_is_not_a_recording(tmp_path: Path) -> None:
    run_study(write(tmp_path, QUICK), runs=tmp_path / "runs", formats=())
    with pytest.raises(RecordingError, match="is not a recording"):
        record(tmp_path, QUICK)


def test_nearest_the_front_ranks_by_distance_below_the_front() -> None:
    source, _, admission = check_study("wearables_table")
    assert admission.table is not None
    ids = list(admission.table)[:40]
    random_ = np.random.default_rng(0)
    costs = {i: admission.table[i].cost.gflops for i in ids}
    values = {i: {r: float(random_.random()) for r in range(3)} for i in ids}
    state = StudyState()
    for i in ids:
        measured = {r: {"top1": value} for r, value in values[i].items()}
        cost: Any = {"gflops": costs[i]}
        state.configurations[i] = SimpleNamespace(id=i, cost=cost, values=measured)  # type: ignore[assignment]
    found = recording.nearest_the_front(state, source, 10)
    mean = {i: np.mean(list(values[i].values())) for i in ids}
    distance = {i: max(mean[j] for j in ids if costs[j] <= costs[i]) - mean[i] for i in ids}
    assert len(found) == 10
    # Means are adjusted for folds, so the order is only nearly that of plain means.
    assert set(sorted(ids, key=distance.__getitem__)[:6]) <= set(found)
