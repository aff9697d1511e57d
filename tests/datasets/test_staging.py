"""Remote stores on a local S3 server: publish, fetch once, verify, cut connections."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner

from sftsearch.datasets import remote, staging
from sftsearch.datasets.catalog import describe, open_dataset
from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.prepare import prepare
from sftsearch.datasets.source import Sample, Source
from sftsearch.datasets.spec import SPLITS, ModalitySpec
from sftsearch.datasets.store import open_store, verify
from sftsearch.orchestrator.cli.main import main

from servers import s3_client, s3_server, use_s3

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sftsearch.datasets.store import Store

pytestmark = pytest.mark.service
ROOT = "s3://features/stores"


def values_of(number: int) -> dict[str, np.ndarray]:
    """Return 16 KiB, so that a split has about half a megabyte."""
    return {"x": np.random.default_rng(number).standard_normal((64, 64)).astype(np.float32)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    samples = [
        Sample(name=str(n), split=SPLITS[n % 3], label=n % 2, read=lambda n=n: values_of(n))
        for n in range(90)
    ]
    source = Source(
        task="classification",
        modalities={"x": ModalitySpec(num_tokens=64, num_features=64)},
        classes=("a", "b"),
        samples=samples,
        licence="none",
        attribution="nobody",
        source="this test",
        description="Numbers.",
    )
    path = tmp_path_factory.mktemp("prepared") / "mine"
    return open_store(prepare("mine", source, path).path)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with s3_server(monkeypatch) as endpoint:
        yield endpoint


def test_a_published_store_is_fetched_unchanged(store: Store, server: str, tmp_path: Path) -> None:
    assert staging.publish(store, ROOT) == f"{ROOT}/mine"
    assert describe("mine", root=ROOT, cache=tmp_path) == store.spec
    staged = open_dataset("mine", root=ROOT, cache=tmp_path)
    assert staged.path.parent == tmp_path / "staged"
    verify(staged)
    assert staged.checksums == store.checksums
    np.testing.assert_array_equal(
        staged.split("train").modalities["x"], store.split("train").modalities["x"]
    )


def test_a_store_is_fetched_once(store: Store, server: str, tmp_path: Path) -> None:
    staging.publish(store, ROOT)
    first = open_dataset("mine", root=ROOT, cache=tmp_path)
    inode = (first.path / "train.arrow").stat().st_ino
    again = open_dataset("mine", root=f"{ROOT}/", cache=tmp_path)
    assert (again.path / "train.arrow").stat().st_ino == inode
    assert [path.name for path in (tmp_path / "staged").iterdir() if path.is_dir()] == [
        first.path.name
    ]


STAGE = """
import sys
from pathlib import Path
from sftsearch.datasets.catalog import open_dataset
print("ready", flush=True)
sys.stdin.readline()
store = open_dataset("mine", root=sys.argv[1], cache=Path(sys.argv[2]))
print(store.path, (store.path / "train.arrow").stat().st_ino)
"""


def test_concurrent_trials_share_one_copy(store: Store, server: str, tmp_path: Path) -> None:
    staging.publish(store, ROOT)
    command = [sys.executable, "-P", "-c", STAGE, ROOT, str(tmp_path)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    outputs = {process.communicate("go\n", timeout=60)[0] for process in processes}
    assert len(outputs) == 1
    assert all(process.returncode == 0 for process in processes)
    assert not list((tmp_path / "staged").glob(".building*"))


class CuttingProxy:
    """Forwards bytes to a server; cuts all connections after `allowed` bytes from it in total."""

    def __init__(self, endpoint: str, allowed: int) -> None:
        host, port = endpoint.removeprefix("http://").split(":")
        self._server, self.allowed = (host, int(port)), allowed
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                one, _ = self._socket.accept()
                other = socket.create_connection(self._server)
                threading.Thread(target=self._pass, args=(one, other, False), daemon=True).start()
                threading.Thread(target=self._pass, args=(other, one, True), daemon=True).start()

    def _pass(self, read: socket.socket, write: socket.socket, counts: bool) -> None:
        with contextlib.suppress(OSError), read, write:
            while data := read.recv(65536):
                if counts:
                    data = data[: max(self.allowed, 0)]
                    self.allowed -= len(data)
                write.sendall(data)
                if counts and self.allowed <= 0:
                    return


@pytest.mark.timeout(180)
def test_a_cut_connection_is_reported_and_the_next_run_completes(
    store: Store, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging.publish(store, ROOT)
    monkeypatch.setattr(remote, "REQUEST_SECONDS", 2)
    proxy = CuttingProxy(server, allowed=600_000)  # the manifest and about half of the samples
    use_s3(monkeypatch, proxy.endpoint)
    with pytest.raises(DatasetError, match=f"Cannot read {ROOT}/mine: ") as raised:
        open_dataset("mine", root=ROOT, cache=tmp_path)
    proxy.close()
    assert "\n" not in str(raised.value)
    assert "s3cret" not in str(raised.value)
    assert [path.name for path in (tmp_path / "staged").iterdir() if path.is_dir()] == []
    use_s3(monkeypatch, server)
    verify(open_dataset("mine", root=ROOT, cache=tmp_path))


STUDY = """
study: {name: from_s3}
dataset: {kind: mine, root: "s3://features/stores"}
objectives:
  - {metric: top1, direction: maximize}
  - {metric: gflops, direction: minimize}
