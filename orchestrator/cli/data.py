"""List, check, make and remove data sets: the commands of `sftsearch data`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sftsearch.orchestrator.cli.console import echo_json, print_rows, spinner
from sftsearch.orchestrator.cli.errors import user_errors
from sftsearch.orchestrator.cli.options import json_option, root_option

if TYPE_CHECKING:
    from collections.abc import Callable

    from sftsearch.datasets.prepare import OnNaN, Prepared
    from sftsearch.datasets.source import Source
    from sftsearch.datasets.store import Store


@click.group()
def data() -> None:
    """List, check, make and remove data sets."""


@data.command(name="list")
@click.option("--readers", is_flag=True, help="List what `prepare` can read instead.")
@json_option
@user_errors
def data_list(readers: bool, as_json: bool) -> None:
    """List the data sets, built in or prepared on this machine."""
    from sftsearch.datasets.catalog import READERS, known_names, reader

    if readers:
        rows = [_reader_row(name, reader(name)) for name in sorted(READERS)]
    else:
        rows = [_dataset_row(name) for name in known_names()]
    if as_json:
        echo_json(rows)
    else:
        print_rows(rows, tuple(name for name in rows[0] if name != "from"))


def _dataset_row(name: str) -> dict[str, object]:
    """Return a data set in a line, also where its store cannot be read."""
    from sftsearch.datasets.catalog import DATASETS, describe
    from sftsearch.datasets.errors import DatasetError

    row: dict[str, object] = {"data set": name}
    try:
        spec = describe(name)
    except DatasetError as error:
        row |= dict.fromkeys(("samples", "task", "classes", "modalities"))
        return row | {"licence": f"damaged: {error}", "from": "prepared"}
    return row | {
        "samples": sum(spec.num_samples.values()),
        "task": spec.task,
        "classes": len(spec.classes),
        "modalities": ", ".join(spec.modalities),
        "licence": spec.licence,
        "from": "built in" if name in DATASETS else "prepared",
    }


def _reader_row(name: str, read: Callable[..., Source]) -> dict[str, object]:
    """Return what a reader reads, in a line, and its options with their defaults."""
    options = [
        f"{option.name}={option.default}"
        for option in inspect.signature(read).parameters.values()
        if option.kind is option.KEYWORD_ONLY
    ]
    about = (inspect.getdoc(read) or "").split("\n", 1)[0].rstrip(".")
    return {"reader": name, "options": ", ".join(options), "what it reads": about}


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
    """Say what the data set NAME holds, whose it is, and under which licence."""
    from sftsearch.datasets.catalog import open_dataset

    with spinner(f"opening the data set '{name}'"):
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
    """Read all of the data set NAME, and compare it with its checksums.

    The exit code is 1 where a bit has changed.
    """
    from sftsearch.datasets.catalog import open_dataset
    from sftsearch.datasets.spec import SPLITS
    from sftsearch.datasets.store import verify

    with spinner(f"reading '{name}'"):
        store = open_dataset(name, root=root)
        verify(store)
        for split in SPLITS:
            store.split(split, unseal_test=True)  # its form; nobody sees what is in it
    click.echo(f"{name}: {len(store.checksums)} files are as they were written ({store.path}).")


# \b keeps click from folding the lines below it into one paragraph.
PREPARE_HELP = """Make the data set NAME of published files, or of your own.

NAME is what study files call it. Memory stays below a gigabyte whatever the source has, and an
interrupted preparation goes on where it was. `docs/datasets/` has a page for each reader.

\b
Examples:
  sftsearch data prepare mosei --from downloads/mosei --nan zero
  sftsearch data prepare vggs10 --reader vggsound --from vgg --option classes=vggs10.txt
  sftsearch data prepare mine --from features.parquet
  sftsearch data prepare needle --reader synthetic_tunable --option telling=1
"""


@data.command(name="prepare", help=PREPARE_HELP, short_help="Make a data set of your files.")
@click.argument("name")
@click.option(
    "--from",
    "source",
    type=click.Path(exists=True, path_type=Path),
    help="File or folder, as it was published.",
)
@click.option(
    "--reader",
    "reader_name",
    metavar="READER",
    help="What reads it; see `data list --readers`. Default: NAME, or what the path looks like.",
)
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the reader; may be repeated.",
)
@click.option(
    "--nan",
    type=click.Choice(["fail", "zero", "drop"]),
    default="fail",
    show_default=True,
    help="What becomes of NaN and infinities: an error, 0, or the sample is left out.",
)
@click.option("--to", metavar="URI", help="Also put it there: s3://BUCKET/PREFIX, for other nodes.")
@json_option
@user_errors
def data_prepare(
    name: str,
    source: Path | None,
    reader_name: str | None,
    options: tuple[str, ...],
    nan: OnNaN,
    to: str | None,
    as_json: bool,
) -> None:
    """Make a data set; the help is `PREPARE_HELP`."""
    from sftsearch.datasets import catalog, staging
    from sftsearch.datasets.remote import RemoteFolder

    catalog.check_new_name(name)
    if to is not None:
        RemoteFolder(to)  # raises here, not behind the long work
    with spinner(f"listing the samples in {source or 'nothing'}"):
        chosen = reader_name or catalog.reader_for(name, source)
        found = catalog.read_source(chosen, source, options)
    done = _prepare(name, found, source, nan)
    store = catalog.open_dataset(name)
    uri = None
    if to is not None:
        with spinner(f"writing to {to}"):
            uri = staging.publish(store, to)
    if as_json:
        facts: dict[str, object] = {"path": str(done.path), "uri": uri}
        facts |= {"num_samples": done.num_samples, "num_zeroed": done.num_zeroed}
        echo_json(facts | {"num_dropped": done.num_dropped, "fingerprint": store.spec.fingerprint})
        return
    print_store(store)
    if done.num_zeroed or done.num_dropped:
        text = f"{done.num_zeroed} numbers made 0, {done.num_dropped} samples left out"
        click.echo(f"{'not finite:':<13} {text}")
    if uri is not None:
        click.echo(f"{'put at:':<13} {uri}")
        click.echo(f"in a study file: dataset: {{kind: {name}, root: '{to}'}}")


def _prepare(name: str, found: Source, source: Path | None, nan: OnNaN) -> Prepared:
    """Prepare a data set, with a bar."""
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
        task = bar.add_task("samples", total=len(found.samples))
        return prepare.prepare(
            name,
            found,
            catalog.prepared_folder() / name,
            nan=nan,
            revision=prepare.revision_of(source),
            progress=lambda count, total: bar.update(task, completed=count, total=total),
        )


@data.command(name="remove")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@user_errors
def data_remove(name: str, yes: bool) -> None:
    """Remove the prepared data set NAME from this machine.

    Studies that were run on it stay, and can be reported; to go on with one, prepare it again.
    """
    import shutil

    from sftsearch.datasets.catalog import removable

    folder = removable(name)
    if not yes:
        click.confirm(f"Remove {folder}?", abort=True)
    shutil.rmtree(folder)
    click.echo(f"Removed {folder}.")


def store_facts(store: Store) -> dict[str, object]:
    """Return what `data info` says of a data set."""
    spec = store.spec
    return {
        "name": spec.name,
        "description": spec.description,
        "task": spec.task,
        "licence": spec.licence,
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
    """Print what a store holds for a person."""
    spec = store.spec
    facts = {
        "name": spec.name,
        "description": spec.description,
        "task": spec.task,
        "licence": spec.licence,
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
