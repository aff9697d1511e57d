"""Commands about the studies of a runs folder: list, status and show."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from click.testing import CliRunner, Result

from sftsearch.orchestrator.cli.main import main
from sftsearch.orchestrator.tracking.bookkeeping import Bookkeeping

from journals import Journal, read_events

if TYPE_CHECKING:
    from pathlib import Path


def call(*arguments: str | Path, **more: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], **more)


def test_list_of_an_empty_folder_suggests_a_command(tmp_path: Path) -> None:
    result = call("list", "--runs", tmp_path / "none")
    assert result.exit_code == 0
    assert result.output.endswith("Start with: sftsearch run stride\n")
    assert json.loads(call("list", "--runs", tmp_path, "--json").output) == []


def test_list_shows_counts_of_each_study(runs: Path) -> None:
    (row,) = json.loads(call("list", "--runs", runs, "--json").output)
    assert row == {
        "study": "small", "dataset": "wearables", "finished": 1, "stopped": 0, "failed": 1,
        "running": 0, "refused": {"repeat": 1}, "confirmed": False, "problem": "",
    }  # fmt: skip
    assert call("list", env={"SFTSEARCH_RUNS": str(runs)}).output.split()[-7:] == [
        "small", "wearables", "1", "0", "1", "0", "no",
    ]  # fmt: skip


def test_list_shows_other_studies_if_one_is_damaged(runs: Path) -> None:
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


def test_ui_of_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    result = call("ui", "--runs", tmp_path / "nowhere")
    assert result.exit_code == 2
    assert (
        f"There is no folder '{tmp_path / 'nowhere'}'. Say where the studies are" in result.output
    )
    assert not (tmp_path / "nowhere").exists()


def test_status_gives_counts_and_reasons(runs: Path) -> None:
    text = call("status", "small", "--runs", runs).output
    assert "1 of 4 trials finished, 0 stopped, 1 failed, 0 unfinished" in text
    assert "refused: 1 x repeat\n" in text
    assert "failed:  abc-1  the loss is not finite\n" in text
    output = json.loads(call("status", "small", "--runs", runs, "--json").output)
    assert (output["finished"], output["failed"], output["trials"]) == (1, 1, 4)


def test_status_shows_what_mlflow_lacks_if_known(runs: Path) -> None:
    assert "MLflow" not in call("status", "small", "--runs", runs).output
    output = json.loads(call("status", "small", "--runs", runs, "--json").output)
    assert output["unmirrored"] is None
    last = max(event.id for event in read_events(runs / "small"))
    Bookkeeping("run", through=last - 2).write(runs / "small")
    assert "unfinished; MLflow lacks 2 events.\n" in call("status", "small", "--runs", runs).output
    output = json.loads(call("status", "small", "--runs", runs, "--json").output)
    assert output["unmirrored"] == 2


def test_status_counts_a_stopped_trial_and_show_gives_the_reason(runs: Path) -> None:
    with Journal(runs / "small") as journal:
        journal.append("replicated", configuration_id="abc", seeds=[2])
        body = {"configuration_id": "abc", "model": "sft", "parameters": {}, "cost": {}}
        journal.append("started", trial="abc-2", epoch=0, seed=2, **body)
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
    output = json.loads(call("show", "abc-2", "--runs", runs, "--json").output)
    assert (output["status"], output["epoch"]) == ("stopped", 4)


def test_show_prints_values_and_log_by_a_prefix_of_the_key(runs: Path) -> None:
    text = call("show", "abc-0", "--runs", runs).output
    assert text.startswith("trial abc-0: finished\n")
    assert re.search(r"top1 +0\.75\n", text)
    assert text.endswith("epoch 1\n\n")
    failed = call("show", "abc-1", "--runs", runs).output
    assert failed.startswith("trial abc-1: failed: the loss is not finite\n")
    assert failed.endswith("(no log)\n")
    output = json.loads(call("show", "abc-0", "--runs", runs, "--json").output)
    assert output["values"]["top1"] == 0.75
    ambiguous = call("show", "abc", "--runs", runs)
    assert ambiguous.exit_code == 1
    assert "2 trials' keys begin with 'abc': abc-0 (small), abc-1 (small)." in ambiguous.stderr
