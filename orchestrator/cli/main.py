"""The command line: each command parses, calls one function, prints, and sets the exit code.

Exit codes: 0 all is well; 1 something went wrong; 2 the command or the study file is wrong; 130
interrupted. Heavy imports (Ray, torch, MLflow) are inside the commands, so that `--help` answers at
once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sftsearch.orchestrator.cli import console
from sftsearch.orchestrator.cli.data import data
from sftsearch.orchestrator.cli.options import (
    dataset_option,
    echo_json,
    json_option,
    root_option,
    runs_option,
    spinner,
    uri_option,
    user_errors,
)

if TYPE_CHECKING:
    from sftsearch.orchestrator.storage.study_record import StudyRecord

MAX_PAGES = 10
"""Studies whose pages `ui` names."""
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def _read_study(name: str, runs: Path, tracking_uri: str | None) -> StudyRecord:
    """Read a study from its journal where that is here, else from MLflow."""
    from sftsearch.orchestrator.studies import find_study, list_studies, read_record
    from sftsearch.orchestrator.tracking.reader import read_study

    if tracking_uri is None or name in {folder.name for folder in list_studies(runs)}:
        return read_record(find_study(name, runs))
    return read_study(tracking_uri, name, runs)


# \b keeps click from folding the lines below it into one paragraph.
HELP = """Find the Pareto front of accuracy against compute for multimodal fusion models.

\b
A first walk:
  sftsearch check  stride     read a study file and say all its mistakes
  sftsearch price  stride     what its configurations cost, untrained
  sftsearch run    stride     search; --resume goes on after any interruption
  sftsearch pareto stride     write the front as a page and as files
  sftsearch confirm stride    look at the test split, once
  sftsearch ui                browse every trial in MLflow
