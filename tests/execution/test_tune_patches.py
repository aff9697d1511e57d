"""Private names of Ray that we depend on, and the behavior of the patched parts of Tune.

The first tests fail when a new Ray version lacks one of the names, and say which.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import random
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, RayTaskError
from ray.tune import PlacementGroupFactory

from sftsearch.orchestrator.execution import scheduler, tune_patches
from sftsearch.orchestrator.execution.tune_patches import (
    PatchedResourceManager,
    PatchedTuneController,
    patched_tune_controller,
)
from sftsearch.orchestrator.study import run_study

from idle_workers import Brief
from journals import read_events
from ray_state import check_nothing_is_left, num_actors

pytestmark = pytest.mark.timeout(120)

CONTROLLER = "ray.tune.execution.tune_controller:TuneController"
MANAGER = "ray.air.execution:PlacementGroupResourceManager"
ACTORS = "ray.air.execution._internal.actor_manager:RayActorManager"
TRIAL = "ray.tune.experiment:Trial"

ATTRIBUTES = [
    # used by tune_patches.py
    (CONTROLLER, "_maybe_reuse_cached_actor"),
    (CONTROLLER, "_actor_manager"),
    (CONTROLLER, "_resetting_trials"),
    (CONTROLLER, "_resources_to_pending_trials"),
    (CONTROLLER, "_staged_trials"),
    (CONTROLLER, "_started_actors"),
    (CONTROLLER, "_trial_to_actor"),
    (ACTORS, "is_actor_started"),
    (MANAGER, "_pg_to_request"),
    (MANAGER, "_pg_to_staging_future"),
    (MANAGER, "_request_to_staged_pgs"),
    (MANAGER, "_staging_future_to_pg"),
    (MANAGER, "cancel_resource_request"),
    (MANAGER, "clear"),
    (MANAGER, "get_resource_futures"),
    (MANAGER, "request_resources"),
    (MANAGER, "update_state"),
    (TRIAL, "placement_group_factory"),
    # used by scheduler.py
    (CONTROLLER, "get_live_trials"),
    (CONTROLLER, "stop_trial"),
    (TRIAL, "error_file"),
    (TRIAL, "status"),
    (TRIAL, "temporary_state"),
    (TRIAL, "trial_id"),
    ("ray.tune.experiment.trial:_TemporaryTrialState", "ray_actor"),
    # used by tune.py: a callback of this type keeps Tune from adding its own
    ("ray.tune.progress_reporter:TrialProgressCallback", "on_trial_complete"),
    # used by searcher.py
    ("ray.tune.search:Searcher", "FINISHED"),
    # used by head_watch.py
    ("ray.runtime_context:RuntimeContext", "gcs_address"),
]
"""Attributes by class: methods, properties, and those that `__init__` sets."""
PARAMETERS = [
    (f"{CONTROLLER}.__init__", "resource_manager_factory"),
    (f"{MANAGER}.__init__", "update_interval_s"),
]
USED = [
    ("ray.tune.tune:run", "TuneController"),
    ("ray.tune.utils.callback:_create_default_callbacks", "TrialProgressCallback"),
]
"""Names that a function of Ray uses."""
ENVIRONMENT = [
    ("ray.tune.tune", "TUNE_DISABLE_SIGINT_HANDLER"),
    ("ray.tune.execution.tune_controller", "TUNE_MAX_PENDING_TRIALS_PG"),
    ("ray.tune.execution.tune_controller", "TUNE_GLOBAL_CHECKPOINT_S"),
    (
        "ray.tune.execution.experiment_state",
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S",
    ),
    ("ray.tune.utils.callback", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"),
    ("ray.tune.experimental.output", "RAY_AIR_NEW_OUTPUT"),
    ("ray._private.accelerators.accelerator", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"),
    ("ray._common.usage.usage_constants", "RAY_USAGE_STATS_ENABLED"),
]
"""Variables that a module of Ray reads."""


def resolve(where: str) -> Any:
    """Return the object that `module:qualified.name` refers to."""
    module, _, name = where.partition(":")
    value: Any = importlib.import_module(module)
    for part in name.split("."):
        assert hasattr(value, part), f"Ray no longer has {where}"
        value = getattr(value, part)
    return value


def set_in_init(kind: type) -> set[str]:
    """Return the attributes that the `__init__` of a class sets."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    (init,) = (
        node for node in tree.body[0].body  # type: ignore[attr-defined]
        if isinstance(node, ast.FunctionDef) and node.name == "__init__"
    )  # fmt: skip
    return {
        node.attr
        for node in ast.walk(init)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }


