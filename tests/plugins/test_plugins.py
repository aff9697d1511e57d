"""Plug-ins are found, hashed and imported only if a user names or installs them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from importlib import metadata
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from sftsearch.datasets.catalog import describe
from sftsearch.datasets.reader_catalog import reader_names
from sftsearch.orchestrator import plugins
from sftsearch.orchestrator.analysis.bound import BoundStudy
from sftsearch.orchestrator.analysis.front import FrontOptions, mark_front
from sftsearch.orchestrator.candidates.binding import bind
from sftsearch.orchestrator.cli.main import main
from sftsearch.orchestrator.execution.trial_spec import TrialSpec
from sftsearch.orchestrator.execution.worker import TrainingWorker
from sftsearch.orchestrator.plugins import (
    FUNCTION_GROUPS,
    PluginFileError,
    check_plugins,
    load_plugins,
    load_shipped,
    loaded_plugins,
    to_json,
)
from sftsearch.orchestrator.storage.trial_files import WEIGHTS
from sftsearch.orchestrator.studies import read_record
from sftsearch.orchestrator.study_file import check_study
from sftsearch.trainables.catalog import MODELS
from sftsearch.trainables.plugin_functions import FUNCTIONS, PluginError

from journals import Journal
from trial_specs import run, trial_spec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SPEC = describe("synthetic")
STUDY = """
study: {name: own}
dataset: {kind: synthetic}
search: {trials: 2}
training: {epochs: 2, batch_size: 256}
space:
  - {kind: mean_mlp, width: {kind: choice, values: [4, 8]}}
"""
MODEL = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self, shapes, num_outputs):
        super().__init__()
        self.head = nn.Linear(sum(f for _, f in shapes.values()), num_outputs)
    def forward(self, inputs):
        return self.head(torch.cat([x.mean(1) for x in inputs.values()], dim=1))
"""


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# ------------------------------------------------------------------ files


@pytest.mark.medium
def test_a_file_adds_its_models_with_the_hash_of_its_bytes(mean_mlp: Path) -> None:
    load_plugins([mean_mlp])
    sha256 = hashlib.sha256(mean_mlp.read_bytes()).hexdigest()
    assert MODELS["mean_mlp"].source_hash == sha256 == loaded_plugins()["mean_mlp"].sha256
    assert "mean_mlp" in call("models", "--plugin", mean_mlp).output
    listed = json.loads(call("models", "--json").output)
    (own,) = (one for one in listed if one["model"] == "mean_mlp")
    assert [(p["name"], p["type"], p["default"]) for p in own["parameters"]][1:] == [
        ("width", "int", 32), ("depth", "int", 1)
    ]  # fmt: skip


def test_models_of_a_file_can_be_listed_by_name(tmp_path: Path) -> None:
    file = write(tmp_path / "two.py", f"{MODEL}\nclass Other(Net): pass\nMODELS = {{'mine': Net}}")
    load_plugins([file])
    assert list(loaded_plugins()) == ["mine"]


def test_only_public_modules_of_the_file_that_take_inputs_are_models(tmp_path: Path) -> None:
    text = (
        f"{MODEL}\nclass _Hidden(Net): pass\nclass MyHTTPNet(Net): pass\n"
        "class Layer(nn.Module):\n    def forward(self, x): return x\n"
    )
    load_plugins([write(tmp_path / "some.py", text)])
    assert set(loaded_plugins()) == {"net", "my_http_net"}


def test_a_changed_file_replaces_its_models_and_changes_their_ids(mean_mlp: Path) -> None:
    load_plugins([mean_mlp])
    before = bind("mean_mlp", {}, {}, SPEC)
    other = bind("sft", {"num_heads": 2, "dim": 8}, {}, SPEC).id
    mean_mlp.write_text(mean_mlp.read_text() + "# a comment\n")
    load_plugins([mean_mlp])
    after = bind("mean_mlp", {}, {}, SPEC)
    assert after.id != before.id
    assert (after.model_config.modalities, after.train_config) == (
        before.model_config.modalities, before.train_config
    )  # fmt: skip
    assert bind("sft", {"num_heads": 2, "dim": 8}, {}, SPEC).id == other


