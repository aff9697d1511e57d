"""Output that cannot end a command: closed pipes, and encodings that lack characters."""

from __future__ import annotations

import os
import subprocess
import sys

import click
import pytest

from sftsearch.orchestrator.cli.console import resume_command
from sftsearch.orchestrator.cli.options import PLUGINS

CALL = "from sftsearch.orchestrator.cli.main import main; main()"
LINES = """
from sftsearch.orchestrator.cli.output import make_output_lasting
make_output_lasting()
import sys
for number in range(100_000):
    print(number)
print("done", file=sys.stderr)
"""
SIGNS = """
from sftsearch.orchestrator.cli.output import make_output_lasting
make_output_lasting()
import click
from rich.console import Console
from rich.table import Table
table = Table("a \u00b1 b")
table.add_row("\u2264 0.1")
Console().print(table)
print("\u00b1 1")
click.echo("2 \u2013 3")
"""


def test_program_goes_on_when_its_reader_goes_away() -> None:
    command = [sys.executable, "-c", LINES]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"0\n"
        process.stdout.close()
        assert process.stderr.read() == b"done\n"
    assert process.returncode == 0


def test_command_whose_reader_is_gone_ends_well() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", CALL, "models"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_characters_that_a_terminal_lacks_are_replaced(encoding: str) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    command = [sys.executable, "-c", SIGNS]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode(encoding, errors="replace")
    assert ("\u00b1 1" in text) == (encoding != "ascii")
    assert ("\u2264 0.1" in text) == (encoding == "utf-8")
    assert "0.1" in text


def test_resume_command_repeats_every_option() -> None:
    with click.Context(click.Command("run")) as context:
        assert resume_command("stride", "", None, None, None, ship_code=False) == (
            "sftsearch run stride --resume"
        )
        context.meta[PLUGINS] = ("my models.py",)
        found = resume_command(
            "a b.yaml", " --runs x", "mine", "s3://b/c", "host:1", ship_code=True
        )
    assert found == (
        "sftsearch run 'a b.yaml' --resume --dataset mine --root s3://b/c --address host:1 "
        "--plugin 'my models.py' --ship-code --runs x"
    )