@pytest.mark.parametrize(("where", "name"), ATTRIBUTES)
def test_ray_has_the_attribute(where: str, name: str) -> None:
    kind = resolve(where)
    known = set(dir(kind)) | set(getattr(kind, "__annotations__", ()))
    assert name in known or name in set_in_init(kind), f"{where} no longer has `{name}`"


@pytest.mark.parametrize(("where", "name"), PARAMETERS)
def test_ray_accepts_the_parameter(where: str, name: str) -> None:
    assert name in inspect.signature(resolve(where)).parameters, f"{where} no longer takes `{name}`"


@pytest.mark.parametrize(("where", "name"), USED)
def test_ray_uses_the_name(where: str, name: str) -> None:
    names = inspect.unwrap(resolve(where)).__code__.co_names
    assert name in names, f"{where} no longer uses `{name}`"


def test_ray_looks_up_its_controller_where_we_replace_it() -> None:
    assert "TuneController" not in inspect.unwrap(resolve("ray.tune.tune:run")).__code__.co_varnames
    assert resolve("ray.tune.tune:TuneController") is resolve(CONTROLLER)


@pytest.mark.parametrize(("module", "name"), ENVIRONMENT)
def test_ray_reads_the_environment_variable(module: str, name: str) -> None:
    source = inspect.getsource(importlib.import_module(module))
    assert name in source, f"{module} no longer reads {name}"
    assert os.environ[name]


def test_ray_reports_a_process_that_could_not_start() -> None:
    cause = RayTaskError("setup", "traceback", ImportError("no module"))
    assert scheduler.NO_START in str(ActorDiedError(cause))


def test_every_private_name_of_ray_in_tune_patches_is_listed() -> None:
    source = Path(tune_patches.__file__).read_text()
    used = {node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    ours = {"_spare", "_is_starting"}
    private = {name for name in used if name.startswith("_") and not name.startswith("__")}
    assert private - ours == {name for where, name in ATTRIBUTES[:12] if name.startswith("_")}


def test_patched_tune_controller_is_used_within_the_block_only() -> None:
    module = importlib.import_module("ray.tune.tune")
    original = module.TuneController
    with patched_tune_controller():
        assert module.TuneController is PatchedTuneController
    assert module.TuneController is original


# ------------------------------------------------------------------- effects of the patches

STUDY = """
study: {name: brief}
dataset: {kind: synthetic}
search: {sampler: {kind: exhaustive}, trials: 300}
resources: {cpus: 1}
space: [{kind: sft, num_heads: 1, dim: {kind: int, low: 1, high: 300}}]
"""


@pytest.mark.medium
@pytest.mark.usefixtures("four_cpus_and_a_gpu")
def test_patched_tune_controller_starts_processes_while_trials_end_in_others(
    tmp_path: Path,
) -> None:
    """Unpatched, Tune ends a starting process as soon as another one is free for its trial."""
    file = tmp_path / "brief.yaml"
    file.write_text(STUDY)
    before = num_actors()
    result = run_study(file, runs=tmp_path, worker=Brief, formats=())
    assert result.complete
    finished = [e for e in read_events(result.folder) if e.kind == "finished"]
    assert len({event.body["facts"]["process"] for event in finished}) == 4
    assert num_actors() - before <= 5


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("four_cpus_and_a_gpu")
def test_patched_resource_manager_leaks_no_resources_of_canceled_requests() -> None:
    """Ray's own manager leaks about one in a thousand of such groups: ray#64693."""
    manager, draw = PatchedResourceManager(), random.Random(0)
    request = PlacementGroupFactory([{"CPU": 1, "GPU": 0.25}])
    for _ in range(3000):
        manager.request_resources(request)
        time.sleep(draw.uniform(0, 0.002))
        if draw.random() < 0.5:
            manager.update_state()
        manager.cancel_resource_request(request)
    manager.clear()
    check_nothing_is_left()
    assert ray.available_resources()["GPU"] == 1
