"""Commands of `sftsearch data`: list, inspect, verify, prepare and remove datasets."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sftsearch.orchestrator.cli.console import echo_json, print_rows, spinner
from sftsearch.orchestrator.cli.errors import user_errors
from sftsearch.orchestrator.cli.options import json_option, plugin_option, root_option

if TYPE_CHECKING:
    from collections.abc import Callable

    from sftsearch.datasets.prepare import OnBad, OnNaN, Prepared
    from sftsearch.datasets.source import Source
    from sftsearch.datasets.store import Store


@click.group()
def data() -> None:
    """List, inspect, verify, prepare and remove datasets."""


@data.command(name="list")
@click.option("--readers", is_flag=True, help="List the readers of `prepare` instead.")
@plugin_option
@json_option
@user_errors
def data_list(readers: bool, as_json: bool) -> None:
    """List the datasets, built in or prepared on this machine."""
    from sftsearch.datasets.catalog import known_names
    from sftsearch.datasets.reader_catalog import reader, reader_names

    if readers:
        from sftsearch.orchestrator.plugins import load_installed

        load_installed()
        rows = [_reader_row(name, reader(name)) for name in reader_names()]
    else:
        rows = [_dataset_row(name) for name in known_names()]
    if as_json:
        echo_json(rows)
    else:
        print_rows(rows, tuple(name for name in rows[0] if name != "from"))


def _dataset_row(name: str) -> dict[str, object]:
    """Return the row of a dataset, also if its store cannot be read."""
    from sftsearch.datasets.catalog import DATASETS, describe
    from sftsearch.datasets.errors import DatasetError

    row: dict[str, object] = {"dataset": name}
    try:
        spec = describe(name)
    except DatasetError as error:
        row |= dict.fromkeys(("samples", "task", "classes", "modalities"))
        return row | {"license": f"damaged: {error}", "from": "prepared"}
    return row | {
        "samples": sum(spec.num_samples.values()),
        "task": spec.task,
        "classes": len(spec.classes),
        "modalities": ", ".join(spec.modalities),
        "license": spec.licence,
        "from": "built in" if name in DATASETS else "prepared",
    }


def _reader_row(name: str, read: Callable[..., Source]) -> dict[str, object]:
    """Return the row of a reader: what it reads, and its options with their defaults."""
    options = [
        f"{option.name}={option.default}"
        for option in inspect.signature(read).parameters.values()
        if option.kind is option.KEYWORD_ONLY
    ]
    summary = (inspect.getdoc(read) or "").split("\n", 1)[0].rstrip(".")
    return {"reader": name, "options": ", ".join(options), "what it reads": summary}


@data.command(name="info")
@click.argument("name")
@root_option
@click.option(
    "--picture",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.png",
    help="Draw token counts, class balance and a sample of each modality.",
)
@json_option
@user_errors
def data_info(name: str, root: str | None, picture: Path | None, as_json: bool) -> None:
    """Show the content, attribution and license of the dataset NAME."""
    from sftsearch.datasets.catalog import open_dataset

    with spinner(f"opening the dataset '{name}'"):
        store = open_dataset(name, root=root)
    if picture is not None:
        from sftsearch.orchestrator.cli.data_picture import draw

        with spinner("drawing"):
            draw(store, picture)
    if as_json:
        echo_json(store_facts(store))
        return
    print_store(store)
    if picture is not None:
        click.echo(f"{'picture:':<13} {picture}")


@data.command(name="verify")
@click.argument("name")
@root_option
@user_errors
def data_verify(name: str, root: str | None) -> None:
    """Read the dataset NAME completely and compare it with its checksums.

    The exit code is 1 if a file has changed.
    """
    from sftsearch.datasets.catalog import open_dataset
    from sftsearch.datasets.spec import SPLITS
    from sftsearch.datasets.store import verify

    with spinner(f"reading '{name}'"):
        store = open_dataset(name, root=root)
        verify(store)
        for split in SPLITS:
            store.split(split, unseal_test=True)  # checks the format; no value is shown
    click.echo(f"{name}: {len(store.checksums)} files match their checksums ({store.path}).")


# \b keeps click from joining the lines below it.
PREPARE_HELP = """Prepare the dataset NAME from published files or your own.

Study files refer to the dataset by NAME. Memory use stays below a gigabyte, and an interrupted
preparation resumes. `docs/datasets.md` describes the readers.

\b
Examples:
  sftsearch data prepare mosei --from downloads/mosei --nan zero
  sftsearch data prepare vggs10 --reader vggsound --from vgg --option classes=vggs10.txt
  sftsearch data prepare mine --from features.parquet
  sftsearch data prepare needle --reader synthetic_tunable --option telling=1
