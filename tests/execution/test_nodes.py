"""A study on several Ray nodes of one machine that join and leave."""

from __future__ import annotations

import inspect
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import ray
from ray.cluster_utils import Cluster

from sftsearch.orchestrator.callback import StudyCallback
from sftsearch.orchestrator.execution.cluster import disconnect
from sftsearch.orchestrator.execution.worker import TrainingWorker
from sftsearch.orchestrator.study import run_study

from journals import read_events

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sftsearch.orchestrator.execution.reports import WorkerReport
    from sftsearch.orchestrator.storage.journal import Entry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

STUDY = """
study: {name: nodes}
dataset: {kind: synthetic}
search: {baselines: false, sampler: {kind: exhaustive}, trials: 20}
training: {epochs: 3, batch_size: 250}
space: [{kind: sft, num_heads: 1, fused_layers: 1, dim: {kind: int, low: 1, high: 20}}]
"""


class NodeReporter(TrainingWorker):
    """Reports on which node a trial ended."""

    def step(self) -> WorkerReport:
        time.sleep(2)  # the study must run longer than a node takes to start
        report = super().step()
        if "final" in report:
            report["final"]["facts"]["node"] = ray.get_runtime_context().get_node_id()
        return report


class FinishedCounter(StudyCallback):
    """Sets an event when four trials have finished."""

    def __init__(self) -> None:
        self.finished = 0
        self.has_four = threading.Event()

    def on_event(self, entry: Entry) -> None:
        self.finished += entry.event.kind == "finished"
        if self.finished >= 4:
            self.has_four.set()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    yield started
    disconnect()
    started.shutdown()


def test_study_finishes_while_a_node_dies_and_another_joins(
    cluster: Cluster, tmp_path: Path
) -> None:
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    file = tmp_path / "nodes.yaml"
    file.write_text(STUDY)
    counter, address = FinishedCounter(), cluster.address
    options: dict[str, Any] = {"runs": tmp_path, "address": address, "worker": NodeReporter}
    with ThreadPoolExecutor() as pool:  # Ray adds nodes in the main thread only
        study = pool.submit(run_study, file, callback=counter, formats=(), **options)
        assert counter.has_four.wait(200)
        cluster.remove_node(nodes[0], allow_graceful=False)
        added = cluster.add_node(num_cpus=2)
        result = study.result()
    assert result.complete
    events = list(read_events(result.folder))
    ended = Counter(e.body["trial"] for e in events if e.kind in ("finished", "failed"))
    assert set(ended.values()) == {1}
    assert Counter(trial.status for trial in result.record.trials) == {"finished": 20}
    by_node = Counter(e.body["facts"]["node"] for e in events if e.kind == "finished")
    assert by_node[added.node_id] > 0
    assert by_node.keys() >= {nodes[1].node_id, added.node_id}
    assert next(e.body["slots"] for e in events if e.kind == "opened") == 3


class SourceReporter(TrainingWorker):
    """Reports the file that its code was loaded from."""

    def step(self) -> WorkerReport:
        report = super().step()
        if "final" in report:
            report["final"]["facts"]["code"] = str(inspect.getsourcefile(TrainingWorker))
        return report


def test_cluster_nodes_run_the_code_that_the_driver_ships(cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "nodes.yaml"
    file.write_text(STUDY.replace("trials: 20", "trials: 2"))
    result = run_study(
        file,
        runs=tmp_path,
        address=cluster.address,
        ship_code=True,
        worker=SourceReporter,
        formats=(),
    )
    bodies = [e.body for e in read_events(result.folder) if e.kind == "finished"]
    assert len(bodies) == 2
    for body in bodies:
        assert "py_modules_files" in body["facts"]["code"]
        assert body["facts"]["code"].endswith("sftsearch/orchestrator/execution/worker.py")
