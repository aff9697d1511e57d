"""The command line: quick help that teaches, exit codes, one-line errors, JSON that parses."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import click
import pytest
from click.testing import CliRunner, Result

from sftsearch.datasets.catalog import DATASETS
from sftsearch.orchestrator.cli import main
from sftsearch.orchestrator.storage.journal import Journal
from sftsearch.search_spaces.schema import StudyFile
from sftsearch.trainables.catalog import MODELS

if TYPE_CHECKING:
    from pathlib import Path

SFTSEARCH = [sys.executable, "-c", "from sftsearch.orchestrator.cli.main import main; main()"]
HEAVY = ("ray", "torch", "mlflow", "optuna", "pydantic", "numpy", "rich", "pandas", "yaml",
         "matplotlib", "plotly", "pyarrow", "sklearn")  # fmt: skip


def call(*arguments: str | Path, **more: Any) -> Result:
    return CliRunner().invoke(main.main, [str(argument) for argument in arguments], **more)


def commands() -> dict[str, click.Command]:
    """Return every command by its full name, groups included."""
    found: dict[str, click.Command] = {}

    def walk(command: click.Command, name: str) -> None:
        found[name] = command
        for inner in getattr(command, "commands", {}).values():
            walk(inner, f"{name} {inner.name}".strip())

    walk(main.main, "")
    return found


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
        journal.append(
            "admitted", number=0, configuration_id="abc", model="sft", cost=cost, seeds=[0, 1],
            parameters={"stride": 4, "modalities": ["watch_acc"]},
        )  # fmt: skip
        journal.append("refused", number=1, reason="repeat", detail="", excess=1.0)
        journal.append("started", trial="abc-0")
        journal.append("started", trial="abc-1")
        values = cost | {"top1": 0.75}
        journal.append("finished", trial="abc-0", values=values, groups={"s1": [3, 4]}, facts={})
        journal.append("failed", trial="abc-1", reason="the loss is not finite")
    log = tmp_path / "runs" / "small" / "trials" / "abc-0" / "trial.log"
    log.parent.mkdir(parents=True)
    log.write_text("epoch 1\n")
    return tmp_path / "runs"


# --------------------------------------------------------------------- help


def test_help_imports_nothing_heavy() -> None:
    """Ray and torch take seconds to import; help must answer at once."""
    code = (
        "import sys\nfrom sftsearch.orchestrator.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit as end: assert not end.code\n"
        f"print('IMPORTED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "IMPORTED []"


def test_the_list_of_commands_cuts_no_help_short_at_80_columns() -> None:
    for arguments in ("--help", "-h"):
        result = call(arguments, terminal_width=80)
        assert result.exit_code == 0
        assert "..." not in result.output.split("Commands:")[1]
        assert max(map(len, result.output.splitlines())) <= 80


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_and_option_says_what_it_does(name: str) -> None:
    command = commands()[name]
    assert re.fullmatch(r"[A-Z].*[.:]", (command.help or "").splitlines()[0])
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.name}"
            assert parameter.help.endswith(".")
    result = call(*name.split(), "--help")
    assert result.exit_code == 0
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            assert parameter.make_metavar(click.Context(command)) in (command.help or "")


def test_the_first_walk_names_commands_that_exist() -> None:
    walk = re.findall(r"^ +sftsearch (\w+)", main.main.help or "", flags=re.MULTILINE)
    assert walk == ["check", "price", "run", "pareto", "confirm", "ui"]
    assert set(walk) <= set(main.main.commands)


def test_the_version_is_the_packages() -> None:
    assert re.fullmatch(r".*version \d+\.\d+\.\d+\n", call("--version").output)


# --------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["fly"], 2, "No such command 'fly'"),
        (["price", "stride", "--top", "none"], 2, "Invalid value for '--top'"),
        (["check"], 2, "Missing argument 'FILE'"),
        (["check", "strid"], 2, "Error: There is no study file 'strid'. Did you mean 'stride'?"),
        (["data", "info", "wearble"], 1, "Error: No data set is called 'wearble'. Did you mean "
                                         "'wearables'?"),
        (["status", "small"], 1, "Error: There is no study 'small' in "),
        (["status", "../small"], 1, "Error: '../small' is not the name of a study"),
        (["show", "abc"], 1, "Error: No trial's key begins with 'abc'"),
        (["run", "strid"], 2, "Error: There is no study file 'strid'."),
        (["run", "stride", "--ship-code"], 2, "Error: --ship-code is for a cluster"),
    ],
)  # fmt: skip
def test_mistakes_of_the_command_are_a_line_and_a_code(
    tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    takes_runs = arguments[0] in ("status", "show", "run")
    result = call(*arguments, *(["--runs", tmp_path / "none"] if takes_runs else []))
    assert result.exit_code == code
    assert message in result.stderr
    assert "Error" not in result.stdout
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("command", ["check", "price", "run"])
def test_a_wrong_study_file_is_code_2_with_a_line_for_each_mistake(
    tmp_path: Path, command: str
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("study: {name: Small}\ndataset: {kind: wearble}\nspace: [{kind: stf}]\n")
    result = call(command, path)
    assert result.exit_code == 2
    assert "Error" not in result.stdout
    lines = result.stderr.splitlines()
    assert lines[0].startswith(f"Error: {path}, line 1: search: This key is missing.")
    assert [re.findall(r"line (\d)", line) for line in lines] == [["1"], ["1"], ["2"], ["3"]]
    assert not (tmp_path / "runs").exists()


@pytest.mark.medium
def test_a_process_gives_the_same_code_and_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_bytes(b"\x89PNG\x00")
    done = subprocess.run(
        [*SFTSEARCH, "check", str(path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert done.stderr == f"Error: {path}, line 1: The file is not UTF-8 text (byte 0x89).\n"


def test_an_interrupt_is_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sftsearch.orchestrator.study.check_study", interrupt)
    result = call("check", "stride")
    assert (result.exit_code, result.stderr) == (130, "Interrupted.\n")


# ----------------------------------------------------------------- commands


def test_check_says_what_would_run_and_writes_nothing(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("check", study_file)
    assert result.exit_code == 0
    assert result.output == (
        f"{study_file}: study 'small' is well-formed: 2 trials (1 replicate a configuration) over "
        "2 admissible configurations on wearables.\n"
    )
    assert json.loads(call("check", study_file, "--json").output) == {
        "study": "small", "dataset": "wearables", "trials": 2, "points": 2,
        "replicates": {"min": 1, "max": 1, "fresh": 0},
        "admissible": 2, "refused": {},
    }  # fmt: skip
    assert list(tmp_path.iterdir()) == [study_file]


@pytest.mark.medium
def test_price_lists_costs_without_measuring(study_file: Path) -> None:
    result = call("price", study_file, "--no-time", "--json")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert [row["configuration"]["stride"] for row in told["configurations"]] == [4, 1]
    assert told["study_seconds"] is None
    text = call("price", study_file, "--no-time").output
    assert "stride=4" in text
    assert "2 admissible configurations of 2 points" in text
    assert "minutes" not in text
    assert "s a trial" in call("price", study_file, "--top", "1").output


def test_models_lists_every_model_with_every_parameter() -> None:
    text = call("models").output
    rows = json.loads(call("models", "--json").output)
    assert [row["model"] for row in rows] == sorted(MODELS)
    for row in rows:
        assert re.search(rf"^{row['model']}  \(", text, flags=re.MULTILINE)
        for parameter in row["parameters"]:
            assert f"\n    {parameter['name']} " in text
    assert "\n    learning_rate " in text
    assert re.search(r"^    modalities .* all of the data set$", text, flags=re.MULTILINE)
    assert re.search(r"^    tokens .* none$", text, flags=re.MULTILINE)


def test_data_of_another_task_is_told_as_it_is() -> None:
    assert "regression" in call("data", "list").output
    text = call("data", "info", "synthetic_rating").output
    assert "task:         regression" in text
    assert "right, 0 to 8 tokens x 3" in text
    assert re.search(r"^train: +2000 samples$", text, flags=re.MULTILINE)


@pytest.mark.medium
def test_data_list_and_info_name_licence_and_splits() -> None:
    rows = json.loads(call("data", "list", "--json").output)
    assert [row["data set"] for row in rows] == sorted(DATASETS)
    assert "CC BY 4.0" in call("data", "list").output
    told = json.loads(call("data", "info", "wearables", "--json").output)
    assert told["licence"] == "CC BY 4.0"
    for split in told["splits"].values():
        assert sum(split["by class"].values()) == split["samples"]
    text = call("data", "info", "wearables").output
    for word in ("attribution:", "train:", "validation:", "test:", "watch_gyro", "Matey-Sanz"):
        assert word in text


def test_schema_is_the_json_schema_of_study_files() -> None:
    assert json.loads(call("schema").output) == StudyFile.model_json_schema()


def test_list_of_an_empty_folder_says_how_to_begin(tmp_path: Path) -> None:
    result = call("list", "--runs", tmp_path / "none")
    assert result.exit_code == 0
    assert result.output.endswith("Begin with: sftsearch run stride\n")
    assert json.loads(call("list", "--runs", tmp_path, "--json").output) == []


def test_list_shows_what_each_study_has(runs: Path) -> None:
    (row,) = json.loads(call("list", "--runs", runs, "--json").output)
    assert row == {
        "study": "small", "dataset": "wearables", "finished": 1, "stopped": 0, "failed": 1,
        "running": 0, "refused": {"repeat": 1}, "confirmed": False, "problem": "",
    }  # fmt: skip
    assert call("list", env={"SFTSEARCH_RUNS": str(runs)}).output.split()[-7:] == [
        "small", "wearables", "1", "0", "1", "0", "no",
    ]  # fmt: skip


def test_a_broken_study_does_not_hide_the_others(runs: Path) -> None:
    (runs / "broken").mkdir()
    (runs / "broken" / "journal.sqlite").write_text("garbage" * 1000)
    Journal(runs / "unbegun").close()
    result = call("list", "--runs", runs)
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == [
        "broken", "small", "unbegun",
    ]  # fmt: skip
    broken, unbegun = result.stderr.splitlines()
    assert broken.startswith("broken: The journal '")
    assert "is damaged" in broken
    assert unbegun == "unbegun: The journal has no `created` event: the study never began."


def test_status_gives_counts_and_reasons(runs: Path) -> None:
    text = call("status", "small", "--runs", runs).output
    assert "1 of 4 trials finished, 0 stopped, 1 failed, 0 unfinished" in text
    assert "refused: 1 x repeat\n" in text
    assert "failed:  abc-1  the loss is not finite\n" in text
    told = json.loads(call("status", "small", "--runs", runs, "--json").output)
    assert (told["finished"], told["failed"], told["trials"]) == (1, 1, 4)


def test_a_stopped_trial_is_counted_and_says_when_and_why(runs: Path) -> None:
    with Journal(runs / "small") as journal:
        journal.append("replicated", configuration_id="abc", seeds=[2])
        journal.append("started", trial="abc-2")
        values = {"epoch": 4, "top1": 0.5, "gflops": 0.5}
        journal.append("stopped", trial="abc-2", epoch=4, reason="unlikely", values=values)
        concluded = {"reported": ["abc"], "beliefs": {}, "num_stopped": 1, "within_delta": 0.875}
        audits = {"rate": 0.25, "low": 0.0063, "high": 0.8059, "num": 4}
        journal.append("concluded", audits=audits, **concluded)
    text = call("status", "small", "--runs", runs).output
    assert "1 of 4 trials finished, 1 stopped, 1 failed, 0 unfinished" in text
    assert "1 of 4 audited stops would have been wrong: 25 % [1, 81].\n" in text
    assert "With probability 0.88 the configuration that the search reports is within" in text
    assert json.loads(call("status", "small", "--runs", runs, "--json").output)["stopped"] == 1
    (row,) = json.loads(call("list", "--runs", runs, "--json").output)
    assert (row["finished"], row["stopped"], row["failed"]) == (1, 1, 1)
    shown = call("show", "abc-2", "--runs", runs).output
    assert shown.startswith("trial abc-2: stopped after epoch 4: unlikely\n")
    assert re.search(r"top1 +0\.5\n", shown)
    told = json.loads(call("show", "abc-2", "--runs", runs, "--json").output)
    assert (told["status"], told["epoch"]) == ("stopped", 4)


def test_show_gives_values_and_log_by_the_beginning_of_a_key(runs: Path) -> None:
    text = call("show", "abc-0", "--runs", runs).output
    assert text.startswith("trial abc-0: finished\n")
    assert re.search(r"top1 +0\.75\n", text)
    assert text.endswith("epoch 1\n\n")
    failed = call("show", "abc-1", "--runs", runs).output
    assert failed.startswith("trial abc-1: failed: the loss is not finite\n")
    assert failed.endswith("(no log)\n")
    told = json.loads(call("show", "abc-0", "--runs", runs, "--json").output)
    assert told["values"]["top1"] == 0.75
    ambiguous = call("show", "abc", "--runs", runs)
    assert ambiguous.exit_code == 1
    assert "2 trials' keys begin with 'abc': abc-0 (small), abc-1 (small)." in ambiguous.stderr


@pytest.mark.medium
def test_output_into_a_closed_pipe_is_no_traceback() -> None:
    """As in `sftsearch models | head -1`."""
    done = subprocess.run(
        f"{shlex.join(SFTSEARCH)} models | head -c 1",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert len(done.stdout) == 1
    assert "Traceback" not in done.stderr


def test_the_help_shows_the_first_walk_line_by_line() -> None:
    lines = call("--help").output.splitlines()
    walk = [line.strip() for line in lines if line.strip().startswith("sftsearch ")]
    assert [line.split()[1] for line in walk] == [
        "check", "price", "run", "pareto", "confirm", "ui",
    ]  # fmt: skip
    assert not any("\\b" in line for line in lines)
