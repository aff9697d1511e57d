"""Test the threat model: docs/security.md names the test of each threat."""

from __future__ import annotations

import ast
import os
import pickle
import shutil
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from sftsearch.orchestrator import confirm
from sftsearch.orchestrator.cli.main import main
from sftsearch.orchestrator.execution.cluster import connected
from sftsearch.orchestrator.execution.placement import ResourceError
from sftsearch.orchestrator.storage.trial_files import CHECKPOINT, WEIGHTS
from sftsearch.orchestrator.studies import StudyError, find_study, read_record, trial_folder
from sftsearch.orchestrator.study import run_study
from sftsearch.orchestrator.tracking.client import TrackingError, masked
from sftsearch.orchestrator.tracking.reader import read_study
from sftsearch.search_spaces.load import parse_study

from journals import Journal
from servers import PASSWORD, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sftsearch.orchestrator.study import StudyResult

ROOT = Path(__file__).resolve().parents[1]
STUDY = """
study: {name: secure}
dataset: {kind: synthetic}
search: {baselines: false, sampler: {kind: exhaustive}, trials: 2}
training: {epochs: 1, batch_size: 256}
space: [{kind: sft, num_heads: 1, fused_layers: 1, dim: {kind: int, low: 4, high: 5}}]
"""
SECRET = "hunter2-of-tests"
PROGRAM = (sys.executable, "-P", "-c", "from sftsearch.orchestrator.cli.main import main; main()")
"""The program as its installed script starts it: without the current folder on the path."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    runs = tmp_path_factory.mktemp("secure")
    (runs / "secure.yaml").write_text(STUDY)
    return run_study(runs / "secure.yaml", runs=runs)


def add_hostile_modules(folder: Path) -> Path:
    """Write modules that Python programs import; the returned file exists once one was."""
    mark = folder / "executed"
    for name in ("json", "statistics", "tempfile", "sftsearch", "numpy", "h5py", "mlflow", "flask"):
        (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'w').close()\nraise OSError\n")
    return mark


def copy_of(finished: StudyResult, folder: Path) -> Path:
    shutil.copytree(finished.folder.parent, folder, dirs_exist_ok=True)
    return folder


# ------------------------------------------------------------------ network access


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "::", "example.org"])
def test_ui_on_another_host_requires_a_login_option(host: str) -> None:
    result = CliRunner().invoke(main, ["ui", "--host", host])
    assert result.exit_code == 2
    text = " ".join(result.output.split())
    assert f"With --host {host}, anyone who can reach port 5000 of this machine could read" in text
    assert "Add --login, or --without-login to allow this." in text


@pytest.mark.medium
def test_ui_login_requires_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_AUTH_ADMIN_PASSWORD", raising=False)
    port = str(free_port())
    result = CliRunner().invoke(main, ["ui", "--login", "--runs", str(tmp_path), "--port", port])
    assert result.exit_code == 1
    assert "needs the password of the first user in MLFLOW_AUTH_ADMIN_PASSWORD" in result.output


def status_of(url: str, login: str = "") -> int:
    request = urllib.request.Request(url)
    if login:
        request.add_header("Authorization", "Basic " + b64encode(login.encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def other_address() -> str:
    """Return an address of this machine other than the loopback address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # nothing is sent
        address: str = probe.getsockname()[0]
    return address


