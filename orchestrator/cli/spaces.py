"""Look at study files and what they may search: check, price, models and schema."""

from __future__ import annotations

import click

from sftsearch.orchestrator.cli import console
from sftsearch.orchestrator.cli.console import echo_json, spinner
from sftsearch.orchestrator.cli.errors import user_errors
from sftsearch.orchestrator.cli.options import dataset_option, json_option, root_option


@click.command()
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


@click.command()
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


@click.command()
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


@click.command()
@user_errors
def schema() -> None:
    """Print the JSON Schema of study files.

    Editors use it to check YAML while you type: save it, and name it in a study file's first line,
    `# yaml-language-server: $schema=study.schema.json`.
    """
    from sftsearch.search_spaces.schema import StudyFile

    echo_json(StudyFile.model_json_schema())