def test_a_renamed_file_is_the_same_plugin(mean_mlp: Path) -> None:
    load_plugins([mean_mlp])
    before = bind("mean_mlp", {}, {}, SPEC).id
    load_plugins([mean_mlp.rename(mean_mlp.with_name("renamed.py"))])
    assert bind("mean_mlp", {}, {}, SPEC).id == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nowhere_at_all", r"cannot be imported: ModuleNotFoundError: .*\(line 1\)"),
        ("x = 1\nraise SystemExit(3)", r"cannot be imported: SystemExit: 3 \(line 2\)"),
        ("def broken(:", r"cannot be imported: SyntaxError"),
        ("x = 1", r"has no model: write a class of torch.nn.Module"),
        ("MODELS = {'a': 3}", r"must be a dict of classes of nn.Module"),
        (f"{MODEL}\nMODELS = {{'My Net': Net}}", r"lower-case letters.*'My Net'"),
        (f"{MODEL}\nMODELS = {{'sft': Net}}", r"has the name of a shipped model: rename it"),
    ],
)
def test_a_file_without_usable_models_is_one_line_of_error(
    tmp_path: Path, text: str, message: str
) -> None:
    file = write(tmp_path / "bad.py", text)
    with pytest.raises(PluginFileError, match=message):
        load_plugins([file])
    result = call("models", "--plugin", file)
    assert result.exit_code == 1
    assert len(result.output.strip().splitlines()) == 1
    assert loaded_plugins() == {}


def test_files_that_are_no_plugins_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PluginFileError, match="must be a Python file of at most 1 MB"):
        load_plugins([write(tmp_path / "model.txt", MODEL)])
    with pytest.raises(PluginFileError, match="must be a Python file of at most 1 MB"):
        load_plugins([write(tmp_path / "large.py", f"{MODEL}\n# {'x' * 1_000_001}")])
    with pytest.raises(PluginFileError, match="cannot be read: No such file"):
        load_plugins([tmp_path / "absent.py"])
    with pytest.raises(PluginError, match="Its constructor must begin with"):
        load_plugins([write(tmp_path / "odd.py", MODEL.replace("num_outputs):", "classes):"))])