@pytest.fixture
def ui(finished: StudyResult, request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """Serve the UI with the options of the parameter; yield its host and port."""
    port = free_port()
    hostile = finished.folder.parent / "hostile"
    hostile.mkdir(exist_ok=True)
    add_hostile_modules(hostile)
    process = subprocess.Popen(
        [*PROGRAM, "ui", "--runs", "..", "--port", str(port), *request.param],
        cwd=hostile,
        env=os.environ | {"MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(600):
        if status_of(f"http://127.0.0.1:{port}/health"):
            break
        assert process.poll() is None
        time.sleep(0.1)
    yield "127.0.0.1", port
    process.terminate()
    process.wait(timeout=30)


@pytest.mark.service
@pytest.mark.timeout(120)
@pytest.mark.parametrize("ui", [["--login"]], indirect=True)
def test_ui_with_login_requires_the_password(ui: tuple[str, int], finished: StudyResult) -> None:
    url = f"http://127.0.0.1:{ui[1]}/api/2.0/mlflow/experiments/get-by-name?experiment_name=secure"
    assert status_of(url) == 401
    assert status_of(url, "admin:wrong") == 401
    assert status_of(url, f"admin:{PASSWORD}") == 200
    users = finished.folder.parent / "mlflow-login.db"
    assert stat.S_IMODE(users.stat().st_mode) == 0o600
    settings = (finished.folder.parent / "mlflow-login.ini").read_text()
    assert PASSWORD not in settings


@pytest.mark.service
@pytest.mark.timeout(120)
@pytest.mark.parametrize("ui", [[]], indirect=True)
def test_ui_listens_on_localhost_only(ui: tuple[str, int]) -> None:
    assert status_of(f"http://127.0.0.1:{ui[1]}/health") == 200
    address = other_address()
    assert address != "127.0.0.1"
    assert status_of(f"http://{address}:{ui[1]}/health") == 0


@pytest.mark.medium
@pytest.mark.timeout(180)
def test_local_ray_requires_a_token_and_has_no_dashboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    with monkeypatch.context() as without:
        without.setenv("RAY_AUTH_MODE", "disabled")
        with (
            pytest.raises(ResourceError, match="anyone who can reach a port"),
            connected(None),
        ):
            pass
    connect = "import ray, sys; ray.init(address=sys.argv[1], logging_level='ERROR')"
    with connected(None):
        token = Path.home() / ".ray" / "auth_token"
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        assert not ray._private.worker._global_node.webui_url
        address = ray.get_runtime_context().gcs_address
        wrong = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x" * 64}
        for claim, code in (({"RAY_AUTH_MODE": "disabled"}, 1), (wrong, 1), ({}, 0)):
            tried = subprocess.run(
                [sys.executable, "-c", connect, address],
                env=os.environ | claim,
                capture_output=True,
                check=False,
                timeout=100,
            )
            assert tried.returncode == code, (claim, tried.stderr[-500:])


@pytest.mark.medium
@pytest.mark.timeout(180)
def test_workers_import_nothing_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modules of the standard library that Ray's workers and trials import, beside the study."""
    (tmp_path / "study.yaml").write_text(STUDY)
    mark = add_hostile_modules(tmp_path)
    monkeypatch.chdir(tmp_path)
    result = run_study("study.yaml", runs="runs")
    assert [trial.status for trial in result.record.trials] == ["finished"] * 2
    assert not mark.exists()
    assert (tmp_path / "runs" / "secure" / "journal.sqlite").is_file()


@pytest.mark.medium
@pytest.mark.timeout(180)
def test_preparation_imports_nothing_from_the_folder_of_the_data(tmp_path: Path) -> None:
    """HDF5 is read by a child process, which must not import the folder's `h5py.py` either."""
    with h5py.File(tmp_path / "multimodal_imdb.hdf5", "w") as file:
        file["features"] = np.ones((18, 300), np.float32)
        file["vgg_features"] = np.ones((18, 4096), np.float32)
        file["genres"] = np.arange(18 * 23).reshape(18, 23) % 3 % 2
    mark = add_hostile_modules(tmp_path)
    done = subprocess.run(
        [*PROGRAM, "data", "prepare", "mmimdb", "--from", ".", "--option", "splits=9,4,5"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not mark.exists()


@pytest.mark.service
@pytest.mark.timeout(120)
@pytest.mark.parametrize("ui", [[]], indirect=True)
def test_ui_imports_nothing_from_the_current_folder(
    ui: tuple[str, int], finished: StudyResult
) -> None:
    assert status_of(f"http://127.0.0.1:{ui[1]}/health") == 200
    assert not (finished.folder.parent / "hostile" / "executed").exists()


# ------------------------------------------------------------------ untrusted files


class Poison:
    """An object that creates a file when its pickle is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.medium
def test_pickled_weights_are_refused(finished: StudyResult, tmp_path: Path) -> None:
    runs, mark = copy_of(finished, tmp_path / "runs"), tmp_path / "loaded"
    folder = runs / "secure"
    for trial in read_record(folder).trials:
        (Path(trial_folder(folder, trial.key)) / WEIGHTS).write_bytes(pickle.dumps(Poison(mark)))
    with pytest.raises(StudyError, match=r"The weights of trial .* cannot be read"):
        confirm.confirm_study(folder)
    assert not mark.exists()


@pytest.mark.medium
def test_pickled_checkpoint_is_not_loaded(tmp_path: Path) -> None:
    from sftsearch.orchestrator.execution.worker import TrainingWorker

    from trial_specs import run, trial_spec

    mark = tmp_path / "loaded"
    (tmp_path / CHECKPOINT).write_bytes(pickle.dumps(Poison(mark)))
    worker = TrainingWorker()
    worker.start(trial_spec(tmp_path))
    assert "final" in run(worker)[-1]
    assert "starting from scratch" in (tmp_path / "trial.log").read_text()
    assert not mark.exists()


@pytest.mark.medium
def test_only_safe_pickle_imports_pickle() -> None:
    readers = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
    found = set()
    for path in (p for f in ("orchestrator", "trainables", "search_spaces", "datasets")
                 for p in (ROOT / f).rglob("*.py")):  # fmt: skip
        for node in ast.walk(ast.parse(path.read_text())):
            names: set[str] = set()
            if isinstance(node, ast.Import):
                names = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").split(".")[0]}
                if [alias.name for alias in node.names] == ["cpu_count"]:  # of joblib
                    names = set()
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                called = (node.value.id, node.attr)
                names = {"pickle"} if called == ("torch", "load") else set()
            if names & readers:
                found.add(path.name)
    assert found == {"safe_pickle.py"}


# ------------------------------------------------------------------ names


HOSTILE = ["../outside", "/etc", "a/b", "..", ".", "", "a\0b", "a-1/../../x", "-0", "a-1\n"]


@pytest.mark.parametrize("key", HOSTILE)
def test_trial_key_cannot_name_another_folder(key: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="is not the key of a trial"):
        trial_folder(tmp_path, key)


@given(st.text())
def test_trial_folder_is_inside_the_study_for_every_key(key: str) -> None:
    study = Path("/runs/study")
    try:
        folder = Path(trial_folder(study, key))
    except StudyError:
        return
    assert folder.parent == study / "trials"
    assert ".." not in folder.parts


@pytest.mark.parametrize("name", [*HOSTILE, "A", "über", "x" * 65])
def test_study_name_cannot_name_another_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"is not the name of a study|There is no study"):
        find_study(name, tmp_path)
    text = STUDY.replace("name: secure", f"name: {name!r}")
    with pytest.raises(ValueError, match=r"study\.name|study:"):
        _ = parse_study(text.encode()).study


# ------------------------------------------------------------------ secrets


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        (f"https://me:{SECRET}@host:5000/x", "https://me@host:5000/x"),
        (f"postgresql+psycopg2://me:{SECRET}@host/db", "postgresql+psycopg2://me@host/db"),
        (f"http://:{SECRET}@host", "http://@host"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("sqlite:////runs/mlflow.db", "sqlite:////runs/mlflow.db"),
        (f"at postgresql://me:{SECRET}@h/x: no", "at postgresql://me@h/x: no"),
    ],
)
def test_masked_removes_passwords(uri: str, shown: str) -> None:
    assert masked(uri) == shown


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_tracking_errors_do_not_contain_passwords(tmp_path: Path, scheme: str) -> None:
    uri = f"{scheme}://me:{SECRET}@127.0.0.1:{free_port()}/db"
    with pytest.raises(TrackingError) as caught:
        read_study(uri, "secure", tmp_path)
    assert SECRET not in "".join(map(str, (caught.value, caught.value.__cause__)))
    assert "me@127.0.0.1" in str(caught.value)


@pytest.mark.slow
@pytest.mark.medium
@pytest.mark.timeout(240)
def test_run_writes_secrets_to_no_file_or_output(tmp_path: Path) -> None:
    """The tracking server is unreachable; neither output nor files contain a secret."""
    file, runs = tmp_path / "secure.yaml", tmp_path / "runs"
    file.write_text(STUDY)
    uri = f"http://me:{SECRET}@127.0.0.1:{free_port()}"
    command = [
        sys.executable,
        "-c",
        "from sftsearch.orchestrator.cli.main import main; main()",
        "run",
    ]
    environment = {
        "MLFLOW_TRACKING_PASSWORD": SECRET + "-2",
        "AWS_SECRET_ACCESS_KEY": SECRET + "-3",
        "AWS_ACCESS_KEY_ID": "id",
    }
    done = subprocess.run(
        [*command, str(file), "--runs", str(runs), "--tracking-uri", uri],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert SECRET not in done.stdout + done.stderr
    files = [path for path in runs.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def test_journal_cannot_name_files_of_other_folders(tmp_path: Path) -> None:
    """`show` reads the log of a trial in the journal."""
    from mirrored_study import CREATED

    with Journal(tmp_path / "evil") as journal:
        journal.append("created", **CREATED)
        base = {"configuration_id": "../..", "model": "sft", "parameters": {}, "cost": {}}
        journal.append("admitted", number=0, seeds=[0], **base)
        journal.append("started", trial="../..-0", epoch=0, seed=0, **base)
    (tmp_path / "trial.log").write_text("a file of another folder")
    result = CliRunner().invoke(main, ["show", "../..", "--runs", str(tmp_path)])
    assert result.exit_code == 1
    assert "is not the key of a trial" in result.output
    assert "a file of another folder" not in result.output
