"""`sftsearch data`: prepare, list, info, verify, remove, and a study on a prepared dataset."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from sftsearch.datasets.catalog import DATASETS, prepared_folder
from sftsearch.orchestrator.cli.main import main

if TYPE_CHECKING:
    from pathlib import Path

STUDY = """
study: {name: small}
dataset: {kind: wearables}
objectives:
  - {metric: top1, direction: maximize}
  - {metric: gflops, direction: minimize}
search:
  sampler: {kind: exhaustive}
  trials: 4
  baselines: false
training: {epochs: 1, batch_size: 32}
space:
  - kind: late_fusion
    patch: 2
    dim: 8
    num_heads: 2
    num_layers: 1
    modalities:
      kind: choice
      values: [[watch_acc], [watch_acc, watch_gyro]]
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SFTSEARCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "mine.parquet")


def write(file: Path, count: int = 60, *, bad: bool = False) -> Path:
    random = np.random.default_rng(0)
    sound = [random.standard_normal(2 * int(random.integers(2, 7))) for _ in range(count)]
    if bad:
        sound[5][1] = np.nan
    table = pa.table(
        {
            "label": [n % 2 for n in range(count)],
            "subject": [f"p{n % 10}" for n in range(count)],
            "sound": pa.array(sound, pa.list_(pa.float32())),
            "image": [random.standard_normal(12) for _ in range(count)],
        }
    )
    pq.write_table(table.replace_schema_metadata({"modality.sound.dims": "2"}), file)
    return file


def call(*arguments: object, **options: Any) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments], **options)


def test_data_lists_and_verifies_a_prepared_dataset(file: Path, cache: Path) -> None:
    done = call("data", "prepare", "mine", "--from", file, "--option", "licence=CC0")
    assert done.exit_code == 0, done.output
    assert "modality:     sound, 0 to 6 tokens x 2" in done.output
    rows = {row["dataset"]: row for row in json.loads(call("data", "list", "--json").output)}
    assert rows["mine"]["from"] == "prepared"
    assert rows["mine"]["license"] == "CC0"
    assert rows["wearables"]["from"] == "built in"
    facts = json.loads(call("data", "info", "mine", "--json").output)
    assert facts["splits"]["train"]["samples"] == 36
    assert facts["store"] == str(cache / "prepared" / "mine")
    verified = call("data", "verify", "mine")
    assert verified.exit_code == 0
    assert "3 files match their checksums" in verified.output


def test_data_verify_finds_a_flipped_bit(file: Path) -> None:
    call("data", "prepare", "mine", "--from", file)
    arrow = prepared_folder() / "mine" / "validation.arrow"
    content = bytearray(arrow.read_bytes())
    content[len(content) // 2] ^= 4
    arrow.write_bytes(bytes(content))
    done = call("data", "verify", "mine")
    assert done.exit_code == 1
    assert "validation.arrow: sha256 is" in done.output


def test_data_list_shows_a_damaged_dataset_and_the_others(file: Path) -> None:
    call("data", "prepare", "mine", "--from", file)
    (prepared_folder() / "mine" / "manifest.json").write_text("{")
    done = call("data", "list", "--json")
    assert done.exit_code == 0
    rows = {row["dataset"]: row for row in json.loads(done.output)}
    assert rows["mine"]["license"].startswith("damaged: The store")
    assert rows["digits"]["license"] == "CC BY-SA 4.0"
    assert "damaged" in call("data", "list").output
    assert call("data", "remove", "mine", "--yes").exit_code == 0


def test_data_prepare_refuses_or_drops_nonfinite_samples(tmp_path: Path) -> None:
    file = write(tmp_path / "bad.parquet", bad=True)
    done = call("data", "prepare", "mine", "--from", file)
    assert done.exit_code == 1
    assert "sound of sample 'row 5' must be finite, but token 0, feature 1 is nan" in done.output
    done = call("data", "prepare", "mine", "--from", file, "--nan", "drop")
    assert done.exit_code == 0
    assert "Left out 1 of 60 samples: 1 x sound is not finite (row 5)" in done.output


def test_data_prepare_reports_counts_in_json(file: Path, cache: Path) -> None:
    done = CliRunner().invoke(main, ["data", "prepare", "mine", "--from", str(file), "--json"])
    facts = json.loads(done.stdout)
    assert facts["path"] == str(cache / "prepared" / "mine")
    assert (facts["num_samples"], facts["num_zeroed"], facts["num_dropped"]) == (60, 0, 0)
    assert len(facts["fingerprint"]) == 64


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wearables", "'wearables' is built in. Choose another name"),
        ("Mine", "The name of a dataset must be lower-case letters"),
        ("../mine", "The name of a dataset must be"),
    ],
)
def test_data_prepare_refuses_invalid_names(file: Path, name: str, message: str) -> None:
    done = call("data", "prepare", name, "--from", file)
    assert done.exit_code == 1
    assert message in done.output