def test_two_files_cannot_have_a_model_of_one_name(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.py", MODEL), write(tmp_path / "b.py", f"{MODEL}\n")
    with pytest.raises(PluginFileError, match=r"have a 'net': a\.py and b\.py"):
        load_plugins([first, second])


# ------------------------------------------------------------------ studies


def test_check_and_price_know_the_model_of_a_given_file(mean_mlp: Path, tmp_path: Path) -> None:
    """Widths 4 and 8 on 5 features and the classes: (5 + C) times the width."""
    study = write(tmp_path / "own.yaml", STUDY)
    assert call("check", study, "--plugin", mean_mlp).exit_code == 0
    _, _, admission = check_study(study)
    assert admission.table is not None
    macs = sorted(round(1e9 * one.cost.gmacs) for one in admission.table.values())
    assert macs == [width * (5 + len(SPEC.classes)) for width in (4, 8)]


def test_an_unknown_model_says_how_to_add_one_s_own(tmp_path: Path) -> None:
    result = call("check", write(tmp_path / "own.yaml", STUDY))
    assert result.exit_code == 2
    assert "A model of your own needs --plugin." in result.output


def test_a_study_is_refused_without_its_plugin_and_with_another_source(mean_mlp: Path) -> None:
    load_plugins([mean_mlp])
    sha256 = loaded_plugins()["mean_mlp"].sha256
    definition = {"plugins": {"mean_mlp": sha256}}
    facts = plugins.describe_plugins(["mean_mlp", "sft"])
    assert facts == {"plug-in of mean_mlp": f"mean_mlp.py (sha256 {sha256[:12]})"}
    check_plugins("own", definition, facts)
    check_plugins("other", {}, {})
    mean_mlp.write_text(mean_mlp.read_text() + "# a comment\n")
    load_plugins([mean_mlp])
    needed = rf"of the plug-in mean_mlp\.py \(sha256 {sha256[:12]}\)"
    other = r"but got mean_mlp\.py \(sha256 \w{12}\)\. Restore the file"
    with pytest.raises(PluginFileError, match=f"{needed}, {other}"):
        check_plugins("own", definition, facts)
    plugins._loaded.clear()
    with pytest.raises(PluginFileError, match=r"which is not loaded\. Add --plugin FILE"):
        check_plugins("own", definition, facts)


# ------------------------------------------------------------------ workers


def plugin_trial(folder: Path) -> TrialSpec:
    training = {"epochs": 2, "batch_size": 256}
    bound = bind("mean_mlp", {"width": 8}, training, SPEC)
    return trial_spec(
        folder,
        model="mean_mlp",
        parameters={"width": 8},
        training=training,
        cost=MODELS["mean_mlp"].cost(SPEC, bound.model_config).as_dict(),
        plugins=to_json(["mean_mlp"]),
    )


@pytest.mark.medium
def test_a_worker_needs_no_file_of_the_driver(
    mean_mlp: Path, tmp_path: Path, no_plugins: Callable[[], None]
) -> None:
    load_plugins([mean_mlp])
    text = plugin_trial(tmp_path / "trial").to_json()
    no_plugins()
    mean_mlp.unlink()
    worker = TrainingWorker()
    worker.start(TrialSpec.from_json(text))
    final = run(worker)[-1]["final"]
    assert final["values"]["gmacs"] == 8 * (5 + len(SPEC.classes)) / 1e9
    assert final["values"]["parameters"] == 5 * 8 + 8 + 9 * len(SPEC.classes)
    assert (tmp_path / "trial" / WEIGHTS).exists()


@pytest.mark.medium
def test_an_error_in_a_model_is_in_the_trial_s_log_with_its_line(
    tmp_path: Path, no_plugins: Callable[[], None]
) -> None:
    late = MODEL.replace(
        "        return",
        "        if self.training: raise RuntimeError('too tired')\n        return",
    )
    load_plugins([write(tmp_path / "late.py", late)])
    spec = dataclasses.replace(
        trial_spec(tmp_path / "trial", model="net", parameters={}, plugins=to_json(["net"])),
        cost=MODELS["net"].cost(SPEC, bind("net", {}, {}, SPEC).model_config).as_dict(),
    )
    no_plugins()
    worker = TrainingWorker()
    worker.start(spec)
    assert "too tired" in str(run(worker)[-1]["failed"])
    assert "raise RuntimeError('too tired')" in (tmp_path / "trial" / "trial.log").read_text()


def test_only_the_plugins_of_a_trial_s_model_are_sent(mean_mlp: Path, tmp_path: Path) -> None:
    load_plugins([mean_mlp, write(tmp_path / "net.py", MODEL)])
    assert to_json(["sft"]) == []
    assert [one["name"] for one in to_json(["net"])] == ["net.py"]
    assert to_json(["net"])[0]["text"] == MODEL


def test_a_text_that_differs_from_its_hash_is_not_imported(tmp_path: Path) -> None:
    load_plugins([write(tmp_path / "net.py", MODEL)])
    (sent,) = to_json(["net"])
    with pytest.raises(AssertionError):
        load_shipped([sent | {"text": f"{MODEL}\nraise SystemExit"}])


# ------------------------------------------------------------------ installed distributions


def install(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    points: str,
    text: str,
    group: str = "sftsearch.models",
) -> None:
    """Write what pip writes for a package, and put it on the path."""
    info = folder / "own_models-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-models\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{points}\n")
    (folder / "own_models").mkdir()
    (folder / "own_models" / "__init__.py").write_text("")
    (folder / "own_models" / "nets.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    for name in [name for name in sys.modules if name.startswith("own_models")]:
        monkeypatch.delitem(sys.modules, name)


def test_installed_models_are_found_by_their_entry_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", monkeypatch, points="own_net = own_models.nets:Net", text=MODEL)
    assert plugins.load_installed() == ()
    assert loaded_plugins()["own_net"].name == "own-models 1.2"
    study = write(tmp_path / "own.yaml", STUDY.split("  - {")[0] + "  - {kind: own_net}\n")
    assert check_study(study)[0].study.space[0].kind == "own_net"
    (sent,) = to_json(["own_net"])
    assert sent["text"] is None
    load_shipped([sent])
    with pytest.raises(PluginFileError, match=r"does not have the plug-in own-models 1\.2"):
        load_shipped([sent | {"sha256": "0" * 64}])


@pytest.mark.parametrize("group", FUNCTION_GROUPS.values())
def test_installed_functions_are_found_by_their_entry_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str
) -> None:
    install(tmp_path, monkeypatch, points="own = own_models.nets:Net", text=MODEL, group=group)
    assert plugins.load_installed() == ()
    assert loaded_plugins()["own"].name == "own-models 1.2"
    found = [*FUNCTIONS.values(), reader_names()]
    assert ["own" in table for table in found] == [one == group for one in FUNCTION_GROUPS.values()]
    assert "own" not in MODELS


@pytest.mark.medium
def test_every_file_of_an_installed_package_is_in_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_plugins: Callable[[], None]
) -> None:
    install(tmp_path / "site", monkeypatch, points="own_net = own_models.nets:Net", text=MODEL)
    plugins.load_installed()
    before = loaded_plugins()["own_net"].sha256
    no_plugins()
    (tmp_path / "site" / "own_models" / "other.py").write_text("x = 1\n")
    plugins.load_installed()
    assert loaded_plugins()["own_net"].sha256 != before


