"""Command line: help texts, exit codes and one-line errors."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import click
import pytest
from click.testing import CliRunner, Result

from sftsearch.orchestrator.cli import main

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


# --------------------------------------------------------------------- help


def test_help_imports_nothing_heavy() -> None:
    """Ray and torch take seconds to import, and help must be fast."""
    code = (
        "import sys\nfrom sftsearch.orchestrator.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit as end: assert not end.code\n"
        f"print('IMPORTED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "IMPORTED []"


def test_help_truncates_no_summary_at_80_columns() -> None:
    for arguments in ("--help", "-h"):
        result = call(arguments, terminal_width=80)
        assert result.exit_code == 0
        assert "..." not in result.output.split("Commands:")[1]
        assert max(map(len, result.output.splitlines())) <= 80


@pytest.mark.parametrize("name", sorted(commands()))
def test_help_describes_every_command_and_option(name: str) -> None:
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


def test_help_lists_existing_commands_in_its_quick_start() -> None:
    names = re.findall(r"^ +sftsearch (\w+)", main.main.help or "", flags=re.MULTILINE)
    assert names == ["check", "price", "run", "pareto", "confirm", "export", "ui"]
    assert set(names) <= set(main.main.commands)


def test_version_is_that_of_the_package() -> None:
    assert re.fullmatch(r".*version \d+\.\d+\.\d+\n", call("--version").output)


# --------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["fly"], 2, "No such command 'fly'"),
        (["price", "stride", "--top", "none"], 2, "Invalid value for '--top'"),
        (["check"], 2, "Missing argument 'FILE'"),
        (["check", "strid"], 2, "Error: There is no study file 'strid'. Did you mean 'stride'?"),
        (["data", "info", "wearble"], 1, "Error: No dataset is called 'wearble'. Did you mean "
                                         "'wearables'?"),
        (["status", "small"], 1, "Error: There is no study 'small' in "),
        (["status", "../small"], 1, "Error: '../small' is not the name of a study"),
        (["show", "abc"], 1, "Error: No trial's key begins with 'abc'"),
        (["run", "strid"], 2, "Error: There is no study file 'strid'."),
        (["run", "stride", "--ship-code"], 2, "Error: --ship-code needs a cluster"),
    ],
)  # fmt: skip
def test_main_reports_an_error_with_one_line_and_a_code(
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
def test_main_reports_each_error_of_a_study_file_on_a_line(tmp_path: Path, command: str) -> None:
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
def test_process_has_the_same_code_and_no_traceback(tmp_path: Path) -> None:
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


def test_main_exits_with_130_after_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sftsearch.orchestrator.study_file.check_study", interrupt)
    result = call("check", "stride")
    assert (result.exit_code, result.stderr) == (130, "Interrupted.\n")


@pytest.mark.medium
def test_main_writes_no_traceback_into_a_closed_pipe() -> None:
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


def test_help_shows_the_quick_start_line_by_line() -> None:
    lines = call("--help").output.splitlines()
    shown = [line.strip() for line in lines if line.strip().startswith("sftsearch ")]
    assert [line.split()[1] for line in shown] == [
        "check", "price", "run", "pareto", "confirm", "export", "ui",
    ]  # fmt: skip
    assert not any("\\b" in line for line in lines)