search: {baselines: false, sampler: exhaustive, trials: 2}
training: {epochs: 1, batch_size: 16}
space:
  - kind: unimodal
    patch: 8
    dim: 8
    num_heads: 2
    modalities: [x]
    unimodal_layers: 1
    fused_layers: {kind: choice, values: [1, 2]}
"""


@pytest.mark.timeout(300)
def test_a_study_trains_from_a_remote_store_after_a_cut_connection(
    store: Store, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Driver and workers fetch the store; no secret is in the files they write."""
    staging.publish(store, ROOT)
    monkeypatch.setenv("SFTSEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "REQUEST_SECONDS", 2)
    study, runs = tmp_path / "from_s3.yaml", tmp_path / "runs"
    study.write_text(STUDY)
    proxy = CuttingProxy(server, allowed=600_000)
    use_s3(monkeypatch, proxy.endpoint)
    arguments = ["run", str(study), "--runs", str(runs)]
    cut = CliRunner().invoke(main, arguments)
    proxy.close()
    assert cut.exit_code != 0
    assert f"Cannot read {ROOT}/mine: " in cut.output
    assert "Traceback" not in cut.output
    use_s3(monkeypatch, server)
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "Ended: all trials ran." in done.output
    confirmed = CliRunner().invoke(main, ["confirm", "from_s3", "--yes", "--runs", str(runs)])
    assert confirmed.exit_code == 0, confirmed.output
    left = [path for path in runs.rglob("*") if path.is_file()]
    assert not [path for path in left if b"s3cret" in path.read_bytes()]


def test_a_damaged_store_is_not_staged(store: Store, server: str, tmp_path: Path) -> None:
    staging.publish(store, ROOT)
    s3 = s3_client(server)
    content = bytearray((store.path / "train.arrow").read_bytes())
    content[len(content) // 2] ^= 1
    s3.put_object(Bucket="features", Key="stores/mine/train.arrow", Body=bytes(content))  # type: ignore[attr-defined]
    with pytest.raises(DatasetError, match=f"store {ROOT}/mine is damaged .*train.arrow: sha256"):
        open_dataset("mine", root=ROOT, cache=tmp_path)
    assert not [path for path in (tmp_path / "staged").iterdir() if path.is_dir()]
    staging.publish(store, ROOT)
    verify(open_dataset("mine", root=ROOT, cache=tmp_path))


def test_a_missing_store_or_bucket_is_reported(store: Store, server: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=f"Cannot read {ROOT}/mine: there is no 'manifest.json'"):
        open_dataset("mine", root=ROOT, cache=tmp_path)
    with pytest.raises(DatasetError, match="Cannot write s3://nobodys/mine: "):
        staging.publish(store, "s3://nobodys")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("ftp://host/path", "must begin with s3://, gs://, hdfs://, but got 'ftp://host/path'"),
        ("s3:///path", "must begin with"),
        ("s3://key:s3cret@bucket/p", "Remove them from 's3://bucket/p'"),
        ("s3://bucket/p?secret_key=s3cret", "Remove them from 's3://bucket/p'"),
    ],
)
def test_invalid_uris_and_uris_with_secrets_are_refused(
    tmp_path: Path, uri: str, message: str
) -> None:
    with pytest.raises(DatasetError) as raised:
        open_dataset("mine", root=uri, cache=tmp_path)
    assert message in str(raised.value)
    assert "s3cret" not in str(raised.value)