def test_data_prepare_refuses_an_existing_name_until_it_is_removed(file: Path) -> None:
    call("data", "prepare", "mine", "--from", file)
    done = call("data", "prepare", "mine", "--from", file)
    assert done.exit_code == 1
    assert "`sftsearch data remove mine` first" in done.output
    assert call("data", "remove", "mine", input="n\n").exit_code == 1
    assert (prepared_folder() / "mine").is_dir()
    assert "Removed" in call("data", "remove", "mine", "--yes").output
    assert not (prepared_folder() / "mine").exists()
    done = call("data", "remove", "mine", "--yes")
    assert done.exit_code == 1
    assert "No dataset 'mine' was prepared on this machine. Prepared: none." in done.output
    assert "is built in" in call("data", "remove", "digits", "--yes").output


@pytest.mark.medium
def test_data_info_draws_a_picture(file: Path, tmp_path: Path) -> None:
    call("data", "prepare", "mine", "--from", file)
    for name in ("mine", "synthetic_rating", "synthetic_tags"):
        picture = tmp_path / f"{name}.png"
        done = call("data", "info", name, "--picture", picture)
        assert done.exit_code == 0, done.output
        assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    done = call("data", "info", "mine", "--picture", tmp_path / "none" / "x.png")
    assert done.exit_code == 1
    assert "Cannot write the picture" in done.output


def test_data_list_shows_readers_with_their_options() -> None:
    listed = json.loads(call("data", "list", "--readers", "--json").output)
    rows = {row["reader"]: row for row in listed}
    assert rows["ravdess"]["options"] == "fold=0, tokens=600, start_ms=0"
    assert "VGGSound" in rows["vggsound"]["what it reads"]


@pytest.mark.medium
@pytest.mark.timeout(240)  # Ray starts
def test_run_trains_on_a_prepared_dataset(file: Path, tmp_path: Path) -> None:
    """The study replaces its modalities by those of the dataset: each alone and both together."""
    call("data", "prepare", "mine", "--from", file)
    study = tmp_path / "small.yaml"
    study.write_text(STUDY)
    runs = tmp_path / "runs"
    checked = json.loads(call("check", study, "--dataset", "mine", "--json").stdout)
    assert (checked["study"], checked["dataset"], checked["admissible"]) == (
        "small_mine",
        "mine",
        3,
    )
    done = call("run", study, "--dataset", "mine", "--runs", runs, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads((runs / "small_mine" / "report" / "report.json").read_text())
    assert report["study"]["dataset"] == "mine"
    chosen = [c["parameters"]["modalities"] for c in report["configurations"]]
    assert sorted(chosen) == [["image"], ["sound"], ["sound", "image"]]
    assert call("confirm", "small_mine", "--runs", runs, "--yes").exit_code == 0


def test_data_root_may_be_any_folder(file: Path, tmp_path: Path) -> None:
    call("data", "prepare", "mine", "--from", file)
    folder = tmp_path / "shared"
    folder.mkdir()
    shutil.move(str(prepared_folder() / "mine"), str(folder / "mine"))
    assert call("data", "info", "mine").exit_code == 1
    assert call("data", "verify", "mine", "--root", folder).exit_code == 0
    study = tmp_path / "small.yaml"
    study.write_text(STUDY)
    options = ("--dataset", "mine", "--root", folder)
    assert call("check", study, *options).exit_code == 0
    done = call("check", study, "--dataset", "mime", "--root", folder)
    assert done.exit_code == 1
    assert "No dataset is called 'mime'. Did you mean 'mine'?" in done.output


@pytest.mark.medium
def test_data_prepare_resumes_after_ctrl_c(tmp_path: Path, cache: Path) -> None:
    file = write(tmp_path / "large.parquet", 40_000)
    program = "from sftsearch.orchestrator.cli.main import main; main()"
    command = [sys.executable, "-P", "-c", program, "data", "prepare", "mine", "--from", str(file)]
    environment = os.environ | {"SFTSEARCH_CACHE": str(cache)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    folder = cache / "prepared"
    for _ in range(600):
        if (folder / ".preparing-mine").exists() or process.poll() is not None:
            break
        signal.sigtimedwait([], 0.05)
    process.send_signal(signal.SIGINT)
    stderr = process.communicate(timeout=60)[1]
    if process.returncode == 130:  # a fast machine may be done before the signal
        assert "Interrupted." in stderr
        assert "Traceback" not in stderr
        assert not (folder / "mine").exists()
        done = subprocess.run(command, env=environment, check=False, capture_output=True)
        assert done.returncode == 0
    assert call("data", "verify", "mine").exit_code == 0


def test_data_info_shows_a_regression_dataset() -> None:
    assert "regression" in call("data", "list").output
    text = call("data", "info", "synthetic_rating").output
    assert "task:         regression" in text
    assert "right, 0 to 8 tokens x 3" in text
    assert re.search(r"^train: +2000 samples$", text, flags=re.MULTILINE)


@pytest.mark.medium
def test_data_list_and_info_show_license_and_splits() -> None:
    rows = json.loads(call("data", "list", "--json").output)
    assert [row["dataset"] for row in rows] == sorted(DATASETS)
    assert "CC BY 4.0" in call("data", "list").output
    facts = json.loads(call("data", "info", "wearables", "--json").output)
    assert facts["license"] == "CC BY 4.0"
    for split in facts["splits"].values():
        assert sum(split["by class"].values()) == split["samples"]
    text = call("data", "info", "wearables").output
    for word in ("attribution:", "train:", "validation:", "test:", "watch_gyro", "Matey-Sanz"):
        assert word in text
