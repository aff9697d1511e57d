"""Commands about study files and models: check, price, init, models and schema."""

from __future__ import annotations

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from sftsearch.orchestrator.candidates.binding import definition_of
from sftsearch.orchestrator.cli.main import main
from sftsearch.orchestrator.study_file import check_study
from sftsearch.search_spaces.schema import StudyFile
from sftsearch.trainables.catalog import MODELS

if TYPE_CHECKING:
    from pathlib import Path


def call(*arguments: str | Path, **more: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], **more)


def test_check_describes_the_study_and_writes_nothing(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("check", study_file)
    assert result.exit_code == 0
    assert result.output == (
        f"{study_file}: study 'small' is valid: 2 trials (1 replicate per configuration) over "
        "2 admissible configurations on wearables.\n"
    )
    assert json.loads(call("check", study_file, "--json").output) == {
        "study": "small", "dataset": "wearables", "trials": 2, "points": 2,
        "replicates": {"min": 1, "max": 1, "fresh": 0},
        "admissible": 2, "refused": {}, "adapted": [], "lacking": "",
    }  # fmt: skip
    assert list(tmp_path.iterdir()) == [study_file]


@pytest.mark.parametrize(
    ("requested", "expected"),
    [
        ("{cpus: 1000}", "a trial requests 1000 CPUs and 0 GPUs."),
        ("{gpus: 64}", "a trial requests 1 CPUs and 64 GPUs."),
        ("{cpus: 300, workers: 3}", "a trial requests 900 CPUs and 0 GPUs."),
        ("{overrides: [{metric: gmacs, above: 1, cpus: 888}]}", "requests 888 CPUs and 0 GPUs."),
    ],
)
def test_check_says_what_this_machine_lacks(
    study_file: Path, requested: str, expected: str
) -> None:
    study_file.write_text(f"{study_file.read_text()}\nresources: {requested}\n")
    result = call("check", study_file)
    assert (result.exit_code, "is valid" in result.stdout) == (0, True), result.output
    assert expected in result.stderr
    assert "run the study in a cluster with --address." in result.stderr
    assert expected in json.loads(call("check", study_file, "--json").stdout)["lacking"]


def test_check_reads_a_study_from_a_pipe(study_file: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as threads:
        written = threads.submit(pipe.write_text, study_file.read_text())
        result = call("check", pipe)
        written.result()
    assert result.exit_code == 0, result.output
    assert "study 'small' is valid" in result.output


@pytest.mark.medium
@pytest.mark.parametrize("study", ["stride", "mbt_fusion"])
def test_init_writes_the_study_that_another_dataset_uses(tmp_path: Path, study: str) -> None:
    """The written file has the same space, training and search as `--dataset`."""
    file = tmp_path / "study.yaml"
    done = call("init", "digits", "--study", study, "--out", file)
    assert done.exit_code == 0, done.stderr
    assert "adapted: modalities: " in done.stdout
    written, _, _ = check_study(file)
    adapted, spec, _ = check_study(study, dataset="digits")
    assert written.study == adapted.study.model_copy(update={"description": ""})
    assert definition_of(written, spec) == definition_of(adapted, spec)
    again = call("init", "digits", "--study", study, "--out", file)
    assert again.exit_code == 1
    assert f"'{file}' exists: remove it, or choose another file with --out." in again.stderr


def test_init_says_why_a_file_cannot_be_written(tmp_path: Path) -> None:
    done = call("init", "digits", "--out", tmp_path / "missing" / "study.yaml")
    assert done.exit_code == 1
    assert "No such file or directory" in done.stderr


@pytest.mark.medium
def test_price_lists_costs_without_measuring(study_file: Path) -> None:
    result = call("price", study_file, "--no-time", "--json")
    assert result.exit_code == 0
    output = json.loads(result.stdout)
    assert [row["configuration"]["stride"] for row in output["configurations"]] == [4, 1]
    assert output["study_seconds"] is None
    text = call("price", study_file, "--no-time").output
    assert "stride=4" in text
    assert "2 admissible configurations of 2 points" in text
    assert "minutes" not in text
    assert "s per trial" in call("price", study_file, "--top", "1").output


def test_models_lists_every_model_with_every_parameter() -> None:
    text = call("models").output
    rows = json.loads(call("models", "--json").output)
    assert [row["model"] for row in rows] == sorted(MODELS)
    for row in rows:
        assert re.search(rf"^{row['model']}  \(", text, flags=re.MULTILINE)
        for parameter in row["parameters"]:
            assert f"\n    {parameter['name']} " in text
    assert "\n    learning_rate " in text
    assert re.search(r"^    modalities .* all of the dataset$", text, flags=re.MULTILINE)
    assert re.search(r"^    tokens .* none$", text, flags=re.MULTILINE)


def test_schema_is_the_json_schema_of_study_files() -> None:
    assert json.loads(call("schema").output) == StudyFile.model_json_schema()