"""


@data.command(name="prepare", help=PREPARE_HELP, short_help="Prepare a dataset from files.")
@click.argument("name")
@click.option(
    "--from",
    "source",
    type=click.Path(exists=True, path_type=Path),
    help="Published file or folder.",
)
@click.option(
    "--reader",
    "reader_name",
    metavar="READER",
    help="Reader; see `data list --readers`. Default: NAME, or derived from the path.",
)
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of the reader; repeatable.",
)
@click.option(
    "--nan",
    type=click.Choice(["fail", "zero", "drop"]),
    default="fail",
    show_default=True,
    help="On NaN or infinity: raise an error, replace by 0, or drop the sample.",
)
@click.option(
    "--bad",
    type=click.Choice(["fail", "drop"]),
    help="On samples that cannot be used: raise an error that names all, or drop them. Default: "
    "fail, or drop with --nan drop.",
)
@click.option(
    "--to", metavar="URI", help="Also upload the store for other nodes: s3://BUCKET/PREFIX."
)
@plugin_option
@json_option
@user_errors
def data_prepare(
    name: str,
    source: Path | None,
    reader_name: str | None,
    options: tuple[str, ...],
    nan: OnNaN,
    bad: OnBad | None,
    to: str | None,
    as_json: bool,
) -> None:
    """Prepare a dataset; the help is `PREPARE_HELP`."""
    from sftsearch.datasets import catalog, reader_catalog, staging
    from sftsearch.datasets.remote import RemoteFolder
    from sftsearch.orchestrator.plugins import load_installed

    catalog.check_new_name(name)
    for problem in load_installed():
        click.echo(f"Warning: {problem}", err=True)
    if to is not None:
        RemoteFolder(to)  # raises before the long work
    with spinner(f"listing the samples of {source or name}"):
        chosen = reader_name or reader_catalog.reader_for(name, source)
        found = reader_catalog.read_source(chosen, source, options)
    done = _prepare(name, found, source, options, nan, bad)
    store = catalog.open_dataset(name)
    uri = None
    if to is not None:
        with spinner(f"uploading to {to}"):
            uri = staging.publish(store, to)
    if as_json:
        facts: dict[str, object] = {"path": str(done.path), "uri": uri}
        facts |= {"num_samples": done.num_samples, "num_zeroed": done.num_zeroed}
        facts |= {"num_dropped": done.num_dropped, "fingerprint": store.spec.fingerprint}
        echo_json(facts | asdict(done.report))
        return
    print_store(store)
    if done.num_zeroed:
        click.echo(f"{'not finite:':<13} {done.num_zeroed} numbers replaced by 0")
    if uri is not None:
        click.echo(f"{'uploaded to:':<13} {uri}")
        click.echo(f"in a study file: dataset: {{kind: {name}, root: '{to}'}}")


def _prepare(
    name: str,
    found: Source,
    source: Path | None,
    options: tuple[str, ...],
    nan: OnNaN,
    bad: OnBad | None,
) -> Prepared:
    """Prepare a dataset with a progress bar."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from sftsearch.datasets import catalog, prepare

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        total = len(found.samples)
        reading = bar.add_task("reading", total=total)
        writing = bar.add_task("writing", total=total, visible=False)
        return prepare.prepare(
            name,
            found,
            catalog.prepared_folder() / name,
            nan=nan,
            bad=bad,
            revision=prepare.revision_of(source),
            options=options,
            progress=lambda count, total: bar.update(reading, completed=count, total=total),
            writing=lambda count, total: bar.update(
                writing, completed=count, total=total, visible=True
            ),
        )


@data.command(name="remove")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@user_errors
def data_remove(name: str, yes: bool) -> None:
    """Remove the prepared dataset NAME from this machine.

    Its studies are kept and can be reported; to resume one, prepare the dataset again.
    """
    import shutil

    from sftsearch.datasets.catalog import removable

    folder = removable(name)
    if not yes:
        click.confirm(f"Remove {folder}?", abort=True)
    shutil.rmtree(folder)
    click.echo(f"Removed {folder}.")


def store_facts(store: Store) -> dict[str, object]:
    """Return the facts of `data info --json`."""
    spec = store.spec
    return {
        "name": spec.name,
        "description": spec.description,
        "task": spec.task,
        "license": spec.licence,
        "attribution": spec.attribution,
        "source": spec.source,
        "fingerprint": spec.fingerprint,
        "store": str(store.path),
        "modalities": {
            modality: {
                "num_tokens": m.num_tokens,
                "num_features": m.num_features,
                "variable_length": m.variable_length,
            }
            for modality, m in spec.modalities.items()
        },
        "splits": {
            split: {
                "samples": number,
                "subjects": list(spec.subjects[split]),
                "by class": dict(zip(spec.classes, store.class_counts[split], strict=True)),
            }
            for split, number in spec.num_samples.items()
        },
        "best_accuracy": spec.best_accuracy,
    }


def print_store(store: Store) -> None:
    """Print a store as text."""
    spec = store.spec
    facts = {
        "name": spec.name,
        "description": spec.description,
        "task": spec.task,
        "license": spec.licence,
        "attribution": spec.attribution,
        "source": spec.source,
        "fingerprint": spec.fingerprint,
        "store": str(store.path),
    }
    for key, value in facts.items():
        click.echo(f"{key + ':':<13} {value}")
    for modality, m in spec.modalities.items():
        count = f"0 to {m.num_tokens}" if m.variable_length else m.num_tokens
        click.echo(f"modality:     {modality}, {count} tokens x {m.num_features}")
    for split, number in spec.num_samples.items():
        subjects = list(spec.subjects[split])
        people = f", {len(subjects)} subjects" if subjects else ""
        counts = dict(zip(spec.classes, store.class_counts[split], strict=True))
        classes = ", ".join(f"{label} {count}" for label, count in counts.items())
        text = f"{number} samples{people}" + (f"; {classes}" if classes else "")
        click.echo(f"{split + ':':<13} {text}")
    if spec.best_accuracy is not None:
        click.echo(f"best possible test accuracy (Bayes): {spec.best_accuracy:.4f}")
    _print_report(store)


def _print_report(store: Store) -> None:
    """Print what the preparation of a store found, if it has such a report."""
    from sftsearch.datasets.preparation_report import read_report

    report = read_report(store.path)
    if report is None:
        return
    click.echo("")
    rows = [asdict(one) for one in report.coverage]
    print_rows(rows, tuple(rows[0]))
    for warning in report.warnings:
        click.echo(f"warning: {warning}")
