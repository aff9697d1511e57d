"""Check the files in docs/deploy that start clusters, as far as possible without a cluster."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from sftsearch.orchestrator.cli.main import main

from servers import free_port

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "docs" / "deploy"


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def pinned(package: str) -> str:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return next(line for line in lines if line.startswith(f"{package}==")).partition("==")[2]


def parse_command(text: str) -> dict[str, Any]:
    """Return the options of an `sftsearch run` command; raise click's error if it is invalid."""
    words = shlex.split(text)
    assert words[:2] == ["sftsearch", "run"]
    return main.commands["run"].make_context("run", words[2:]).params


def test_ray_cluster_file_is_valid_for_the_cluster_launcher() -> None:
    """Use the schema and the checks of the installed Ray."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(read("ray-cluster.yaml"))
    validate_config(config)
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    assert all("RAY_AUTH_MODE=token" in one for one in starts if "ray start" in one)
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][1]
    text = (DEPLOY / "ray-cluster.yaml").read_text()
    (command,) = re.findall(r"'(sftsearch run [^']*)'", text)
    assert parse_command(command)["address"] == "auto"


def test_rayjob_file_starts_a_valid_command() -> None:
    job = read("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    options = parse_command(job["spec"]["entrypoint"])
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == pinned("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert str(options["runs"]) in mounts
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {volume["name"] for volume in pod["volumes"]} == {"runs"}
    assert "env" not in str(groups[0]["template"]).replace("envFrom", "")  # no secrets inline


def test_slurm_script_is_valid_bash() -> None:
    subprocess.run(["bash", "-n", str(DEPLOY / "slurm.sh")], check=True)


SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
[[ "$1" == hostname ]] && exec echo {address}
[[ "$1" == ray ]] && exec "$@" --num-cpus=1 --object-store-memory=100000000
exec "$@"
"""
DRIVER = """#!{python}
import os, subprocess, sys
import ray
address = sys.argv[sys.argv.index("--address") + 1]
code = "import ray, sys; ray.init(address=sys.argv[1], logging_level='ERROR')"
for token in ("x" * 64, ""):
    environment = os.environ | {{"RAY_AUTH_TOKEN": token or os.environ["RAY_AUTH_TOKEN"]}}
    tried = subprocess.run([sys.executable, "-c", code, address], env=environment,
                           capture_output=True)
    print("wrong token" if token else "token", tried.returncode)
ray.init(address=address, logging_level="ERROR")
print("nodes", sum(node["Alive"] for node in ray.nodes()), *sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.service
@pytest.mark.timeout(300)
def test_slurm_script_starts_two_nodes_that_require_a_token(tmp_path: Path) -> None:
    """Run the script's own `ray start` commands, as two nodes on this machine."""
    programs = tmp_path / "bin"
    programs.mkdir()
    scripts = {
        "srun": SRUN.format(address="127.0.0.1"),
        "scontrol": "#!/bin/sh\nprintf 'node1\\nnode2\\n'\n",
        "sftsearch": DRIVER.format(python=sys.executable),
        "python3": f'#!/bin/sh\nexec {sys.executable} "$@"\n',
    }
    for name, text in scripts.items():
        (programs / name).write_text(textwrap.dedent(text))
        (programs / name).chmod(0o755)
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    more = {"PATH": path, "SLURM_JOB_NODELIST": "node[1-2]", "RAY_PORT": str(free_port())}
    done = subprocess.run(
        ["bash", str(DEPLOY / "slurm.sh"), "stride", "/shared/runs"],
        env=os.environ | more,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    address = f"127.0.0.1:{more['RAY_PORT']}"
    lines = done.stdout.splitlines()
    assert f"nodes 2 run stride --runs /shared/runs --resume --address {address}" in lines
    assert "token 0" in lines
    assert "wrong token 1" in lines
    deadline = time.monotonic() + 20
    while processes_with(more["RAY_PORT"]):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def processes_with(port: str) -> list[bytes]:
    """Return the command lines of Ray head processes that contain the port."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        if b"gcs_server" in command and port.encode() in command:
            found.append(command)
    return found
