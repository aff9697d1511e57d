"""Check that the tests neither read nor change a user's files and settings."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sftsearch.datasets.catalog import cache_folder, open_dataset

ROOT = Path(__file__).parents[1]
AFFECTED = (
    # They list or write a cache, or send the signal that background jobs ignore.
    "tests/cli/test_data.py::test_data_prepare_resumes_after_ctrl_c",
    "tests/cli/test_data.py::test_data_list_and_info_show_license_and_splits",
    "tests/datasets/test_folds.py::test_as_many_folds_as_speakers_leave_one_out",
    "tests/datasets/test_store.py::test_an_unknown_dataset_gives_one_line",
)
SETTINGS = {
    "AWS_ENDPOINT_URL": "http://192.0.2.1",
    "MLFLOW_TRACKING_URI": "http://192.0.2.1",
    "RAY_ADDRESS": "192.0.2.1:6379",
    "SFTSEARCH_RUNS": "/no/such/folder",
}


def test_home_is_separate_for_every_test() -> None:
    home = Path.home()
    assert home != Path(pwd.getpwuid(os.getuid()).pw_dir)
    assert cache_folder() == home / ".cache" / "sftsearch"
    assert os.environ["SFTSEARCH_RUNS"] == str(home / "runs")
    assert not {"AWS_ENDPOINT_URL", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"} & set(os.environ)
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


@pytest.mark.parametrize("time", ["first", "second"])
def test_shipped_dataset_is_written_once_for_all_tests(time: str, session_home: Path) -> None:
    store = open_dataset("synthetic")
    assert store.path.is_relative_to(Path.home())
    shared = session_home / ".cache" / "sftsearch" / store.path.name
    assert time == "first" or (store.path.is_symlink() and store.path.resolve() == shared)


@pytest.mark.medium
@pytest.mark.timeout(300)
def test_run_of_the_tests_leaves_user_files_unchanged(tmp_path: Path) -> None:
    """The user has a prepared dataset and settings, and ignores Ctrl-C, as a `&` job does."""
    cache = tmp_path / ".cache" / "sftsearch"
    prepared = cache / "prepared" / "of_the_user"
    prepared.mkdir(parents=True)
    (prepared / "manifest.json").write_text("{}")
    (prepared / "train.arrow").touch()
    before = sorted(tmp_path.rglob("*"))
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *pytest_, *AFFECTED],
        cwd=ROOT,
        env=os.environ | SETTINGS | {"HOME": str(tmp_path), "SFTSEARCH_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
    assert sorted(tmp_path.rglob("*")) == before
