"""Read and write recorded tables, and simulate searches on them."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sftsearch.datasets.catalog import describe
from sftsearch.orchestrator.benchmark.simulator import Replay, simulate
from sftsearch.orchestrator.benchmark.table import META, TableError, read_table, write_table
from sftsearch.orchestrator.candidates.admission import Admission

from journals import raw
from recorded_prices import recorded_prices
from toy_study import source_of, width

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sftsearch.orchestrator.benchmark.table import Table
    from sftsearch.search_spaces.load import StudySource

    from journals import RawEvent

EPOCHS, REPLICATES = 4, 6
SPACE = width(8, 16, 24, 32, 40)


def study(plan: str = "sampler: ehvi, trials: 10, replicates: 2") -> StudySource:
    return source_of(plan, space=SPACE, epochs=EPOCHS)


def admission_of(source: StudySource) -> Admission:
    return Admission(source, describe("wearables"))


def top1(width: int, replicate: int, epoch: int) -> float:
    """Return a multiple of 1/1024, which a 32-bit float stores exactly."""
    return (400 + 8 * width + 16 * (replicate % 3) + 32 * epoch) / 1024


def rows_of(admission: Admission, replicates: int = REPLICATES) -> dict[str, list[Any]]:
    """Return the rows of a table of the whole space, by width, replicate and epoch."""
    assert admission.table is not None
    rows: dict[str, list[Any]] = {}
    for candidate in admission.table.values():
        parameters = candidate.configuration.parameters
        for replicate, epoch in itertools.product(range(replicates), range(1, EPOCHS + 1)):
            row = {
                "configuration_id": candidate.id,
                "model": candidate.configuration.model,
                "parameters": json.dumps(parameters, sort_keys=True),
                "cost_gflops": candidate.cost.gflops,
                "cost_gmacs": candidate.cost.gmacs,
                "cost_parameters": float(candidate.cost.parameters),
                "replicate": replicate,
                "epoch": epoch,
                "seconds": parameters["dim"] / 8 + replicate,
                "top1": top1(parameters["dim"], replicate, epoch),
                "right_validation": b"\x01",
            }
            for name, value in row.items():
                rows.setdefault(name, []).append(value)
    return rows


FACTS = {"costs": ["gflops", "gmacs", "parameters"], "metrics": ["top1"], "folds": None}


@pytest.fixture
def table(tmp_path: Path) -> Table:
    path = tmp_path / "made.parquet"
    write_table(path, rows_of(admission_of(study())), FACTS)
    return read_table(path)


# ---------------------------------------------------------------------- files


def test_read_table_returns_what_was_written(table: Table) -> None:
    assert table.metrics["top1"].shape == (5, REPLICATES, EPOCHS)
    for row, parameters in enumerate(table.parameters):
        for replicate, epoch in itertools.product(range(REPLICATES), range(EPOCHS)):
            expected = top1(parameters["dim"], replicate, epoch + 1)
            assert table.metrics["top1"][row, replicate, epoch] == expected
        assert table.models[row] == "sft"
        last = [top1(parameters["dim"], 2, epoch) for epoch in (2, 3, 4)]
        assert table.values("top1")[row, 2] == pytest.approx(np.mean(last))
    assert table.num_epochs == EPOCHS
    assert table.num_replicates.tolist() == [REPLICATES] * 5
    assert table.facts == {"format": 1, **FACTS}
    assert table.true_means("top1") == pytest.approx(table.values("top1").mean(axis=1))


def test_read_table_accepts_different_numbers_of_replicates(tmp_path: Path) -> None:
    rows = rows_of(admission_of(study()))
    kept = [
        i for i, r in enumerate(rows["replicate"]) if r < 2 or i < 5 * EPOCHS  # the first has 5
    ]  # fmt: skip
    path = tmp_path / "some.parquet"
    write_table(path, {n: [column[i] for i in kept] for n, column in rows.items()}, FACTS)
    table = read_table(path)
    assert table.num_replicates.tolist() == [5, 2, 2, 2, 2]
    assert np.isnan(table.values("top1")[1, 2])


def damaged(change: Callable[[dict[str, list[Any]]], object]) -> Callable[[Path], None]:
    """Return a function that writes a table after a change of its rows."""

    def write(path: Path) -> None:
        rows = rows_of(admission_of(study()))
        change(rows)
        write_table(path, rows, FACTS)

    return write


def with_facts(facts: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        table = pa.table(rows_of(admission_of(study())))
        text = facts if isinstance(facts, bytes) else json.dumps(facts)
        pq.write_table(table.replace_schema_metadata({META: text}), path)

    return write


def cut(path: Path) -> None:
    write_table(path, rows_of(admission_of(study())), FACTS)
    path.write_bytes(path.read_bytes()[:-200])


def set_first(name: str, value: Any) -> Callable[[Path], None]:
    return damaged(lambda rows: rows[name].__setitem__(0, value))


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (cut, "Cannot read"),
    "not Parquet": (lambda path: path.write_text("top1,gflops\n1,2\n") and None, "Cannot read"),
    "empty": (lambda path: path.write_bytes(b"") and None, "Cannot read"),
    "a folder": (lambda path: path.mkdir(), "Cannot read"),
    "missing": (lambda path: None, "Cannot read"),
    "no metadata": (lambda path: pq.write_table(pa.table({"a": [1]}), path), "format 1"),
    "other format": (with_facts({"format": 2, **FACTS}), "format 1"),
    "metadata are a list": (with_facts([1]), "format 1"),
    "metadata are not JSON": (with_facts(b"{"), "Cannot read"),
    "metadata are not text": (with_facts(b"\xff\xfe"), "Cannot read"),
    "no metrics": (with_facts({"format": 1, "costs": []}), "damaged: 'metrics'"),
    "unknown metric": (with_facts({"format": 1, "costs": [], "metrics": ["x"]}), "damaged"),
    "metrics are a number": (with_facts({"format": 1, "costs": [], "metrics": 3}), "damaged"),
    "no rows": (damaged(lambda rows: [column.clear() for column in rows.values()]), "damaged"),
    "negative replicate": (set_first("replicate", -1), "`replicate` is out of range"),
    "huge replicate": (set_first("replicate", 10**6), "`replicate` is out of range"),
    "lone replicate": (set_first("replicate", 9_999), "almost all of its"),
    "replicate is a fraction": (set_first("replicate", 0.5), "out of range"),
    "replicate is missing": (set_first("replicate", None), "out of range"),
    "epoch 0": (set_first("epoch", 0), "`epoch` is out of range"),
    "epoch twice": (set_first("epoch", 2), "a missing or duplicate epoch"),
    "seconds are missing": (set_first("seconds", None), "a missing or duplicate epoch"),
    "seconds are negative": (set_first("seconds", -1.0), "negative"),
    "value is not a number": (set_first("top1", float("nan")), "not finite"),
    "cost is 0": (set_first("cost_gflops", 0.0), "not positive"),
    "parameters are not JSON": (set_first("parameters", "{"), "damaged"),
    "parameters are a list": (set_first("parameters", "[1]"), "damaged"),
    "no model": (damaged(lambda rows: rows.pop("model")), "damaged"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_read_table_refuses_an_invalid_file_in_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.parquet"
    write, message = HOSTILE[name]
    write(path)
    with pytest.raises(TableError) as caught:
        read_table(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "hostile.parquet" in str(caught.value)


def test_write_table_leaves_no_file_after_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TableError, match="Cannot write the table"):
        write_table(tmp_path / "file" / "made.parquet", {"a": [1]}, FACTS)
    (tmp_path / "taken.parquet").mkdir()
    with pytest.raises(TableError, match="Cannot write the table"):
        write_table(tmp_path / "taken.parquet", {"a": [1]}, FACTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken.parquet"]


# ----------------------------------------------------------------- replicates


def table_of(counts: list[int], folds: int | None) -> Table:
    """Return a table that has only the given numbers of replicates."""
    from sftsearch.orchestrator.benchmark.table import Table

    seconds = np.full((len(counts), max(counts), 1), np.nan)
    for row, count in enumerate(counts):
        seconds[row, :count] = 1.0
    names = [str(i) for i in range(len(counts))]
    return Table(names, names, [{} for _ in names], {}, {}, seconds, {"folds": folds})


@pytest.mark.parametrize("folds", [None, 3])
@pytest.mark.parametrize("repetition", [None, 0, 7])
def test_replay_uses_every_recorded_replicate_once_and_aligns_folds(
    folds: int | None, repetition: int | None
) -> None:
    table = table_of([6, 9, 12], folds)
    replay = Replay(table, repetition)
    found = [[replay.find(row, r) for r in range(n)] for row, n in enumerate((6, 9, 12))]
    for row, n in enumerate((6, 9, 12)):
        assert sorted(found[row]) == list(range(n))
        if repetition is None:
            assert found[row] == list(range(n))
    assert replay.num_reused == 0
    if folds:
        # Replicate r has the same fold for all configurations, so that they can be compared.
        for replicate in range(6):
            assert len({found[row][replicate] % folds for row in range(3)}) == 1


def test_replay_order_depends_on_the_repetition() -> None:
    table = table_of([6, 6], 3)
    orders = {tuple(Replay(table, n).find(0, r) for r in range(6)) for n in range(20)}
    assert len(orders) > 10
    assert {order[0] % 3 for order in orders} == {0, 1, 2}


def test_replay_reuses_a_replicate_of_the_same_fold_if_one_is_missing() -> None:
    replay = Replay(table_of([6, 9], 3), 5)
    seen = [replay.find(0, r) for r in range(9)]
    assert replay.num_reused == 3
    assert [r % 3 for r in seen[6:]] == [r % 3 for r in seen[3:6]]
    few = Replay(table_of([2, 9], 3), 5)  # its third fold was never recorded
    assert {few.find(0, r) for r in range(9)} <= {0, 1}


# ----------------------------------------------------------------- simulation


def simulated(table: Table, source: StudySource, **more: Any) -> tuple[list[RawEvent], Any]:
    done = simulate(source, admission_of(source), table, **more)
    return [raw(entry) for entry in done.journal.entries()], done


@pytest.mark.medium
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_simulate_clock_agrees_with_busy_workers(table: Table, workers: int) -> None:
    """Compare with the start and end times in the journal."""
    events, done = simulated(table, study(), workers=workers)
    begun = {e.body["trial"]: e.time for e in events if e.kind == "started"}
    ended = {e.body["trial"]: e.time for e in events if e.kind == "finished"}
    assert len(ended) == 10
    row_of = {identity: row for row, identity in enumerate(table.ids)}
    for key, start in begun.items():
        identity, _, seed = key.rpartition("-")
        seconds = table.seconds[row_of[identity], int(seed)].sum()
        assert ended[key] - start == pytest.approx(seconds)
    assert done.seconds == max(ended.values())
    for time in begun.values():
        busy = sum(begun[key] <= time < ended[key] for key in begun)
        assert busy <= workers
    if workers == 1:
        assert done.seconds == pytest.approx(sum(ended[k] - begun[k] for k in begun))


def test_simulate_reports_the_epochs_and_values_of_the_table(table: Table) -> None:
    events, done = simulated(table, study(), workers=3)
    row_of = {identity: row for row, identity in enumerate(table.ids)}
    for event in events:
        if event.kind == "epoch":
            identity, _, seed = event.body["trial"].rpartition("-")
            epoch, metrics = event.body["epoch"], event.body["metrics"]
            assert metrics["top1"] == table.metrics["top1"][row_of[identity], int(seed), epoch - 1]
        elif event.kind == "finished":
            identity, _, seed = event.body["trial"].rpartition("-")
            value = table.values("top1")[row_of[identity], int(seed)]
            assert event.body["values"]["top1"] == pytest.approx(value)
    counts = Counter(e.body["trial"] for e in events if e.kind == "epoch")
    assert set(counts.values()) == {EPOCHS}
    assert events[-1].kind == "ended"
    assert events[-1].body == {"reason": "all trials ran", "complete": True}
    assert done.concluded["reported"] == done.reported


@pytest.mark.medium
def test_simulate_is_deterministic_for_a_repetition(table: Table) -> None:
    runs = [
        [(e.kind, e.time, json.dumps(e.body)) for e in simulated(table, study(), repetition=n)[0]]
        for n in (3, 3, 4)
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_simulate_ends_if_the_space_is_used_up_while_replicates_are_due(table: Table) -> None:
    """With one worker, no trial is running when the sampler has nothing left."""
    source = study("sampler: exhaustive, trials: 40, replicates: {min: 1, max: 6, fresh: 1}")
    events, done = simulated(table, source, workers=1)
    assert events[-1].body == {"reason": "the space is used up", "complete": True}
    assert any(e.kind == "replicated" for e in events)
    assert any(e.kind == "frozen" for e in events)
    assert done.search.exhausted


def test_simulate_saves_the_time_of_stopped_trials(table: Table) -> None:
    plan = "sampler: {kind: random, seed: 2}, trials: 30, replicates: 6"
    whole = simulated(table, study(plan), workers=1)[1]
    assert whole.seconds == pytest.approx(table.seconds.sum())
    rule = "early_stopping: {kind: mo_asha, min_epochs: 1, audit_share: 0}"
    events, done = simulated(table, study(f"{plan}, {rule}"), workers=1)
    stopped = {e.body["trial"]: e.body["epoch"] for e in events if e.kind == "stopped"}
    row_of = {identity: row for row, identity in enumerate(table.ids)}
    trained = 0.0
    for event in events:
        if event.kind == "started":
            identity, _, seed = event.body["trial"].rpartition("-")
            epochs = stopped.get(event.body["trial"], EPOCHS)
            trained += table.seconds[row_of[identity], int(seed), :epochs].sum()
    assert stopped
    assert done.seconds == pytest.approx(trained)


def test_simulate_refuses_configurations_that_are_not_in_the_table(table: Table) -> None:
    wider = source_of("sampler: exhaustive, trials: 6", space=width(8, 16, 48), epochs=EPOCHS)
    with pytest.raises(TableError, match="is not in the table: restrict"):
        simulate(wider, admission_of(wider), table)


def test_admission_uses_the_costs_of_a_table(tmp_path: Path) -> None:
    own = admission_of(study())
    assert own.table is not None
    rows = rows_of(own)
    # A public table has only the parameters of the study file.
    for i, identity in enumerate(rows["configuration_id"]):
        rows["parameters"][i] = json.dumps(own.table[identity].point.parameters)
    write_table(tmp_path / "public.parquet", rows, FACTS)
    source, table = study(), read_table(tmp_path / "public.parquet")
    prices = recorded_prices(source, table)
    public = Admission(source, describe("wearables"), price=prices)
    assert public.table is not None
    assert public.table.keys() == own.table.keys()
    for identity, candidate in own.table.items():
        assert public.table[identity].cost.gflops == candidate.cost.gflops