"""


@click.group(context_settings=CONTEXT, help=HELP)
@click.version_option(package_name="sftsearch")
def main() -> None:
    """Hold the commands together; the help is `HELP`."""


main.add_command(data)


@main.command()
@click.argument("file")
@click.option(
    "--resume", is_flag=True, help="Go on with a study that has begun; extend one that ended."
)
@click.option("--address", metavar="ADDRESS", help="A Ray cluster; `auto`: the one started here.")
@click.option("--ship-code", is_flag=True, help="Send this sftsearch to the cluster's nodes.")
@dataset_option
@root_option
@runs_option
@uri_option
@json_option
@user_errors
def run(
    file: str,
    resume: bool,
    address: str | None,
    ship_code: bool,
    dataset: str | None,
    root: str | None,
    runs: Path,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    """Search the study FILE and report its front.

    FILE is a YAML file, or the name of a shipped study. Trials are recorded in the study's journal
    and in MLflow; whatever interrupts the search, the same command with --resume goes on where it
    stopped.

    Ctrl-C once adds no more trials, finishes those that run and reports; twice stops now. A study
    that has ended goes on with --resume too, when FILE asks for more: `search.trials`,
    `max_epochs`, `max_hours`, `max_gpu_hours`.
    """
    from rich.console import Console

    from sftsearch.orchestrator.cli.progress import ConsoleProgress
    from sftsearch.orchestrator.study import run_study

    if ship_code and address is None:
        raise click.UsageError("--ship-code is for a cluster: name it with --address.")
    with ConsoleProgress(Console(stderr=as_json)) as callback:
        result = run_study(
            file,
            runs=runs,
            resume=resume,
            tracking_uri=tracking_uri,
            address=address,
            ship_code=ship_code,
            dataset=dataset,
            root=root,
            callback=callback,
        )
    where = console.where_options(runs, tracking_uri)
    if as_json:
        echo_json(console.result_as_json(result) | {"ended": result.reason})
    else:
        console.print_result(result, where)
        if result.complete:
            click.echo(f"Ended: {result.reason}.")
    if not result.complete:
        click.echo(f"Interrupted. Go on with: sftsearch run {file} --resume{where}", err=True)
        sys.exit(130)
    if not any(trial.status == "finished" for trial in result.record.trials):
        raise click.ClickException("No trial finished: see the reasons above, or `sftsearch show`.")


@main.command()
@click.argument("file")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="T.parquet",
    help="The table to write, when everything is trained.",
)
@click.option(
    "--near",
    default=60,
    type=click.IntRange(min=0),
    show_default=True,
    help="How many configurations nearest the front get more replicates.",
)
@click.option(
    "--near-replicates",
    default=20,
    type=click.IntRange(min=1),
    show_default=True,
    help="How many replicates those have in the end.",
)
@runs_option
@uri_option
@user_errors
def table(
    file: str, out: Path, near: int, near_replicates: int, runs: Path, tracking_uri: str | None
) -> None:
    """Train the whole space of the study FILE into a table.

    FILE has the sampler `exhaustive` and a fixed number of replicates. Every epoch of every trial
    is recorded; then the configurations nearest the front get more replicates, for there a search
    must tell small differences. After any interruption the same command goes on.

    Searches are measured on the table with `sftsearch simulate`. The trials look at the test split,
    so such a study is never confirmed.
    """
    from rich.console import Console

    from sftsearch.orchestrator.benchmark.record import record_table
    from sftsearch.orchestrator.benchmark.table import read_table
    from sftsearch.orchestrator.cli.progress import ConsoleProgress

    more = {"near": near, "near_replicates": near_replicates}
    with ConsoleProgress(Console()) as callback:
        complete = record_table(
            file, out, runs=runs, tracking_uri=tracking_uri, callback=callback, **more
        )
    if not complete:
        click.echo("Interrupted. Go on with the same command.", err=True)
        sys.exit(130)
    recorded = read_table(out)
    replicates = recorded.num_replicates
    click.echo(
        f"{out}: {len(recorded.ids)} configurations, {replicates.min()} to {replicates.max()} "
        f"replicates, {recorded.num_epochs} epochs: {replicates.sum() * recorded.num_epochs:,} "
        f"rows, {out.stat().st_size / 1e6:.2f} MB."
    )
    click.echo(f"Next:   sftsearch simulate {file} --table {out}")


@main.command()
@click.argument("file")
@click.option(
    "--table",
    "table_file",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="T.parquet",
    help="What training would give, as `sftsearch table` recorded it.",
)
@click.option(
    "--workers",
    default=4,
    type=click.IntRange(1, 100_000),
    show_default=True,
    help="Trials that run at a time, asynchronously.",
)
@click.option(
    "--repetitions",
    type=click.IntRange(1, 1_000_000),
    help="Simulate so many times with other seeds and replicates; print means.",
)
@json_option
@user_errors
def simulate(
    file: str, table_file: Path, workers: int, repetitions: int | None, as_json: bool
) -> None:
    """Run the study FILE on a recorded table, in seconds.

    It is the very same search with a simulated clock: trials take as long as they took when the
    table was recorded. FILE has the space and the training of the table, or a part of that space,
    and whichever sampler, stopping and replicates are to be measured.

    The budget regret is how far the reported front lies below the best of the table, on average
    over all budgets (the logarithm of the cost).
    """
    from sftsearch.orchestrator.benchmark import regret
    from sftsearch.orchestrator.benchmark.table import read_table
    from sftsearch.orchestrator.studies import check_study

    with spinner("reading the study file and the table"):
        source, _, admission = check_study(file)
        recorded = read_table(table_file)
    with spinner("simulating"):
        measured = regret.measure(
            source, admission, recorded, workers=workers, repetitions=repetitions
        )
    accuracy, cost = regret.axes_of(source)
    if as_json:
        echo_json(measured)
        return
    rows = regret.front_rows(measured, accuracy, cost)
    if rows:
        console.print_rows(rows, tuple(rows[0]))
        click.echo()
    click.echo(regret.describe(measured, accuracy))


@main.command()
@click.argument("file")
@dataset_option
@root_option
@json_option
@user_errors
def check(file: str, dataset: str | None, root: str | None, as_json: bool) -> None:
    """Read the study FILE and say all its mistakes, each with its line.

    FILE is a YAML file, or the name of a shipped study. Nothing is trained or written. The exit
    code is 2 where there is a mistake.
    """
    from sftsearch.orchestrator.studies import check_study

    with spinner("checking the study file"):
        source, _, admission = check_study(file, dataset=dataset, root=root)
    study = source.study
    size = len(admission.table) if admission.table is not None else None
    facts = {
        "study": study.study.name,
        "dataset": study.dataset.kind,
        "trials": study.search.trials,
        "replicates": study.search.replicates.model_dump(),
        "points": admission.num_points if size is not None else None,
        "admissible": size,
        "refused": admission.num_refused,
    }
    if as_json:
        echo_json(facts)
        return
    space = "a space too large to list" if size is None else f"{size} admissible configurations"
    refused = ", ".join(f"{n} {reason}" for reason, n in admission.num_refused.items())
    click.echo(
        f"{source.name}: study '{study.study.name}' is well-formed: {study.search.trials} trials "
        f"({study.search.replicates}) over {space}"
        f"{' (' + refused + ')' if refused else ''} on {study.dataset.kind}."
    )


@main.command()
@click.argument("file")
@click.option("--top", default=20, type=click.IntRange(min=1), show_default=True, help="Rows.")
@click.option("--no-time", is_flag=True, help="Skip the measurement behind the estimated time.")
@dataset_option
@root_option
@json_option
@user_errors
def price(
    file: str, top: int, no_time: bool, dataset: str | None, root: str | None, as_json: bool
) -> None:
    """Price the configurations of the study FILE, untrained.

    Costs are exact closed forms; the time is estimated from some training steps measured here and
    now. The rows shown go evenly from the cheapest configuration to the dearest; --json has all.
    """
    from rich.console import Console

    from sftsearch.orchestrator.pricing import costs
    from sftsearch.orchestrator.studies import check_study

    with spinner("pricing the space"):
        source, spec, admission = check_study(file, dataset=dataset, root=root)
    console = Console()
    estimate = None
    if not no_time:
        with spinner("measuring some training steps"):
            estimate = costs.estimate_time(source, spec, admission)
    listing = costs.list_prices(admission)
    if as_json:
        echo_json(costs.as_json(listing, admission, estimate, source))
    else:
        console.print(costs.rich_table(listing, admission, estimate, top))
        console.print(costs.describe(listing, source, admission, estimate), highlight=False)


@main.command()
@click.argument("study")
@click.option("--x", default=None, help="Cost axis. Default: the study's.")
@click.option("--y", default=None, help="Accuracy axis. Default: the study's.")
@click.option(
    "--by",
    multiple=True,
    help="Parameter that sets families apart, beside the model; may be repeated. "
    "Default: those that tell the study's branches apart.",
)
@click.option("--max-gflops", type=float, help="Leave out configurations that cost more.")
@click.option("--top", type=click.IntRange(min=1), help="Rows of the table, the best by accuracy.")
@click.option(
    "--thin",
    is_flag=True,
    help="Leave out front points where one hardly dearer (2 %) is hardly worse (half a point).",
)
@click.option(
    "--format",
    "formats",
    multiple=True,
    default=("html", "csv", "json", "markdown", "png"),
    help="html, csv, json, markdown or png; may be repeated. Default: all.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the files. Default: the study's folder, or STUDY-report.",
)
@runs_option
@uri_option
@json_option
@user_errors
def pareto(
    study: str,
    x: str | None,
    y: str | None,
    by: tuple[str, ...],
    max_gflops: float | None,
    top: int | None,
    thin: bool,
    formats: tuple[str, ...],
    out: Path | None,
    runs: Path,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    """Write the front of STUDY as a page and as files.

    It is read from MLflow alone, so it also works where the runs folder is not, by --tracking-uri.
    """
    from rich.console import Console

    from sftsearch.orchestrator.report import formats as report
    from sftsearch.orchestrator.studies import axes_of
    from sftsearch.orchestrator.tracking.client import default_uri
    from sftsearch.orchestrator.tracking.reader import read_study

    uri = tracking_uri or default_uri(runs)
    record = read_study(uri, study, runs)
    cost, accuracy = axes_of(record)
    axes: dict[str, Any] = {"x": x or cost, "y": y or accuracy}
    axes |= {"by": by or None, "max_gflops": max_gflops, "top": top, "thin": thin}
    beside = runs / study
    folder = out or (beside / "report" if beside.is_dir() else Path(f"{study}-report"))
    front = report.summarise(record, **axes)
    files = report.write(record, formats, folder, **axes)
    if as_json:
        click.echo(report.to_json(front))
        return
    console = Console()
    console.print(report.rich_table(front))
    console.print()
    for file in files:
        console.print(str(file), highlight=False, soft_wrap=True)


@main.command()
@click.argument("a")
@click.argument("b", required=False)
@click.option(
    "--families",
    nargs=2,
    metavar="NAME NAME",
    help="Compare two families of study A instead, by their names in its report.",
)
@runs_option
@uri_option
@json_option
@user_errors
def compare(
    a: str,
    b: str | None,
    families: tuple[str, str] | None,
    runs: Path,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    """Say which of two studies is better, A or [B].

    At equal inference cost, the best that each has for it; at equal tuning, the expected best of as
    many configurations, and of as many as each trains in the same time. Each with the probability
    that A is better. The two must be of the same data, folds and metrics.
    """
    import dataclasses

    from sftsearch.orchestrator.analysis import compare as comparisons

    if (b is None) == (families is None):
        raise click.UsageError("Name a second study, or two families with --families.")
    first = _read_study(a, runs, tracking_uri)
    if families is not None:
        found = comparisons.compare_families(first, families)
    else:
        found = comparisons.compare_studies(first, _read_study(str(b), runs, tracking_uri))
    if as_json:
        echo_json(dataclasses.asdict(found))
    else:
        console.print_comparison(found)


@main.command()
@click.argument("study")
@runs_option
@uri_option
@json_option
@user_errors
def confirm(study: str, runs: Path, tracking_uri: str | None, as_json: bool) -> None:
    """Evaluate the front of STUDY on the test split, once.

    The look is recorded; a second call shows what the first one saw. Afterwards the study takes no
    further trials.
    """
    from rich.console import Console

    from sftsearch.orchestrator.confirm import confirm_study
    from sftsearch.orchestrator.report import formats as report
    from sftsearch.orchestrator.studies import axes_of, find_study, mirror_study

    console = Console(stderr=as_json)
    folder = find_study(study, runs)
    with console.status("evaluating the front on the test split ..."):
        record = confirm_study(folder)
        problem = mirror_study(folder, runs, tracking_uri)
    x, y = axes_of(record)
    front = report.summarise(record, x=x, y=y)
    files = report.write(record, tuple(report.FORMATS), folder / "report", x=x, y=y)
    if as_json:
        click.echo(report.to_json(front))
    else:
        console.print(report.test_table(front))
        console.print(f"\nReport: {files[0]}", highlight=False, soft_wrap=True)
    if problem:
        click.echo(f"MLflow lacks the test figures ({problem}); call this again later.", err=True)


@main.command()
@click.option(
    "--port",
    default=5000,
    type=click.IntRange(1, 65535),
    show_default=True,
    help="Where it listens.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address of this machine at which it listens; 0.0.0.0: all of them.",
)
@click.option(
    "--login",
    is_flag=True,
    help="Ask for a name and a password; the first user's is $MLFLOW_AUTH_ADMIN_PASSWORD.",
)
@click.option(
    "--without-login", is_flag=True, help="Let other machines in without asking for anything."
)
@runs_option
@uri_option
@user_errors
def ui(
    port: int, host: str, login: bool, without_login: bool, runs: Path, tracking_uri: str | None
) -> None:
    """Open the MLflow UI on the store of the runs folder. Ctrl-C ends it.

    Only this machine reaches it, unless --host says otherwise.
    """
    from sftsearch.orchestrator.tracking import ui
    from sftsearch.orchestrator.tracking.client import default_uri, masked

    uri = tracking_uri or default_uri(runs)
    if uri.startswith(("http:", "https:")):
        where = masked(uri)
        click.echo(f"The MLflow server of these studies is {where}: open it in a browser.")
        return
    if host not in ("127.0.0.1", "localhost", "::1") and not (login or without_login):
        raise click.UsageError(
            f"With --host {host} everybody who reaches port {port} of this machine could read, "
            "change and delete all studies. Add --login, or --without-login if that is meant."
        )
    pages = ui.pages_of_studies(uri, runs)
    click.echo(f"MLflow UI of {masked(uri)} on http://{host}:{port} (Ctrl-C ends it)")
    for name, page in list(pages.items())[:MAX_PAGES]:
        click.echo(f"  {name}: http://{host}:{port}/{page}")
    sys.exit(ui.serve_ui(uri, runs, port, host=host, login=login))


@main.command(name="list")
@runs_option
@json_option
@user_errors
def list_(runs: Path, as_json: bool) -> None:
    """List the studies of the runs folder."""
    from sftsearch.orchestrator.storage.runs_folder import describe_runs_folder
    from sftsearch.orchestrator.studies import list_studies

    rows = [console.study_row(folder) for folder in list_studies(runs)]
    if as_json:
        echo_json(rows)
    elif not rows:
        click.echo(
            f"No studies in '{describe_runs_folder(runs)}'. Begin with: sftsearch run stride"
        )
    else:
        console.print_rows(
            rows, ("study", "dataset", "finished", "stopped", "failed", "running", "confirmed")
        )
        for row in rows:
            if row["problem"]:
                click.echo(f"{row['study']}: {row['problem']}", err=True)


@main.command()
@click.argument("study")
@runs_option
@json_option
@user_errors
def status(study: str, runs: Path, as_json: bool) -> None:
    """Show how far STUDY is, and what failed.

    Trials by state, failed ones with their reasons, refused proposals, how often stopping trials
    would have been wrong, and what MLflow lacks.
    """
    from sftsearch.orchestrator.studies import find_study, read_record, read_state

    folder = find_study(study, runs)
    record, state = read_record(folder), read_state(folder)
    facts = {"study": record.name, "folder": str(folder), **state, **console.counts(record)}
    if as_json:
        echo_json(facts)
        return
    click.echo(f"{record.name}: {state['state']} ({folder})")
    click.echo(
        f"{facts['finished']} of {state['trials']} trials finished, {facts['stopped']} stopped, "
        f"{facts['failed']} failed, {facts['running']} unfinished; MLflow lacks "
        f"{state['unmirrored']} events."
    )
    for line in console.concluded(record):
        click.echo(line)
    for reason, number in record.refused.items():
        click.echo(f"refused: {number} x {reason}")
    for trial in record.trials:
        if trial.status == "failed":
            click.echo(f"failed:  {trial.key}  {trial.reason}")


@main.command()
@click.argument("trial")
@runs_option
@json_option
@user_errors
def show(trial: str, runs: Path, as_json: bool) -> None:
    """Show one TRIAL with its values and its log.

    TRIAL is a trial's key, or the beginning of it; reports and `sftsearch status` name them.
    """
    import dataclasses

    from sftsearch.orchestrator.studies import find_trial

    record, folder, log = find_trial(trial, runs)
    if as_json:
        echo_json(dataclasses.asdict(record) | {"folder": str(folder), "log": log})
        return
    when = "" if record.epoch is None else f" after epoch {record.epoch}"
    why = f": {record.reason}" if record.reason else ""
    click.echo(f"trial {record.key}: {record.status}{when}{why}")
    click.echo(f"{record.model} {json.dumps(record.configuration)} seed {record.seed}")
    for name, value in record.values.items():
        click.echo(f"  {name:<18} {value:.6g}")
    click.echo(f"{folder}\n")
    click.echo(log or "(no log)")


@main.command()
@click.argument("study")
@click.option("--yes", is_flag=True, help="Do not ask.")
@runs_option
@uri_option
@user_errors
def delete(study: str, yes: bool, runs: Path, tracking_uri: str | None) -> None:
    """Delete STUDY with its weights, here and in MLflow.

    A study that runs is left alone. MLflow keeps what was deleted until `mlflow gc`.
    """
    from sftsearch.orchestrator.studies import delete_study, find_study

    folder = find_study(study, runs)
    if not yes:
        click.confirm(f"Delete '{folder}' and its experiment in MLflow?", abort=True)
    problem = delete_study(folder, runs, tracking_uri)
    click.echo(f"Deleted {folder}.")
    if problem:
        click.echo(f"MLflow still has the study: {problem}", err=True)


@main.command()
@json_option
@user_errors
def models(as_json: bool) -> None:
    """List the fusion models and their parameters.

    Each parameter with its type and default; a study file gives one a value, or a range to search.
    """
    from sftsearch.orchestrator.candidates.binding import describe_models

    rows = describe_models()
    if as_json:
        echo_json(rows)
        return
    for row in rows:
        click.echo(f"{row['model']}  ({row['paper']})")
        console.print_parameters(row["parameters"])
    click.echo("every model also takes the parameters of training:")
    console.print_parameters(describe_models(training=True)[0]["parameters"])


@main.command()
@user_errors
def schema() -> None:
    """Print the JSON Schema of study files.

    Editors use it to check YAML while you type: save it, and name it in a study file's first line,
    `# yaml-language-server: $schema=study.schema.json`.
    """
    from sftsearch.search_spaces.schema import StudyFile

    echo_json(StudyFile.model_json_schema())