def test_a_broken_distribution_is_named_and_does_not_stop_other_studies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", monkeypatch, points="a = own_models.nets:Net", text="import nowhere")
    (problem,) = plugins.load_installed()
    assert problem.startswith("The installed plug-in 'own-models' was not loaded: No module named")
    assert metadata.version("own-models") == "1.2"
    study = write(tmp_path / "own.yaml", STUDY.replace("mean_mlp, width", "linear, l2"))
    assert call("check", study).exit_code != 1


# ------------------------------------------------------------------ hostile studies


BOMB = "from pathlib import Path\nPath({path!r}).write_text('imported')\n" + MODEL


def hostile_study(runs: Path, bomb: Path) -> None:
    """Write a journal that names a file wherever a name or a path can be."""
    sha256 = hashlib.sha256(bomb.read_bytes()).hexdigest()
    definition = {
        "dataset": "synthetic", "fingerprint": SPEC.fingerprint, "training": {}, "folds": None,
        "plugins": {"net": sha256, str(bomb): sha256, "../bomb": str(bomb)},
        "space": [{"kind": "net", "plugin": str(bomb), "plugins": [str(bomb)]}],
    }  # fmt: skip
    facts = {"plug-in of net": str(bomb), "fingerprint": SPEC.fingerprint, "plugins": str(bomb)}
    with Journal(runs / "own") as journal:
        journal.append(
            "created", name="own", description="", dataset="synthetic", num_seeds=1, facts=facts,
            objectives=[["top1", "maximize"], ["gflops", "minimize"]], definition=definition,
            definition_hash="",
        )  # fmt: skip
        journal.append("opened", trials=1, slots=1)
        body = {"configuration_id": "abc", "model": "net", "parameters": {"plugin": str(bomb)},
                "cost": {"gflops": 0.5, "gmacs": 0.5, "parameters": 9}}  # fmt: skip
        journal.append("proposed", number=0, branch=0, values={})
        journal.append("admitted", number=0, seeds=[0], **body)
        journal.append("started", trial="abc-0", epoch=0, seed=0, **body)
        values = body["cost"] | {"top1": 0.5}  # type: ignore[operator]
        journal.append("finished", trial="abc-0", values=values, groups={"s": [1, 2]}, facts={})
        journal.append("ended", complete=True, reason="all trials ran")


@pytest.mark.medium
@pytest.mark.parametrize("command", [["status"], ["confirm", "--yes"], ["show"]])
def test_no_command_imports_a_file_that_a_runs_folder_names(
    tmp_path: Path, command: list[str]
) -> None:
    """The file also lies in the study's folder, with the hash that the journal has."""
    mark, runs = tmp_path / "mark", tmp_path / "runs"
    (runs / "own").mkdir(parents=True)
    bomb = write(runs / "own" / "net.py", BOMB.format(path=str(mark)))
    hostile_study(runs, bomb)
    name, *options = command
    result = call(name, "abc" if name == "show" else "own", *options, "--runs", runs)
    assert not mark.exists()
    if name == "confirm":
        assert result.exit_code == 1
        assert "which is not loaded. Add --plugin FILE" in result.output
    else:
        assert result.exit_code == 0, result.output
        assert name != "status" or f"plug-in of net: {bomb}\n" in result.output
    assert mark_front(read_record(runs / "own"), FrontOptions()).points
    assert BoundStudy(read_record(runs / "own")).bind("net", {}) is None
    assert not mark.exists()
    assert loaded_plugins() == {}


@pytest.mark.parametrize(
    "line",
    [
        "  - {kind: net, plugin: PATH}",
        "  - {kind: PATH}",
        "  - {kind: 'net.py:Net'}",
        "  - {kind: net}\nplugins: [PATH]",
        "  - {kind: net}\nsearch: {trials: 1, plugin: PATH}",
        "  - !!python/object/apply:runpy.run_path [PATH]",
    ],
)
def test_no_study_file_imports_a_file_that_it_names(tmp_path: Path, line: str) -> None:
    mark = tmp_path / "mark"
    bomb = write(tmp_path / "net.py", BOMB.format(path=str(mark)))
    text = f"study: {{name: own}}\ndataset: {{kind: synthetic}}\nspace:\n{line}\n"
    study = write(tmp_path / "own.yaml", text.replace("PATH", str(bomb)))
    assert call("check", study).exit_code == 2
    assert not mark.exists()
