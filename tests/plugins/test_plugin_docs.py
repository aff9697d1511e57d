"""The code of docs/plugins.md runs as printed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from sftsearch.datasets.catalog import describe, open_dataset
from sftsearch.orchestrator.candidates.binding import bind
from sftsearch.orchestrator.cli.main import main
from sftsearch.orchestrator.plugins import FUNCTION_GROUPS, GROUP, load_plugins
from sftsearch.orchestrator.study_file import check_study
from sftsearch.trainables import plugin_checks
from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.own_fit import begin_fit

PAGE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.medium
def test_the_page_s_commands_run_on_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`run` and `confirm` only up to their options: test_plugin_study.py runs both."""
    monkeypatch.chdir(tmp_path)
    for text in (*blocks("python"), *blocks("yaml")):
        name = text.splitlines()[0].removeprefix("# ")
        Path(name).write_text(text)
    commands = [line.split()[1:] for line in blocks("sh")[0].splitlines()]
    assert [command[0] for command in commands] == ["check-model", "check", "run", "confirm"]
    for command in commands:
        more = ["--help"] if command[0] in ("run", "confirm") else []
        result = CliRunner().invoke(main, [*command, *more])
        assert result.exit_code == 0, result.output
    _, spec, admission = check_study("my_study.yaml")
    assert admission.table is not None
    features = sum(one.num_features for one in spec.modalities.values())
    macs = {
        one.configuration.model_config.width: round(1e9 * one.cost.gmacs)  # type: ignore[attr-defined]
        for one in admission.table.values()
        if one.configuration.model == "my_model" and one.configuration.parameters["depth"] == 1
    }
    assert macs == {width: width * (features + spec.num_outputs) for width in range(8, 129, 8)}
    assert MODELS["my_model"].source_hash
    load_plugins(["my_training.py"])
    training = {"trainer": "rms", "training_loss": "focal", "epochs": 2, "learning_rate": 0.01}
    spec = describe("synthetic")
    bound = bind("my_model", {}, training, spec)
    model = build_model("my_model", spec, bound.model_config, seed=0)
    fit = begin_fit(model, open_dataset("synthetic"), bound.train_config, seed=0)
    assert fit.run_epoch()["train_loss"] > fit.run_epoch()["train_loss"]
    fit.close()


def test_the_page_lists_every_check_and_the_entry_points() -> None:
    section = PAGE.split("## check-model")[1].split("\n## ")[0]
    listed = re.findall(r"^\| ([a-z ]+) \| ", section, flags=re.MULTILINE)
    assert listed[1:] == ["signature", "price", *plugin_checks._CHECKS]
    (points,) = blocks("toml")
    assert list(tomllib.loads(points)["project"]["entry-points"]) == [
        GROUP, *FUNCTION_GROUPS.values()
    ]  # fmt: skip
