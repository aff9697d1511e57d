"""Limit the imports and the CPU time of small commands."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

HEAVY = {
    "h5py", "matplotlib", "mlflow", "numpy", "optuna", "pandas", "plotly", "pyarrow", "ray",
    "scipy", "sklearn", "torch",
}  # fmt: skip
"""Packages that take at least 0.1 s to import."""
COMMANDS = {
    "help": ["--help"],
    "list": ["list"],
    "status": ["status", "small"],
    "show": ["show", "abc-0"],
    "models": ["models"],
    "data list": ["data", "list"],
}
MAX_RATIO = 6
BARE = """
import click
@click.command()
def main() -> None:
    click.echo("nothing")
main()
"""
LOADED = """
import sys
from sftsearch.orchestrator.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print("loaded:", *sys.modules)
"""


def run(*command: str, runs: Path) -> str:
    """Run Python with a bytecode cache, as an installed program does."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"SFTSEARCH_RUNS": str(runs), "PYTHONPYCACHEPREFIX": str(runs / "pycache")}
    done = subprocess.run(
        [sys.executable, "-P", *command],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def cpu_seconds(*command: str, runs: Path) -> float:
    """Return the lowest CPU time of several runs, after one that fills the bytecode cache."""
    run(*command, runs=runs)
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run(*command, runs=runs)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_imports_no_heavy_package(command: str, runs: Path) -> None:
    loaded = run("-c", LOADED, *COMMANDS[command], runs=runs).split("loaded:")[1].split()
    assert not HEAVY & set(loaded)


@pytest.mark.medium
@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "help"])
def test_command_takes_little_cpu_time(command: str, runs: Path) -> None:
    """Compare CPU time with a bare program; wall time depends on other processes."""
    program = "from sftsearch.orchestrator.cli.main import main; main()"
    bare = cpu_seconds("-c", BARE, runs=runs)
    ours = cpu_seconds("-c", program, *COMMANDS[command], runs=runs)
    assert ours <= MAX_RATIO * bare, f"{ours:.3f} s, a bare program takes {bare:.3f} s"
