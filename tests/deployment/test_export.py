"""Test the export of a study's models: files, card, choice, errors, hostile changes.

Shapes: B batch, C outputs.
"""

from __future__ import annotations

import io
import json
import pickletools
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from sftsearch.orchestrator.cli.main import main
from sftsearch.orchestrator.deployment import export, graphs
from sftsearch.orchestrator.deployment.choice import Choice
from sftsearch.orchestrator.deployment.folder import ExportError, check_folder
from sftsearch.orchestrator.deployment.trained import load_trained
from sftsearch.orchestrator.storage.trial_files import WEIGHTS
from sftsearch.orchestrator.studies import StudyError, read_record

pytestmark = [pytest.mark.medium, pytest.mark.timeout(600)]


def identity(study: Path, model: str) -> str:
    """Return the id of the study's configuration of a model."""
    (found,) = {t.configuration_id for t in read_record(study).trials if t.model == model}
    return found


def run(study: Path, *arguments: str | Path) -> Result:
    where = ("--runs", str(study.parent))
    return CliRunner().invoke(main, ["export", study.name, *map(str, arguments), *where])


def predict_apart(folder: Path, *arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run `python m/predict.py ARGUMENTS` with numpy and onnxruntime alone."""
    if not home.exists():
        venv.create(home, symlinks=True)
        (packages,) = home.glob("lib/python*/site-packages")
        for module in (np, onnxruntime):
            source = Path(str(module.__file__)).parent
            for found in source.parent.glob(f"{source.name}*"):
                if found.name in (source.name, f"{source.name}.libs"):
                    (packages / found.name).symlink_to(found)
    command = [str(home / "bin" / "python"), "-I", str(folder.name + "/predict.py"), *arguments]
    return subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where an environment with numpy and onnxruntime alone is created."""
    return tmp_path_factory.mktemp("environment") / "python"


@pytest.fixture(scope="module")
def exported(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an ONNX export of the gated model."""
    out = tmp_path_factory.mktemp("exported") / "m"
    result = run(study, identity(study, "dynmm"), "--out", out)
    assert result.exit_code == 0, result.output
    return out


def test_three_commands_lead_to_a_prediction(study: Path, tmp_path: Path, python: Path) -> None:
    """Run, export, predict; the last one needs numpy and onnxruntime alone."""
    out = tmp_path / "m"
    result = run(study, "--best", "--to", "onnx", "--out", out)
    assert result.exit_code == 0, result.output
    done = predict_apart(out, "sample.npz", home=python)
    assert done.returncode == 0, done.stderr
    described = json.loads((out / "model.json").read_text())
    model = load_trained(study, described["configuration"])
    arrays = {k: torch.from_numpy(x) for k, x in np.load(out / "sample.npz").items()}
    scores = model(*graphs.as_inputs(model, arrays))["scores"]
    expected = [
        f"{i}\t{model.classes[int(row.argmax())]} {float(row.max()):.3f}"
        for i, row in enumerate(scores)
    ]
    assert len(expected) == 5
    assert done.stdout.splitlines() == expected
    for name in ("torch", "sftsearch", "onnx"):
        command = [python / "bin" / "python", "-I", "-c", f"import {name}"]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 1


def test_a_gated_export_has_a_gate_and_all_routes(exported: Path, python: Path) -> None:
    assert sorted(path.name for path in exported.iterdir()) == sorted(
        ["gate.onnx", "route_1.onnx", "route_2.onnx", "model.json", "configuration.yaml", "card.md",
         "predict.py", "sample.npz", "SHA256SUMS"]
    )  # fmt: skip
    done = predict_apart(exported, home=python)
    assert len(done.stdout.splitlines()) == 5, done.stderr
    assert "one of 2 routes; all are exported" in (exported / "card.md").read_text()


def test_a_route_reads_only_its_own_weights(exported: Path) -> None:
    """The cheap route is smaller than the expensive one, and neither has the gate."""
    import onnx

    def names(name: str) -> set[str]:
        graph = onnx.load(exported / f"{name}.onnx").graph
        return {one.name for one in graph.initializer}

    assert any(".gate." in one for one in names("gate"))
    assert not any(".gate." in one for one in names("route_1") | names("route_2"))
    assert not any(".experts.0." in one for one in names("route_2"))


@pytest.mark.parametrize("file", ["route_2.onnx", "model.json", "card.md", "sample.npz"])
def test_a_changed_file_is_refused(file: str, exported: Path, tmp_path: Path, python: Path) -> None:
    folder = shutil.copytree(exported, tmp_path / "m")
    content = bytearray((folder / file).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / file).write_bytes(content)
    done = predict_apart(folder, home=python)
    assert done.returncode == 1
    assert done.stderr.strip() == f"{file} is not the exported file: its checksum differs."
    result = CliRunner().invoke(main, ["verify", str(folder)])
    assert result.exit_code == 1
    assert f"{file} is not as it was written" in result.output
    assert CliRunner().invoke(main, ["verify", str(exported)]).exit_code == 0


def test_configuration_and_card_describe_the_model(exported: Path, study: Path) -> None:
    read = yaml.safe_load((exported / "configuration.yaml").read_text())
    record = read_record(study)
    assert read["configuration"] == identity(study, "dynmm")
    assert read["replicates"] == [0]
    assert read["model"]["kind"] == "dynmm"
    assert [one["kind"] for one in read["model"]["experts"]] == ["unimodal", "concat"]
    assert read["training"]["epochs"] == 2
    card = (exported / "card.md").read_text()
    mean = np.mean([t.values["top1"] for t in record.trials if t.model == "dynmm"])
    assert f"mean of 2 replicates | {mean:.3f} |" in card
    assert "baseline `majority`" in card
    assert "The test split has not been evaluated" in card
    for text in (record.facts["licence"], record.facts["attribution"], "0.0001 are equal", "onnx "):
        assert text in card
    for file in (*exported.iterdir(),):
        assert str(study).encode() not in file.read_bytes()
        assert b"site-packages" not in file.read_bytes()


def has_pickle(content: bytes) -> bool:
    """Return whether a file is a pickle, or an archive with one."""
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return any(has_pickle(archive.read(name)) for name in archive.namelist())
    try:
        return content[:1] == b"\x80" and bool(list(pickletools.genops(content)))
    except ValueError:
        return False


@pytest.mark.parametrize("kind", ["onnx", "pt2", "safetensors", "mlflow"])
def test_exports_have_no_pickle(kind: Any, study: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"x": torch.ones(1)}, buffer)
    assert has_pickle(buffer.getvalue())
    chosen = Choice(configuration=identity(study, "concat"))
    made = export.export_model(study, chosen, kind=kind, out=tmp_path / "m")
    files = [tmp_path / "m" / name for name in made.files]
    assert len(files) >= 6
    assert [file for file in files if has_pickle(file.read_bytes())] == []
    check_folder(tmp_path / "m")
    if kind == "pt2":
        loaded = torch.export.load(tmp_path / "m" / "model.pt2").module()
        model = load_trained(study, made.configuration_id)
        arrays = {k: torch.from_numpy(x) for k, x in np.load(tmp_path / "m" / "sample.npz").items()}
        given = graphs.as_inputs(model, arrays)
        torch.testing.assert_close(loaded(*given), model(*given)["scores"])


def test_an_ensemble_averages_the_replicates(study: Path, tmp_path: Path) -> None:
    chosen = identity(study, "concat")
    out = tmp_path / "m"
    result = run(study, chosen, "--ensemble", "--to", "pt2", "--out", out, "--json")
    assert json.loads(result.output)["seeds"] == [0, 1]
    arrays = {k: torch.from_numpy(x) for k, x in np.load(out / "sample.npz").items()}
    parts = [load_trained(study, chosen, replicate=seed) for seed in (0, 1)]
    mean = sum(one(*graphs.as_inputs(one, arrays))["scores"] for one in parts) / 2
    found = torch.export.load(out / "model.pt2").module()(*graphs.as_inputs(parts[0], arrays))
    torch.testing.assert_close(found, mean)
    assert "the mean of the scores of the replicates 0, 1" in (out / "card.md").read_text()


def test_replicate_is_exported(study: Path, tmp_path: Path) -> None:
    chosen = identity(study, "concat")
    result = run(study, chosen, "--replicate", "1", "--to", "safetensors", "--out", tmp_path / "m")
    assert f"concat {chosen}, replicate 1" in result.output
    from safetensors.torch import load_file

    expected = load_trained(study, chosen, replicate=1).state_dict()
    for name, tensor in load_file(tmp_path / "m" / "model.safetensors").items():
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-gmacs", "1e-12"], "No configuration of the front has at most 1e-12 gmacs. It has"),
        (["--max-gflops", "1e-12"], "at most 1e-12 gflops"),
        (["zzz"], "No finished configuration of 'toy' begins with 'zzz'. The front: "),
        (["baseline-majority"], "is a baseline, which has no weights"),
        (["--best", "--replicate", "7"], "has no finished replicate 7. Finished: 0, 1."),
        (["--best", "zzz"], "Give a CONFIGURATION, or --best, or a limit."),
        (["--ensemble", "--replicate", "0"], "Give --replicate or --ensemble."),
        (["--register", "name"], "--register needs --to mlflow."),
    ],
)
def test_errors_say_what_there_is(
    arguments: list[str], message: str, study: Path, tmp_path: Path
) -> None:
    result = run(study, *arguments, "--out", tmp_path / "m")
    assert result.exit_code in (1, 2)
    assert message in " ".join(result.output.split())
    assert list(tmp_path.iterdir()) == []


def test_a_limit_chooses_within_it(study: Path, tmp_path: Path) -> None:
    """The limit is the cost of the cheapest configuration of the front."""
    costs = {t.configuration_id: t.values["gmacs"] for t in read_record(study).trials}
    cheapest = min(costs, key=costs.__getitem__)
    made = export.export_model(
        study, Choice(max_gmacs=costs[cheapest]), kind="safetensors", out=tmp_path / "m"
    )
    assert made.configuration_id == cheapest


def test_missing_and_damaged_weights_are_reported(study: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(study, tmp_path / "runs" / "toy")
    chosen = identity(study, "concat")
    first, second = (folder / "trials" / f"{chosen}-{seed}" / WEIGHTS for seed in (0, 1))
    first.unlink()
    assert load_trained(folder, chosen).state_dict().keys()  # the next replicate
    second.write_bytes(b"no weights")
    with pytest.raises(StudyError, match=f"weights of trial {chosen}-1 cannot be read"):
        load_trained(folder, chosen)
    second.unlink()
    with pytest.raises(StudyError, match=r"no weights of any replicate .*max_weights_gb"):
        load_trained(folder, chosen)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ExportError("it differs")])
def test_nothing_is_left_after_a_failure(
    error: Any, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(export, "write_card", fail)
    result = run(study, "--best", "--to", "safetensors", "--out", tmp_path / "m")
    assert result.exit_code == (130 if error is KeyboardInterrupt else 1)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(export.NEEDED, "onnx", ("numpy", "not_installed"))
    with pytest.raises(ExportError, match=r"needs not_installed. Install the extra `export`"):
        export.check_packages("onnx")


def test_loading_a_model_imports_no_ray(study: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from sftsearch.orchestrator.deployment.trained import load_trained\n"
        f"load_trained(Path({str(study)!r}), {identity(study, 'concat')!r})\n"
        "print([name for name in ('ray', 'mlflow', 'click', 'onnx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
