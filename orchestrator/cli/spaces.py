"""Commands about study files and models: check, price, init, models and schema."""

from __future__ import annotations

from pathlib import Path

import click

from sftsearch.orchestrator.cli import console
from sftsearch.orchestrator.cli.console import echo_json, spinner
from sftsearch.orchestrator.cli.errors import user_errors
from sftsearch.orchestrator.cli.options import (
    dataset_option,
    json_option,
    plugin_option,
    root_option,
)


@click.command()
@click.argument("file")
@dataset_option
@root_option
@plugin_option
@json_option
@user_errors
def check(file: str, dataset: str | None, root: str | None, as_json: bool) -> None:
    """Validate the study FILE; report all errors with their lines.

    FILE is a YAML file, or the name of a shipped study. Nothing is trained or written. The exit
    code is 2 if there is an error. If this machine has too few CPUs or GPUs, that is said, too:
    the study may be for a cluster.
    """
    from sftsearch.orchestrator.machine import describe_lack
    from sftsearch.orchestrator.study_file import check_study

    with spinner("checking the study file"):
        source, _, admission = check_study(file, dataset=dataset, root=root)
    study = source.study
    size = len(admission.table) if admission.table is not None else None
    lack = describe_lack(study.resources)
    facts = {
        "study": study.study.name,
        "dataset": study.dataset.kind,
        "trials": study.search.trials,
        "replicates": study.search.replicates.model_dump(),
        "points": admission.num_points if size is not None else None,
        "admissible": size,
        "refused": admission.num_refused,
        "adapted": list(source.adapted),
        "lacking": lack,
    }
    if as_json:
        echo_json(facts)
        return
    space = (
        "a space too large to enumerate" if size is None else f"{size} admissible configurations"
    )
    refused = ", ".join(f"{n} {reason}" for reason, n in admission.num_refused.items())
    for change in source.adapted:
        click.echo(f"adapted: {change}")
    click.echo(
        f"{source.name}: study '{study.study.name}' is valid: {study.search.trials} trials "
        f"({study.search.replicates}) over {space}"
        f"{' (' + refused + ')' if refused else ''} on {study.dataset.kind}."
    )
    if lack:
        click.echo(lack, err=True)


@click.command()
@click.argument("file")
@click.option(
    "--top", default=20, type=click.IntRange(min=1), show_default=True, help="Number of rows."
)
@click.option("--no-time", is_flag=True, help="Skip all measurements of time.")
@dataset_option
@root_option
@plugin_option
@json_option
@user_errors
def price(
    file: str, top: int, no_time: bool, dataset: str | None, root: str | None, as_json: bool
) -> None:
    """Compute the costs of the configurations of the study FILE.

    Costs are exact closed forms; nothing is trained. The training time is estimated from a few
    training steps on this machine. The rows are evenly spaced from the cheapest to the most
    expensive configuration; --json prints all.

    For a study of a paper's table, the paper's costs are shown beside ours; for `cost` also its
    memory and times, which takes about a minute more.
    """
    from rich.console import Console

    from sftsearch.orchestrator.pricing import costs
    from sftsearch.orchestrator.study_file import check_study

    with spinner("computing costs"):
        source, spec, admission = check_study(file, dataset=dataset, root=root)
    console = Console()
    estimate = None
    if not no_time:
        with spinner("measuring a few training steps"):
            estimate = costs.estimate_time(source, spec, admission)
    listing = costs.list_prices(admission)
    with spinner(counting := "counting the memory of the paper's models") as status:
        memory = costs.count_paper_memory(
            source, lambda done, of: status.update(f"{counting}: {done} of {of}")
        )
    times = None
    if not no_time:
        with spinner(timing := "timing the paper's models, for about a minute") as status:
            times = costs.time_paper(
                source, lambda done, of: status.update(f"{timing}: {done} of {of}")
            )
    if as_json:
        echo_json(costs.as_json(listing, admission, estimate, source, memory, times))
    else:
        console.print(costs.rich_table(listing, admission, estimate, top))
        described = costs.describe(listing, source, admission, estimate, memory, times)
        console.print(described, highlight=False)


@click.command(
    epilog="\b\nExample:\n"
    "  sftsearch data prepare mine --from features.parquet\n"
    "  sftsearch init mine\n"
    "  sftsearch run stride_mine.yaml"
)
@click.argument("dataset")
@click.option(
    "--study",
    "like",
    default="stride",
    show_default=True,
    help="Study file to adapt: name or path.",
)
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write [default: STUDY_DATASET.yaml].",
)
@root_option
@plugin_option
@user_errors
def init(dataset: str, like: str, out: Path | None, root: str | None) -> None:
    """Write a study file for DATASET.

    It is a shipped study adapted to the dataset, the same as `run STUDY --dataset DATASET` uses.
    An existing file is not overwritten.
    """
    from sftsearch.orchestrator.study_file import check_study, write_study_file

    with spinner("checking the study file"):
        source, spec, _ = check_study(like, dataset=dataset, root=root)
    path = write_study_file(source, spec, out or Path(f"{source.study.study.name}.yaml"))
    for change in source.adapted:
        click.echo(f"adapted: {change}")
    click.echo(f"Wrote {path}. Edit it, then: sftsearch check {path}")


@click.command()
@plugin_option
@json_option
@user_errors
def models(as_json: bool) -> None:
    """List the fusion models and their parameters.

    Each parameter has its type and default. A study file sets it to a value or to a range to
    search.
    """
    from sftsearch.trainables.config import TrainConfig
    from sftsearch.trainables.models.source import describe_fields, read_models

    found = read_models()
    if as_json:
        echo_json(
            [
                {"model": model.name, "paper": model.paper, "parameters": model.parameters}
                for model in found
            ]
        )
        return
    for model in found:
        click.echo(f"{model.name}  ({model.paper})")
        console.print_parameters(model.parameters)
    click.echo("training parameters of every model:")
    console.print_parameters(describe_fields(TrainConfig))


@click.command()
@user_errors
def schema() -> None:
    """Print the JSON Schema of study files.

    Editors use it to validate and complete YAML: save the output, and refer to it in the first
    line of a study file, `# yaml-language-server: $schema=study.schema.json`.
    """
    from sftsearch.search_spaces.schema import StudyFile

    echo_json(StudyFile.model_json_schema())
